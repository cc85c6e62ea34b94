"""bitbert-data: build MLM + NSP token shards from a corpus."""

from typing import Annotated

import typer

from bitbert.config import load_config
from bitbert.errors import run_door

from .config import DataConfig
from .write_shards import build_shards

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def build(
    config: Annotated[str, typer.Argument(help="YAML file of one build, e.g. configs/data_prep/demo.yaml.", metavar="CONFIG")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys to change, e.g. max_length=512 output=runs/shards.", metavar="[KEY=VALUE]...")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Build again where the output exists; the old one goes only when the new is whole.")] = False,
) -> None:
    """Build token shards: documents -> sentences -> next-sentence pairs -> Arrow files with a manifest.

    The output folder gets train/ and heldout/ (shards that pandas, DuckDB and datasets open), report.json and the
    resolved config.yaml. It appears whole or not at all.

    Example: bitbert-data configs/data_prep/demo.yaml output=runs/shards
    """
    resolved = load_config(DataConfig, config, overrides)
    report = build_shards(resolved, replace=replace)
    for split in ("train", "heldout"):
        numbers = report[split]
        typer.echo(f"{split}: {numbers['documents']} documents, {numbers['rows']} rows, {numbers['tokens']} tokens")
    typer.echo(f"shards are in {resolved.output}")


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()

"""bitbert-data: build token shards and tokenizers from a corpus, and check shards."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bitbert.config import config_yaml, load_config
from bitbert.errors import UserError, run_door
from bitbert.shards import verify_shards

from .config import DataConfig, TokenizerConfig
from .splits import SPLITS
from .train_tokenizer import train_tokenizer
from .write_shards import Share, build_shards, build_share, describe_build

_DEFAULT_COMMAND = "build"


class _DefaultCommandGroup(TyperGroup):
    """``bitbert-data CONFIG`` is ``bitbert-data build CONFIG``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((argument for argument in args if not argument.startswith("-")), None)
        if first is not None and first not in self.commands:
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DefaultCommandGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Config = Annotated[str, typer.Argument(help="YAML file, e.g. configs/data_prep/demo.yaml.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change, e.g. seed=7 output=runs/other.", metavar="[KEY=VALUE]..."),
]
Replace = Annotated[
    bool,
    typer.Option("--replace", help="Make again where the output exists; the old one goes only when the new is whole."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; by default one a usable core. The bytes do not depend on it."),
]


@app.callback()
def _group() -> None:
    """Data preparation for BERT pretraining. `bitbert-data CONFIG` is short for `bitbert-data build CONFIG`."""


@app.command()
def build(
    config: Config,
    overrides: Overrides = None,
    replace: Replace = False,
    workers: Workers = None,
    task_index: Annotated[int | None, typer.Option(min=0, help="Do only this array task's share; see finish.")] = None,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="Number of array tasks.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be read, and stop.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the config alone, print it resolved, and stop.")
    ] = False,
) -> None:
    """Build token shards: documents -> sentences -> next-sentence pairs -> Arrow files with a manifest.

    The output folder gets train/ and heldout/ (shards that pandas, DuckDB and datasets open), report.json,
    report.html and the resolved config.yaml. It appears whole or not at all; run the same command again to
    continue a build that was killed.

    Example: bitbert-data configs/data_prep/demo.yaml output=runs/shards

    On a cluster: bitbert-data CONFIG --task-index $SLURM_ARRAY_TASK_ID --num-tasks 16, and then
    bitbert-data finish CONFIG
    """
    if (task_index is None) != (num_tasks is None):
        raise UserError("--task-index and --num-tasks go together; give both or none")
    resolved = load_config(DataConfig, config, overrides)
    if check:
        typer.echo(config_yaml(resolved), nl=False)
        return
    if dry_run:
        typer.echo(describe_build(resolved))
        return
    if task_index is not None and num_tasks is not None:
        if task_index >= num_tasks:
            raise UserError(f"--task-index {task_index}, wanted 0 to {num_tasks - 1}; number the array from 0")
        if replace:
            raise UserError("--replace belongs to `bitbert-data finish`: one task must not remove what another one did")
        typer.echo(build_share(resolved, Share(task_index, num_tasks), workers=workers))
        return
    _build_whole(resolved, replace=replace, workers=workers)


@app.command()
def finish(config: Config, overrides: Overrides = None, replace: Replace = False, workers: Workers = None) -> None:
    """Do what the array tasks of a build left, merge their shares and put the output in place.

    Tasks that failed are made up for here.

    Example: bitbert-data finish configs/data_prep/demo.yaml output=runs/shards
    """
    _build_whole(load_config(DataConfig, config, overrides), replace=replace, workers=workers)


def _build_whole(config: DataConfig, *, replace: bool, workers: int | None) -> None:
    report = build_shards(config, replace=replace, workers=workers)
    for split in SPLITS:
        numbers = report[split]
        typer.echo(f"{split}: {numbers['documents']} documents, {numbers['rows']} rows, {numbers['tokens']} tokens")
    typer.echo(f"shards are in {config.output}")


@app.command()
def tokenizer(
    config: Annotated[str, typer.Argument(help="YAML file, e.g. configs/data_prep/tokenizer.yaml.", metavar="CONFIG")],
    overrides: Overrides = None,
    replace: Replace = False,
) -> None:
    """Train a WordPiece or SentencePiece tokenizer: the same corpus and config give the same bytes, always.

    Example: bitbert-data tokenizer configs/data_prep/tokenizer.yaml vocab_size=8192
    """
    trained = train_tokenizer(load_config(TokenizerConfig, config, overrides), replace=replace)
    typer.echo(f"{trained.kind}, {trained.vocab_size} tokens, fingerprint {trained.fingerprint}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A shard folder, or the output of a build.", metavar="DIR")],
) -> None:
    """Check every file of a shard folder against its manifest: size, sha256, schema, rows and tokens.

    Example: bitbert-data verify runs/shards
    """
    folders = [folder / split for split in SPLITS if (folder / split).is_dir()] or [folder]
    problems = []
    for part in folders:
        found = verify_shards(part)
        problems += found
        typer.echo(f"{part}: {'bad' if found else 'good'}")
    if problems:
        raise UserError(f"{len(problems)} bad: {' | '.join(problems)}")


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()

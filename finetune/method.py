"""bitbert-method: a published method from start to end: its stages, with teachers, over tasks and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from bitbert.config import load_config
from bitbert.errors import UserError, run_door
from bitbert.memory import prepare_memory

from .options import parse_seeds, read_tasks, refuse_keys_without_effect
from .stages import MethodConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_MODEL = "Full-precision BERT (folder, package://DIST/PATH or Hugging Face id), or a run of bitbert-pretrain."
_OVERRIDES = "Keys to change, e.g. recipe.tasks.mrpc.epochs=3 stages.w1a2.fields.activation_bits=4."


@app.command()
def run_method(
    model: Annotated[str, typer.Argument(help=_MODEL, metavar="MODEL")],
    overrides: Annotated[list[str] | None, typer.Argument(help=_OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    config: Annotated[str, typer.Option(help="The method's stages, one of configs/finetune/methods; needed.")] = "",
    task: Annotated[str, typer.Option(help="GLUE tasks, needed: all, or some of them, e.g. mrpc,rte.")] = "",
    glue_dir: Annotated[
        Path | None, typer.Option(help="Folder with the official GLUE files; without it they come from the hub.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.md, results.json and TASK/STAGE/seed-N.")] = Path(
        "runs/method"
    ),
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds; finished stages of each are skipped.")] = "0",
) -> None:
    """Run a published method: full precision, baseline, BiT, BiBERT, TernaryBERT or BinaryBERT.

    BiT's teacher, its student of 2-bit activations and that one's student of 1 bit, on MRPC:

      bitbert-method bert-base-uncased --config configs/finetune/methods/bit.yaml --task mrpc --glue-dir glue

    Each stage of each seed leaves its latent model, the packed one where it has 1 bit throughout, and result.json;
    OUTPUT/results.md is the table of all, results.json its numbers. Started again, the same command goes on with the
    stages that are not done.
    """
    if not config or not task:
        raise UserError("--config (configs/finetune/methods/*.yaml) and --task are needed")
    recipe = load_config(MethodConfig, config, overrides)
    from .report import write_results
    from .stage_report import stages_markdown, summarize_stages
    from .stage_run import run_stages

    seed_list, tasks = parse_seeds(seeds), read_tasks(task, glue_dir, None, None)
    names = [data.name for data in tasks]
    refuse_keys_without_effect(recipe.recipe, overrides, names, "recipe.")
    for stage, section in recipe.stages.items():
        if section.recipe is not None:
            refuse_keys_without_effect(section.recipe, overrides, names, f"stages.{stage}.recipe.")
    results = []
    for data in tasks:
        for seed in seed_list:
            for result in run_stages(recipe, model, data, seed, output / data.name):
                typer.echo(f"{data.title} seed {seed} {result['stage']}: {result['scores']}")
                results.append(result)
            summary = summarize_stages(results, tasks)
            write_results(output, summary, stages_markdown(summary))  # readable while it goes on
    typer.echo(f"everything is in {output}: results.md, results.json, and a model a stage and seed")


def main() -> None:
    prepare_memory()
    run_door(app)


if __name__ == "__main__":
    main()

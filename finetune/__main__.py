"""bitbert-finetune: finetune a binary BERT on a task, without a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from bitbert.config import check_config, config_yaml, load_config, parse_overrides
from bitbert.errors import UserError, run_door

from .config import FinetuneConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            help="Run of bitbert-pretrain, saved model, packed checkpoint, or (with --method) full-precision BERT.",
            metavar="MODEL",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Keys of the recipe to change, e.g. epochs=3 learning_rate=1e-4.", metavar="[KEY=VALUE]..."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.")
    ] = None,
    glue_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the official GLUE files (CoLA/train.tsv, SST-2/train.tsv, ...)."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Your own training CSV: text,label or text_a,text_b,label.")
    ] = None,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="Your own evaluation CSV.")] = None,
    regression: Annotated[bool, typer.Option("--regression", help="Labels of your CSV are scores.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for results.json and seed-N/packed.")] = Path("runs/finetune"),
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds; finished ones are skipped.")] = "0",
    method: Annotated[
        str | None,
        typer.Option(help="Preset that binarizes a full-precision MODEL: the task-specific baseline."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file with the recipe; BiPFT's by default.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check recipe, task and data, print the recipe, and stop; MODEL may be missing."),
    ] = False,
) -> None:
    """Finetune a binary BERT on a GLUE task or on your own CSV, without a teacher; ends in a packed task model.

    Examples:

      bitbert-finetune runs/pretrain --task sst2 --glue-dir glue --output runs/sst2 --seeds 0,1,2

      bitbert-finetune runs/packed --train a.csv --eval b.csv --output runs/mine epochs=3 learning_rate=1e-4
    """
    if config is not None:
        recipe = load_config(FinetuneConfig, config, overrides)
    else:
        recipe = check_config(FinetuneConfig, parse_overrides(overrides or []), origin="recipe")
    from .data import read_csv_task, read_glue_task
    from .tasks import find_task

    if task is not None and train is None and evaluation is None:
        if glue_dir is None:
            raise UserError(f"--task {task} needs --glue-dir, the folder with the official GLUE files")
        data = read_glue_task(find_task(task), glue_dir)
    elif task is None and train is not None and evaluation is not None:
        data = read_csv_task(train, evaluation, regression=regression)
    else:
        raise UserError("give either --task with --glue-dir, or both --train and --eval")
    seed_list = _parse_seeds(seeds)
    if check:
        typer.echo(config_yaml(recipe), nl=False)
        return
    from .source import open_source
    from .train import finetune as run_finetuning

    summary = run_finetuning(open_source(model, method), data, recipe, seed_list, output, model_name=model)
    typer.echo(_table(summary))
    typer.echo(f"packed task models: {', '.join(str(output / f'seed-{seed}' / 'packed') for seed in seed_list)}")


def _parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r}, wanted integers separated by commas, e.g. 0,1,2") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text!r}, wanted different integers of at least 0")
    return seeds


def _table(summary: dict) -> str:
    lines = [f"{summary['task']}: {len(summary['seeds'])} seed(s), selection {summary['selection']}"]
    for name, values in summary["mean"].items():
        for metric, mean in values.items():
            deviation = summary["standard_deviation"]
            spread = f" +- {deviation[name][metric]:.4f}" if deviation else ""
            lines.append(
                f"  {name:16} {metric:10} {mean:.4f}{spread}   majority class {summary['majority'][name][metric]:.4f}"
            )
    return "\n".join(lines)


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()

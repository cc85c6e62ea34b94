"""bitbert-finetune: finetune a binary BERT on tasks, without a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from bitbert.config import check_config, config_yaml, load_config, parse_overrides
from bitbert.errors import run_door
from bitbert.memory import prepare_memory
from bitbert.packed import recipe_of
from bitbert.presets import preset_fields
from bitbert.tracking import check_mlflow_uri

from .config import FinetuneConfig
from .options import parse_seeds, read_tasks, refuse_keys_without_effect

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


_MODEL = (
    "Run of bitbert-pretrain, saved or packed model, a released one's name, or (with --method) full-precision BERT."
)
_OVERRIDES = "Keys of the recipe to change, e.g. epochs=3 learning_rate=1e-4 tasks.cola.epochs=50."
_TASK = "GLUE tasks: all, or some of cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli (mnli answers AX too)."
_GLUE_DIR = "Folder with the official GLUE files (CoLA/train.tsv, ...); without it they come from the Hugging Face hub."
_TRAIN = "Your own training file, .csv, .tsv, .jsonl or SQuAD's .json; its columns say what kind of task it is."
_CONFIG = "YAML file with the recipe; by default the one that a packed MODEL brings (finetune.yaml), else BiPFT's."
_METHOD = "Preset that binarizes a full-precision MODEL without pretraining, e.g. baseline (docs/methods.md)."


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help=_MODEL, metavar="MODEL")],
    overrides: Annotated[list[str] | None, typer.Argument(help=_OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    task: Annotated[str | None, typer.Option(help=_TASK)] = None,
    glue_dir: Annotated[Path | None, typer.Option(help=_GLUE_DIR)] = None,
    train: Annotated[Path | None, typer.Option(help=_TRAIN)] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Your own evaluation file, of the same kind.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for everything that comes out.")] = Path("runs/finetune"),
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds of the tables; finished ones are skipped.")] = "0",
    method: Annotated[str | None, typer.Option(help=_METHOD)] = None,
    config: Annotated[str | None, typer.Option(help=_CONFIG)] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check recipe, task and data, print the recipe, and stop; MODEL may be missing."),
    ] = False,
) -> None:
    """Finetune a binary BERT on GLUE or on your own data, without a teacher; ends in packed task models and a table.

    All files are read and checked before anything is trained. Started again, the same command goes on with the seeds
    and tasks that are not done. MODEL may be 1-bit weights alone: a packed checkpoint is finetuned like any other.

    GLUE, three seeds, means and deviations, answers for GLUE's server:

      bitbert-finetune runs/pretrain --task all --seeds 0,1,2 --glue-dir glue --output runs/glue

    One task, from a released checkpoint, by the recipe that it brings, with another rate:

      bitbert-finetune bitbert-l6-h384 --task sst2 --glue-dir glue --output runs/sst2 learning_rate=1e-3

    Your own data; columns text,label or text_a,text_b,label are classes, score instead of label is regression, and in
    JSON lines tokens,tags is a class a word and question,context,answers is question answering:

      bitbert-finetune runs/packed --train a.csv --eval b.csv --output runs/mine epochs=3

    Which weights are kept and scored is the recipe's selection: best_epoch (the best on dev, as published, so the score
    is optimistic), last_epoch, or train_split (the best on rows held out of the training set).

    OUTPUT gets results.json, results.md and results.png; each seed its packed model, result.json and metrics.jsonl.
    """
    recipe_file = config or recipe_of(model)
    if recipe_file is not None:
        recipe = load_config(FinetuneConfig, recipe_file, overrides)
    else:
        recipe = check_config(FinetuneConfig, parse_overrides(overrides or []), origin="recipe")
    check_mlflow_uri(recipe.tracking.mlflow_uri)
    if method is not None:
        preset_fields(method)  # for what it refuses
    seed_list = parse_seeds(seeds)
    tasks = read_tasks(task, glue_dir, train, evaluation)
    refuse_keys_without_effect(recipe, overrides, [data.name for data in tasks])
    if check:
        typer.echo(config_yaml(recipe), nl=False)
        return
    from .report import scores_text
    from .run import run_plan
    from .source import open_source

    summary = run_plan(open_source(model, method), tasks, recipe, seed_list, output, model_name=model)
    followed = recipe_file or "of BiPFT, as published"
    typer.echo(f"{len(seed_list)} seed(s), recipe {followed}, selection {recipe.selection}")
    typer.echo(scores_text(summary))
    typer.echo(f"everything is in {output}: results.md, results.json, results.png, and a model a seed")


def main() -> None:
    prepare_memory()
    run_door(app)


if __name__ == "__main__":
    main()

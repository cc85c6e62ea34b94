"""bitbert-pretrain: pretrain a binary BERT, and look at its runs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bitbert.config import config_yaml, load_config
from bitbert.distributed import log
from bitbert.errors import run_door
from bitbert.memory import prepare_memory

from .config import PretrainConfig
from .head_config import TeacherHeadConfig
from .run_folder import refuse_other_run

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="""Pretrain a binary BERT, and look at its runs.

      bitbert-pretrain CONFIG [KEY=VALUE]...               run, or go on with, what CONFIG says

      bitbert-pretrain CONFIG --dry-run                    check, count and stop

      bitbert-pretrain teacher-head CONFIG [KEY=VALUE]...  train a masked-LM head for a teacher that has none

      bitbert-pretrain report RUN_DIR                      curves as PNG files and one HTML page

      bitbert-pretrain sync RUN_DIR --mlflow-uri URI       send MLflow what it missed

    A first word that is no command is a config: "run" before it may be left out.""",
)


@app.command()
def run(
    config: Annotated[
        str, typer.Argument(help="YAML file of one run, e.g. configs/pretrain/demo.yaml.", metavar="CONFIG")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Keys to change, e.g. steps=1000 optimizer.learning_rate=1e-3.", metavar="[KEY=VALUE]..."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the resolved config, counts, tokens, memory and communication, and stop.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check config and run folder alone, print the config resolved, and stop; shards may be missing.",
        ),
    ] = False,
    ranks: Annotated[int, typer.Option(min=1, help="With --check: ranks that the batch must divide over.")] = 1,
) -> None:
    """Pretrain: MLM + NSP, distilled from a full-precision teacher, through DeepSpeed.

    One process by default; several with a launcher:

      torchrun --nproc-per-node 2 -m bitbert.pretrain CONFIG

      deepspeed --module bitbert.pretrain CONFIG

      srun python -m bitbert.pretrain CONFIG

    A run folder that holds checkpoints is continued from the newest one that verifies. SIGTERM, SIGUSR1 or a file STOP
    in the run folder ends a run within a step with a checkpoint and exit code 75: start it again to go on. When a rank
    is lost, the others end within rank_timeout_s with exit code 69.
    """
    resolved = load_config(PretrainConfig, config, overrides)
    if check:
        for phase in resolved.resolved_phases():
            phase.accumulation_steps(ranks)
        refuse_other_run(resolved)
        typer.echo(config_yaml(resolved), nl=False)
        return
    if dry_run:
        from .dry_run import describe_run

        typer.echo(describe_run(resolved))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from .loop import pretrain as run_pretraining
    from .preempt import EXIT_PREEMPTED, PreemptedError
    from .watchdog import EXIT_LOST_RANK, LostRankError

    try:
        folder = run_pretraining(resolved)
    except PreemptedError as stopped:
        log(str(stopped))
        raise typer.Exit(EXIT_PREEMPTED) from stopped
    except LostRankError as lost:
        log(f"error: {lost}")
        os._exit(EXIT_LOST_RANK)  # an orderly exit would wait for the rank that is gone
    typer.echo(f"run folder: {folder}")


@app.command("teacher-head")
def teacher_head(
    config: Annotated[str, typer.Argument(help="e.g. configs/pretrain/heads/minilm.yaml.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Keys to change, e.g. steps=1000.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Train a masked-LM head for a teacher that has none, on its frozen states, for loss.mlm_distillation.

    Leaves OUTPUT/final, a BERT in transformers' format: the teacher as it was, and the head. Started again it goes on;
    SIGTERM, SIGUSR1 or a file STOP end it as they end a pretraining.
    """
    resolved = load_config(TeacherHeadConfig, config, overrides)
    from .preempt import EXIT_PREEMPTED, PreemptedError
    from .teacher_head import train_teacher_head

    try:
        folder = train_teacher_head(resolved)
    except PreemptedError as stopped:
        log(str(stopped))
        raise typer.Exit(EXIT_PREEMPTED) from stopped
    typer.echo(f"teacher: {folder}")


_RunFolder = Annotated[Path, typer.Argument(help="The folder of a run's output.", metavar="RUN_DIR")]


@app.command()
def report(
    run_folder: _RunFolder,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write; default: RUN_DIR/report.", metavar="DIR")
    ] = None,
) -> None:
    """Draw a run's curves as PNG files and put them, with its config and figures, on one self-contained HTML page.

    It reads metrics.jsonl and may be used while the run goes on.
    """
    from .report import write_report

    typer.echo(f"report: {write_report(run_folder, output or run_folder / 'report')}")


@app.command()
def sync(
    run_folder: _RunFolder,
    mlflow_uri: Annotated[
        str | None, typer.Option("--mlflow-uri", help="Tracking URI; default: the run's own.", metavar="URI")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="MLflow experiment; default: the run's own.")
    ] = None,
) -> None:
    """Send MLflow what it lacks of a run: parameters, metrics, artifacts and status. Doing it twice sends nothing new.

    For runs whose server was away, or on nodes that reach no server: metrics.jsonl is the record.
    """
    from .sync import sync_run

    typer.echo(sync_run(run_folder, mlflow_uri, experiment))


def main() -> None:
    prepare_memory()
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in _COMMANDS:
        arguments = ["run", *arguments]
    run_door(lambda: app(args=arguments))


_COMMANDS = ("run", "teacher-head", "report", "sync", "--help")

if __name__ == "__main__":
    main()

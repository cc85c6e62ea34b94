"""bitbert-pretrain: pretrain a binary BERT."""

import os
from typing import Annotated

import typer

from bitbert.config import config_yaml, load_config
from bitbert.distributed import log
from bitbert.errors import run_door

from .config import PretrainConfig
from .run_folder import refuse_other_run

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def pretrain(
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
            help="Check everything, print the resolved config, counts, tokens and memory, and stop.",
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
    """Pretrain a binary BERT: MLM + NSP, distilled from a full-precision teacher, through DeepSpeed.

    One process by default; several with a launcher:

      torchrun --nproc-per-node 2 -m bitbert.pretrain CONFIG

      deepspeed --module bitbert.pretrain CONFIG

      srun python -m bitbert.pretrain CONFIG

    A run folder that holds checkpoints is continued from the newest one that verifies. SIGTERM, SIGUSR1
    or a file STOP in the run folder ends a run within a step with a checkpoint and exit code 75: start it again to go
    on.
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

    try:
        folder = run_pretraining(resolved)
    except PreemptedError as stopped:
        log(str(stopped))
        raise typer.Exit(EXIT_PREEMPTED) from stopped
    typer.echo(f"run folder: {folder}")


def main() -> None:
    run_door(app)


if __name__ == "__main__":
    main()

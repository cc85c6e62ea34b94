"""The training loop: evaluate and save at the top, break, then step."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bitbert.distributed import Topology, detect_topology, log
from bitbert.errors import UserError
from bitbert.permutation import derive_key
from bitbert.tracking import RunStatus, Tracker, flatten

from . import engine as engine_module
from .checkpoint import load_checkpoint, newest_checkpoint, remove_unfinished, save_checkpoint
from .config import PretrainConfig
from .data import Batch
from .engine import Engine, NonFiniteLossError
from .evaluate import evaluate
from .monitor import BinaryMonitor
from .objective import GlobalCounts, Objective, weighted_sum
from .optim import build_optimizer
from .phases import learning_rate_at, phase_at
from .preempt import PreemptedError, Preemption
from .run import (
    Run,
    build_calibrated_student,
    check_run,
    data_identity,
    save_final_model,
    share_student,
)
from .run_folder import CHECKPOINTS, STOP_FILE, claim_folder


def pretrain(config: PretrainConfig) -> Path:
    """Run ``config`` from where its run folder stands to its last step; returns the folder of the final model.

    Raises:
        UserError: the config does not fit its data, teacher or run folder; found before any training.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        PreemptedError: SIGTERM or SIGUSR1 came; a checkpoint is written.
    """
    topology = detect_topology()
    for phase in config.resolved_phases():
        phase.accumulation_steps(topology.world_size)
    run = check_run(config)
    if topology.is_main:
        claim_folder(config)
    trainer = Trainer(run, topology)
    trainer.train()
    engine_module.stop()
    return run.folder


class Trainer:
    """One rank of a run."""

    def __init__(self, run: Run, topology: Topology) -> None:
        self.run, self.config, self.topology = run, run.config, topology
        student = build_calibrated_student(run, topology)
        device = engine_module.start(topology, self.config.device)
        self.student = share_student(student, topology, device)
        self.teacher = run.teacher.to(device)
        self.objective = Objective(self.student, self.teacher, self.config.loss)
        self.optimizer = build_optimizer(self.student, self.config.optimizer)
        self.step, self.evaluation = self._resume()
        self.resumed_at = self.step or None
        self.engine = Engine(self.student, self.optimizer, self.config, topology, device)
        self.monitor = BinaryMonitor(self.student)
        self.preemption = Preemption(run.folder / STOP_FILE if topology.is_main else None)
        self.tracker = Tracker(
            run.folder,
            enabled=topology.is_main,
            mlflow_uri=self.config.tracking.mlflow_uri,
            experiment=self.config.tracking.experiment,
            run_name=run.folder.name,
            parameters=flatten(self.config.model_dump(mode="json")),
            resume_step=self.step,
        )

    def train(self) -> None:
        """All steps that are left, then the final evaluation, checkpoint and model."""
        status: RunStatus = "FAILED"
        try:
            with self._progress() as progress:
                task = progress.add_task("pretrain", total=self.config.steps, completed=self.step)
                while True:
                    if self.step != self.resumed_at:  # a checkpoint is written after its step's evaluation
                        if self._due(self.config.eval_every):
                            self.evaluation = self._evaluate()
                        if self.step and self._due(self.config.checkpoint_every):
                            self._save()
                    if self.step == self.config.steps:
                        break
                    self._train_step()
                    progress.update(task, completed=self.step)
            if self.topology.is_main:
                record = {
                    "steps": self.step,
                    "final_metrics": self.evaluation,
                    "config": self.config.model_dump(mode="json"),
                }
                save_final_model(self.run, self.student, record)
            self.engine.barrier()
            status = "FINISHED"
        except PreemptedError:
            status = "KILLED"
            raise
        finally:
            self.tracker.close(status)

    def _train_step(self) -> None:
        started = time.perf_counter()
        logging = (self.step + 1) % self.config.tracking.log_every == 0 or self.step + 1 == self.config.steps
        self.monitor.watch(logging)
        phase = phase_at(self.run.phases, self.step)
        self.engine.use_batch_sizes(phase.global_batch_size, phase.micro_batch_size)
        batches = phase.batches(self.step, self.topology)
        counts = self._agree(batches, num_rows=phase.global_batch_size)
        learning_rate = learning_rate_at(self.config, self.step)
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            terms = self._forward_backward(number, batch.to(self.engine.device), counts, len(batches))
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
            if number == len(batches) - 1:
                losses = dict(zip(sums, self.engine.sum_over_ranks(list(sums.values())), strict=True))
                self._refuse_non_finite(losses)
            self.engine.update(learning_rate)
        self.step += 1
        if logging:
            self._log_step(losses, learning_rate, counts, time.perf_counter() - started)

    def _forward_backward(
        self, number: int, batch: Batch, counts: GlobalCounts, num_micro_batches: int
    ) -> dict[str, torch.Tensor]:
        # Dropout from (seed, step, micro-batch of the global batch): nothing to store, a resumed run drops the same
        # units, and so does a run with another number of ranks.
        place = number * self.topology.world_size + self.topology.rank
        torch.manual_seed(derive_key(self.config.seed, self.step, place) & (2**63 - 1))
        terms = self.objective(self.engine, batch, counts)
        self.engine.backward(weighted_sum(terms, self.config.loss), num_micro_batches=num_micro_batches)
        return terms

    def _agree(self, batches: list[Batch], *, num_rows: int) -> GlobalCounts:
        """What all ranks must know before the step: the counts of the global batch, and whether anyone must stop.

        Raises:
            PreemptedError: some rank was signalled; the checkpoint of the updates done so far is written.
        """
        local = [
            float(sum(len(batch.labels) for batch in batches)),
            float(sum(batch.num_tokens for batch in batches)),
            float(self.preemption.requested),
        ]
        masked, tokens, requested = self.engine.sum_over_ranks(local)
        if requested:
            if self.step:
                self._save()
            self.preemption.acknowledge()
            raise PreemptedError(f"stopped as asked after step {self.step}; start the same command again to go on")
        return GlobalCounts(masked, tokens, rows=float(num_rows))

    def _refuse_non_finite(self, losses: dict[str, float]) -> None:
        """Every rank sees the same sums, so all stop together and none has updated."""
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise NonFiniteLossError(
                f"step {self.step}: loss term {wrong[0]} is {losses[wrong[0]]}, no update was made; "
                "lower optimizer.learning_rate or set "
                "optimizer.gradient_clipping, then start again from the last checkpoint in "
                f"{self.run.folder / CHECKPOINTS}"
            )

    def _log_step(self, losses: dict[str, float], learning_rate: float, counts: GlobalCounts, seconds: float) -> None:
        values = {f"loss/{name}": value for name, value in losses.items()}
        values["loss/total"] = sum(value * getattr(self.config.loss, name) for name, value in losses.items())
        values |= {
            "learning_rate": learning_rate,
            "tokens_per_s": counts.tokens / seconds,
            **self.monitor.metrics(),
        }
        if self.engine.gradient_norm is not None:
            values["gradient_norm"] = self.engine.gradient_norm
        self.tracker.log(self.step, values)
        self._say(
            f"step {self.step}/{self.config.steps}  loss {values['loss/total']:.4f}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            + f"  {values['tokens_per_s']:.0f} tokens/s"
        )

    def _evaluate(self) -> dict[str, float]:
        phase = phase_at(self.run.phases, max(0, self.step - 1))  # the one whose update came last
        metrics = evaluate(
            self.engine,
            self.student,
            self.teacher,
            phase.heldout,
            num_rows=self.config.eval_rows,
            batch_size=phase.micro_batch_size,
        )
        self.tracker.log(self.step, metrics)
        self._say(
            f"step {self.step}/{self.config.steps}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        )
        return metrics

    def _save(self) -> None:
        if self.topology.is_main:
            state = {
                "step": self.step,
                "data": data_identity(self.run),
                "world_size": self.topology.world_size,
                "evaluation": self.evaluation,
            }
            save_checkpoint(
                self.run.folder / CHECKPOINTS,
                self.student,
                self.optimizer,
                state,
                keep=self.config.keep_checkpoints,
            )
        self.engine.barrier()

    def _resume(self) -> tuple[int, dict[str, float]]:
        """(updates done, last evaluation) of the newest checkpoint that verifies; (0, {}) without one."""
        root = self.run.folder / CHECKPOINTS
        if self.topology.is_main:
            remove_unfinished(root)
        checkpoint = newest_checkpoint(root)
        if checkpoint is None:
            return 0, {}
        if checkpoint.state["data"] != data_identity(self.run):
            raise UserError(
                f"checkpoint {checkpoint.folder.name} was trained on other shards than {self.config.data.train!r}; "
                "restore them, or choose another output=..."
            )
        load_checkpoint(checkpoint, self.student, self.optimizer)
        self._say(f"resumed from {checkpoint.folder.name}")
        return checkpoint.step, checkpoint.state["evaluation"]

    def _due(self, every: int) -> bool:
        """Whether something done every so many steps is due; the first and the last step always are."""
        return self.step in (0, self.config.steps) or (every > 0 and self.step % every == 0)

    def _say(self, message: str) -> None:
        if self.topology.is_main:
            log(message)

    def _progress(self) -> Progress:
        """A bar on a terminal; in a log the lines of the steps tell the same."""
        console = Console(stderr=True)
        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=console, disable=not (self.topology.is_main and console.is_terminal))

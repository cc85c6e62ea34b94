"""The training loop: evaluate and save at the top, break, then step."""

import math
from contextlib import nullcontext
from pathlib import Path

import torch

from bitbert.accounting import shape_of
from bitbert.distributed import Topology, detect_topology, log
from bitbert.model.kernels import why_no_kernels
from bitbert.permutation import derive_key
from bitbert.tracking import RunStatus, Tracker, flatten

from . import engine as engine_module
from .config import PretrainConfig
from .data import Batch
from .engine import Engine
from .environment import ENVIRONMENT_FILE, record_environment
from .evaluate import evaluate
from .guard import NonFiniteGuard
from .keeper import CheckpointKeeper
from .monitor import BinaryMonitor
from .objective import GlobalCounts, Objective, weighted_sum
from .optim import build_optimizer
from .phases import phase_at
from .preempt import PreemptedError, Preemption
from .progress import progress_bar
from .ranks import check_replicas
from .run import (
    Run,
    build_calibrated_student,
    check_run,
    save_final_model,
    share_student,
)
from .run_folder import CONFIG_FILE, STOP_FILE, claim_folder
from .throughput import Throughput
from .watchdog import Watchdog, lost_ranks_named


def pretrain(config: PretrainConfig) -> Path:
    """Run ``config`` from where its run folder stands to its last step; returns the folder of the final model.

    Raises:
        UserError: the config does not fit its data, teacher or run folder; found before any training.
        NonFiniteError: too many steps in a row were NaN or infinite; the last checkpoint is intact.
        PreemptedError: SIGTERM or SIGUSR1 came; a checkpoint is written.
        LostRankError: another rank is gone.
    """
    topology = detect_topology()
    # First: a signal while the run is being set up is not lost.
    preemption = Preemption(Path(config.output) / STOP_FILE if topology.is_main else None)
    for phase in config.resolved_phases():
        phase.accumulation_steps(topology.world_size)
    run = check_run(config)
    if topology.is_main:
        claim_folder(config)
    try:
        with lost_ranks_named(topology):
            trainer = Trainer(run, topology, preemption)
            trainer.train()
    except BaseException:
        engine_module.restore_environment()
        raise
    engine_module.stop()
    return run.folder


class Trainer:
    """One rank of a run."""

    def __init__(self, run: Run, topology: Topology, preemption: Preemption) -> None:
        self.preemption = preemption
        self.run, self.config, self.topology = run, run.config, topology
        student = build_calibrated_student(run, topology)
        self.watchdog = Watchdog(topology, self.config.rank_timeout_s)
        device = engine_module.start(topology, self.config.device, self.config.rank_timeout_s)
        self.keeper = CheckpointKeeper(run, topology, device)
        state = self.keeper.resume(student)
        self.step: int = state["step"] if state else 0
        self.evaluation: dict[str, float] = state["evaluation"] if state else {}
        self.evaluated_at: int | None = state.get("evaluated_at") if state else None
        self.guard = NonFiniteGuard(self.config.non_finite, **(state["non_finite"] if state else {}))
        self.resumed_at = self.step or None
        self.student = share_student(student, topology, device)
        self.teacher = run.teacher.to(device)
        self.objective = Objective(self.student, self.teacher, self.config.loss)
        self.optimizer = build_optimizer(self.student, self.config.optimizer)
        run.curriculum.restore(self.student, self.step)
        self.engine = Engine(self.student, self.optimizer, self.config, topology, device)
        self.keeper.restore_moments(self.engine.tensors)
        self.monitor = BinaryMonitor(self.student)
        self.throughput = Throughput(shape_of(self.student.config), self.config.loss, self.config.tracking.peak_tflops)
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self._say(f"ranks: {topology.world_size}, on {hardware}, products of floats in {self.config.precision}")
        if device.type == "cpu" and (reason := why_no_kernels()) is not None:
            self._say(f"training without the native kernels ({reason}): torch does their work, slower")
        self.tracker = Tracker(
            run.folder,
            enabled=topology.is_main,
            mlflow_uri=self.config.tracking.mlflow_uri,
            experiment=self.config.tracking.experiment,
            run_name=run.folder.name,
            parameters=flatten(self.config.model_dump(mode="json")),
            resume_step=self.step or -1,
        )
        if topology.is_main:
            record_environment(run.folder, topology, self.step)
            self.tracker.add(run.folder / CONFIG_FILE, run.folder / ENVIRONMENT_FILE)

    def train(self) -> None:
        """All steps that are left, then the final evaluation, checkpoint and model."""
        status: RunStatus = "FAILED"
        try:
            with progress_bar(enabled=self.topology.is_main) as progress:
                task = progress.add_task("pretrain", total=self.config.steps, completed=self.step)
                while True:
                    self.throughput.pause()
                    if self.step != self.resumed_at:  # a checkpoint is written after its step's evaluation
                        if self._due(self.config.eval_every):
                            self.evaluation = self._evaluate()
                        if self.step and self._due(self.config.checkpoint_every, self.config.milestone_every):
                            self._save(must_succeed=self.step == self.config.steps)
                        elif self._replicas_due():
                            self._check_replicas()
                    if self.step == self.config.steps:
                        if self.evaluated_at != self.step:  # cut to end at the step that it stood at
                            self.evaluation = self._evaluate()
                        break
                    self.throughput.resume()
                    self._train_step()
                    progress.update(task, completed=self.step)
            if self.topology.is_main:
                record = {
                    "steps": self.step,
                    "final_metrics": self.evaluation,
                    "config": self.config.model_dump(mode="json"),
                }
                self.tracker.add(save_final_model(self.run, self.student, self.keeper.final_weights(), record))
            self.engine.barrier()
            status = "FINISHED"
        except (PreemptedError, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            self.watchdog.stop()
            self.tracker.close(status)

    def _train_step(self) -> None:
        logging = (self.step + 1) % self.config.tracking.log_every == 0 or self.step + 1 == self.config.steps
        phase = phase_at(self.run.phases, self.step)
        self.engine.use_batch_sizes(phase.global_batch_size, phase.micro_batch_size)
        batches = phase.batches(self.guard.data_step(self.step), self.topology)
        counts = self._agree(batches, num_rows=phase.global_batch_size)
        self.throughput.count(batches, counts.tokens)
        self._binarize_further()  # after the last chance to stop: checkpoints have the step sizes of the update before
        learning_rate = self.config.rate_at(self.step)
        with self.engine.whole_weights() if logging else nullcontext():
            self.monitor.watch(logging)
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            terms = self._forward_backward(number, batch.to(self.engine.device), counts, len(batches))
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
            if number < len(batches) - 1:
                self.engine.update(learning_rate)
        *values, squares = self.engine.sum_over_ranks([*sums.values(), self.engine.tensors.gradient_squares()])
        losses = dict(zip(sums, values, strict=True))
        problem = self.guard.examine(losses, squares)  # every rank sees the same sums: all skip, or all update
        if problem is None:
            self.engine.gradient_norm = math.sqrt(squares)
            self.engine.update(learning_rate)
        else:
            self.engine.skip_update()
        self.guard.count(problem)
        self.step += 1
        if problem is not None:
            self._skipped(problem)
        elif logging:
            self._log_step(losses, learning_rate)

    def _binarize_further(self) -> None:
        bits = self.run.curriculum.follow(self.engine, self.step)
        if bits is not None:
            self._say(f"step {self.step}/{self.config.steps}  activations have {bits} bits from here on")

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
            UserError: it could not be written.
        """
        local = [
            float(sum(len(batch.labels) for batch in batches)),
            float(sum(batch.num_tokens for batch in batches)),
            float(self.preemption.requested),
        ]
        masked, tokens, requested = self.engine.sum_over_ranks(local)
        self.watchdog.beat(self.step)
        if requested:
            try:
                if self.step:
                    self._save(must_succeed=True)
            finally:  # also where the disk is full: the next start goes on
                self.preemption.acknowledge()
            raise PreemptedError(f"stopped as asked after step {self.step}; start the same command again to go on")
        return GlobalCounts(masked, tokens, rows=float(num_rows))

    def _skipped(self, problem: str) -> None:
        """After a step without an update: go on, go back to a checkpoint, or stop."""
        self._say(
            f"step {self.step}/{self.config.steps}  {problem}; update skipped on all ranks, "
            f"{self.guard.in_a_row} in a row"
        )
        self.tracker.log(self.step, {"skipped_updates": self.guard.skipped})
        if not self.guard.exhausted:
            return
        failed = self.step
        state = None
        if self.guard.may_roll_back:
            state = self.keeper.roll_back(self.engine.tensors, failed, self.guard)
        if state is None:
            raise self.guard.refusal(failed, problem, self.keeper.root)
        self.step, self.evaluation, self.evaluated_at = state["step"], state["evaluation"], state.get("evaluated_at")
        self.resumed_at = self.step
        self.run.curriculum.restore(self.student, self.step)
        self.tracker.rewind(self.step)
        self._say(f"rolled back to step {self.step}, past the {failed - self.step} batches since then")

    def _log_step(self, losses: dict[str, float], learning_rate: float) -> None:
        values = {f"loss/{name}": value for name, value in losses.items()}
        values["loss/total"] = sum(value * getattr(self.config.loss, name) for name, value in losses.items())
        values |= {
            "learning_rate": learning_rate,
            **self.throughput.report(),
        }
        with self.engine.whole_weights():
            values |= self.monitor.metrics()
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
        self.evaluated_at = self.step
        self.watchdog.beat(self.step)
        self.tracker.log(self.step, metrics)
        self._say(
            f"step {self.step}/{self.config.steps}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        )
        return metrics

    def _save(self, *, must_succeed: bool = False) -> None:
        self._check_replicas()
        self.keeper.save(
            self.engine.tensors,
            self.step,
            evaluation=self.evaluation,
            evaluated_at=self.evaluated_at,
            guard=self.guard,
            must_succeed=must_succeed,
        )
        self.watchdog.beat(self.step)

    def _check_replicas(self) -> None:
        with self.engine.whole_weights():
            tensors = [*self.student.parameters(), *self.student.buffers()]
            check_replicas(tensors, self.step, self.topology, self.engine.device)

    def _replicas_due(self) -> bool:
        every = self.config.check_replicas_every
        return self.step > 0 and every > 0 and self.step % every == 0

    def _due(self, *intervals: int) -> bool:
        """Whether something done every so many steps is due; the first and the last step always are."""
        return self.step in (0, self.config.steps) or any(each > 0 and self.step % each == 0 for each in intervals)

    def _say(self, message: str) -> None:
        if self.topology.is_main:
            log(message)

"""The phases of a run: which shards and batch sizes belong to a step. All closed forms of the step."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitbert.distributed import Topology

from .config import ResolvedPhase
from .data import Batch, BatchMaker


@dataclass(frozen=True)
class Phase:
    """Steps ``first_step`` to ``end_step`` (exclusive), on one set of shards with one batch size.

    Attributes:
        first_sample: the sample of ``train`` that the phase begins with: a phase on the shards of an earlier one
            goes on where that one stopped.
    """

    first_step: int
    end_step: int
    train: BatchMaker
    heldout: BatchMaker
    global_batch_size: int
    micro_batch_size: int
    first_sample: int

    def batches(self, step: int, topology: Topology) -> list[Batch]:
        """This rank's micro-batches of the run's step ``step``, which lies in this phase."""
        return self.train.step_batches(
            self.first_sample + (step - self.first_step) * self.global_batch_size,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            rank=topology.rank,
            world_size=topology.world_size,
        )


def lay_out(sections: Sequence[ResolvedPhase], shards: dict[str, BatchMaker]) -> tuple[Phase, ...]:
    """Phases one after the other; ``shards`` holds the opened shard folders by the names in ``sections``."""
    phases: list[Phase] = []
    step, samples = 0, dict.fromkeys(shards, 0)
    for section in sections:
        phases.append(
            Phase(
                step,
                step + section.steps,
                shards[section.train],
                shards[section.heldout],
                section.global_batch_size,
                section.micro_batch_size,
                samples[section.train],
            )
        )
        step += section.steps
        samples[section.train] += section.steps * section.global_batch_size
    return tuple(phases)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of update number ``step``; after the last update, the last phase."""
    return next((phase for phase in phases if step < phase.end_step), phases[-1])

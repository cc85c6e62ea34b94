"""Tables of pretrain/scaling.py: what ``--dry-run`` prints and docs/scaling.md shows.

``python -m bitbert.pretrain.scaling_table`` prints those of the document: BERT-base and BERT-large.
"""

from dataclasses import dataclass

from bitbert.accounting import MIB, Shape, shape_of
from bitbert.model import BitBertConfig
from bitbert.presets import preset_fields

from .config import LossSection
from .footprint import activation_bytes
from .scaling import CLUSTERS, STAGES, Cluster, estimate, payload, state_bytes
from .throughput import row_operations

GPUS = (1, 2, 4, 8, 16, 64, 256, 1024)
PERSISTENT_VALUES = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: smaller tensors stay whole on every rank."""


@dataclass(frozen=True)
class Workload:
    """What the tables need to know of a run, or of one of its phases."""

    config: BitBertConfig
    loss: LossSection
    num_parameters: int
    whole: int
    teacher_parameters: int
    row_tokens: int
    global_batch_size: int
    micro_batch_size: int
    mask_probability: float = 0.15

    @property
    def operations_per_row(self) -> float:
        """Operations of a row full of text, teacher included."""
        masked = max(1, round(self.mask_probability * self.row_tokens))
        return row_operations(shape_of(self.config), self.row_tokens, masked, self.loss)


def memory_table(work: Workload, world_size: int) -> list[str]:
    """MiB a rank by ZeRO stage, at the largest moment of a step, with and without activations."""
    micro_batches = max(1, work.global_batch_size // (work.micro_batch_size * world_size))
    activations = activation_bytes(
        work.config,
        work.loss,
        rows=work.micro_batch_size,
        positions=work.row_tokens,
        mask_probability=work.mask_probability,
    )
    teacher = 4 * work.teacher_parameters
    lines = [
        f"ZeRO stage   weights  gradients  masters  moments  teacher  activations     all MiB   sent MiB a step "
        f"({world_size} ranks)"
    ]
    for stage in STAGES:
        state = state_bytes(work.num_parameters, stage, world_size, whole=work.whole, accumulating=micro_batches > 1)
        sent = payload(work.num_parameters, stage, micro_batches, whole=work.whole).wire(world_size)
        parts = (state.weights, state.gradients, state.masters, state.moments, teacher, activations)
        cells = [
            f"{value / MIB:>{width},.0f}"
            for value, width in zip((*parts, sum(parts), sent), (9, 10, 8, 8, 8, 12, 11, 17), strict=True)
        ]
        lines.append(f"{stage:10} {' '.join(cells)}")
    return lines


def speed_table(work: Workload, cluster: Cluster, *, stage: int = 0) -> list[str]:
    """Expected step time and tokens/s from 1 to 1,024 GPUs, as far as the global batch divides over them."""
    lines = [
        f"{cluster.name}; {cluster.mfu:.0%} of {cluster.peak_tflops:.0f} TFLOP/s assumed, ZeRO stage {stage}",
        "  GPUs  micro-batches  compute s  communication s   tokens/s  computing",
    ]
    for world_size in GPUS:
        if work.global_batch_size % (work.micro_batch_size * world_size):
            continue
        line = estimate(
            cluster,
            world_size=world_size,
            stage=stage,
            num_parameters=work.num_parameters,
            operations_per_row=work.operations_per_row,
            row_tokens=work.row_tokens,
            global_batch_size=work.global_batch_size,
            micro_batch_size=work.micro_batch_size,
        )
        lines.append(
            f"{world_size:6,} {line.num_micro_batches:14,} {line.compute_s:10.3f} {line.communication_s:16.3f} "
            f"{line.tokens_per_s:10,.0f} {line.efficiency:10.0%}"
        )
    return lines


def whole_values(sizes: list[int]) -> int:
    """How many of a model's values, given its tensors' sizes, stage 3 keeps whole."""
    return sum(size for size in sizes if size < PERSISTENT_VALUES)


def published_workload(shape: Shape, row_tokens: int, global_batch_size: int, micro_batch_size: int) -> Workload:
    """A BERT of ``shape`` with method ``bitbert``, distilled from a teacher of its own shape."""
    import torch

    from bitbert.model import BitBertForPreTraining

    config = BitBertConfig(**vars(shape), **preset_fields("bitbert"))
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in BitBertForPreTraining(config).parameters()]
    hidden = shape.hidden_size
    teacher = sum(sizes) - whole_values(sizes) + 2 * hidden  # the encoder; its small tensors hardly count
    return Workload(
        config,
        LossSection(),
        sum(sizes),
        whole_values(sizes),
        teacher,
        row_tokens,
        global_batch_size,
        micro_batch_size,
    )


LARGE = Shape(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def main() -> None:
    """Print the tables of docs/scaling.md."""
    for name, shape, tokens, global_batch, micro_batch in (
        ("BERT-base, 128 tokens", Shape(), 128, 65536, 64),
        ("BERT-base, 512 tokens", Shape(), 512, 32768, 16),
        ("BERT-large, 128 tokens", LARGE, 128, 65536, 32),
        ("BERT-large, 512 tokens", LARGE, 512, 32768, 8),
    ):
        work = published_workload(shape, tokens, global_batch, micro_batch)
        print(f"{name}: {work.num_parameters:,} values, {work.operations_per_row / 1e9:,.1f} G operations a row;")
        print(f"global batch {global_batch:,}, micro-batch {micro_batch}\n")
        print("\n".join(memory_table(work, 64)))
        for cluster in CLUSTERS:
            print("\n" + "\n".join(speed_table(work, cluster)))
        print()


if __name__ == "__main__":
    main()

"""Speed of a run: tokens a second, and the share of the hardware's peak that the model's own arithmetic reaches."""

import time
from dataclasses import dataclass

from torch import Tensor

from bitbert.accounting import Shape

from .config import LossSection
from .data import Batch


def batch_operations(shape: Shape, attention_mask: Tensor, num_masked: int, loss: LossSection) -> float:
    """Operations that a training step needs for one batch, 2 a multiply-accumulate, matrix products only.

    The student's forward pass counts three times (its backward pass has two products for each), the teacher's once.
    Only text counts, padding is waste; and a 1-bit product counts like any other, since training computes it in
    floating point. Per row of n text tokens: 2 n P + 4 L n^2 h for the layers' P weights and the attention products,
    and the masked-LM head's 2 (h^2 + h V) per masked position.

    Args:
        attention_mask: (batch, positions), 1 at text, in the host's memory.
        num_masked: masked positions in the batch.
    """
    lengths = attention_mask.sum(1).double()
    return _operations(shape, float(lengths.sum()), float(lengths.square().sum()), num_masked, loss)


def row_operations(shape: Shape, num_tokens: int, num_masked: int, loss: LossSection) -> float:
    """:func:`batch_operations` of one row of ``num_tokens`` text tokens."""
    return _operations(shape, num_tokens, num_tokens**2, num_masked, loss)


def _operations(shape: Shape, tokens: float, squares: float, num_masked: int, loss: LossSection) -> float:
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * shape.intermediate_size)
    encoder = 2 * weights * tokens + 4 * layers * hidden * squares
    head = 2 * num_masked * (hidden**2 + hidden * shape.vocab_size)
    teacher = encoder + (head if loss.mlm_distillation else 0)
    return 3 * (encoder + head) + teacher


@dataclass
class Throughput:
    """Counts of the steps since the last report; waits for nothing.

    On an accelerator the host runs ahead of the device, so a single step cannot be timed without stopping it. The time
    between two reports can: each report reads the losses, which waits for the device.

    Args:
        peak_tflops: of one device in the precision that trains; None = no MFU.
    """

    shape: Shape
    loss: LossSection
    peak_tflops: float | None = None
    tokens: float = 0.0
    operations: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._since: float | None = None

    def pause(self) -> None:
        """What happens from here to :meth:`resume` is no training: evaluation, checkpoints."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self._since = None

    def resume(self) -> None:
        """Training begins, for the first time or again."""
        self._since = time.perf_counter()

    def count(self, batches: list[Batch], tokens: float) -> None:
        """Add a step: this rank's batches, and the text tokens of the global batch."""
        self.tokens += tokens
        self.operations += sum(
            batch_operations(self.shape, batch.attention_mask, len(batch.labels), self.loss) for batch in batches
        )

    def report(self) -> dict[str, float]:
        """``tokens_per_s`` over all ranks and ``mfu`` of this rank's device since the last report."""
        self.pause()
        self.resume()
        metrics = {"tokens_per_s": self.tokens / self.seconds}
        if self.peak_tflops:
            metrics["mfu"] = self.operations / self.seconds / (self.peak_tflops * 1e12)
        self.tokens = self.operations = self.seconds = 0.0
        return metrics

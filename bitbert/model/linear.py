"""Binary linear layer, binary embedding and the step sizes they learn."""

import torch
from torch import Tensor, nn

from bitbert.model.binarize import (
    INITIAL_STEP_FACTOR,
    binarize_bool,
    binarize_embedding_rows,
    binarize_signed,
    binarize_strict_bool,
    binarize_unsigned,
    binarize_weight,
    step_size,
    weight_statistics,
)
from bitbert.model.fused import binary_linear
from bitbert.model.kernels import Codes, Kernels, kernels_for
from bitbert.model.levels import minmax_step, quantize_levels

_BINARIZE = {
    "signed": binarize_signed,
    "unsigned": binarize_unsigned,
    "bool": binarize_bool,
    "strict_bool": binarize_strict_bool,
}


class Binarizer(nn.Module):
    """Activation binarizer with one step size alpha, which ``steps`` says where to take from.

    ``learned``: elastic. ``one``: 1, always, BiBERT's plain sign. ``minmax``: max|x| over the highest code, in each
    call. The kinds ``bool`` and ``strict_bool`` (Bi-Attention's scores) have the step 1 whatever ``steps`` says.

    ``forward(x)`` returns (codes, step): codes are ±1 (``signed``) or 0/1 (the other kinds) in x's shape, or integers
    in the range of :attr:`codes` where ``bits`` is above 1; step has shape (1,), and codes * step is the value.

    While ``calibrating`` is set, a forward first puts a learned alpha to 2 * mean|x| (signed) or 4 * mean|x|
    (unsigned), over the root of the highest code; the buffer ``calibrated`` records that it happened, so a loaded
    model is never calibrated by accident.
    """

    alpha: nn.Parameter
    calibrated: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.bits, self.steps = kind, 1, "learned"
        self.alpha = nn.Parameter(torch.ones(1))  # (1,): DeepSpeed cannot broadcast 0-dim parameters
        self.register_buffer("calibrated", torch.zeros(1, dtype=torch.bool))
        self.calibrating = False
        self.monitor: BinarizerStatistics | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.calibrating:
            self._calibrate(x)
        step = self.step(x)
        if self.bits > 1:
            return quantize_levels(x, step, self.codes.lowest, self.codes.highest), step
        return _BINARIZE[self.kind](x, step), step

    def step(self, x: Tensor) -> Tensor:
        """The step for ``x``, (1,); somebody may be watching."""
        step = minmax_step(x, self.codes.highest) if self.steps == "minmax" else self.step_of(x.numel())
        self.watch(x, step)
        return step

    def step_of(self, num_elements: int) -> Tensor:
        """The step, (1,), where it does not depend on what is binarized."""
        return step_size(self.alpha, num_elements * self.codes.highest)

    def watch(self, x: Tensor, step: Tensor) -> None:
        """Show ``x`` to the monitor, if there is one."""
        if self.monitor is not None:
            self.monitor.observe(x, step * self.codes.highest)

    @property
    def fits_kernels(self) -> bool:
        """Whether the native kernels compute it: its step is known beforehand, its codes fit into int8."""
        return self.bits <= 4 and self.steps != "minmax" and not self.calibrating

    @property
    def codes(self) -> Codes:
        """Kind and range of its codes."""
        return Codes.of(self.kind, self.bits)

    @torch.no_grad()
    def _calibrate(self, x: Tensor) -> None:
        if self.steps == "learned":
            factor = INITIAL_STEP_FACTOR[self.kind] / self.codes.highest**0.5
            self.alpha.fill_(1.0).mul_(factor * x.abs().mean())
        self.calibrated.fill_(True)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, bits={self.bits}, steps={self.steps}"


def named_step_sizes(model: nn.Module) -> dict[str, nn.Parameter]:
    """The step size alpha of every binarizer of ``model``, by parameter name."""
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith(".alpha")}


class BinarizerStatistics:
    """What a person watches of one binarizer, kept as tensors so that the step has no host sync."""

    def __init__(self) -> None:
        self.saturation = torch.zeros(())

    @torch.no_grad()
    def observe(self, x: Tensor, limit: Tensor) -> None:
        """saturation: share of inputs outside of the gradient window, where learning has stopped."""
        self.saturation = (x.abs() > limit).float().mean()


class BinaryLinear(nn.Module):
    """Linear layer with 1-bit weights and 1-bit inputs, y = s * a * (codes(x + m) @ sign(W - e)^T) + b.

    Args:
        kind: binarizer of the input, ``"signed"`` or ``"unsigned"``.

    The weights are mean-centred (BiT, BiPFT); see bitbert.model.methods for the layers of other methods.
    Shapes: x (..., in) -> y (..., out). Parameters: latent ``weight`` (out, in), ``bias`` (out), ``shift`` m (in),
    added before binarization and initially 0 (BiT's and BiPFT's "move"), and the binarizer's step a.
    The integer product is exact in float32 up to in = 2**24.
    """

    def __init__(self, in_features: int, out_features: int, *, kind: str, weight_scale: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.weight_scale = in_features, out_features, weight_scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.shift = nn.Parameter(torch.zeros(in_features))
        self.input_binarizer = Binarizer(kind)

    def takes_activation(self, x: Tensor) -> bool:
        """Whether ``forward`` may compute f(x) itself: the kernels run, and nobody watches f(x)."""
        return self.input_binarizer.monitor is None and self._kernels_for(x) is not None

    def forward(self, x: Tensor, *, after: str = "identity") -> Tensor:
        """y of f(x), f named by ``after``, which :meth:`takes_activation` allows or is the identity."""
        kernels, binarizer = self._kernels_for(x), self.input_binarizer
        if kernels is not None:
            step = binarizer.step(x if binarizer.monitor is None else x + self.shift)
            operands = (x, self.shift, step, *self._kernel_weight(), self.bias)
            return binary_linear(kernels, *operands, codes=binarizer.codes, after=after)
        assert after == "identity"
        codes, step = binarizer(x + self.shift)
        y = self._multiply(codes, step) + self.bias
        # In a model of half precision steps and shifts are float32, and so are codes; what goes on is x's type. Under
        # autocast products come in a type of their own.
        return y.to(x.dtype) if self.weight.dtype != codes.dtype else y

    def _kernels_for(self, x: Tensor) -> Kernels | None:
        return kernels_for(x, self.weight, self.bias) if self.input_binarizer.fits_kernels else None

    def _kernel_weight(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weight, centre and scale as :func:`bitbert.model.fused.binary_linear` takes them."""
        center, scale = weight_statistics(self.weight, self.weight_scale)
        return self.weight, center, scale.flatten()

    def _multiply(self, codes: Tensor, step: Tensor) -> Tensor:
        signs, scale = binarize_weight(self.weight, self.weight_scale)
        return nn.functional.linear(codes, signs.to(codes.dtype)) * (scale * step)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, weight_scale={self.weight_scale}"


class BinaryEmbedding(nn.Embedding):
    """Word table of 1-bit entries with one scale a row; latent ``weight`` (vocabulary, hidden)."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (batch, positions) -> binarized rows (batch, positions, hidden)."""
        rows = nn.functional.embedding(input_ids, self.weight, self.padding_idx)
        return binarize_embedding_rows(rows, self.weight.detach().mean())

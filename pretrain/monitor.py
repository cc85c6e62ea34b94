"""What tells whether a binary net still learns, by layer: flipped weights, saturated inputs, steps, attention."""

import re

import torch
from torch import Tensor, nn

from bitbert.model.attention import BinarySelfAttention
from bitbert.model.levels import level_range
from bitbert.model.linear import Binarizer, BinarizerStatistics, BinaryLinear
from bitbert.model.methods import CodedLinear
from bitbert.model.weights import WEIGHT_BINARIZERS, ternary_codes

_LAYER = re.compile(r"\blayers\.(\d+)\.")


class BinaryMonitor:
    """Metrics of the binary parts, computed on logging steps and only then; on rank 0's rows.

        flip_ratio          share of weights whose sign this one update changed (ternary: that became or ceased to be 1)
        saturation          share of binarizer inputs outside of the gradient window in the last forward pass
        attention_ones      share of attention probabilities of text and padding that are binarized to more than 0
        binarizer_step      step size of each binarizer

    The first three are also given by layer (``flip_ratio/layer_03``), the mean over the layer's matrices or binarizers;
    ``pooler`` stands beside the layers. Step sizes are given one by one (``binarizer_step/layer_03/output.input``).
    What is watched stays on the device until :meth:`metrics`, which reads all of it in one transfer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, BinaryLinear)}
        self._binarizers = {name: module for name, module in model.named_modules() if isinstance(module, Binarizer)}
        self._attention = {
            f"{name}.probability_binarizer"
            for name, module in model.named_modules()
            if isinstance(module, BinarySelfAttention)
        }
        self._signs: dict[str, Tensor] = {}

    def watch(self, on: bool) -> None:
        """Observe the next step, or stop: watching costs a pass over every weight and activation.

        Call it before a step, where every rank holds whole weights.
        """
        for name, binarizer in self._binarizers.items():
            statistics = AttentionStatistics(binarizer) if name in self._attention else BinarizerStatistics()
            binarizer.monitor = statistics if on else None
        self._signs = self._packed_signs() if on else {}

    def metrics(self) -> dict[str, float]:
        """Metrics of the step since :meth:`watch`; afterwards nothing is watched."""
        signs, before = self._packed_signs(), self._signs
        sizes = {name: linear.weight.numel() for name, linear in self._linears.items()}
        flips = {name: _count_ones(signs[name] ^ before[name]) for name in signs}
        observed = {name: each.monitor for name, each in self._binarizers.items() if each.monitor is not None}
        figures = {
            **{f"flips {name}": count for name, count in flips.items()},
            **{f"saturation {name}": each.saturation for name, each in observed.items()},
            **{f"ones {name}": each.ones for name, each in observed.items() if isinstance(each, AttentionStatistics)},
            **{f"step {name}": each.alpha.detach().sum() for name, each in self._binarizers.items()},
        }
        read = dict(zip(figures, torch.stack([value.float() for value in figures.values()]).tolist(), strict=True))
        self.watch(False)
        metrics = {"flip_ratio": sum(read[f"flips {name}"] for name in flips) / sum(sizes.values())}
        metrics |= _by_layer("flip_ratio", {name: read[f"flips {name}"] / sizes[name] for name in flips}, sizes)
        for title, key, names in (
            ("saturation", "saturation", observed),
            ("attention_ones", "ones", [name for name in observed if name in self._attention]),
        ):
            values = {name: read[f"{key} {name}"] for name in names}
            if values:
                metrics[title] = sum(values.values()) / len(values)
                metrics |= _by_layer(title, values, dict.fromkeys(values, 1))
        for name in self._binarizers:
            metrics[f"binarizer_step/{_place(name)}/{_short(name)}"] = read[f"step {name}"]
        return metrics

    @torch.no_grad()
    def _packed_signs(self) -> dict[str, Tensor]:
        """One bit a weight, so that watching BERT-base costs 11 MB and not 85."""
        return {name: _pack(_signs(linear)) for name, linear in self._linears.items()}


class AttentionStatistics(BinarizerStatistics):
    """Of a binarizer of attention probabilities, or of Bi-Attention's scores: how many codes are above 0."""

    def __init__(self, binarizer: Binarizer) -> None:
        super().__init__()
        self.ones = torch.zeros(())
        self._kind = binarizer.kind
        self._highest = level_range(binarizer.kind, binarizer.bits)[1]

    @torch.no_grad()
    def observe(self, x: Tensor, limit: Tensor) -> None:
        super().observe(x, limit)
        if self._kind == "bool":
            above = x >= 0
        else:
            above = x > (0 if self._kind == "strict_bool" else limit / (2 * self._highest))
        self.ones = above.float().mean()


def _signs(linear: BinaryLinear) -> Tensor:
    """Which weights are +1, booleans in the weight's shape."""
    binarizer = WEIGHT_BINARIZERS[linear.weight_binarizer if isinstance(linear, CodedLinear) else "mean_centered"]
    if binarizer.center is None:
        return ternary_codes(linear.weight, linear.weight_scale)[0] > 0
    return linear.weight >= binarizer.center(linear.weight)


def _by_layer(title: str, values: dict[str, float], weights: dict[str, int]) -> dict[str, float]:
    """``title/layer_NN``: weighted mean of the values of each layer's modules."""
    sums: dict[str, list[float]] = {}
    for name, value in values.items():
        total = sums.setdefault(_place(name), [0.0, 0.0])
        total[0] += value * weights[name]
        total[1] += weights[name]
    return {f"{title}/{place}": total / weight for place, (total, weight) in sums.items()}


def _place(name: str) -> str:
    """``bitbert.layers.3.attention.query`` -> ``layer_03``; outside of the layers the module, e.g. ``pooler``."""
    match = _LAYER.search(name)
    return f"layer_{int(match.group(1)):02d}" if match else name.split(".")[1 if name.startswith("bitbert.") else 0]


def _short(name: str) -> str:
    """``bitbert.layers.3.attention.query.input_binarizer`` -> ``attention.query.input``."""
    within = _LAYER.split(name)[-1] if _LAYER.search(name) else name.partition("pooler.")[2]
    return within.removesuffix("_binarizer")


def _pack(bits: Tensor) -> Tensor:
    """Booleans of any shape -> uint8 of eight bits each, padded with zeros."""
    flat = nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    packed = torch.zeros(len(flat), dtype=torch.uint8, device=bits.device)
    for place in range(8):
        packed |= flat[:, place].to(torch.uint8) << place
    return packed


def _count_ones(packed: Tensor) -> Tensor:
    """Number of one bits in a uint8 tensor, a scalar tensor."""
    pairs = packed - ((packed >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(dtype=torch.int64)

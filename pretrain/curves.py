"""A run's curves, drawn from its metrics into PNG images."""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Series = Mapping[str, tuple[list[int], list[float]]]
"""Metric name -> steps and values; a value that was not finite is NaN, and its curve has a gap there."""

_DPI = 110
_WIDTH, _HEIGHT = 9.0, 3.6  # inches of a figure with one row


@dataclass(frozen=True)
class Curve:
    """One image: ``name`` is its file name without ``.png``, ``caption`` says what to look for."""

    name: str
    title: str
    caption: str
    png: bytes


def read_series(lines: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Metrics lines -> series, in the order in which metrics first appear."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time_s"):
                steps, values = series.setdefault(name, ([], []))
                steps.append(int(line["step"]))
                values.append(math.nan if value is None else float(value))
    return series


def draw_curves(series: Series) -> list[Curve]:
    """All images that the metrics are enough for, in the order of a report."""
    curves = [
        _image(
            "loss",
            "Training loss",
            "Terms before weighting; the total is weighted.",
            [
                ("loss, weighted", _exactly(series, ("loss/total",))),
                ("terms", _below(series, "loss/", without="total")),
            ],
        ),
        _image(
            "evaluation",
            "Held-out evaluation",
            "Next-sentence accuracy of 0.5 is guessing; the distance is relative, 1 is a state of zeros.",
            [
                ("loss", _exactly(series, ("eval/mlm_loss", "eval/nsp_loss"))),
                ("accuracy", _exactly(series, ("eval/mlm_accuracy", "eval/nsp_accuracy"))),
                ("distance to the teacher's last layer", _exactly(series, ("eval/hidden_error",))),
            ],
        ),
        _image(
            "optimization",
            "Learning rate and gradient",
            "A norm that grows without end comes before a loss that does.",
            [
                ("learning rate", _exactly(series, ("learning_rate",))),
                ("gradient norm", _exactly(series, ("gradient_norm",))),
            ],
        ),
        _image(
            "speed",
            "Speed",
            "Text tokens over all ranks; MFU is of the configured peak.",
            [("tokens/s", _exactly(series, ("tokens_per_s",))), ("MFU", _exactly(series, ("mfu",)))],
        ),
        _image(
            "binary",
            "Binary parts by layer",
            "Flips near 0 early mean frozen signs; saturation near 1 means inputs that no gradient reaches; "
            "attention that is all zeros or all ones tells nothing.",
            [
                ("weights flipped an update", _below(series, "flip_ratio/")),
                ("inputs outside of the window", _below(series, "saturation/")),
                ("ones in attention", _below(series, "attention_ones/")),
            ],
        ),
        _image(
            "step_sizes",
            "Step sizes by layer",
            "One line a layer. A step at 0 has died.",
            [
                (kind, {name.split("/")[1]: series[name] for name in names})
                for kind, names in _step_sizes(series).items()
            ],
        ),
    ]
    return [curve for curve in curves if curve is not None]


def _image(name: str, title: str, caption: str, panels: Sequence[tuple[str, Series]]) -> Curve | None:
    """Panels side by side, up to three a row; None where no panel has anything to show."""
    panels = [(label, series) for label, series in panels if series]
    if not panels:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained", dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axis, (label, series)) in enumerate(zip(axes, panels, strict=False)):
        _draw(axis, label, series, matplotlib.colormaps["viridis"], first=number == 0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Curve(name, title, caption, buffer.getvalue())


def _draw(axis: Any, label: str, series: Series, colormap: Callable[[float], Any], *, first: bool) -> None:
    """One panel. Layers are coloured by depth, and named in the first panel only: the others have the same ones."""
    by_depth = all(re.fullmatch(r"layer_\d+|pooler", name) for name in series) and len(series) > 1
    for number, (name, (steps, values)) in enumerate(series.items()):
        style = {"color": colormap(0.9 * number / (len(series) - 1))} if by_depth else {}
        # A single point has no line to be seen by.
        axis.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 3 else None, **style)
    axis.set_title(label, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    if len(series) > 1 and (first or not by_depth):
        axis.legend(fontsize=6, ncols=2 if len(series) > 6 else 1)


def _exactly(series: Series, names: Sequence[str]) -> Series:
    return {name.rpartition("/")[2]: series[name] for name in names if name in series}


def _below(series: Series, prefix: str, *, without: str | None = None) -> Series:
    names = {name.removeprefix(prefix): values for name, values in series.items() if name.startswith(prefix)}
    return {name: values for name, values in names.items() if name != without}


def _step_sizes(series: Series) -> dict[str, list[str]]:
    """Names of the step sizes of all layers, by the binarizer they are of."""
    kinds: dict[str, list[str]] = {}
    for name in series:
        if name.startswith("binarizer_step/"):
            kinds.setdefault(name.split("/")[2], []).append(name)
    return kinds

"""Taps: what passes inside of a model, recorded by forward hooks, for losses and measurements beside its outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from bitbert.errors import UserError


@dataclass(frozen=True)
class Projections:
    """Outputs of one layer's query, key and value projections, (batch, positions, hidden) each.

    A student's are those before binarization: real values through which gradients flow.
    """

    query: Tensor
    key: Tensor
    value: Tensor


class ProjectionTap:
    """Record the query, key and value projections of a model's layers while a ``with`` block is open.

        tap = ProjectionTap(model, layers=[-1])
        with tap:
            output = model(**inputs)
        last = tap.take()[0]

    It hooks the modules ``query``, ``key`` and ``value`` of each self-attention, so it serves our models and HF's BERT,
    with heads or without, alone or inside of an engine. Recorded tensors belong to the graph of the forward pass:
    a loss of them has gradients. A forward pass under ``torch.no_grad`` records tensors without.

    Args:
        layers: which layers, in the order wanted; negative numbers count from the last. None = all.

    Raises:
        UserError: a layer that the model does not have.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int] | None = None) -> None:
        found = [module for module in model.modules() if all(hasattr(module, name) for name in _NAMES)]
        if not found:
            raise UserError(f"{type(model).__name__} has no self-attention with query, key and value; use a BERT")
        chosen = list(range(len(found))) if layers is None else list(layers)
        absent = [layer for layer in chosen if not -len(found) <= layer < len(found)]
        if absent:
            raise UserError(
                f"layer {absent[0]} does not exist: the model has {len(found)} layers; "
                f"use {-len(found)} to {len(found) - 1}"
            )
        self._attentions = [found[layer] for layer in chosen]
        self._recorded: dict[tuple[int, str], Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for place, attention in enumerate(self._attentions):
            for name in _NAMES:
                hook = self._hook((place, name))
                self._handles.append(getattr(attention, name).register_forward_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> list[Projections]:
        """What the last forward pass recorded, one entry a chosen layer; the tap keeps no reference to it."""
        recorded, self._recorded = self._recorded, {}
        return [Projections(*(recorded[place, name] for name in _NAMES)) for place, _ in enumerate(self._attentions)]

    def _hook(self, key: tuple[int, str]) -> Any:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._recorded[key] = output

        return record


_NAMES = ("query", "key", "value")

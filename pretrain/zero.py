"""Weights and moments as whole named tensors, whatever part of them a rank holds under its ZeRO stage.

Stage 0 replicates everything. Stages 1 and 2 replicate the weights; the optimizer works on one flat partition a
parameter group. Stage 3 partitions each parameter over the ranks. In all of them a parameter's values, or one of its
moments, lie on this rank as one run of a flat tensor: that is a :class:`Piece`, and the rest of this file is the same
for every stage. Everything here that moves data is collective: all ranks call it in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitbert.distributed import Topology
from bitbert.errors import UserError

from .ranks import share_json
from .tensor_file import TensorSpec


@dataclass(frozen=True)
class Piece:
    """Where this rank's part of a parameter lies.

    Attributes:
        holder: the tensor that the optimizer updates, or what is kept of a fixed parameter; moments have its shape.
        offset: first element in ``holder``, flattened.
        start: first element in the parameter, flattened.
        numel: how many; 0 where this rank holds nothing of the parameter.
    """

    holder: Tensor
    offset: int
    start: int
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of ``tensor``, which has the holder's shape."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.numel]


class TrainingTensors:
    """Whole tensors of a model and its optimizer, one at a time, on rank 0.

    Args:
        zero: DeepSpeed's ZeRO optimizer of stage 1, 2 or 3; None for stage 0.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology, zero: Any = None
    ) -> None:
        self.topology = topology
        self._model, self._optimizer, self._zero = model, optimizer, zero
        self._weights_partitioned = hasattr(zero, "fp32_partitioned_groups_flat")
        self._parameters = dict(model.named_parameters())
        self._device = next(model.parameters()).device
        self._pieces = {name: self._piece(parameter) for name, parameter in self._parameters.items()}

    def model_specs(self) -> list[TensorSpec]:
        """Parameters, each shared one once, then buffers."""
        specs = [TensorSpec(name, each.dtype, whole_shape(each)) for name, each in self._parameters.items()]
        return specs + [TensorSpec(name, each.dtype, tuple(each.shape)) for name, each in self._model.named_buffers()]

    def optimizer_specs(self) -> list[TensorSpec]:
        """What the optimizer keeps of each parameter, named ``kind|parameter``; nothing before its first update."""
        specs = []
        for name, parameter in self._parameters.items():
            # In the order of their names: a resumed optimizer has them in another than a fresh one.
            for kind, value in sorted(self._optimizer.state.get(self._pieces[name].holder, {}).items()):
                shape = () if value.dim() == 0 else whole_shape(parameter)
                specs.append(TensorSpec(f"{kind}|{name}", value.dtype, shape))
        return specs

    def gather(self, specs: list[TensorSpec]) -> Iterator[Tensor]:
        """The whole tensors of ``specs`` in CPU memory, one at a time; ranks other than 0 get empty ones."""
        for spec in specs:
            yield self._gather(spec)

    def from_main(self, value: Any) -> Any:
        """Rank 0's ``value``, as JSON, on every rank."""
        return share_json(value, self.topology, self._device)

    def check(self, specs: list[TensorSpec], file: str) -> None:
        """Hold the contents of a checkpoint's file against the model.

        Raises:
            UserError: it has a tensor that the model lacks, or in another shape.
        """
        shapes = {spec.name: spec.shape for spec in self.model_specs()}
        for spec in specs:
            name = spec.name.rpartition("|")[2]
            if spec.shape not in ((), shapes.get(name)) or name not in shapes:
                raise UserError(
                    f"{file} of the checkpoint has {spec.name!r} of shape {list(spec.shape)}, the model has "
                    f"{shapes.get(name, 'no such tensor')}; use the config that made it"
                )

    def start_moments(self, specs: list[TensorSpec]) -> None:
        """Make room for moments on this rank, as the first update would, to be filled by :meth:`set`."""
        for spec in specs:
            kind, _, name = spec.name.rpartition("|")
            if not kind:
                continue
            holder = self._pieces[name].holder
            shape = spec.shape if spec.shape == () else tuple(holder.shape)
            state = self._optimizer.state[holder]
            if kind not in state:
                state[kind] = torch.zeros(shape, dtype=spec.dtype, device=holder.device)

    @torch.no_grad()
    def set(self, spec: TensorSpec, value: Tensor | None) -> None:
        """Put rank 0's whole tensor ``value`` where ``spec`` lies on each rank."""
        kind, _, name = spec.name.rpartition("|")
        buffers = dict(self._model.named_buffers())
        if value is None:
            whole = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        else:
            whole = value.to(self._device).contiguous()
        if self.topology.world_size > 1:
            dist.broadcast(whole.view(-1).view(torch.uint8), src=0)
        if name in buffers:
            buffers[name].copy_(whole)
            return
        piece = self._pieces[name]
        if kind:
            state = self._optimizer.state[piece.holder][kind]
            if spec.shape == ():
                state.copy_(whole)
            else:
                piece.of(state).copy_(whole.reshape(-1)[piece.start : piece.start + piece.numel])
            return
        if not self._weights_partitioned:
            self._parameters[name].copy_(whole)
        if self._zero is not None:
            piece.of(piece.holder).copy_(whole.reshape(-1)[piece.start : piece.start + piece.numel])

    def weights_were_set(self) -> None:
        """Stage 3 computes with a copy of what the optimizer updates: bring it up to date after :meth:`set`."""
        if self._weights_partitioned:
            self._zero._partition_all_parameters()
            for group in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
            if self._zero.persistent_parameters:
                self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def gradient_squares(self) -> Tensor:
        """This rank's share of the squared global gradient norm, a scalar in float64; after the last backward pass."""
        if self._zero is None:
            gradients = [each.grad for each in self._parameters.values() if each.grad is not None]
            share = 1.0 / self.topology.world_size  # after the reduction every rank has the same gradient
        else:
            gradients = [each for group in self._zero.averaged_gradients.values() for each in group]
            share = 1.0
        norms = torch._foreach_norm(gradients)
        return torch.stack(norms).double().square().sum() * share

    def _gather(self, spec: TensorSpec) -> Tensor:
        kind, _, name = spec.name.rpartition("|")
        if name not in self._parameters:
            return self._on_main(dict(self._model.named_buffers())[name])
        piece = self._pieces[name]
        source = self._optimizer.state[piece.holder][kind] if kind else piece.holder
        if spec.shape == () or self._zero is None:
            return self._on_main(source)
        if not kind and not self._weights_partitioned:
            return self._on_main(self._parameters[name])
        whole = torch.zeros(spec.shape, dtype=spec.dtype, device=source.device).view(-1)
        whole[piece.start : piece.start + piece.numel] = piece.of(source)
        if self.topology.world_size > 1:
            # Every byte is zero on all ranks but one, and integers add exactly: no bit changes, not even of -0.0.
            dist.reduce(whole.view(torch.uint8), dst=0)
        return self._on_main(whole.reshape(spec.shape))

    def _on_main(self, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if self.topology.is_main else torch.empty(0)

    def _piece(self, parameter: Any) -> Piece:
        trained = parameter.requires_grad  # ZeRO's groups leave out what a method keeps fixed
        if self._weights_partitioned:
            if trained:
                group, offset, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
                holder = self._zero.fp32_partitioned_groups_flat[group]
            else:
                holder, offset, length = parameter.ds_tensor, 0, parameter.ds_tensor.numel()
            start = self.topology.rank * length
            held = max(0, min(length, parameter.ds_numel - start))
            return Piece(holder, offset, start if held else 0, held)
        if self._zero is None or not trained:
            return Piece(parameter, 0, 0, parameter.numel())
        group = next(
            number
            for number, members in enumerate(self._zero.bit16_groups)
            if any(member is parameter for member in members)
        )
        holder = self._zero.single_partition_of_fp32_groups[group]
        mapping = parameter._hp_mapping
        if mapping is None:
            return Piece(holder, 0, 0, 0)
        theirs, ours = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Piece(holder, theirs.start, ours.start, theirs.numel)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, also where stage 3 has emptied it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))

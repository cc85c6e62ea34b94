"""The one door to DeepSpeed, from one CPU process to many nodes."""

import os
import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bitbert.distributed import Topology
from bitbert.errors import UserError

from .config import PretrainConfig


class NonFiniteLossError(UserError):
    """The loss of a step is NaN or infinite on some rank; raised on all ranks before the update."""


def start(topology: Topology, device: str) -> torch.device:
    """Join the process group and return this rank's device.

    DeepSpeed's CPU backend compiles an extension at the first start (a minute or two, behind a lock that all
    programs share). Gloo does its work; the extension is declared unavailable.
    """
    os.environ.update(topology.environment())
    if topology.master_port == 0:
        os.environ["MASTER_PORT"] = str(_free_port())
    if device == "cpu" or not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(topology.local_rank)
    backend = "gloo" if accelerator.device_name() == "cpu" else accelerator.communication_backend_name()
    deepspeed.init_distributed(backend, verbose=False, auto_mpi_discovery=False)
    return torch.device(accelerator.current_device_name())


class Engine:
    """DeepSpeed around the student: forward, backward, the update, and sums over ranks.

    Parameters of ZeRO stage 0: every rank holds the whole model and optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        topology: Topology,
        device: torch.device,
    ) -> None:
        import deepspeed

        self.topology, self.device, self.model = topology, device, model
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, topology),
            dist_init_required=False,
        )
        self.optimizer = optimizer

    def __call__(self, **inputs: Any) -> Any:
        return self._engine(**inputs)

    def backward(self, loss: torch.Tensor, *, num_micro_batches: int) -> None:
        """Accumulate gradients of ``loss``, this micro-batch's share of the global loss.

        DeepSpeed divides by the number of micro-batches and by the number of ranks; the shares are already shares.
        """
        self._engine.backward(loss * (num_micro_batches * self.topology.world_size))

    def use_batch_sizes(self, global_batch_size: int, micro_batch_size: int) -> None:
        """Accumulate so many sequences from now on; call it between two updates, when a phase begins."""
        engine = self._engine
        if (engine.train_batch_size(), engine.train_micro_batch_size_per_gpu()) == (
            global_batch_size,
            micro_batch_size,
        ):
            return
        engine.set_train_micro_batch_size(micro_batch_size)
        engine.set_train_batch_size(global_batch_size)
        engine.micro_steps = 0  # DeepSpeed finds an update's last micro-batch by counting from the start

    def update(self, learning_rate: float) -> None:
        """Step the micro-batch; the last one of an accumulation updates the weights at ``learning_rate``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    @property
    def gradient_norm(self) -> float | None:
        """Global norm of the last update's gradient; None where DeepSpeed did not compute it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def sum_over_ranks(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """Sum each value over all ranks, in float64."""
        import deepspeed.comm as comm

        local = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.device).detach() for value in values]
        )
        if self.topology.world_size > 1:
            comm.all_reduce(local)
        return local.tolist()

    def barrier(self) -> None:
        import deepspeed.comm as comm

        comm.barrier()


def broadcast_parameters(model: nn.Module, topology: Topology) -> None:
    """Make every parameter and buffer equal to rank 0's."""
    if topology.world_size > 1:
        import deepspeed.comm as comm

        for tensor in (*model.parameters(), *model.buffers()):
            comm.broadcast(tensor.data, src=0)


def stop() -> None:
    """Leave the process group after a run that ended well."""
    import deepspeed.comm as comm

    comm.destroy_process_group()


def deepspeed_config(config: PretrainConfig, topology: Topology) -> dict[str, Any]:
    """DeepSpeed's dictionary, derived from ours; settings whose defaults changed between versions are explicit."""
    phase = config.resolved_phases()[0]
    return {
        "train_batch_size": phase.global_batch_size,
        "train_micro_batch_size_per_gpu": phase.micro_batch_size,
        "gradient_accumulation_steps": phase.accumulation_steps(topology.world_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _free_port() -> int:
    """A port for one process alone with itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

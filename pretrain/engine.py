"""The one door to DeepSpeed, from one CPU process to many nodes."""

import os
import socket
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from bitbert.distributed import Topology
from bitbert.memory import give_back_memory_now_and_then
from bitbert.model import BitBertPreTrainedModel
from bitbert.model.linear import named_step_sizes
from bitbert.model.precision import products_in

from .config import PretrainConfig
from .optim import set_learning_rate
from .tensor_file import TensorSpec
from .zero import TrainingTensors


def start(topology: Topology, device: str, timeout_s: float) -> torch.device:
    """Join the process group and return this rank's device; ranks that do not come within ``timeout_s`` are lost.

    DeepSpeed's CPU backend compiles an extension at the first start (a minute or two, behind a lock that all
    programs share). Gloo does its work; the extension is declared unavailable.

    Torch and DeepSpeed read environment variables; :func:`stop` restores what they were before.
    """
    wanted = topology.environment() | {"DS_LOG_LEVEL": os.environ.get("DS_LOG_LEVEL", "warning")}
    if topology.master_port == 0:
        wanted["MASTER_PORT"] = str(_free_port())
    if device == "cpu" or not torch.cuda.is_available():
        wanted["DS_ACCELERATOR"] = "cpu"
    for name in wanted:
        _found.setdefault(name, os.environ.get(name))
    os.environ.update(wanted)
    # DeepSpeed calls collectives by names that torch has renamed: a warning at every step of stage 3.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(topology.local_rank)
    backend = "gloo" if accelerator.device_name() == "cpu" else accelerator.communication_backend_name()
    deepspeed.init_distributed(
        backend, verbose=False, auto_mpi_discovery=False, timeout=timedelta(seconds=timeout_s + _GRACE_S)
    )
    return torch.device(accelerator.current_device_name())


_found: dict[str, str | None] = {}
"""Environment variables as :func:`start` found them; None = it was not set."""
_GRACE_S = 30  # the watchdog's sentence comes before what the communication library has to say
_BUCKET_ELEMENTS = 50_000_000  # ZeRO allocates a bucket at each backward pass: 200 MB instead of its default 2 GB


class Engine:
    """DeepSpeed around the student: forward, backward, the update, and sums over ranks.

    ``tensors`` are the weights and moments as whole named tensors, whatever the ZeRO stage.
    """

    def __init__(
        self,
        model: BitBertPreTrainedModel,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        topology: Topology,
        device: torch.device,
    ) -> None:
        import deepspeed

        self.topology, self.device, self.model = topology, device, model
        if config.precision == "bf16":
            # Inside of the model: DeepSpeed switches off an autocast that is entered outside of it.
            model.forward = products_in(config.precision, device)(model.forward)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, topology),
            dist_init_required=False,
        )
        if topology.world_size == 1:
            # A sum over one rank: stage 0 would copy all gradients into one tensor for it, and back.
            self._engine.allreduce_no_retain = lambda *arguments, **options: None
        self.optimizer = optimizer
        self._stage = config.zero_stage
        self._zero = self._engine.optimizer if self._stage else None
        self.tensors = TrainingTensors(model, optimizer, topology, self._zero)
        self._num_calls = 0
        self.gradient_norm = 0.0
        """Global norm of the last update's gradient, before clipping."""

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

    def change_step_sizes(self, change: Callable[[BitBertPreTrainedModel], None]) -> None:
        """Let ``change`` set the model's step sizes between two updates, the same on every rank; collective."""
        with self.whole_weights():
            change(self.model)
            alphas = {name: each.detach().clone() for name, each in named_step_sizes(self.model).items()}
        if self._zero is not None:  # it updates copies of its own
            for name, value in alphas.items():
                self.tensors.set(TensorSpec(name, value.dtype, tuple(value.shape)), value)
            self.tensors.weights_were_set()

    def update(self, learning_rate: float) -> None:
        """Step the micro-batch; the last one of an accumulation updates the weights at ``learning_rate``."""
        set_learning_rate(self.optimizer, learning_rate)
        self._engine.step()
        self._num_calls += 1
        give_back_memory_now_and_then(self._num_calls)

    def skip_update(self) -> None:
        """Drop the gradient of the whole accumulation instead of the last :meth:`update`."""
        if self._zero is None:
            self._engine.zero_grad()
            self._engine.micro_steps += 1
            return
        # ZeRO drops an update whose norm is not finite. Where only the loss was not finite, the gradient is made to
        # follow it: on rank 0, which holds a part of every tensor. On others the first may be padding alone, which
        # nothing writes again.
        if self.topology.is_main:
            for gradients in self._zero.averaged_gradients.values():
                gradients[0].fill_(float("nan"))
        self._engine.step()

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Within it every rank sees every parameter whole, to read; collective under stage 3, free otherwise."""
        if self._stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.model.parameters()))

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
    """Leave the process group after a run that ended well, and restore the environment."""
    import deepspeed.comm as comm

    comm.destroy_process_group()
    restore_environment()


def restore_environment() -> None:
    """Make the environment what :func:`start` found; after a failure, when leaving the group could wait for ever."""
    while _found:
        name, value = _found.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def deepspeed_config(config: PretrainConfig, topology: Topology) -> dict[str, Any]:
    """DeepSpeed's dictionary, derived from ours; settings whose defaults changed between versions are explicit."""
    phase = config.resolved_phases()[0]
    return {
        "train_batch_size": phase.global_batch_size,
        "train_micro_batch_size_per_gpu": phase.micro_batch_size,
        "gradient_accumulation_steps": phase.accumulation_steps(topology.world_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _free_port() -> int:
    """A port for one process alone with itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

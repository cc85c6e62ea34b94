"""Tensor bytes and collectives of real runs on 1, 2 and 4 CPU ranks, ZeRO stages 0 to 3, beside pretrain/scaling.py.

    python benchmarks/bench_scaling.py [--json PATH]

Each case forks its ranks, takes two steps of two micro-batches through the training engine, and counts: bytes of all
live tensors that belong to the student after the last backward pass, by kind, and bytes handed to torch.distributed.
Nothing is timed.
"""

import argparse
import gc
import json
import os
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

WORLD_SIZES = (1, 2, 4)
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
VOCABULARY, TOKENS, MICRO_BATCH, MICRO_BATCHES = 2000, 32, 2, 2
_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "reduce": "reduce",
    "reduce_scatter_tensor": "reduce",
    "all_gather": "all_gather",
    "all_gather_into_tensor": "all_gather",
}


def storage_bytes(tensors: list[torch.Tensor], seen: set[int]) -> int:
    """Bytes of the distinct storages behind ``tensors`` that are not in ``seen`` yet; adds them to it."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def count_state(engine: Any) -> dict[str, int]:
    """Bytes that this rank holds of the student: weights, gradients, the optimizer's own copies, moments."""
    model, zero = engine.model, engine._zero
    seen: set[int] = set()
    parameters = list(model.parameters())
    weights = [parameter.data for parameter in parameters]
    weights += [each.ds_tensor for each in parameters if hasattr(each, "ds_tensor")]
    masters = getattr(zero, "single_partition_of_fp32_groups", None) or getattr(
        zero, "fp32_partitioned_groups_flat", []
    )
    gradients = [each.grad for each in parameters if each.grad is not None]
    if zero is not None:
        averaged = zero.averaged_gradients.values()
        gradients += [each for group in averaged if group is not None for each in group if each is not None]
        partitions = getattr(zero, "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition", {})
        gradients += list(partitions.values())
    moments = [
        value for state in engine.optimizer.state.values() for key, value in state.items() if key.startswith("exp_")
    ]
    return {
        name: storage_bytes(list(tensors), seen)
        for name, tensors in (
            ("weights", weights),
            ("masters", masters),
            ("moments", moments),
            ("gradients", gradients),
        )
    }


class CollectiveCounter:
    """Counts the bytes that pass through torch.distributed's collectives."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.bytes: Counter[str] = Counter()
        for name, kind in _COLLECTIVES.items():
            setattr(dist, name, self._counted(getattr(dist, name), kind, name))

    def _counted(self, call: Any, kind: str, name: str) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            first = arguments[0] if arguments else next(iter(options.values()))
            if name == "reduce_scatter_tensor":  # (output, input): what is handed in
                first = arguments[1] if len(arguments) > 1 else options["input"]
            tensors = first if isinstance(first, list) else [first]
            self.bytes[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            return call(*arguments, **options)

        return counted


def run_rank(stage: int, rank: int, world_size: int, port: int, output: Path) -> None:
    """Two steps of one rank; writes what it counted."""
    from bitbert.config import check_config
    from bitbert.distributed import Topology
    from bitbert.model import BitBertConfig, BitBertForPreTraining
    from bitbert.presets import preset_fields
    from bitbert.pretrain import engine as engines
    from bitbert.pretrain.config import PretrainConfig
    from bitbert.pretrain.optim import build_optimizer

    torch.set_num_threads(1)
    topology = Topology(rank, world_size, rank, "127.0.0.1", port)
    config = check_config(
        PretrainConfig,
        {
            "output": "x",
            "data": {"train": "x", "heldout": "x"},
            "tokenizer": "x",
            "teacher": "x",
            "steps": 2,
            "optimizer": {"warmup_steps": 0},
            "zero_stage": stage,
            "device": "cpu",
            "micro_batch_size": MICRO_BATCH,
            "global_batch_size": MICRO_BATCH * MICRO_BATCHES * world_size,
        },
        origin="benchmark",
    )
    counter = CollectiveCounter()  # before DeepSpeed takes hold of the functions
    device = engines.start(topology, "cpu", 300.0)
    torch.manual_seed(0)
    model = BitBertForPreTraining(BitBertConfig(vocab_size=VOCABULARY, **SHAPE, **preset_fields("bitbert"))).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    engine = engines.Engine(model, build_optimizer(model, config.optimizer), config, topology, device)
    state = {}
    for _ in range(2):
        counter.bytes.clear()
        for number in range(MICRO_BATCHES):
            ids = torch.randint(5, VOCABULARY, (MICRO_BATCH, TOKENS))
            output_ = engine(input_ids=ids, masked_positions=torch.arange(8))
            loss = output_.prediction_logits.square().mean() + output_.seq_relationship_logits.square().mean()
            engine.backward(loss, num_micro_batches=MICRO_BATCHES)
            del output_
            if number == MICRO_BATCHES - 1:
                gc.collect()
                state = count_state(engine)
            engine.update(1e-3)
        after = count_state(engine)
        state["moments"], state["masters"] = after["moments"], after["masters"]
    if rank == 0:
        whole = sum(each.numel() for each in model.parameters() if getattr(each, "ds_persist", False))
        output.write_text(
            json.dumps({"parameters": count, "whole": whole, "state": state, "payload": dict(counter.bytes)})
        )
    engine.barrier()
    os._exit(0)


def run_case(stage: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Fork the ranks of one case and read what rank 0 counted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = folder / f"{stage}-{world_size}.json"
    children = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            try:
                run_rank(stage, rank, world_size, port, output)
            finally:
                os._exit(1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        raise SystemExit(f"stage {stage} on {world_size} ranks failed: exit codes {codes}")
    return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed  # noqa: F401  (once, before the forks)

    import bitbert.pretrain.run  # noqa: F401
    from bitbert.pretrain.scaling import STAGES, payload, state_bytes

    kinds = ("weights", "gradients", "masters", "moments")
    rows = []
    print("stage ranks " + " ".join(f"{kind:>21}" for kind in (*kinds, "communication")), "  (measured / computed MB)")
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            for world_size in WORLD_SIZES:
                found = run_case(stage, world_size, Path(folder))
                expected = state_bytes(found["parameters"], stage, world_size, whole=found["whole"])
                pay = payload(found["parameters"], stage, MICRO_BATCHES, whole=found["whole"])
                total = pay.all_reduce + pay.reduce + pay.all_gather if world_size > 1 else 0.0
                row = {name: found[name] for name in ("parameters", "whole")} | {"stage": stage, "ranks": world_size}
                pairs = [(found["state"][kind], getattr(expected, kind)) for kind in kinds]
                pairs.append((sum(found["payload"].values()) if world_size > 1 else 0, total))
                for name, (measured, computed) in zip((*kinds, "communication"), pairs, strict=True):
                    row |= {f"{name}_measured": measured, f"{name}_computed": computed}
                rows.append(row)
                print(f"{stage:5} {world_size:5} " + " ".join(f"{a / 1e6:10.2f} /{b / 1e6:9.2f}" for a, b in pairs))
                sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"shape": SHAPE, "micro_batches": MICRO_BATCHES, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

"""What a pretraining step costs: ours with its teacher, full precision without one, and the published step.

    python benchmarks/bench_pretrain.py --json out.json --shape l6-h384 --rows 32 --tokens 128 --threads 2

Three training steps (forward, backward, AdamW) on the same random rows, in turn, round after round:

    ours       the trainer's own: BitBertForPreTraining, Teacher, objective and engine, all published terms
    hf         transformers' BertForPreTraining in full precision, without a teacher, logits at every position
    published  benchmarks/published_step.py: the published method, one operation after the other

Medians are printed, and ratios of medians. With one thread a step is timed by its CPU time, which is its time on a
core of its own; with more there is only the clock. Peak memory is that of a process that does two such steps, above
what the imports take. `--precision bf16` runs matrix products of all three in bfloat16.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from bench_runtime import processor
from rich.progress import track

from bitbert.memory import prepare_memory

SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "l6-h384": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}
SYSTEMS = ("ours", "hf", "published")
VOCAB_SIZE = 30522
MASKED_SHARE = 0.15
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_dot_product")
OPTIMIZER = ("aten::_fused_adamw", "Optimizer.step")


def make_rows(rows: int, tokens: int) -> tuple[Any, dict[str, Any]]:
    """One micro-batch of random rows without padding: as ours (masked positions) and as dense labels."""
    import torch

    from bitbert.pretrain.data import Batch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB_SIZE, (rows, tokens), generator=generator)
    positions = torch.randperm(rows * tokens, generator=generator)[: int(rows * tokens * MASKED_SHARE)].sort().values
    labels = torch.full((rows * tokens,), -100)
    labels[positions] = torch.randint(5, VOCAB_SIZE, positions.shape, generator=generator)
    next_sentence = torch.randint(2, (rows,), generator=generator)
    mask = torch.ones_like(ids)
    batch = Batch(ids, mask, torch.zeros_like(ids), positions, labels[positions], next_sentence)
    dense = {"input_ids": ids, "attention_mask": mask, "labels": labels.view(rows, tokens)}
    return batch, {**dense, "next_sentence_label": next_sentence}


def make_bert(shape: dict[str, int]) -> Any:
    from transformers import BertConfig, BertForPreTraining

    return BertForPreTraining(BertConfig(vocab_size=VOCAB_SIZE, **shape))


def make_step(system: str, shape: dict[str, int], options: argparse.Namespace) -> Callable[[], float]:
    """A function that does one training step and returns its loss."""
    import torch

    torch.manual_seed(0)
    batch, dense = make_rows(options.rows, options.tokens)
    if system == "ours":
        return our_step(shape, batch, options)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    bert = make_bert(shape)
    if system == "hf":
        model, loss_of = bert.train(), lambda: bert(**dense).loss
    else:
        from published_step import PublishedStudent, published_loss

        model = PublishedStudent(
            vocab=VOCAB_SIZE,
            hidden=shape["hidden_size"],
            heads=shape["num_attention_heads"],
            inner=shape["intermediate_size"],
            layers=shape["num_hidden_layers"],
        )
        teacher = bert.train()  # as published
        loss_of = lambda: published_loss(model, teacher, dense)  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=system == "hf")

    def step() -> float:
        with autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(shape: dict[str, int], batch: Any, options: argparse.Namespace) -> Callable[[], float]:
    """The trainer's step, without the reading of shards."""
    from bitbert.distributed import detect_topology
    from bitbert.model import BitBertConfig
    from bitbert.model.calibrate import calibrate_step_sizes
    from bitbert.model.convert import from_full_precision
    from bitbert.presets import preset_fields
    from bitbert.pretrain import engine as engine_module
    from bitbert.pretrain.config import PretrainConfig
    from bitbert.pretrain.objective import GlobalCounts, Objective, weighted_sum
    from bitbert.pretrain.optim import build_optimizer
    from bitbert.pretrain.teacher import Teacher

    config = PretrainConfig(
        output="-",
        data={"train": "-", "heldout": "-"},
        tokenizer="-",
        teacher="-",
        global_batch_size=options.rows,
        micro_batch_size=options.rows,
        device="cpu",
        precision=options.precision,
    )
    teacher = Teacher(make_bert(shape), frozenset({"mlm", "nsp", "pooler"}), config.loss, config.precision)
    student = from_full_precision(
        teacher.tensors, BitBertConfig(vocab_size=VOCAB_SIZE, **preset_fields("bipft-b"), **shape)
    )
    calibrate_step_sizes(student, batch.inputs())
    topology = detect_topology()
    device = engine_module.start(topology, "cpu", config.rank_timeout_s)
    engine = engine_module.Engine(student.train(), build_optimizer(student, config.optimizer), config, topology, device)
    objective = Objective(student, teacher, config.loss)
    counts = GlobalCounts(len(batch.labels), batch.num_tokens, options.rows)

    def step() -> float:
        terms = objective(engine, batch, counts)
        engine.backward(weighted_sum(terms, config.loss), num_micro_batches=1)
        *losses, _ = engine.sum_over_ranks([*terms.values(), engine.tensors.gradient_squares()])
        engine.update(1e-4)
        return sum(losses)

    return step


def time_in_turns(steps: dict[str, Callable[[], float]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of a step of each system; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds + 1), description="rounds"):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def breakdown(step: Callable[[], float]) -> dict[str, float]:
    """Share of a step of ours in products, in fused kernels, in the optimizer and in everything else."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    shares = {"products": 0.0, "kernels": 0.0, "optimizer": 0.0, "rest": 0.0}
    for event in profiler.key_averages():
        if event.key.startswith(PRODUCTS):
            kind = "products"
        elif event.key.startswith(OPTIMIZER):
            kind = "optimizer"
        elif event.key.startswith("_"):  # autograd functions of bitbert.model.fused: their own time is the kernels'
            kind = "kernels"
        else:
            kind = "rest"
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {name: value / total for name, value in shares.items()}


def measure_memory(system: str, arguments: list[str]) -> float:
    """Peak MiB of a process that does two steps, above what it held before it built anything."""
    command = [sys.executable, __file__, *arguments, "--memory-of", system]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def peak_above_imports(system: str, shape: dict[str, int], options: argparse.Namespace) -> float:
    import deepspeed  # noqa: F401
    import torch  # noqa: F401
    import transformers

    assert transformers.BertForPreTraining
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    before = pages * os.sysconf("SC_PAGESIZE") / 2**20
    step = make_step(system, shape, options)
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before  # KiB on Linux


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times, peaks and ratios of one shape."""

    clock = time.process_time if options.threads == 1 else time.perf_counter
    arguments = ["--shape", name]
    for option in ("rows", "tokens", "threads", "precision"):
        arguments += [f"--{option}", str(getattr(options, option))]
    systems = options.system or SYSTEMS
    memory = {system: measure_memory(system, arguments) for system in track(systems, description="memory")}
    steps = {system: make_step(system, SHAPES[name], options) for system in systems}
    seconds = time_in_turns(steps, options.rounds, clock)
    result: dict[str, Any] = {"step_s": seconds, "peak_mib": memory}
    print(f"\n{name}, {options.rows} x {options.tokens} tokens, {options.precision}, {options.threads} thread(s)")
    for system in systems:
        print(f"  {system:10} {seconds[system]:7.3f} s a step   {memory[system]:8.0f} MiB at the peak")
    if "ours" not in steps:
        return result
    result["tokens_per_s"] = options.rows * options.tokens / seconds["ours"]
    if "hf" in steps:
        result["step_ratio_vs_hf_fp"] = seconds["ours"] / seconds["hf"]
        result["memory_ratio_vs_hf_fp"] = memory["ours"] / memory["hf"]
        print(f"  step / hf {result['step_ratio_vs_hf_fp']:.2f} (wanted <= 1)", end="   ")
        print(f"memory / hf {result['memory_ratio_vs_hf_fp']:.2f} (<= 1.2)")
    if "published" in steps:
        result["speedup_vs_published_step"] = seconds["published"] / seconds["ours"]
        print(f"  published / ours {result['speedup_vs_published_step']:.1f} (>= 3)")
    result["breakdown"] = breakdown(steps["ours"])
    print("  of a step of ours: " + ", ".join(f"{kind} {share:.0%}" for kind, share in result["breakdown"].items()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="may be given several times")
    parser.add_argument(
        "--system",
        action="append",
        choices=SYSTEMS,
        help="may be given several times; all three in one process need 17 GB at base",
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    prepare_memory()  # for all three, as the trainer does for itself
    import torch

    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_above_imports(options.memory_of, SHAPES[options.shape[0]], options))
        return
    from bitbert.model.kernels import load_kernels

    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": options.threads,
        "precision": options.precision,
        "clock": "CPU time of the process" if options.threads == 1 else "wall clock",
        "kernels": "native" if load_kernels() is not None else "torch",
        "shapes": {name: measure(name, options) for name in options.shape or ("l6-h384", "base")},
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

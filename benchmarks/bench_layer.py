"""What one encoder layer costs in training: torch eager, torch.compile, native kernels, transformers' layer.

    python benchmarks/bench_layer.py --shape l6-h384 --rows 32 --tokens 128 --json out.json

Forward and backward of one layer on the same random states, in turn, round after round, products in bfloat16, one
thread: CPU seconds, medians. The table of docs/decisions/0350-training-kernels.md. torch.compile runs without dropout,
whose random numbers Inductor draws one lane at a time; what its compilation takes is said apart.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_pretrain import SHAPES, time_in_turns
from bench_runtime import processor

from bitbert.memory import prepare_memory

NAMES = {
    "eager": "torch, one operation after the other",
    "compiled": "the same through `torch.compile` (Inductor), dropout 0",
    "native": "native kernels around the products",
    "hf": "transformers' full-precision layer",
}


def binary_layer(shape: dict[str, int], dropout: float) -> Any:
    from bitbert.model import BitBertConfig
    from bitbert.model.layers import EncoderLayer
    from bitbert.model.linear import Binarizer
    from bitbert.presets import preset_fields

    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    layer = EncoderLayer(BitBertConfig(**preset_fields("bipft-b"), **shape, **rates)).train()
    for module in layer.modules():
        if isinstance(module, Binarizer):
            module.alpha.data.fill_(0.05 if module.kind == "unsigned" else 1.0)
        elif hasattr(module, "shift"):
            module.weight.data.normal_(std=0.02)
    return layer


def full_precision_layer(shape: dict[str, int]) -> Any:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    return BertLayer(BertConfig(attn_implementation="sdpa", **shape)).train()


def make_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that does forward and backward of one layer."""
    import torch

    from bitbert.model.kernels import SWITCH, load_kernels

    torch.manual_seed(0)
    shape = SHAPES[options.shape]
    layer = full_precision_layer(shape) if name == "hf" else binary_layer(shape, 0.0 if name == "compiled" else 0.1)
    call = torch.compile(layer) if name == "compiled" else layer
    states = torch.randn(options.rows, options.tokens, shape["hidden_size"], requires_grad=True)
    upstream = torch.randn(states.shape)

    def step() -> None:
        os.environ[SWITCH] = "native" if name == "native" else "torch"
        load_kernels.cache_clear()
        with torch.autocast("cpu", torch.bfloat16):
            output = call(states, None)
        (output[0] if isinstance(output, tuple) else output).backward(upstream)
        layer.zero_grad()
        states.grad = None

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="l6-h384")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    prepare_memory()
    import torch

    torch.set_num_threads(1)
    steps = {name: make_step(name, options) for name in NAMES}
    start = time.perf_counter()
    steps["compiled"]()
    compilation = time.perf_counter() - start
    seconds = time_in_turns(steps, options.rounds, time.process_time)
    print("\n| | step |\n|---|---|")
    for name, text in NAMES.items():
        after = f", after {compilation:.0f} s of compilation" if name == "compiled" else ""
        print(f"| {text} | {1000 * seconds[name]:.0f} ms{after} |")
    if options.json:
        report = {"processor": processor(), "shape": options.shape, "rows": options.rows, "tokens": options.tokens}
        report |= {"step_s": seconds, "compilation_s": compilation}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

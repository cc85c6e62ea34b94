"""What a finetuning step costs for each method, on the native kernels and on torch's operations.

    python benchmarks/bench_finetune.py --json out.json --shape l6-h384 --rows 32 --tokens 54

Forward, backward and AdamW on the same random rows, in turn, round after round: transformers' classifier in full
precision and ours with each method's fields, random weights. No teacher runs. Medians of the step's time are printed,
and their ratio to full precision; with one thread it is CPU time, which is its time on a core of its own. `--precision
bf16` runs products with floats in bfloat16.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_pretrain import SHAPES, VOCAB_SIZE
from bench_runtime import processor
from rich.progress import track

from bitbert.files import write_json_atomically
from bitbert.memory import prepare_memory
from bitbert.model import BitBertConfig, BitBertForSequenceClassification
from bitbert.model.calibrate import calibrate_step_sizes
from bitbert.model.kernels import SWITCH, load_kernels, why_no_kernels
from bitbert.model.precision import products_in
from bitbert.presets import preset_fields

METHODS: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "bit": {"method": "bit"},
    "bit W1A2": {"method": "bit", "activation_bits": 2},
    "bit W1A4": {"method": "bit", "activation_bits": 4},
    "bibert": {"method": "bibert"},
    "bipft-b": {"method": "bipft-b"},
}
FULL_PRECISION = "full precision"


def make_model(method: str, shape: dict[str, int]) -> Any:
    """A classifier with random weights, in train mode."""
    torch.manual_seed(0)
    if method == FULL_PRECISION:
        from transformers import BertConfig, BertForSequenceClassification

        return BertForSequenceClassification(BertConfig(vocab_size=VOCAB_SIZE, **shape)).train()
    fields = preset_fields(METHODS[method]["method"]) | METHODS[method]
    return BitBertForSequenceClassification(BitBertConfig(vocab_size=VOCAB_SIZE, **fields, **shape)).train()


def make_step(method: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that does one training step."""
    model = make_model(method, SHAPES[options.shape])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB_SIZE, (options.rows, options.tokens), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(2, (options.rows,), generator=generator)
    if method != FULL_PRECISION:
        calibrate_step_sizes(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with products_in(options.precision, ids.device):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of each method, with kernels and without; one round of all is warm-up."""
    steps = {method: make_step(method, options) for method in (FULL_PRECISION, *METHODS)}
    seconds: dict[tuple[str, str], list[float]] = {}
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for round_number in track(range(options.rounds + 1), description="rounds"):
        for method, step in steps.items():
            for switch in ("torch",) if method == FULL_PRECISION else ("native", "torch"):
                os.environ[SWITCH] = switch
                load_kernels.cache_clear()
                start = clock()
                for _ in range(options.steps):
                    step()
                if round_number:
                    seconds.setdefault((method, switch), []).append((clock() - start) / options.steps)
    whole = median(seconds[FULL_PRECISION, "torch"])
    return [
        {"method": method, "kernels": switch, "seconds": median(times), "ratio": median(times) / whole}
        for (method, switch), times in seconds.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: seconds a step and the share of full precision's, a row a method."""
    found = {(row["method"], row["kernels"]): row for row in rows}
    lines = ["| method | native kernels | torch |", "| --- | ---: | ---: |"]
    for method in (FULL_PRECISION, *METHODS):
        cells = [found.get((method, switch)) for switch in ("native", "torch")]
        text = ["" if cell is None else f"{cell['seconds']:.2f} s ({cell['ratio']:.2f})" for cell in cells]
        lines.append(f"| {method} | {text[0]} | {text[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="l6-h384")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=54, help="of each row, no padding")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in a row, of one method")
    options = parser.parse_args()
    prepare_memory()
    torch.set_num_threads(options.threads)
    if (reason := why_no_kernels()) is not None:
        raise SystemExit(f"no native kernels here: {reason}")
    rows = measure(options)
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    header = {"date": date.today().isoformat(), "processor": processor(), "settings": settings}
    write_json_atomically(options.json, {**header, "rows": rows})
    print(table(rows))
    print(json.dumps(header))


if __name__ == "__main__":
    main()

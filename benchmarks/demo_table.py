"""The closing table of `make demo`: what the run measured, and an answer from its packed model.

python -m benchmarks.demo_table runs/demo
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bitbert.accounting import MIB, Shape, size_full_precision
from bitbert.packed import CONFIG_FILE, WEIGHTS_FILE
from bitbert.runtime.__main__ import describe
from bitbert.runtime.forward import Runtime
from bitbert.tracking import read_metrics

QUESTION = (
    "The river flows through the city to the sea.",
    "Its largest tributary joins it north of the city.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder of the demo run")
    parser.add_argument("--started", type=float, help="when the demo began, seconds since the epoch")
    arguments = parser.parse_args()
    table = Table(title="BitBERT demo", show_header=False)
    for row in build_rows(arguments.folder, arguments.started):
        table.add_row(*row)
    Console(width=120).print(table)


def build_rows(folder: Path, started: float | None) -> list[tuple[str, str]]:
    """(name, value) of each line."""
    evaluations = [line for line in read_metrics(folder / "pretrain" / "metrics.jsonl") if "eval/mlm_loss" in line]
    results = json.loads((folder / "finetune" / "results.json").read_text(encoding="utf-8"))
    task_model = folder / "finetune" / "seed-0" / "packed"
    packed_bytes = (folder / "packed" / WEIGHTS_FILE).stat().st_size
    config = json.loads((folder / "packed" / CONFIG_FILE).read_text(encoding="utf-8"))
    shape = Shape(**{name: config[name] for name in vars(Shape())})
    full = size_full_precision(shape)
    before = time.perf_counter()
    (answer,) = Runtime.load(task_model).classify([QUESTION])
    seconds = time.perf_counter() - before
    similarity = similarity_accuracy(folder / "packed", folder / "shards" / "pair_task")
    majority = results["majority"]["eval"]["accuracy"]
    rows = [
        ("held-out masked-LM loss, before -> after", _change(evaluations, "eval/mlm_loss", "{:.3f}")),
        (
            "held-out next-sentence accuracy, before -> after",
            _change(evaluations, "eval/nsp_accuracy", "{:.1%}"),
        ),
        (
            "distance to the teacher's last layer, before -> after",
            _change(evaluations, "eval/hidden_error", "{:.3f}"),
        ),
        (
            "same article or not, finetuned",
            f"{results['mean']['eval']['accuracy']:.1%}   (majority class {majority:.1%})",
        ),
        (
            "same article or not, cosine of packed encodings",
            f"{similarity:.1%}   (majority class {majority:.1%}; no finetuning)",
        ),
        ("packed model.safetensors", f"{packed_bytes:,} bytes = {packed_bytes / MIB:.2f} MiB"),
        (
            f"full precision ({full.convention})",
            f"{full.value * MIB:,.0f} bytes = {full.value:.2f} MiB, {full.value * MIB / packed_bytes:.1f} times as "
            "many",
        ),
        ("question to the packed task model", " / ".join(QUESTION)),
        (
            "answer",
            f"{describe(answer)}  ({seconds:.2f} s with loading, torch loaded: {_loads_torch(task_model)})",
        ),
    ]
    return (
        rows if started is None else [*rows, ("wall time of this command", f"{(time.time() - started) / 60:.1f} min")]
    )


def similarity_accuracy(packed: Path, pair_task: Path) -> float:
    """Same article or not, from the cosine of two packed encodings: threshold from train.csv, accuracy on eval.csv."""
    runtime = Runtime.load(packed)
    cosines, labels = {}, {}
    for name in ("train", "eval"):
        with open(pair_task / f"{name}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        first, second = (runtime.encode([row[column] for row in rows]) for column in ("text_a", "text_b"))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines[name] = (first * second).sum(axis=1) / norms
        labels[name] = np.array([row["label"] == "same" for row in rows])
    thresholds = np.sort(cosines["train"])
    shares = [((cosines["train"] > threshold) == labels["train"]).mean() for threshold in thresholds]
    return float(((cosines["eval"] > thresholds[int(np.argmax(shares))]) == labels["eval"]).mean())


def _change(lines: list[dict[str, Any]], name: str, form: str) -> str:
    return f"{form.format(lines[0][name])} -> {form.format(lines[-1][name])}   (step {lines[-1]['step']})"


def _loads_torch(model: Path) -> str:
    """Whether a process that answers has torch in it, asked of such a process."""
    code = (
        f"import sys; from bitbert.runtime import Runtime; Runtime.load({str(model)!r}).classify([('a', 'b')]); "
        "print('yes' if 'torch' in sys.modules else 'no')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()

"""How fast, how small and how right the packed runtime is, beside ONNX Runtime on the same machine.

    python benchmarks/bench_runtime.py --json out.json --shape base --tokens 128 --batch 1 --threads 1

Weights are random, of the real shape; the logits are compared with torch's in the same run. Every system is timed
in turn, round after round; medians are printed, and ratios of medians. `peak` is what xor + popcount + add reach on
registers alone, whatever the products run on; `own_peak` is that of the instruction set in use, tiles included.
With one thread a call is timed by the CPU time it takes, which is its time on a core of its own even where other
processes want the core too; the times by the clock are printed beside it. With more threads there is only the clock.
Needs the extra `bench`.
"""

import argparse
import json
import platform
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from full_precision import FIRST_ANSWER, export_onnx, onnx_runner

from bitbert.packed import PackedModel, checkpoint_bytes, load_packed, save_packed
from bitbert.runtime.info import binary_macs
from bitbert.runtime.native import NativeModel, instruction_sets, peak_macs_per_second
from bitbert.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer

SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "l6-h384": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "l4-h256": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
}
VOCAB_SIZE = 30522
MIB = 1 << 20
TEXT = "zeb zec zed"
TURN_S = 0.3
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
_, status, usage = os.wait4(process.pid, 0)
if os.waitstatus_to_exitcode(status):
    sys.exit(f"{sys.argv[1:]} failed")
print(time.perf_counter() - start, usage.ru_maxrss / 1024)
"""
"""A small process in between: a child's peak starts from the memory of the process that made it."""


def make_tokenizer(folder: Path) -> Tokenizer:
    """A WordPiece vocabulary of BERT's size, of made-up words: loading it costs what loading a real one does."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    letters = string.ascii_lowercase
    words = [*letters, *(f"##{letter}" for letter in letters)]
    words += [f"{a}{b}{c}{d}"[: 3 + (d != "a")] for a in letters for b in letters for c in letters for d in "abc"]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *reversed(words)]))[:VOCAB_SIZE]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))


def make_model(method: str, shape: dict[str, int], tokenizer: Tokenizer, seed: int) -> tuple[Any, PackedModel]:
    """A random torch model, every parameter away from its initial value, and the same model packed."""
    import torch

    from bitbert.model import BitBertConfig, BitBertForSequenceClassification
    from bitbert.model.calibrate import calibrate_step_sizes
    from bitbert.model.export import pack_model
    from bitbert.presets import preset_fields

    torch.manual_seed(seed)
    model = BitBertForSequenceClassification(BitBertConfig(vocab_size=VOCAB_SIZE, **preset_fields(method), **shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".bias", ".shift")):
                parameter.normal_(0, 0.1)
    calibrate_step_sizes(model, {"input_ids": torch.randint(5, VOCAB_SIZE, (4, 64))})
    return model.eval(), pack_model(model, tokenizer, max_length=512)


def time_in_turns(
    systems: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of a call of each function, by ``clock`` and by the wall, but for the first round.

    In a round each function runs for TURN_S and at least once: all are measured over the same stretch of time, and
    the caches that the one before left behind cost a call in a turn, not every call.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for round_number in range(rounds + 1):
        for name, run in systems.items():
            if round_number == 1:
                times[name].clear()
            turn_end = clock() + TURN_S
            while True:
                start, wall = clock(), time.perf_counter()
                run()
                times[name].append((clock() - start, time.perf_counter() - wall))
                if clock() >= turn_end:
                    break
    medians = {name: 1e3 * np.median(values, axis=0) for name, values in times.items()}
    by_clock, by_wall = ({name: float(pair[index]) for name, pair in medians.items()} for index in (0, 1))
    return by_clock, by_wall


def measure_process(command: list[str], repeats: int) -> tuple[float, float]:
    """(median seconds from start to end, peak resident MiB) of a process that answers one text and leaves."""
    measured = []
    for _ in range(repeats + 1):
        launcher = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *command], capture_output=True, text=True, check=True
        )
        measured.append([float(value) for value in launcher.stdout.split()])
    seconds, resident = np.median(measured[1:], axis=0)
    return float(seconds), float(resident)


def processor() -> str:
    """Model, features that matter and cores of this machine."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    name = names.get("model name", platform.processor())
    return f"{name} (family {names.get('cpu family')}, model {names.get('model')})"


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    shape, tokens, batch = SHAPES[arguments.shape], arguments.tokens, arguments.batch
    tokenizer = make_tokenizer(folder)
    model, packed = make_model(arguments.method, shape, tokenizer, arguments.seed)
    save_packed(folder / "packed", packed, "Random weights, for timing.\n")
    packed = load_packed(folder / "packed")
    ids = np.random.default_rng(arguments.seed).integers(5, VOCAB_SIZE, (batch, tokens))
    native = NativeModel(packed.config, packed.tensors)
    native.set_threads(arguments.threads)

    found = native.run(list(ids), list(0 * ids), ("logits",))["logits"]
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    difference = np.abs(found - expected).max(axis=1)

    paths = export_onnx({"vocab_size": VOCAB_SIZE, **shape}, folder)
    popcount_isa = next(isa for isa in instruction_sets() if isa != "amx")
    peaks: dict[str, list[float]] = {isa: [] for isa in (popcount_isa, native.isa)}
    systems = {
        "packed": lambda: native.run(list(ids), list(0 * ids), ("logits",)),
        "products": lambda: [native.time_products(tokens) for _ in range(batch)],
        "peak": lambda: [found.append(peak_macs_per_second(isa)) for isa, found in peaks.items()],
        "ort_int8": onnx_runner(paths["int8"], ids, arguments.threads),
        "ort_fp32": onnx_runner(paths["fp32"], ids, arguments.threads),
    }
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    times, wall = time_in_turns(systems, arguments.rounds, clock)
    products_ms, peak, own_peak = (
        times["products"],
        *(float(np.median(peaks[isa])) for isa in (popcount_isa, native.isa)),
    )
    rate = batch * binary_macs(packed.config, tokens) / (products_ms / 1e3)

    answer = "import sys; from bitbert.runtime import Runtime; print(Runtime.load(sys.argv[1]).classify([sys.argv[2]]))"
    door = [sys.executable, "-m", "bitbert.runtime", str(folder / "packed"), TEXT]
    door_s, door_mib = measure_process(door, arguments.repeats)
    packed_s, packed_mib = measure_process([sys.executable, "-c", answer, door[3], TEXT], arguments.repeats)
    onnx = [sys.executable, "-c", FIRST_ANSWER, str(paths["fp32"]), str(folder / "tokenizer.json"), TEXT]
    onnx_s, onnx_mib = measure_process(onnx, arguments.repeats)
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "isa": native.isa,
        **{name: getattr(arguments, name) for name in ("shape", "method", "tokens", "batch", "threads", "seed")},
        "total_ms": times["packed"],
        "products_ms": products_ms,
        "rest_ms": times["packed"] - products_ms,
        "ort_fp32_ms": times["ort_fp32"],
        "ort_int8_ms": times["ort_int8"],
        "clock": "CPU time of the process" if arguments.threads == 1 else "wall",
        **{f"{name}_wall_ms": wall[name] for name in ("packed", "products", "ort_fp32", "ort_int8")},
        "speedup_vs_ort_fp32": times["ort_fp32"] / times["packed"],
        "speedup_vs_ort_int8": times["ort_int8"] / times["packed"],
        "peak_gmacs": peak / 1e9,
        "product_gmacs": rate / 1e9,
        "product_fraction_of_peak": rate / peak,
        "own_peak_gmacs": own_peak / 1e9,
        "product_fraction_of_own_peak": rate / own_peak,
        "non_product_share": 1 - products_ms / times["packed"],
        "file_mib": (folder / "packed" / "model.safetensors").stat().st_size / MIB,
        "folder_mib": checkpoint_bytes(folder / "packed") / MIB,
        "ort_fp32_file_mib": paths["fp32"].stat().st_size / MIB,
        "resident_mib": packed_mib,
        "door_resident_mib": door_mib,
        "ort_fp32_resident_mib": onnx_mib,
        "first_answer_s": packed_s,
        "door_first_answer_s": door_s,
        "ort_fp32_first_answer_s": onnx_s,
        "max_abs_logit_difference": float(difference.max()),
        "sequences_within_1e-4": int((difference <= 1e-4).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", default="bipft-b", help="preset of the model")
    parser.add_argument("--seed", type=int, default=0, help="of weights and token ids")
    parser.add_argument("--rounds", type=int, default=11, help="counted rounds of interleaved timing")
    parser.add_argument("--repeats", type=int, default=5, help="counted processes that answer one text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, Path(folder))
    for name, value in measured.items():
        print(f"{name:<26} {value:.4g}" if isinstance(value, float) else f"{name:<26} {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

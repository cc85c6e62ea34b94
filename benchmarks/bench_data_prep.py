"""How fast and how large is data preparation, beside what people use otherwise?

    python benchmarks/bench_data_prep.py --json data_prep.json

Measures, each build in a process of its own:
    speed     CPU time from .xz files to shards on a third of the corpus, one worker; beside `tokenizers` +
              sentencex in `datasets.map` on the same files, the two taking turns; medians
    scaling   CPU time of one worker on the whole corpus, and time of two against one, taking turns: by the clock,
              and by the CPU time of the busiest process, which other work on the machine does not change
    memory    peak resident memory of the process tree at two workers: the corpus, and ten different copies
    identity  ids of every sentence of the corpus against `tokenizers`

Tokens are those of the text: no special tokens, and no random B's, which are copies.
"""

import json
import lzma
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("BITBERT_DATA", REPOSITORY.parent / "shared" / "data"))
NVIDIA_TOKENS_PER_CPU_S = 57_600  # create_pretraining_data.py, 4.65 MB of text in 21.9 s, the same kind of core
PARTS = ("speed", "scaling", "memory", "identity")
SPEED_FILES = ("wiki-core-03.jsonl.xz", "wiki-vital-leads-00.jsonl.xz", "books-core-01.jsonl.xz")

# The plain way: one process, no cache, no pairs, no dedup, no repair; the tokens go to Arrow files.
PLAIN = """
import sys
import sentencex
from datasets import load_dataset
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_truncation()
tokenizer.no_padding()

def encode(batch):
    documents = [list(sentencex.segment("en", text)) for text in batch["text"]]
    encoded = [tokenizer.encode_batch(document, add_special_tokens=False) for document in documents]
    return {"input_ids": [[sentence.ids for sentence in document] for document in encoded]}

rows = load_dataset("json", data_files=sys.argv[3:], split="train", cache_dir=sys.argv[2] + "/cache")
rows = rows.map(encode, batched=True, batch_size=100, remove_columns=rows.column_names)
rows.save_to_disk(sys.argv[2] + "/out")
"""


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures as one JSON object.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of the speed and scaling measurements.")] = 3,
    copies: Annotated[int, typer.Option(min=1, help="Copies of the corpus for the memory measurement.")] = 10,
    parts: Annotated[str, typer.Option(help="Which measurements to make.")] = ",".join(PARTS),
) -> None:
    """Measure data preparation on ../shared/data/corpus (or $BITBERT_DATA/corpus)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}, wanted some of {', '.join(PARTS)}")
    files = sorted((DATA / "corpus").glob("*-0?.jsonl.xz"))
    figures: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "hardware": _hardware()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: measure_speed([DATA / "corpus" / name for name in SPEED_FILES], work, rounds),
            "scaling": lambda: measure_scaling(files, work, rounds),
            "memory": lambda: measure_copies(files, work, copies),
            "identity": lambda: compare_ids(files),
        }
        for part in PARTS:
            if part in wanted:
                figures |= measures[part]()
                print(json.dumps(figures), flush=True)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure_speed(files: list[Path], work: Path, rounds: int) -> dict[str, Any]:
    """Tokens a CPU second of ours and of the plain way on the same files, in turns."""
    ours, plain, tokens = [], [], 0
    for _ in range(rounds):
        run, report = build(files, work, workers=1)
        tokens = _text_tokens(report)
        ours.append(round(tokens / run.cpu_s))
        with tempfile.TemporaryDirectory(dir=work) as folder:
            vocabulary = str(DATA / "vocab" / "tokenizer.json")
            run = watch([sys.executable, "-c", PLAIN, vocabulary, folder, *map(str, files)])
        plain.append(round(tokens / run.cpu_s))
    return {
        "part_text_tokens": tokens,
        "part_tokens_per_cpu_s": round(median(ours)),
        "part_tokens_per_cpu_s_rounds": ours,
        "plain_tokens_per_cpu_s": round(median(plain)),
        "plain_tokens_per_cpu_s_rounds": plain,
        "speedup_vs_tokenizers": round(median(ours) / median(plain), 2),
    }


def measure_scaling(files: list[Path], work: Path, rounds: int) -> dict[str, Any]:
    """One and two workers on the whole corpus, in turns."""
    runs: dict[int, list[Run]] = {1: [], 2: []}
    report: dict[str, Any] = {}
    for _ in range(rounds):
        for workers, found in runs.items():
            run, report = build(files, work, workers=workers)
            found.append(run)
    tokens = _text_tokens(report)
    cpu_s = [run.cpu_s for run in runs[1]]
    wall_s = {workers: [round(run.wall_s, 1) for run in found] for workers, found in runs.items()}
    path_s = {workers: [round(run.path_s, 1) for run in found] for workers, found in runs.items()}
    return {
        "text_tokens": tokens,
        "tokens_per_cpu_s": round(tokens / median(cpu_s)),
        "tokens_per_cpu_s_rounds": [round(tokens / seconds) for seconds in cpu_s],
        "speedup_vs_nvidia": round(tokens / median(cpu_s) / NVIDIA_TOKENS_PER_CPU_S, 1),
        "scaling_2_workers": round(median(wall_s[1]) / median(wall_s[2]), 2),
        "scaling_2_workers_path": round(median(path_s[1]) / median(path_s[2]), 2),
        "wall_s": wall_s,
        "path_s": path_s,
        "peak_rss_gib": round(max(run.peak_bytes for run in runs[2]) / 2**30, 3),
    }


def measure_copies(files: list[Path], work: Path, copies: int) -> dict[str, Any]:
    """Peak memory on copies of the corpus that differ in one word, so that none is dropped as a duplicate."""
    folder = work / "copies"
    folder.mkdir()
    for path in files:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line)["text"] for line in lines]
        for copy in range(copies):
            with open(folder / f"{path.stem}-{copy}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": f"Copy{copy} {text}"}) + "\n" for text in rows)
    run, report = build(sorted(folder.iterdir()), work, workers=2)
    tokens = _text_tokens(report)
    return {
        f"peak_rss_gib_{copies}_copies": round(run.peak_bytes / 2**30, 3),
        f"text_tokens_{copies}_copies": tokens,
        f"tokens_per_cpu_s_{copies}_copies": round(tokens / run.cpu_s),
    }


def compare_ids(files: list[Path]) -> dict[str, Any]:
    """Whether the ids of all sentences equal the tokenizer's."""
    import numpy as np

    from bitbert.data_prep.encoder import build_encoder
    from bitbert.data_prep.sentences import split_sentences
    from bitbert.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(DATA / "vocab"))
    encoder = build_encoder(tokenizer)
    count = 0
    for path in files:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                sentences = split_sentences(json.loads(line)["text"], "en")
                count += len(sentences)
                expected = tokenizer.encode_batch(sentences)
                found = encoder.encode(sentences)
                if any(np.frombuffer(a, encoder.dtype).tolist() != b for a, b in zip(found, expected, strict=True)):
                    return {"identical_ids": False, "sentences_compared": count}
    return {"identical_ids": True, "sentences_compared": count}


@dataclass
class Run:
    """What one command used.

    Attributes:
        cpu_s: user and system time of the command and all processes below it.
        peak_bytes: most resident memory of them together; pages that they share count for each.
        path_s: CPU time of the command itself and of the busiest process below it: about the wall time of the
            command on a machine that does nothing else, whatever else this one did.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int
    path_s: float


def build(files: list[Path], work: Path, *, workers: int) -> tuple[Run, dict[str, Any]]:
    """One build of ``files`` in a process of its own, and its report."""
    output, config = work / "shards", work / "config.yaml"
    sources = [{"path": str(path)} for path in files]
    clean = {"scripts": ["latin"]}
    settings = {"output": str(output), "sources": sources, "tokenizer": str(DATA / "vocab"), "clean": clean}
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    run = watch([sys.executable, "-m", "bitbert.data_prep", str(config), "--workers", str(workers)])
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(output)
    return run, report


def watch(command: list[str]) -> Run:
    """Run a command to its end and look at its processes all the while."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    cpu_s: dict[int, float] = {}

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            usage = _usage(process.pid)
            peak = max(peak, sum(memory for memory, _ in usage.values()))
            cpu_s.update({pid: seconds for pid, (_, seconds) in usage.items()})
            time.sleep(0.05)

    sampler = threading.Thread(target=sample)
    sampler.start()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {errors.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    below = [seconds for pid, seconds in cpu_s.items() if pid != process.pid]
    path = cpu_s.get(process.pid, 0.0) + max(below, default=0.0)
    return Run(used, time.perf_counter() - started, peak, path)


def _usage(root: int) -> dict[int, tuple[int, float]]:
    """Process -> (resident bytes, CPU seconds) of a process and all processes below it."""
    import psutil

    usage = {}
    try:
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            times = process.cpu_times()
            usage[process.pid] = (process.memory_info().rss, times.user + times.system)
    except psutil.NoSuchProcess:  # it ended between two looks
        pass
    return usage


def _text_tokens(report: dict[str, Any]) -> int:
    return sum(source["text_tokens"] for source in report["sources"])


def _hardware() -> str:
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0]}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    typer.run(main)

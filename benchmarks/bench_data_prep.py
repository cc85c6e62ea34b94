"""How fast and how large is data preparation, beside what people use otherwise?

    python benchmarks/bench_data_prep.py --json data_prep.json

Measures, each build in a process of its own:
    speed     CPU time from .xz files to shards on a third of the corpus, one worker; beside `tokenizers` +
              sentencex in `datasets.map` on the same files, the two taking turns; medians
    scaling   CPU time of one worker on the whole corpus, and wall time of two against one, taking turns
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
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("BITBERT_DATA", REPOSITORY.parent / "shared" / "data"))
NVIDIA_TOKENS_PER_CPU_S = 57_600  # create_pretraining_data.py, 4.65 MB of text in 21.9 s, the same kind of core
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
    copies: Annotated[
        int, typer.Option(min=0, help="Copies of the corpus for the memory measurement; 0 leaves it out.")
    ] = 10,
) -> None:
    """Measure data preparation on ../shared/data/corpus (or $BITBERT_DATA/corpus)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    files = sorted((DATA / "corpus").glob("*-0?.jsonl.xz"))
    figures: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "hardware": _cpu_model()}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        figures |= measure_speed([DATA / "corpus" / name for name in SPEED_FILES], work, rounds)
        _say(figures)
        figures |= measure_scaling(files, work, rounds)
        _say(figures)
        if copies:
            figures |= measure_copies(files, work, copies)
            _say(figures)
        figures["identical_ids"], figures["sentences_compared"] = compare_ids(files)
    _say(figures)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure_speed(files: list[Path], work: Path, rounds: int) -> dict[str, Any]:
    """Tokens a CPU second of ours and of the plain way on the same files, in turns."""
    ours, plain = [], []
    tokens = 0
    for _ in range(rounds):
        cpu, _, report = build(files, work, workers=1)
        tokens = _text_tokens(report)
        ours.append(tokens / cpu)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            command = [
                sys.executable,
                "-c",
                PLAIN,
                str(DATA / "vocab" / "tokenizer.json"),
                folder,
                *map(str, files),
            ]
            plain.append(tokens / _cpu_of(command))
    return {
        "part_text_tokens": tokens,
        "part_tokens_per_cpu_s": round(median(ours)),
        "part_tokens_per_cpu_s_rounds": [round(value) for value in ours],
        "plain_tokens_per_cpu_s": round(median(plain)),
        "plain_tokens_per_cpu_s_rounds": [round(value) for value in plain],
        "speedup_vs_tokenizers": round(median(ours) / median(plain), 2),
    }


def measure_scaling(files: list[Path], work: Path, rounds: int) -> dict[str, Any]:
    """Wall time of one and two workers on the whole corpus, in turns, and the peak memory of two."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    cpu_seconds, peaks = [], []
    report: dict[str, Any] = {}
    for _ in range(rounds):
        for workers in (1, 2):
            started = time.perf_counter()
            cpu, peak, report = build(files, work, workers=workers)
            seconds[workers].append(time.perf_counter() - started)
            if workers == 2:
                peaks.append(peak)
            else:
                cpu_seconds.append(cpu)
    tokens = _text_tokens(report)
    return {
        "text_tokens": tokens,
        "tokens_per_cpu_s": round(tokens / median(cpu_seconds)),
        "tokens_per_cpu_s_rounds": [round(tokens / value) for value in cpu_seconds],
        "speedup_vs_nvidia": round(tokens / median(cpu_seconds) / NVIDIA_TOKENS_PER_CPU_S, 1),
        "scaling_2_workers": round(median(seconds[1]) / median(seconds[2]), 2),
        "wall_s_1_worker": round(median(seconds[1]), 1),
        "wall_s_2_workers": round(median(seconds[2]), 1),
        "peak_rss_gib": round(max(peaks) / 2**30, 3),
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
    cpu, peak, report = build(sorted(folder.iterdir()), work, workers=2)
    tokens = _text_tokens(report)
    return {
        f"peak_rss_gib_{copies}_copies": round(peak / 2**30, 3),
        f"text_tokens_{copies}_copies": tokens,
        f"tokens_per_cpu_s_{copies}_copies": round(tokens / cpu),
    }


def compare_ids(files: list[Path]) -> tuple[bool, int]:
    """(whether the ids of all sentences equal the tokenizer's, number of sentences)."""
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
                    return False, count
    return True, count


def build(files: list[Path], work: Path, *, workers: int) -> tuple[float, int, dict[str, Any]]:
    """(CPU seconds, peak bytes of the process tree, report) of one build of ``files``."""
    output = work / "shards"
    config = work / "config.yaml"
    sources = [{"path": str(path)} for path in files]
    settings = {
        "output": str(output),
        "sources": sources,
        "tokenizer": str(DATA / "vocab"),
        "clean": {"scripts": ["latin"]},
    }
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "bitbert.data_prep", str(config), "--workers", str(workers)]
    peak = PeakMemory()
    cpu = _cpu_of(command, peak)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(output)
    return cpu, peak.peak_bytes, report


class PeakMemory:
    """Samples the resident memory of a process and all processes below it; pages they share count for each."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        import psutil

        def sample() -> None:
            while process.poll() is None:
                self.peak_bytes = max(self.peak_bytes, sum(_resident(psutil.Process(process.pid))))
                time.sleep(0.05)

        threading.Thread(target=sample, daemon=True).start()


def _resident(root: Any) -> Iterator[int]:
    import psutil

    try:
        for process in (root, *root.children(recursive=True)):
            yield process.memory_info().rss
    except psutil.NoSuchProcess:
        return


def _cpu_of(command: list[str], peak: PeakMemory | None = None) -> float:
    """User and system seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if peak is not None:
        peak.watch(process)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {errors.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _text_tokens(report: dict[str, Any]) -> int:
    return sum(source["text_tokens"] for source in report["sources"])


def _cpu_model() -> str:
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0]}, {len(os.sched_getaffinity(0))} cores"


def _say(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    typer.run(main)

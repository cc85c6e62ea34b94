"""Does a run that is killed, cut off or damaged again and again end as one that was left alone?

    python benchmarks/fault_campaign.py --trials 60 --seed 1 --json benchmarks/results/fault_campaign.json

Each trial trains the tiny model of the tests, on one rank or on two under some ZeRO stage, injects one to three faults
at random moments (one on two ranks), starts the same command again after each, and compares the end with a reference
run on which nothing was inflicted: weights, moments and logged losses, bit for bit. A warm process that has imported
DeepSpeed forks every rank. Finished trials are kept beside PATH (.jsonl): an interrupted campaign goes on where it
stopped.

    silent_differences              runs that ended with other bits than the reference
    lost_steps_beyond_checkpoint    steps that a restart repeated although a good checkpoint held them, summed
    unclear_errors                  ends of a process with a traceback, no message, or an exit code that is not ours
"""

import argparse
import hashlib
import json
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bitbert.files import write_json_atomically  # noqa: E402
from tests.conftest import write_tiny_shards, write_tiny_teacher, write_tiny_tokenizer  # noqa: E402
from tests.pretrain import forked  # noqa: E402

STEPS, EVERY = 9, 3
SETUPS = ((1, 0),) * 12 + ((2, 0), (2, 0), (2, 2), (2, 3))  # (ranks, ZeRO stage), drawn evenly
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
FAULTS = ("kill", "kill in a save", "flipped bit", "truncation", "deleted file", "deleted checkpoint")
FAULTS += ("SIGTERM", "SIGUSR1", "file too large", "disk full")
_OUR_CODES = {0, 2, 69, 75}
_LAST_LINES_OF_SAVES = 2500  # lines of checkpoint code that a run passes through, about


class Campaign:
    """Material, references and the run of one trial after the other, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = write_tiny_tokenizer(folder / "tokenizer")
        self.teacher = write_tiny_teacher(folder / "teacher")
        (folder / "data").mkdir()
        self.shards = write_tiny_shards(folder / "data", tokenizer)
        self.references: dict[tuple[int, int], tuple[dict[str, str], float]] = {}

    def reference(self, setup: tuple[int, int]) -> tuple[dict[str, str], float]:
        """What a run without faults leaves, and its seconds."""
        if setup not in self.references:
            folder = self.folder / f"reference-{setup[0]}-{setup[1]}"
            started = time.monotonic()
            children = self.start(folder, setup)
            codes = [child.wait(300) for child in children]
            if any(codes):
                raise SystemExit(f"the reference run failed:\n{children[0].text()[-3000:]}")
            self.references[setup] = (outcome(folder), time.monotonic() - started)
        return self.references[setup]

    def start(
        self, folder: Path, setup: tuple[int, int], prepare: Callable[[int], object] = lambda rank: None
    ) -> list[forked.Child]:
        """Start, or start again, the one command of a trial."""
        ranks, stage = setup
        logs = folder.with_name(folder.name + "-logs")
        logs.mkdir(exist_ok=True)
        for log in logs.iterdir():
            log.unlink()
        overrides = [*forked.tiny_settings(self.shards, self.teacher, folder), f"zero_stage={stage}"]
        overrides += [f"steps={STEPS}", f"eval_every={EVERY}", f"checkpoint_every={EVERY}", "keep_checkpoints=3"]
        overrides += ["rank_timeout_s=40"]
        if ranks == 1:
            return [forked.start(overrides, logs / "rank-0.log", prepare=lambda: prepare(0))]
        return forked.start_ranks(overrides, logs, ranks, prepare=prepare)

    def trial(self, number: int, seed: int) -> dict[str, Any]:
        """One run with its faults, to the end."""
        draw = random.Random(seed * 1_000_003 + number)
        setup = draw.choice(SETUPS)
        expected, seconds = self.reference(setup)
        folder = self.folder / f"trial-{number}"
        record: dict[str, Any] = {"trial": number, "ranks": setup[0], "zero_stage": setup[1], "faults": []}
        record |= {"different": [], "lost_steps": 0, "unclear": []}
        for _ in range(draw.randint(1, 3) if setup[0] == 1 else 1):
            fault = draw.choice(FAULTS)
            floor = newest_good(folder)
            children = self.strike(fault, folder, setup, draw, seconds)
            codes = [child.wait(120) for child in children]
            record["faults"].append([fault, codes])
            self.judge(children, codes, floor, record)
            damage(fault, folder, draw)
            if not list((folder / "checkpoints").glob("step-*")) or newest_good(folder) is None:
                # A person would be told that no checkpoint verifies, and begin anew.
                self.expect_refusal(folder, setup, record)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        floor = newest_good(folder)
        children = self.start(folder, setup)
        codes = [child.wait(300) for child in children]
        self.judge(children, codes, floor, record)
        if any(codes):
            record["unclear"].append(f"did not finish after its faults: {codes}")
        else:
            found = outcome(folder)
            record["different"] = [name for name in expected if found[name] != expected[name]]
        shutil.rmtree(folder, ignore_errors=True)
        return record

    def strike(
        self, fault: str, folder: Path, setup: tuple[int, int], draw: random.Random, seconds: float
    ) -> list[forked.Child]:
        """Start the command with ``fault`` in one of its ranks."""
        victim = draw.randrange(setup[0])
        prepare: Callable[[int], object] = lambda rank: None  # noqa: E731 (replaced below)
        if fault == "kill in a save":
            line = draw.randrange(1, _LAST_LINES_OF_SAVES)
            prepare = lambda rank: forked.die_at_line(line) if rank == 0 else None  # noqa: E731
        elif fault == "file too large":
            limit = draw.randrange(20_000, 240_000)
            prepare = lambda rank: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        elif fault == "disk full":
            after = draw.randrange(2, 5)
            prepare = lambda rank: fill_disk(after)  # noqa: E731
        children = self.start(folder, setup, prepare)
        if fault not in ("kill in a save", "file too large", "disk full"):
            await_moment(children[0], draw, seconds)
            number = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}.get(fault, signal.SIGKILL)
            children[victim].kill(number)
        return children

    def judge(self, children: list[forked.Child], codes: list[int], floor: int | None, record: dict[str, Any]) -> None:
        """Hold what the processes said against what is promised."""
        for child, code in zip(children, codes, strict=True):
            text = child.text()
            lines = text.strip().splitlines()
            if "Traceback" in text or (code >= 0 and code not in _OUR_CODES):
                record["unclear"].append(f"exit {code}: {lines[-1:]}")
            elif code > 0 and not re.search(r"error: .+; .+|stopped as asked after step \d+; start", text):
                record["unclear"].append(f"exit {code} without a clear line: {lines[-1:]}")
        text = children[0].text()
        began = re.search(r"resumed from step-(\d+)", text)
        trained = re.search(r"^step \d+/", text, re.MULTILINE)
        if floor is not None and (began or trained):
            record["lost_steps"] += max(0, floor - (int(began[1]) if began else 0))

    def expect_refusal(self, folder: Path, setup: tuple[int, int], record: dict[str, Any]) -> None:
        if not (folder / "checkpoints" / "latest").exists() and not list((folder / "checkpoints").glob("step-*")):
            return  # killed before its first checkpoint
        children = self.start(folder, setup)
        codes = [child.wait(120) for child in children]
        if codes[0] != 2 or "verifies; copy one back" not in children[0].text():
            record["unclear"].append(f"no good checkpoint, and the run said: {children[0].text()[-300:]}")


def await_moment(child: forked.Child, draw: random.Random, seconds: float) -> None:
    """Wait for a random moment: any of the whole run in a quarter of the cases, else one after a random step."""
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 1.1) * seconds)
        return
    step, deadline = draw.randrange(1, STEPS + 1), time.monotonic() + 60
    while f"step {step}/" not in child.text() and time.monotonic() < deadline and not child.ended():
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 1.0) * seconds / STEPS)


def fill_disk(after: int) -> None:
    """From the ``after``-th question on, the disk says that it has one byte free."""
    asked, ask = 0, shutil.disk_usage

    def answer(path: Any) -> Any:
        nonlocal asked
        asked += 1
        return ask(path)._replace(free=1) if asked >= after else ask(path)

    shutil.disk_usage = answer


def damage(fault: str, folder: Path, draw: random.Random) -> None:
    """Do to a random file of a random checkpoint what ``fault`` says."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    if fault not in ("flipped bit", "truncation", "deleted file", "deleted checkpoint") or not checkpoints:
        return
    chosen = draw.choice(checkpoints)
    path = chosen / draw.choice(FILES)
    if fault == "deleted checkpoint":
        shutil.rmtree(chosen)
    elif path.is_file() and fault == "deleted file":
        path.unlink()
    elif path.is_file() and fault == "truncation":
        with open(path, "r+b") as file:
            file.truncate(draw.randrange(path.stat().st_size))
    elif path.is_file():
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def newest_good(folder: Path) -> int | None:
    """Step of the newest checkpoint in place whose files have the hashes of its manifest; by code of its own."""
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            manifest = json.loads((checkpoint / "manifest.json").read_bytes())
            if all(sha256(checkpoint / name) == manifest[name]["sha256"] for name in FILES[:-1]):
                return int(checkpoint.name.removeprefix("step-"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of what a finished run leaves: final weights, last weights and moments, losses and metrics by step."""
    last = folder / "checkpoints" / f"step-{STEPS:08d}"
    paths = [folder / "final" / "model.safetensors", last / "model.safetensors", last / "optimizer.safetensors"]
    kept = ("step", "loss/", "eval/", "gradient_norm")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]
    digests = {str(path.relative_to(folder)): sha256(path) for path in paths}
    return digests | {"metrics": hashlib.sha256(json.dumps(losses).encode()).hexdigest()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def figures(records: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What the trials so far come to."""
    setups = Counter(f"{record['ranks']} ranks, ZeRO {record['zero_stage']}" for record in records)
    faults = Counter(fault for record in records for fault, _ in record["faults"])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "seed": seed,
        "trials": len(records),
        "injected": sum(faults.values()),
        "faults": dict(sorted(faults.items())),
        "setups": dict(sorted(setups.items())),
        "silent_differences": sum(bool(record["different"]) for record in records),
        "lost_steps_beyond_checkpoint": sum(record["lost_steps"] for record in records),
        "unclear_errors": sum(len(record["unclear"]) for record in records),
    }


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    arguments = parser.parse_args()
    journal = arguments.json.with_suffix(".jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    records = [record for record in records if record["seed"] == arguments.seed and record["trial"] < arguments.trials]
    done = {record["trial"] for record in records}
    forked.warm_up()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="fault-campaign-") as folder,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        campaign = Campaign(Path(folder))
        for number in progress.track(range(arguments.trials), description="trials"):
            if number in done:
                continue
            record = {"seed": arguments.seed, **campaign.trial(number, arguments.seed)}
            records.append(record)
            with open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            write_json_atomically(arguments.json, figures(records, arguments.seed))
    write_json_atomically(arguments.json, figures(records, arguments.seed))
    print(arguments.json.read_text(encoding="utf-8"))
    journal.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

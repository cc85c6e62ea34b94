"""The build: corpus in; a folder with train/, heldout/, a report and the config out, whole or not at all.

Three stages. Units of the corpus are read into blocks of tokenised documents (by far the most work); the plan
removes duplicates and gives each shard a range of keys; each shard is cut into rows. Units and shards are
independent and their bytes depend on the config and the corpus alone, so any number of workers or array tasks
may build them, in any order, and a killed build continues where it stopped.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbert.config import dump_config
from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import publish_folder, write_json_atomically, write_text_atomically
from bitbert.shards import write_manifest
from bitbert.tokenizer import Tokenizer, load_tokenizer

from .config import DataConfig
from .pair_task import write_pair_task
from .plan import Plan, make_plan
from .reading import read_unit
from .report import build_report, describe_sources
from .report_page import render_page
from .rows import build_shard
from .sources import list_units
from .splits import SPLITS
from .units import Unit
from .work_folder import WorkFolder
from .workers import WorkerPool, full_disk_explained, usable_cores


@dataclass(frozen=True)
class Share:
    """Which part of the steps this process takes: steps ``index``, ``index + count``, ... of the list by size."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Build:
    """One build, opened: the corpus is listed, the tokenizer checked, the work folder ready."""

    config: DataConfig
    units: list[Unit]
    tokenizer: Tokenizer
    work: WorkFolder
    pool: WorkerPool


def build_shards(config: DataConfig, *, replace: bool = False, workers: int | None = None) -> dict[str, Any]:
    """Build all shards of ``config``, or what is left of them, and return the report that report.json holds.

    Args:
        workers: processes; None for one a usable core. The bytes do not depend on it.

    Raises:
        UserError: a source, the tokenizer or the output does not fit; the output is not there then.
    """
    _refuse_existing(config, replace)
    build = open_build(config, discard_other=replace, workers=workers)
    with build.pool, full_disk_explained(build.work.root):
        unit_records = _read_units(build, Share())
        plan = _plan(build, unit_records)
        shard_records = _build_shards(build, plan, Share())
        report = _publish(build, unit_records, plan, shard_records, replace=replace)
    build.work.remove()
    return report


def build_share(config: DataConfig, share: Share, *, workers: int | None = None) -> str:
    """Do one array task's part and return a line that says what is left.

    While units of the corpus are unread, the task reads its share of them. Once all are read, it builds its
    share of the shards. ``build_shards`` does what no task did, and publishes.
    """
    build = open_build(config, discard_other=False, workers=workers)
    if _unread(build):
        with build.pool:
            _read_units(build, share)
        unread = len(_unread(build))
        if unread:
            return (
                f"{unread} of {len(build.units)} units are still unread; run the other tasks, then bitbert-data finish"
            )
        return "all units are read; run bitbert-data finish, or first these tasks once more, to share the shards too"
    with build.pool:
        _build_shards(build, _plan(build, _records(build)), share)
    return "this task's shards are built; run bitbert-data finish when all tasks have ended"


def _refuse_existing(config: DataConfig, replace: bool) -> None:
    if Path(config.output).exists() and not replace:
        raise UserError(
            f"output {config.output!r} already exists; choose another output=..., or pass --replace to build it again"
        )


def open_build(config: DataConfig, *, discard_other: bool, workers: int | None) -> Build:
    """Check everything that can be checked before work is done.

    Args:
        discard_other: an unfinished build of another config makes way.

    Raises:
        UserError: a source or the tokenizer is not there, or another build is unfinished.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process: the workers are the parallelism
    tokenizer, units = _check_inputs(config)
    work = WorkFolder(Path(config.output))
    work.open(config, tokenizer.fingerprint, units, discard_other=discard_other)
    return Build(config, units, tokenizer, work, WorkerPool(workers or usable_cores(), work.root))


def describe_build(config: DataConfig) -> str:
    """What a build would read, without doing it; a line a source and one for the tokenizer.

    Raises:
        UserError: a source or the tokenizer is not there or does not fit.
    """
    tokenizer, units = _check_inputs(config)
    lines = []
    for number, source in enumerate(config.sources):
        own = [unit for unit in units if unit.source == number]
        lines.append(f"{source.title}: {len(own)} units, {sum(unit.num_bytes for unit in own) / 2**20:.1f} MiB")
    lines.append(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}")
    return "\n".join(lines)


def _check_inputs(config: DataConfig) -> tuple[Tokenizer, list[Unit]]:
    tokenizer = load_tokenizer(config.tokenizer)
    wanted = config.tokenizer_fingerprint
    if wanted is not None and not tokenizer.fingerprint.startswith(wanted):
        raise UserError(
            f"tokenizer {config.tokenizer!r} has fingerprint {tokenizer.fingerprint}, the config wants {wanted}; "
            "use the tokenizer that the config was written for, or change tokenizer_fingerprint"
        )
    return tokenizer, list_units(config.sources, output=Path(config.output), policy=config.bad_input)


def _read_units(build: Build, share: Share) -> list[dict[str, Any]]:
    by_size = sorted(range(len(build.units)), key=lambda number: -build.units[number].num_bytes)
    unread = _unread(build)
    mine = [number for number in by_size[share.index :: share.count] if number in unread]
    steps = [(build.config, number, build.units[number], build.work) for number in mine]
    _run(build, "read", read_unit, steps, len(build.units) - len(unread), len(build.units))
    return [] if _unread(build) else _records(build)


def _build_shards(build: Build, plan: Plan, share: Share) -> list[dict[str, Any]]:
    missing = [position for position in range(len(plan.shards)) if _finished_shard(build, plan, position) is None]
    mine = [position for position in missing if position % share.count == share.index]
    steps = [(build.config, position, build.work) for position in mine]
    _run(build, "built", _build_one, steps, len(plan.shards) - len(missing), len(plan.shards))
    records = [_finished_shard(build, plan, position) for position in range(len(plan.shards))]
    return [record for record in records if record is not None]


def _build_one(config: DataConfig, position: int, work: WorkFolder) -> dict[str, Any]:
    """One shard, in a worker: the plan is read from its file there, which is cheaper than to send it."""
    return build_shard(config, make_plan(config, [], work), position, load_tokenizer(config.tokenizer), work)


def _run(
    build: Build,
    verb: str,
    function: Callable[..., Any],
    steps: list[tuple[Any, ...]],
    before: int,
    total: int,
) -> None:
    started = time.monotonic()
    for number, _ in enumerate(build.pool.run(function, steps), start=1):
        things = "units" if verb == "read" else "shards"
        log(f"{verb} {before + number} of {total} {things}, {time.monotonic() - started:.1f} s")


def _unread(build: Build) -> set[int]:
    return {number for number in range(len(build.units)) if not build.work.unit_record(number).is_file()}


def _records(build: Build) -> list[dict[str, Any]]:
    found = [build.work.read_record(build.work.unit_record(number)) for number in range(len(build.units))]
    return [record for record in found if record is not None]


def _plan(build: Build, unit_records: list[dict[str, Any]]) -> Plan:
    names = [name for record in unit_records for name in record["blocks"]]
    if not names:
        dropped = sum((Counter(record["dropped"]) for record in unit_records), Counter[str]())
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "nothing"
        raise UserError(
            f"no document of the corpus stays (left out: {reasons}); check the sources' path and text_field and the "
            f"section clean (min_chars={build.config.clean.min_chars}), and run again with --replace"
        )
    return make_plan(build.config, names, build.work)


def _finished_shard(build: Build, plan: Plan, position: int) -> dict[str, Any] | None:
    shard = plan.shards[position]
    record = build.work.read_record(build.work.shard_record(shard.split, shard.number))
    path = build.work.shard_file(shard.split, shard.number)
    return record if record and path.is_file() and path.stat().st_size == record["file"]["bytes"] else None


def _publish(
    build: Build,
    unit_records: list[dict[str, Any]],
    plan: Plan,
    shard_records: list[dict[str, Any]],
    *,
    replace: bool,
) -> dict[str, Any]:
    config = build.config
    report = build_report(config, build.units, unit_records, plan, shard_records)
    provenance = {"config": config.model_dump(mode="json"), "sources": describe_sources(config.sources, build.units)}
    with publish_folder(Path(config.output), replace=replace) as temporary:
        for split in SPLITS:
            folder = temporary / split
            folder.mkdir()
            records = [record for record in shard_records if record["split"] == split]
            entries = []
            for record in records:
                name = f"shard-{record['number']:05d}.arrow"
                _link_or_copy(build.work.shard_file(split, record["number"]), folder / name)
                entries.append({**record["file"], "name": name})
            write_manifest(
                folder,
                entries,
                tokenizer=build.tokenizer,
                max_length=config.max_length,
                nsp=config.objective == "mlm_nsp",
                provenance=provenance,
            )
        if config.pair_task is not None:
            samples = [build.work.sample_file(number) for number in range(len(build.units))]
            report["pair_task"] = write_pair_task(
                temporary / "pair_task", samples, plan.near_duplicates, config.pair_task, config.seed
            )
        dump_config(config, temporary / "config.yaml")
        write_json_atomically(temporary / "report.json", report)
        write_text_atomically(temporary / "report.html", render_page(report))
    return report


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)

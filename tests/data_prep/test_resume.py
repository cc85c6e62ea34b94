"""Builds that are killed, fill the disk, or meet another build's remains."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bitbert.config import dump_config
from bitbert.data_prep import blocks, rows, write_shards
from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.sources import list_units
from bitbert.data_prep.work_folder import WorkFolder
from bitbert.data_prep.workers import WorkerPool
from bitbert.data_prep.write_shards import Share, build_shards, build_share
from bitbert.errors import UserError

from .conftest import make_documents, tree_hashes, write_jsonl

MakeConfig = Callable[..., DataConfig]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    documents = make_documents(600, sentences=12)
    for part in range(12):
        write_jsonl(tmp_path / "corpus" / f"part-{part:02d}.jsonl", documents[part * 50 : part * 50 + 50])
    return tmp_path / "corpus"


def start_build(config: DataConfig, tmp_path: Path) -> subprocess.Popen[bytes]:
    dump_config(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "bitbert.data_prep", str(tmp_path / "config.yaml"), "--workers", "2"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the worker processes")
@pytest.mark.parametrize("stage", ["units/*.json", "shards/*.json"])
def test_a_killed_build_continues_to_the_same_bytes(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, stage: str
) -> None:
    config = make_config(corpus, rows_per_shard=1)  # many small shards: the kill meets a build that is at work
    build_shards(config, workers=1)
    expected = tree_hashes(tmp_path / "shards")
    (tmp_path / "shards").rename(tmp_path / "before")
    work = tmp_path / ".shards.work"
    process = start_build(config, tmp_path)
    deadline = time.monotonic() + 60
    while not list(work.glob(stage)) and time.monotonic() < deadline:
        time.sleep(0.002)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "shards").exists()
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their killed parent"
        time.sleep(0.01)
    finished = {path: path.stat().st_mtime_ns for path in work.glob("*/*.json")}
    assert finished
    build_share(config, Share(0, 1), workers=1)
    build_share(config, Share(0, 1), workers=1)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing finished is done again
    build_shards(config, workers=1)
    assert tree_hashes(tmp_path / "shards") == expected
    assert not work.exists()


def test_a_full_disk_is_one_sentence_and_the_build_continues(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(corpus)
    build_shards(config, workers=1)
    expected = tree_hashes(tmp_path / "shards")
    real = blocks.write_atomically
    calls = 0

    def fill_up(path: Path, write: Callable[[Path], object]) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, write)

    monkeypatch.setattr(blocks, "write_atomically", fill_up)
    with pytest.raises(
        UserError, match=r"no space left for .*No space left on device.*free some.*run the same command again"
    ):
        build_shards(config, replace=True, workers=1)
    assert tree_hashes(tmp_path / "shards") == expected  # the old output is as it was
    assert len(list((tmp_path / ".shards.work" / "units").glob("*.json"))) == 2
    build_shards(config, replace=True, workers=1)
    assert tree_hashes(tmp_path / "shards") == expected


def test_a_shard_that_cannot_be_written_leaves_nothing_half_written(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rows, "write_shard", fail)
    with pytest.raises(UserError, match="no space left"):
        build_shards(make_config(corpus), workers=1)
    assert not (tmp_path / "shards").exists()
    assert not list((tmp_path / ".shards.work" / "shards").iterdir())


def test_a_disk_that_is_full_at_the_end_keeps_all_work(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without hard links the shards are copied into place; here the copy does not fit."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", no_links)
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(UserError, match="no space left"):
            build_shards(make_config(corpus), workers=1)
        assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == [".shards.work"]
        patched.undo()
        patched.setattr(os, "link", no_links)
        build_shards(make_config(corpus), workers=1)
    copied = tree_hashes(tmp_path / "shards")
    build_shards(make_config(corpus), replace=True, workers=1)
    assert copied == tree_hashes(tmp_path / "shards")


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with WorkerPool(1, tmp_path) as pool, pytest.raises(FileNotFoundError):
        list(pool.run(os.stat, [(str(tmp_path / "missing"),)]))


def test_a_killed_worker_is_one_sentence(tmp_path: Path) -> None:
    with (
        WorkerPool(2, tmp_path) as pool,
        pytest.raises(UserError, match=r"a worker process was killed.*run the same command again"),
    ):
        list(pool.run(os._exit, [(9,), (9,)]))


def test_a_changed_file_is_read_again_and_the_others_are_not(
    tmp_path: Path, corpus: Path, make_config: MakeConfig
) -> None:
    config = make_config(corpus)
    for _ in range(2):
        build_share(config, Share(0, 1), workers=1)
    units = tmp_path / ".shards.work" / "units"
    before = {path.name: path.stat().st_mtime_ns for path in units.iterdir()}
    write_jsonl(corpus / "part-03.jsonl", make_documents(100, seed=9))
    build_share(config, Share(0, 1), workers=1)
    after = {path.name: path.stat().st_mtime_ns for path in units.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"000003.json"}
    build_shards(config, workers=1)
    resumed = tree_hashes(tmp_path / "shards")
    build_shards(config, replace=True, workers=1)
    assert resumed == tree_hashes(tmp_path / "shards")


def test_a_file_of_several_ranges_may_grow_and_shrink(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range more or less gives other numbers to the units behind it: they are read again, too."""
    monkeypatch.setattr(write_shards, "list_units", partial(list_units, range_bytes=8000))
    config = make_config(corpus)
    for count in (60, 59, 20, 90):
        write_jsonl(corpus / "part-03.jsonl", make_documents(count, seed=9))
        for _ in range(2):
            build_share(config, Share(0, 1), workers=1)
    build_shards(config, workers=1)
    resumed = tree_hashes(tmp_path / "shards")
    build_shards(config, replace=True, workers=1)
    assert resumed == tree_hashes(tmp_path / "shards")


def test_an_output_below_its_corpus_continues_and_is_replaced(
    tmp_path: Path, corpus: Path, make_config: MakeConfig
) -> None:
    config = make_config(corpus, output=str(corpus / "shards"))
    build_share(config, Share(0, 2), workers=1)
    build_shards(config, workers=1)
    first = tree_hashes(corpus / "shards")
    build_shards(config, replace=True, workers=1)
    assert tree_hashes(corpus / "shards") == first
    beside = make_config(corpus, output=str(tmp_path / "beside"))
    (corpus / "shards").rename(tmp_path / "moved")
    build_shards(beside, workers=1)
    shard = Path("train", "shard-00000.arrow")
    assert (tmp_path / "beside" / shard).read_bytes() == (tmp_path / "moved" / shard).read_bytes()


def test_remains_of_another_build_are_named(corpus: Path, make_config: MakeConfig) -> None:
    build_share(make_config(corpus), Share(0, 2), workers=1)
    with pytest.raises(
        UserError, match=r"holds an unfinished build with another config; .*pass --replace to start anew"
    ):
        build_shards(make_config(corpus, seed=1), workers=1)
    build_shards(make_config(corpus, seed=1), replace=True, workers=1)


def test_a_damaged_record_of_a_build_is_named(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(corpus)
    build_share(config, Share(0, 2), workers=1)
    WorkFolder(Path(config.output)).root.joinpath("build.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"record of an unfinished build .* holds list, wanted an object"):
        build_shards(config, workers=1)


def test_an_existing_output_is_kept_unless_it_is_to_be_replaced(
    tmp_path: Path, corpus: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "precious").touch()
    with pytest.raises(UserError, match=r"already exists; choose another output=\.\.\., or pass --replace"):
        build_shards(make_config(corpus), workers=1)
    assert (tmp_path / "shards" / "precious").exists()
    build_shards(make_config(corpus), replace=True, workers=1)
    assert not (tmp_path / "shards" / "precious").exists()

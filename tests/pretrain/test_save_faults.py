"""Faults while a checkpoint is written: a kill before any line, a full disk, a limit on file size."""

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from bitbert.distributed import Topology
from bitbert.errors import UserError
from bitbert.files import NoSpaceError, publish_folder, require_free_space
from bitbert.pretrain.checkpoint import Checkpoint, newest_checkpoint, remove_unfinished, save_checkpoint
from bitbert.pretrain.guard import SaveFailures
from bitbert.pretrain.zero import TrainingTensors
from tests.pretrain.forked import die_at_line
from tests.pretrain.test_checkpoint import trained

ALONE = Topology(0, 1, 0, "127.0.0.1", 0)


def save(root: Path, step: int, *, num_updates: int) -> None:
    model, optimizer = trained(0, steps=num_updates)
    save_checkpoint(root, TrainingTensors(model, optimizer, ALONE), {"step": step}, keep=2)


def digest(checkpoint: Checkpoint) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(checkpoint.folder.iterdir()))


def save_and_die(root: Path, step: int, num_updates: int, line: int) -> int:
    """Save in a child that is killed before its ``line``-th line; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at_line(line)
            save(root, step, num_updates=num_updates)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("step", [2, 1], ids=["a new checkpoint", "the same step again"])
def test_a_kill_at_any_line_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path, step: int) -> None:
    """And nothing else that is taken for one, and no obstacle for the next save."""
    torch.set_num_threads(1)
    before, after = tmp_path / "before", tmp_path / "after"
    save(before, 1, num_updates=2)
    shutil.copytree(before, after)
    save(after, step, num_updates=3)
    old, new = (digest(found) for root in (before, after) if (found := newest_checkpoint(root)) is not None)
    assert old != new
    seen, line, code = set(), 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        line += 7  # the lines between differ in little that reaches the disk
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(before, root)
        code = save_and_die(root, step, 3, line)
        remove_unfinished(root)
        assert not list(root.glob(".step-*")), line
        found = newest_checkpoint(root)
        assert found is not None, line
        assert digest(found) in (old, new), line
        seen.add(digest(found))
        if line % 10 == 0:
            save(root, step, num_updates=3)
            again = newest_checkpoint(root)
            assert again is not None
            assert digest(again) == new, line
    assert code == 0
    assert seen == {old, new}
    assert line > 200


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, num_updates=2)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("bitbert.files.shutil.disk_usage", lambda path: usage._replace(free=512 * 1024))
    with pytest.raises(NoSpaceError, match=r"checkpoint of step 2 needs 1\.0 MiB, the disk of .* has 0\.5 MiB free"):
        save(tmp_path, 2, num_updates=3)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_disk_that_fills_during_the_save_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """The operating system refuses a write, here beyond a limit on file size."""
    save(tmp_path, 1, num_updates=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2, num_updates=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_failed_saves_are_borne_for_a_while() -> None:
    failures = SaveFailures(patience=2)
    line = failures.count("disk full", must_succeed=False)
    assert line is not None
    assert "training goes on (1 failed in a row, 2 stop the run)" in line
    assert failures.count(None, must_succeed=False) is None
    failures.count("disk full", must_succeed=False)
    with pytest.raises(UserError, match="the older checkpoints are intact, start the same command again"):
        failures.count("disk full", must_succeed=False)
    with pytest.raises(UserError, match="disk full"):
        SaveFailures(patience=9).count("disk full", must_succeed=True)


def test_free_space_is_asked_of_the_right_disk(tmp_path: Path) -> None:
    require_free_space(tmp_path, 1, "a byte")
    with pytest.raises(NoSpaceError, match="too much needs"):
        require_free_space(tmp_path, 2**60, "too much")


def test_a_new_folder_and_its_parents_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr("bitbert.files.fsync_path", lambda path: flushed.append(path.name))
    with publish_folder(tmp_path / "a" / "b" / "c") as temporary:
        (temporary / "file").write_text("x", encoding="utf-8")
    assert flushed[:2] == [tmp_path.name, "a"]  # the entries of a and of b
    assert flushed[2] == "file"
    assert flushed[-1] == "b"  # the entry of c

"""Errors a user can act on."""

import errno
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from bitbert.errors import UserError, did_you_mean, require_packages, run_door


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def door() -> None:
        raise UserError("value got,\n value wanted")

    with pytest.raises(SystemExit) as caught:
        run_door(door)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: value got, value wanted\n"


def test_other_errors_are_not_hidden() -> None:
    def door() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_door(door)


def test_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def door() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/model.safetensors")

    with pytest.raises(SystemExit, match="2"):
        run_door(door)
    assert capsys.readouterr().err == (
        "error: cannot write runs/model.safetensors: No space left on device; free some space and start again\n"
    )


def test_a_path_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    def door() -> None:
        (tmp_path / "file" / "runs").mkdir()

    with pytest.raises(SystemExit, match="2"):
        run_door(door)
    path = str(tmp_path / "file" / "runs")
    assert capsys.readouterr().err == (
        f"error: cannot use {path!r}: Not a directory; give another path, or mend its permissions\n"
    )


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone", "x"), PermissionError(errno.EACCES, "of no file")]
)
def test_other_errors_of_the_system_pass(error: OSError) -> None:
    def door() -> None:
        raise error

    with pytest.raises(type(error)):
        run_door(door)


def test_nearest_name() -> None:
    assert did_you_mean("stesp", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert did_you_mean("zzz", ["steps"]) == ""


@pytest.mark.parametrize("room", ["bitbert.data_prep", "bitbert.pretrain", "bitbert.finetune"])
def test_a_base_install_says_what_it_lacks(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbert.errors.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, room, raising=False)
    with pytest.raises(ImportError, match=r"needs .*pydantic.*pip install 'bitbert\[train\]'"):
        importlib.import_module(room)


def test_nothing_is_said_where_all_is_there() -> None:
    require_packages("room", "json", "sys")

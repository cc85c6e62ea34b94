"""Nothing is half-written."""

from pathlib import Path

import pytest

from bitbert.errors import UserError
from bitbert.files import publish_folder, read_json, write_atomically, write_json_atomically


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json_atomically(path, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_atomically(path, fail)
    assert read_json(path, "value") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with publish_folder(tmp_path / "out") as temporary:
            (temporary / "file").write_text("half", encoding="utf-8")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with publish_folder(tmp_path / "out", replace=True) as temporary:
            (temporary / text).write_text(text, encoding="utf-8")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="already exists"), publish_folder(tmp_path / "out"):
        pass


def test_unreadable_json(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json", "thing")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "absent.json", "thing")

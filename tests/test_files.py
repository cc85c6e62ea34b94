"""Nothing is half-written."""

import os
from pathlib import Path

import pytest

from bitbert.errors import UserError
from bitbert.files import publish_folder, read_json, read_json_object, write_atomically, write_json_atomically


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


def test_what_a_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """In a container the next process often has the number of the one that was killed."""
    for leftover in ("old", "tmp"):
        (tmp_path / f".out.{leftover}-{os.getpid()}").mkdir()
        (tmp_path / f".out.{leftover}-{os.getpid()}" / "file").write_text("before", encoding="utf-8")
    for text in ("old", "new"):
        with publish_folder(tmp_path / "out", replace=True) as temporary:
            (temporary / text).write_text(text, encoding="utf-8")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.parametrize("text", ["[" * 200_000, f'{{"a": {"1" * 5000}}}', "\udcff"])
def test_json_that_python_cannot_read_is_a_sentence(tmp_path: Path, text: str) -> None:
    """Nested too deeply, a number of too many digits, no UTF-8."""
    (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json", "thing")


def test_an_object_with_its_keys_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json_atomically(path, {"a": 1})
    assert read_json_object(path, "thing", ("a",)) == {"a": 1}
    with pytest.raises(UserError, match=r"thing .* lacks b, c; the file is damaged"):
        read_json_object(path, "thing", ("a", "b", "c"))
    write_json_atomically(path, [{"a": 1}])
    with pytest.raises(UserError, match="holds list, wanted an object"):
        read_json_object(path, "thing")


def test_unreadable_json(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json", "thing")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "absent.json", "thing")

"""Corpus files of every kind, whole and in ranges, good and bad."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.data_prep.config import SourceConfig
from bitbert.data_prep.readers import UnitReader
from bitbert.data_prep.report import describe_sources
from bitbert.data_prep.sources import list_units
from bitbert.errors import UserError

from .conftest import make_documents, write_jsonl


def read(
    path: Path, *, policy: Any = "fail", max_chars: int = 100_000, range_bytes: int = 1 << 26, **source: Any
) -> tuple[list[str], dict[str, int]]:
    """(documents, drops) of a path, through all of its units."""
    config = SourceConfig(path=str(path), **source)
    documents: list[str] = []
    drops: dict[str, int] = {}
    for unit in list_units([config], policy=policy, range_bytes=range_bytes):
        reader = UnitReader(unit, config, policy, max_chars)
        documents += reader.documents()
        for reason, count in reader.drops.items():
            drops[reason] = drops.get(reason, 0) + count
    return documents, drops


def _zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": _zst,
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("kind", ["jsonl", "txt", "json"])
def test_kinds_and_compressions(tmp_path: Path, kind: str, suffix: str) -> None:
    documents = make_documents(20)
    contents = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in documents),
        "txt": "\n\n".join(documents),
        "json": json.dumps([{"text": text} for text in documents]),
    }
    path = tmp_path / f"corpus.{kind}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](contents[kind].encode()))
    found, drops = read(path)
    assert [text.strip() for text in found] == documents
    assert drops == {}


def test_parquet_in_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = make_documents(100)
    pq.write_table(pa.table({"body": documents}), tmp_path / "a.parquet", row_group_size=16)
    assert len(list_units([SourceConfig(path=str(tmp_path))], range_bytes=1)) == 7
    assert read(tmp_path, range_bytes=1, text_field="body") == (documents, {})
    with pytest.raises(UserError, match="has no column 'text'; columns: body; set text_field"):
        read(tmp_path)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole parquet file"):
        read(tmp_path)


def test_damaged_parquet_files_are_counted_under_skip(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = make_documents(400)
    for name in ("a", "b", "c"):
        pq.write_table(pa.table({"text": documents}), tmp_path / f"{name}.parquet", row_group_size=100)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-100])
    inside = len(whole) // 2
    (tmp_path / "b.parquet").write_bytes(whole[:inside] + bytes(4000) + whole[inside + 4000 :])
    found, drops = read(tmp_path, policy="skip")
    assert drops == {"damaged_file": 2}
    assert found == documents[: len(found) - 400] + documents
    with pytest.raises(UserError, match=r"b\.parquet.* cannot be read to its end .*copy it again"):
        read(tmp_path / "b.parquet")


def _strings(contents: list[bytes | None]) -> Any:
    """A string column of any bytes, as other writers make them: pyarrow's own checks them."""
    import pyarrow as pa

    array = pa.array(contents, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def test_parquet_rows_that_are_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": _strings([b"one", None, b"caf\xe9", b"two"])}), path, row_group_size=2)
    assert read(path, policy="skip", range_bytes=1) == (["one", "", "two"], {"invalid_utf8": 1})
    with pytest.raises(UserError, match=r"row 3: not UTF-8 \(byte 0xe9 at offset 3\).*bad_input=skip"):
        read(path, range_bytes=1)


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_parquet_columns_of_every_string_type(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array(["one", "caf\u00e9", "one"])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path) == (["one", "caf\u00e9", "one"], {})


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_parquet_column_without_text_is_refused(tmp_path: Path, policy: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'id' holds int64, wanted strings; set text_field"):
        read(tmp_path, policy=policy, text_field="id")


def test_hub_datasets_are_read_shard_by_shard(tmp_path: Path) -> None:
    """A folder of parquet files is a dataset to `datasets`: the same calls as for one of the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = make_documents(30)
    for part in range(3):
        pq.write_table(pa.table({"text": documents[part * 10 : part * 10 + 10]}), tmp_path / f"train-{part}.parquet")
    source = SourceConfig(dataset=str(tmp_path))
    units = list_units([source])
    assert len(units) == 3
    assert [text for unit in units for text in UnitReader(unit, source, "fail", 10**6).documents()] == documents


def test_datasets_are_pinned_to_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a branch names when the build starts is what every unit reads and the manifest records."""
    import datasets
    import huggingface_hub

    path = write_jsonl(tmp_path / "a.jsonl", make_documents(5))
    asked = []

    def load(name: str, config: str | None, *, revision: str, **_: object) -> Any:
        asked.append((name, config, revision))
        return local("json", data_files=str(path), split="train", streaming=True)

    local = datasets.load_dataset
    info = SimpleNamespace(sha="c0ffee")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = SourceConfig(dataset="someone/books", name="en", revision="main", license="CC0")
    (unit,) = list_units([source])
    assert list(UnitReader(unit, source, "fail", 10**6).documents()) == make_documents(5)
    assert set(asked) == {("someone/books", "en", "c0ffee")}
    assert describe_sources([source], [unit]) == [
        {"source": "someone/books/en", "license": "CC0", "weight": 1.0, "revision": "c0ffee"}
    ]


def test_unknown_dataset_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"dataset 'no/such-dataset' .* cannot be opened.*check the id and the network"):
        list_units([SourceConfig(dataset="no/such-dataset")])


lines = st.lists(st.sampled_from([b"", b" ", b"a", b"bb cc", b"d" * 9, b"\xc3\xa9", b"e\r"]), max_size=30)


@given(lines, st.integers(1, 25), st.booleans())
@settings(max_examples=300, deadline=None)
def test_ranges_of_text_files_give_each_document_once(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], size: int, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_bytes(b"\n".join(content) + (b"\n" if ends else b""))
    assert read(path, range_bytes=size) == read(path)


@given(st.lists(st.text("ab\u00e9", max_size=12), max_size=20), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_ranges_of_json_lines_give_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], size: int
) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("ranges") / "a.jsonl", documents)
    assert read(path, range_bytes=size) == (documents, {})


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (
            b'{"text": "caf\xe9"}',
            "invalid_utf8",
            r"line 2: not UTF-8 \(byte 0xe9 at offset 13\); convert the file",
        ),
        (b"{text: 1}", "invalid_row", "line 2: not JSON .*one object a line is wanted"),
        (
            b'{"body": "x"}',
            "invalid_row",
            r"line 2: no text in field 'text'; found \['body'\]; set text_field",
        ),
        (b"[1]", "invalid_row", "line 2: no text in field 'text'; found list"),
        (b"[" * 100_000, "invalid_row", r"line 2: not JSON \(nested too deeply\)"),
        (b'{"text": "x", "id": ' + b"7" * 5000 + b"}", "invalid_row", r"line 2: not JSON \(Exceeds the limit"),
    ],
)
def test_bad_rows_stop_the_build_or_are_counted(tmp_path: Path, row: bytes, reason: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + row + b'\n{"text": "two"}\n')
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "bad_input=skip" in str(caught.value)
    assert read(path, policy="skip") == (["one", "two"], {reason: 1})


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_under_the_name_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """C4 ships so. A bad row concerns itself alone, and the bound of JSON documents is not theirs."""
    monkeypatch.setattr("bitbert.data_prep.readers._LARGEST_JSON_BYTES", 100)
    documents = make_documents(60)
    rows = [json.dumps({"text": text}).encode() for text in documents]
    path = tmp_path / f"c4-train.00000.json{suffix}"
    path.write_bytes(COMPRESSORS[suffix](b"\n".join(rows)))
    assert read(path) == (documents, {})
    path.write_bytes(COMPRESSORS[suffix](b'{"text": "caf\xe9"}\r\n\r\n' + b"\r\n".join(rows)))
    assert read(path, policy="skip") == (documents, {"invalid_utf8": 1})
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        read(path)


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",\n", ":")}])
def test_json_documents_in_every_layout(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    rows = [{"text": text, "about": {"x": {}}} for text in make_documents(20)]
    for content in (rows, {str(number): row for number, row in enumerate(rows)}):
        path.write_text(json.dumps(content, **layout), encoding="utf-8")
        assert read(path) == (make_documents(20), {})
    path.write_text(json.dumps(rows[0], **layout), encoding="utf-8")
    assert read(path) == (make_documents(20)[:1], {})


def test_a_json_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("5")
    with pytest.raises(
        UserError, match="the whole file: holds int; a list of objects, or one object a line, is wanted"
    ):
        read(path)
    assert read(path, policy="skip") == ([], {"invalid_row": 1})
    path.write_text('[{"text": "x"}')
    with pytest.raises(UserError, match=r"not JSON \(.*\); a list of objects, or one object a line, is wanted"):
        read(path)


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize("content", ['{"text": "one"}\n{"text": "two"}\n', '[{"text": "one"}, {"text": "two"}]'])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, policy: str, content: str) -> None:
    for kind in ("json",) if content.startswith("[") else ("json", "jsonl"):
        path = tmp_path / f"a.{kind}"
        path.write_text(content, encoding="utf-8-sig")
        assert read(path, policy=policy) == (["one", "two"], {})


def test_invalid_utf8_in_text_files_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n\nsecond \xff\n\nthird\n")
    with pytest.raises(UserError, match=r"line 3: not UTF-8 \(byte 0xff at offset 7\)"):
        read(path)
    assert read(path, policy="skip") == (["first\n", "third\n"], {"invalid_utf8": 1})


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
def test_truncated_archives(tmp_path: Path, suffix: str) -> None:
    documents = make_documents(4000)
    content = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    packed = COMPRESSORS[suffix](content)
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(UserError, match=r"a\.jsonl.* cannot be read to its end .*copy it again"):
        read(path)
    found, drops = read(path, policy="skip")
    assert found == documents[: len(found)]
    assert drops.pop("damaged_file") == 1 or drops == {}


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_an_enormous_line_is_counted_and_never_held(tmp_path: Path, kind: str) -> None:
    import tracemalloc

    path = tmp_path / f"a.{kind}"
    huge = b"word " * 8_000_000
    row = b'{"text": "' + huge + b'"}' if kind == "jsonl" else huge
    small = b'{"text": "small"}\n' if kind == "jsonl" else b"\nsmall\n\n"
    path.write_bytes(row + b"\n" + small)
    tracemalloc.start()
    found, drops = read(path, max_chars=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [text.strip() for text in found] == ["small"]
    assert drops == {"too_long": 1}
    assert peak < 8 << 20


def test_sources_that_are_not_there_or_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file there; give a file, a glob or a folder"):
        list_units([SourceConfig(path=str(tmp_path / "*.jsonl"))])
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown kind 'pdf'"):
        list_units([SourceConfig(path=str(tmp_path / "a.pdf"))])
    with pytest.raises(UserError, match=r"is no glob \(.*\); use \* within a name"):
        list_units([SourceConfig(path=str(tmp_path / "**.jsonl"))])
    with pytest.raises(ValueError, match="at least 1 character"):  # not everything below the working directory
        SourceConfig(path="")


def test_folders_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "c/d.jsonl.xz", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lzma.compress(b"") if name.endswith("xz") else b"")
    assert [Path(unit.origin).name for unit in list_units([SourceConfig(path=str(tmp_path))])] == [
        "a.txt",
        "b.jsonl",
        "d.jsonl.xz",
    ]
    assert [Path(unit.origin).name for unit in list_units([SourceConfig(path=f"{tmp_path}/*.jsonl")])] == ["b.jsonl"]


def test_what_a_build_makes_is_not_its_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("out/train/manifest.json", ".out.work/units/000000.json", ".out.tmp-7/report.json")
    for name in ("a.jsonl", "sub/out/b.json", "outer/c.json", *own):
        Path("corpus", name).parent.mkdir(parents=True, exist_ok=True)
        Path("corpus", name).touch()
    output = Path("elsewhere/../corpus/out")
    for source in ("corpus", str(tmp_path / "corpus"), "corpus/**/*.json*"):
        units = list_units([SourceConfig(path=source)], output=output)
        assert [Path(unit.origin).name for unit in units] == ["a.jsonl", "c.json", "b.json"]
    with pytest.raises(UserError, match=r"no file there but those of the output '.*corpus'; give a file"):
        list_units([SourceConfig(path="corpus")], output=Path("corpus"))

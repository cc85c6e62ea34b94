"""Shard folders: random access, other readers, and what is said of a bad file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbert.errors import UserError
from bitbert.permutation import permute
from bitbert.shards import MANIFEST, ShardReader, TokenRow, verify_shards, write_shards
from bitbert.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *"abcdefgh"]) + "\n", encoding="utf-8")
    return load_tokenizer(str(path))


def make_rows(count: int) -> list[TokenRow]:
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length = int(random.integers(5, 20))
        rows.append(TokenRow(random.integers(5, 13, length).tolist(), int(random.integers(2, length)), number % 2))
    return rows


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """4,000 rows in three shards, the first two of two record batches."""
    write_shards(
        tmp_path,
        make_rows(4000),
        tokenizer=tokenizer,
        max_length=20,
        nsp=True,
        rows_per_shard=1500,
        provenance={},
    )
    return tmp_path


def assert_same(row: TokenRow, expected: TokenRow) -> None:
    assert list(row.input_ids) == list(expected.input_ids)
    assert (row.segment_b_start, row.next_sentence_label) == (
        expected.segment_b_start,
        expected.next_sentence_label,
    )


def test_rows_come_back_by_number(folder: Path) -> None:
    reader, rows = ShardReader(folder), make_rows(4000)
    assert len(reader) == 4000
    assert len(reader.manifest["files"]) == 3
    for number in (0, 1023, 1024, 1499, 1500, 2999, 3000, 3999):
        assert_same(reader[number], rows[number])
    for row, expected in zip(reader, rows, strict=True):
        assert_same(row, expected)
    for number in (-1, 4000):
        with pytest.raises(IndexError):
            reader[number]
    assert reader.manifest["tokens"] == sum(len(row.input_ids) for row in rows)


def test_ids_are_views_of_the_mapped_file(folder: Path) -> None:
    ids = ShardReader(folder)[7].input_ids
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.uint16
    assert not ids.flags.owndata


def test_two_ranks_or_eight_see_the_same_global_batches() -> None:
    """The order of an epoch is a function of (seed, epoch) and the position alone."""
    size, batch = 4000, 64
    whole = permute(np.arange(size), size, seed=3, epoch=2)
    for ranks in (1, 2, 8):
        share = batch // ranks
        for step in (0, 17, 61):
            parts = [
                permute(step * batch + rank * share + np.arange(share), size, seed=3, epoch=2) for rank in range(ranks)
            ]
            assert np.concatenate(parts).tolist() == whole[step * batch : (step + 1) * batch].tolist()


def test_epoch_order_is_the_specified_one() -> None:
    """docs/format-shards.md, followed with plain integers."""
    mask = 2**64 - 1

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        return value ^ value >> 31

    def key(*parts: int) -> int:
        value = 0
        for part in parts:
            value = mix(value + 0x9E3779B97F4A7C15 + part & mask)
        return value

    def row(position: int, size: int, seed: int, epoch: int) -> int:
        half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        while True:
            left, right = position >> half, position & ((1 << half) - 1)
            for number in range(6):
                mixed = mix(right + key(seed, epoch, number) & mask)
                left, right = right, left ^ (mixed & ((1 << half) - 1))
            position = left << half | right
            if position < size:
                return position

    assert permute(np.arange(10), 10, seed=1, epoch=0).tolist() == [0, 9, 2, 6, 7, 5, 4, 3, 8, 1]
    for size in (1, 2, 10, 1000):
        expected = [row(position, size, 7, 3) for position in range(size)]
        assert permute(np.arange(size), size, seed=7, epoch=3).tolist() == expected
        assert sorted(expected) == list(range(size))


def test_other_tools_open_the_files(folder: Path) -> None:
    import pyarrow as pa

    rows = make_rows(4000)
    path = folder / "shard-00001.arrow"
    table = pa.ipc.open_file(path).read_pandas()
    assert list(table["input_ids"][0]) == list(rows[1500].input_ids)
    from datasets import Dataset

    assert Dataset.from_file(str(_as_stream(path)))[3]["segment_b_start"] == rows[1503].segment_b_start


def _as_stream(path: Path) -> Path:
    """`Dataset.from_file` maps the stream form; the batches are the same."""
    import pyarrow as pa

    copy = path.with_suffix(".stream")
    with (
        pa.ipc.open_file(path) as source,
        pa.OSFile(str(copy), "wb") as sink,
        pa.ipc.new_stream(sink, source.schema) as writer,
    ):
        for number in range(source.num_record_batches):
            writer.write_batch(source.get_batch(number))
    return copy


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "differs from the sha256 in its manifest"),
        (truncate, r"has \d+ bytes, its manifest says \d+"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_bad_shard_is_named_or_skipped(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder / "shard-00001.arrow")
    advice = "build the shards again or copy the file anew; or leave its 1500 rows out of a new run, by data.bad"
    with pytest.raises(UserError, match=rf"shard-00001\.arrow.* {message}; {advice}"):
        ShardReader(folder)
    reader, rows = ShardReader(folder, bad_shards="skip"), make_rows(4000)
    assert len(reader) == 2500
    assert_same(reader[1499], rows[1499])
    assert_same(reader[1500], rows[3000])
    (skipped,) = reader.skipped
    assert "shard-00001.arrow" in skipped
    (problem,) = verify_shards(folder)
    assert problem == skipped


def test_no_good_shard_left(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        truncate(path)
    with pytest.raises(UserError, match="has no good shard left"):
        ShardReader(folder, bad_shards="skip")


def test_hashes_are_not_read_on_wish(folder: Path) -> None:
    flip(folder / "shard-00002.arrow")
    assert len(ShardReader(folder, verify_hashes=False)) == 4000


def test_verify_holds_manifest_and_files_against_each_other(folder: Path) -> None:
    assert verify_shards(folder) == []
    (folder / "shard-00009.arrow").write_bytes(b"stranger")
    assert "is in no manifest; remove it" in verify_shards(folder)[0]
    (folder / "shard-00009.arrow").unlink()
    edit_manifest(folder, lambda manifest: manifest["files"][0].update(tokens=1))
    problems = verify_shards(folder)
    assert "its manifest says 1;" in problems[0]
    assert "tokens, its files have" in problems[1]


def test_arrow_files_of_another_make_are_refused(folder: Path, tokenizer: Tokenizer) -> None:
    edit_manifest(folder, lambda manifest: manifest["tokenizer"].update(vocab_size=70_000))
    with pytest.raises(UserError, match="of other types than the format's"):
        ShardReader(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(format_version=9),
            "'bitbert-shards' version 9, wanted 'bitbert-shards' version 1",
        ),
        (lambda manifest: manifest.pop("files"), "files is None, wanted list; the file is damaged"),
        (lambda manifest: manifest.update(files={}), "files is {}, wanted list"),
        (lambda manifest: manifest.update(files=["x"]), r"files\[0\].name is None, wanted str"),
        (lambda manifest: manifest["files"][1].pop("sha256"), r"files\[1\].sha256 is None, wanted str"),
        (lambda manifest: manifest["files"][1].update(rows="7"), r"files\[1\].rows is '7', wanted int"),
        (lambda manifest: manifest.update(max_length=-1), "max_length is -1, wanted int"),
        (lambda manifest: manifest.update(nsp=1), "nsp is 1, wanted bool"),
        (lambda manifest: manifest.update(tokenizer=[]), r"tokenizer is \[\], wanted dict"),
        (lambda manifest: manifest["tokenizer"].pop("fingerprint"), r"tokenizer.fingerprint is None, wanted str"),
        (lambda manifest: manifest["tokenizer"].update(mask_id=None), r"tokenizer.mask_id is None, wanted int"),
        (lambda manifest: manifest.update(rows=0), "holds no rows"),
        (lambda manifest: manifest["files"][0].update(name="../a.arrow"), r"names files outside .*'\.\./a\.arrow'"),
    ],
)
def test_manifests_are_checked(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_manifest(folder, change)
    with pytest.raises(UserError, match=message):
        ShardReader(folder)


def test_folders_without_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="does not exist; build it with bitbert-data CONFIG"):
        ShardReader(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"empty or unfinished \(no manifest.json\)"):
        ShardReader(tmp_path)
    with pytest.raises(UserError, match="no rows for"):
        write_shards(tmp_path, [], tokenizer=tokenizer, max_length=20, nsp=True, rows_per_shard=10, provenance={})

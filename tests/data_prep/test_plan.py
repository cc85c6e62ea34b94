"""Cutting the corpus into shards by key."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.data_prep.blocks import INDEX_DTYPE, BlockWriter, document_key
from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.plan import ShardCutter, first_of_equals, num_copies
from bitbert.data_prep.splits import key_range
from bitbert.errors import UserError

END = 2**64


@given(st.lists(st.integers(1, 400), min_size=40, max_size=400), st.integers(100, 4000), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_shards_cover_the_keys_whatever_the_parts(tokens: list[int], per_shard: int, part: int) -> None:
    keys = np.sort(np.random.default_rng(len(tokens)).integers(0, END, len(tokens), dtype=np.uint64))
    whole, parts = (ShardCutter("train", per_shard, 0, END) for _ in range(2))
    whole.add(keys, np.array(tokens))
    for start in range(0, len(keys), part):
        parts.add(keys[start : start + part], np.array(tokens[start : start + part]))
    shards = whole.finish(2, 0.5)
    assert parts.finish(2, 0.5) == shards
    assert [shard.first_key for shard in shards] == [0, *(shard.end_key for shard in shards[:-1])]
    assert shards[-1].end_key == END
    assert sum(shard.num_documents for shard in shards) == len(keys)
    for shard in shards:
        inside = (keys >= np.uint64(shard.first_key)) & (keys <= np.uint64(shard.end_key - 1))
        assert inside.sum() == shard.num_documents >= 16


def test_shards_are_about_as_large_as_asked() -> None:
    cutter = ShardCutter("train", 10_000, 0, END)
    keys = np.sort(np.random.default_rng(0).integers(0, END, 5000, dtype=np.uint64))
    cutter.add(keys, np.full(5000, 100))
    counts = [shard.num_documents for shard in cutter.finish(2, 0.5)]
    assert counts == [100] * 50


def test_too_few_documents() -> None:
    cutter = ShardCutter("heldout", 100, 0, END)
    cutter.add(np.array([5], np.uint64), np.array([10]))
    with pytest.raises(UserError, match=r"heldout gets 1 documents, wanted at least 2; .*heldout_fraction=0.02"):
        cutter.finish(2, 0.02)


def test_splits_are_ranges_of_keys() -> None:
    assert key_range("heldout", 0.25) == (0, 2**62)
    assert key_range("train", 0.25) == (2**62, END)


def test_first_of_equals_looks_at_all_128_bits() -> None:
    records = np.zeros(4, INDEX_DTYPE)
    records["key"], records["tail"], records["order"] = [1, 1, 1, 2], [7, 7, 8, 8], [0, 3, 1, 2]
    assert first_of_equals(records).tolist() == [True, False, True, True]
    assert first_of_equals(records[:0]).tolist() == []


def test_copies_follow_the_weights() -> None:
    records = np.zeros(10_000, INDEX_DTYPE)
    records["tail"] = np.random.default_rng(1).integers(0, END, 10_000, dtype=np.uint64)
    config = DataConfig(output="o", tokenizer="t", sources=[{"path": "p", "weight": 2.25}])
    train = num_copies(records, config, "train")
    assert set(train.tolist()) == {2, 3}
    assert abs((train == 3).mean() - 0.25) < 0.02
    assert set(num_copies(records, config, "heldout").tolist()) == {1}


def test_keys_depend_on_text_and_seed_alone() -> None:
    assert document_key("text", 1) == document_key("text", 1)
    assert len({document_key("text", 1), document_key("text", 2), document_key("texts", 1)}) == 3


def test_blocks_are_sorted_by_key_whatever_the_order(tmp_path: Path) -> None:
    documents = [(document_key(str(number), 0), number, [bytes([number, 0])] * (number + 1)) for number in range(50)]
    contents = []
    for seed in (1, 2):
        random.Random(seed).shuffle(documents)
        writer = BlockWriter(tmp_path / str(seed), np.dtype("<u2"))
        for key, order, sentences in documents:
            writer.add(key, order, 0, sentences)
        writer.flush()
        assert writer.names == [f"{seed}-0000"]
        contents.append([(tmp_path / f"{seed}-0000{suffix}").read_bytes() for suffix in (".index", ".lengths", ".ids")])
    assert contents[0] == contents[1]
    index = np.frombuffer(contents[0][0], INDEX_DTYPE)
    assert (np.diff(index["key"].astype(object)) > 0).all()

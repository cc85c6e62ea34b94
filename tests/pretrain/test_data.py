"""Batches: the same rows on any number of ranks, each row once an epoch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.errors import UserError
from bitbert.pretrain.config import DataSection
from bitbert.pretrain.data import BatchMaker
from bitbert.pretrain.run import open_shards
from bitbert.shards import ShardReader
from bitbert.tokenizer import Tokenizer


@pytest.fixture
def maker(tiny_shards: Path) -> BatchMaker:
    return BatchMaker(ShardReader(tiny_shards / "train"), mask_probability=0.15, seed=42)


def rows_of(maker: BatchMaker, step: int, world_size: int, micro: int) -> list[list[int]]:
    per_rank = [
        maker.step_batches(step * 16, global_batch_size=16, micro_batch_size=micro, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    texts = [
        ids[mask == 1].tolist()
        for batches in per_rank
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    return sorted(texts)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 16), (1, 4), (2, 4), (4, 4), (2, 8)])
def test_global_batch_is_the_same_on_any_layout(maker: BatchMaker, world_size: int, micro: int) -> None:
    assert rows_of(maker, 3, world_size, micro) == rows_of(maker, 3, 1, 8)


def test_every_row_once_an_epoch_and_epochs_go_on(maker: BatchMaker) -> None:
    num_rows = len(maker.reader)
    samples = maker.sample_rows(0, 2 * num_rows)
    assert sorted(row for epoch, row in samples if epoch == 0) == list(range(num_rows))
    assert sorted(row for epoch, row in samples if epoch == 1) == list(range(num_rows))
    assert maker.sample_rows(num_rows - 3, 6) == samples[num_rows - 3 : num_rows + 3]


def test_batch_layout(maker: BatchMaker) -> None:
    batch = maker.batch(maker.sample_rows(0, 4))
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.token_type_ids.shape
    for place, (_, index) in enumerate(maker.sample_rows(0, 4)):
        row = maker.reader[index]
        length = len(row.input_ids)
        assert batch.attention_mask[place].sum() == length
        assert batch.token_type_ids[place].tolist() == [0] * row.segment_b_start + [1] * (
            length - row.segment_b_start
        ) + [0] * (batch.input_ids.shape[1] - length)
        assert (batch.input_ids[place, length:] == maker.tokenizer["pad_id"]).all()
        assert batch.next_sentence_label[place] == row.next_sentence_label
    originals = np.concatenate([maker.reader[index].input_ids for _, index in maker.sample_rows(0, 4)])
    flat = batch.attention_mask.flatten().cumsum(0) - 1  # position among text tokens
    assert np.array_equal(originals[flat[batch.masked_positions]], batch.labels.numpy())
    assert batch.num_tokens == len(originals)
    assert batch.to("cpu").inputs().keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert batch.labels.dtype == torch.int64


def test_shards_whose_manifest_contradicts_the_tokenizer_are_refused(
    tiny_shards: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Another number of tokens would put ids beyond the word table into the masked rows."""
    shutil.copytree(tiny_shards / "train", tmp_path / "train")
    data = DataSection(train="", heldout="")
    open_shards(str(tmp_path / "train"), tiny_tokenizer, data, seed=0)
    path = tmp_path / "train" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tokenizer"]["vocab_size"] += 1
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="say other things of their tokenizer"):
        open_shards(str(tmp_path / "train"), tiny_tokenizer, data, seed=0)

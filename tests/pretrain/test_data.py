"""Batches: the same rows on any number of ranks, each row once an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.pretrain.data import BatchMaker
from bitbert.shards import ShardReader


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

"""The order of an epoch's rows: random, or in batches of like length; the same rows once each in both."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.finetune.batches import POOL_BATCHES, epoch_order
from bitbert.finetune.data import TaskData
from bitbert.finetune.head import Feature
from bitbert.finetune.source import open_source
from bitbert.finetune.train import encode_task, task_loss, train_seed
from bitbert.tracking import Tracker

from .conftest import RECIPE


def rows_of(lengths: list[int]) -> list[Feature]:
    return [Feature([5] * length, [0] * length, 0, index) for index, length in enumerate(lengths)]


def padded_tokens(lengths: np.ndarray, order: np.ndarray, batch_size: int) -> int:
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return sum(int(batch.max()) * len(batch) for batch in batches)


@pytest.mark.parametrize("num_rows", [7, 8, 1000, 3 * POOL_BATCHES * 8 + 5])
def test_every_row_once_and_little_padding(num_rows: int) -> None:
    lengths = np.random.default_rng(1).integers(4, 100, size=num_rows)
    plain, grouped, again = (
        epoch_order(rows_of(lengths.tolist()), 8, np.random.default_rng(2), group_by_length=group)
        for group in (False, True, True)
    )
    assert sorted(plain) == sorted(grouped) == list(range(num_rows))
    assert grouped.tolist() == again.tolist()
    assert plain.tolist() == np.random.default_rng(2).permutation(num_rows).tolist()
    if num_rows == 1000:
        assert padded_tokens(lengths, grouped, 8) < 1.05 * lengths.sum()
        assert padded_tokens(lengths, plain, 8) > 1.6 * lengths.sum()
        firsts = lengths[grouped[: 8 * 125 : 8]]
        assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.3  # long batches do not come last


def test_training_takes_it(pair_task: TaskData, saved_model: Path) -> None:
    """The same rows in fewer padded tokens."""
    source = open_source(str(saved_model), None)
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for group in seen:
        recipe = RECIPE.model_copy(update={"epochs": 1, "group_by_length": group, "batch_size": 4})
        tracker = Tracker(Path(), enabled=False)

        def loss(model, batch, group=group):
            seen[group].append(batch["attention_mask"])
            return task_loss(model, batch)

        train_seed(source, pair_task, encode_task(pair_task, source, recipe), recipe, 0, tracker, loss)
    plain, grouped = (sum(mask.numel() for mask in masks) for masks in seen.values())
    assert sum(int(mask.sum()) for mask in seen[False]) == sum(int(mask.sum()) for mask in seen[True])
    assert grouped < plain

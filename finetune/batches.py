"""Rows of features in batches: their order in an epoch, padding, and a model's outputs for all of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitbert.model import BitBertPreTrainedModel

from .head import Feature, Head

POOL_BATCHES = 50
"""How many batches' rows are sorted together by length."""


def batches(
    features: Sequence[Feature], order: np.ndarray, batch_size: int, pad_id: int, head: Head[Any] | None
) -> Iterator[dict[str, Tensor]]:
    """Batches in the given order, each padded to its longest row: keyword arguments of the model.

    Without ``head`` they carry no labels.
    """
    for start in range(0, len(order), batch_size):
        chosen = [features[index] for index in order[start : start + batch_size]]
        length = max(len(feature.input_ids) for feature in chosen)
        ids = np.full((len(chosen), length), pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, feature in enumerate(chosen):
            size = len(feature.input_ids)
            ids[row, :size], types[row, :size], mask[row, :size] = feature.input_ids, feature.token_type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        if head is not None:
            arrays |= head.targets(chosen, length)
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


def epoch_order(
    features: Sequence[Feature], batch_size: int, random: np.random.Generator, *, group_by_length: bool
) -> np.ndarray:
    """An epoch's order of the rows: a permutation, or one in which neighbours are of like length.

    For the latter, every :data:`POOL_BATCHES` batches' worth of permuted rows is sorted by length and cut into batches,
    and the batches are shuffled: padding almost vanishes, and which rows meet stays random. A batch that is not full
    comes last.
    """
    order = random.permutation(len(features))
    if not group_by_length:
        return order
    lengths = np.array([len(feature.input_ids) for feature in features])
    pool = POOL_BATCHES * batch_size
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    num_full = len(order) // batch_size
    full = order[: num_full * batch_size].reshape(num_full, batch_size)
    return np.concatenate([random.permutation(full).reshape(-1), order[num_full * batch_size :]])


@torch.no_grad()
def run_model(
    model: BitBertPreTrainedModel, head: Head[Any], features: Sequence[Feature], batch_size: int, pad_id: int
) -> list[np.ndarray]:
    """The head's outputs for each feature, in their order; dropout off."""
    model.eval()
    # Neighbours of like length share a batch: less padding, the same answers.
    order = np.argsort([len(feature.input_ids) for feature in features], kind="stable")
    found: list[np.ndarray] = [np.empty(0)] * len(features)
    place = 0
    for batch in batches(features, order, batch_size, pad_id, None):
        rows = head.outputs(model(**{name: tensor.to(model.device) for name, tensor in batch.items()}))
        for row in rows:
            found[order[place]] = row
            place += 1
    return found

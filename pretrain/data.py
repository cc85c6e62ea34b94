"""Batches: which rows a step takes, on which rank, and how they become tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitbert.permutation import permute
from bitbert.shards import ShardReader

from .masking import mask_row


@dataclass(frozen=True)
class Batch:
    """One micro-batch of b rows padded to the longest, n tokens, with m masked positions in all.

    Attributes:
        input_ids, attention_mask, token_type_ids: (b, n), int64.
        masked_positions: (m,), int64, flat indices into b * n.
        labels: (m,), int64, original ids at the masked positions.
        next_sentence_label: (b,), int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    masked_positions: Tensor
    labels: Tensor
    next_sentence_label: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments that teacher and student share."""
        return {name: getattr(self, name) for name in ("input_ids", "attention_mask", "token_type_ids")}

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())


class BatchMaker:
    """Batches of a shard folder; every batch is a function of (seed, epoch, rows) alone."""

    def __init__(self, reader: ShardReader, *, mask_probability: float, seed: int) -> None:
        self.reader, self.tokenizer = reader, reader.tokenizer
        self._mask_probability, self._seed = mask_probability, seed

    def sample_rows(self, first_sample: int, count: int) -> list[tuple[int, int]]:
        """(epoch, row) of samples ``first_sample`` ... of the endless sequence of epochs."""
        num_rows = len(self.reader)
        samples = np.arange(first_sample, first_sample + count)
        chosen = []
        for epoch in range(first_sample // num_rows, (first_sample + count - 1) // num_rows + 1):
            positions = samples[samples // num_rows == epoch] % num_rows
            chosen += [(epoch, int(row)) for row in permute(positions, num_rows, self._seed, epoch)]
        return chosen

    def batch(self, rows: Sequence[tuple[int, int]]) -> Batch:
        """Mask and pad the given (epoch, row) pairs."""
        length = max(len(self.reader[row].input_ids) for _, row in rows)
        ids = np.full((len(rows), length), self.tokenizer["pad_id"], dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        labels, positions, next_sentence = [], [], []
        for place, (epoch, index) in enumerate(rows):
            row = self.reader[index]
            masked = mask_row(
                row,
                self.tokenizer,
                probability=self._mask_probability,
                seed=self._seed,
                epoch=epoch,
                index=index,
            )
            size = len(masked.input_ids)
            ids[place, :size] = masked.input_ids
            mask[place, :size] = 1
            types[place, row.segment_b_start : size] = 1
            positions.append(masked.positions + place * length)
            labels.append(masked.labels)
            next_sentence.append(row.next_sentence_label)
        arrays: list[Any] = [
            ids,
            mask,
            types,
            np.concatenate(positions),
            np.concatenate(labels),
            np.array(next_sentence, dtype=np.int64),
        ]
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def step_batches(
        self, first_sample: int, *, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int
    ) -> list[Batch]:
        """This rank's micro-batches of an optimizer step that begins with sample ``first_sample``.

        The step's rows are the same on any number of ranks; ranks take turns in blocks of ``micro_batch_size``.
        """
        rows = self.sample_rows(first_sample, global_batch_size)
        stride = micro_batch_size * world_size
        starts = range(rank * micro_batch_size, global_batch_size, stride)
        return [self.batch(rows[start : start + micro_batch_size]) for start in starts]

"""The second stage: what the corpus as a whole decides. Duplicates, and which range of keys each shard takes.

The documents' records alone are read, one range of keys after the other, so memory does not grow with the
corpus. The plan is a function of the documents and the config: not of workers, tasks, or the order in which they
finish.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from bitbert.errors import UserError
from bitbert.files import write_atomically, write_json_atomically

from .blocks import Block
from .config import DataConfig
from .near_duplicates import find_near_duplicates
from .splits import HELDOUT, SPLITS, TRAIN, key_range
from .work_folder import WorkFolder

DUPLICATE, NEAR_DUPLICATE, NOT_SAMPLED = "duplicate", "near_duplicate", "not_sampled"
_DOCUMENTS_PER_PART = 1_000_000
_LEAST_DOCUMENTS = 16  # of a shard: B of a random pair comes from another document of the same shard
_NUM_KEYS = 2**64


@dataclass(frozen=True)
class ShardPlan:
    """One shard: the documents of ``split`` with first_key <= key < end_key."""

    split: str
    number: int
    first_key: int
    end_key: int
    num_documents: int


@dataclass(frozen=True)
class Plan:
    """All shards in the order of their keys, which is the held-out split and then the training split.

    Attributes:
        blocks: names of all blocks, in the order of the units.
        dropped: what the plan leaves out: source -> reason -> documents.
        first_rows, first_sentences, first_ids: int64 (blocks, shards + 1): where a shard's part of a block begins.
        near_duplicates: uint64, sorted: orders of the documents that are left out as near-duplicates.
    """

    shards: list[ShardPlan]
    blocks: list[str]
    dropped: list[dict[str, int]]
    first_rows: np.ndarray
    first_sentences: np.ndarray
    first_ids: np.ndarray
    near_duplicates: np.ndarray


def make_plan(config: DataConfig, names: list[str], work: WorkFolder) -> Plan:
    """Plan the shards from all blocks, or read the plan that an earlier process made of them.

    Raises:
        UserError: a split gets too few documents.
    """
    if work.plan_file.is_file():
        return _read_plan(work)
    blocks = [Block(work.block(name)) for name in names]
    near = find_near_duplicates(blocks, config.near_duplicates) if config.near_duplicates else np.zeros(0, np.uint64)
    dropped = [Counter[str]() for _ in config.sources]
    cutters = {
        split: ShardCutter(split, config.rows_per_shard * config.max_length, *key_range(split, config.heldout_fraction))
        for split in SPLITS
    }
    for records in _sorted_parts(blocks):
        first = first_of_equals(records)
        near_duplicate = first & np.isin(records["order"], near)
        _count(dropped, records, ~first, DUPLICATE)
        _count(dropped, records, near_duplicate, NEAR_DUPLICATE)
        for split, cutter in cutters.items():
            chosen = first & ~near_duplicate & cutter.covers(records["key"])
            copies = num_copies(records, config, split)
            _count(dropped, records, chosen & (copies == 0), NOT_SAMPLED)
            chosen &= copies > 0
            cutter.add(records["key"][chosen], (records["num_ids"] * copies)[chosen])
    least = 2 if config.objective == "mlm_nsp" else 1
    shards = [shard for split in (HELDOUT, TRAIN) for shard in cutters[split].finish(least, config.heldout_fraction)]
    plan = Plan(shards, names, [dict(counts) for counts in dropped], *_part_starts(blocks, shards), near)
    _write_plan(plan, work)
    return plan


def first_of_equals(records: np.ndarray) -> np.ndarray:
    """Of records sorted by (key, tail, order): whether each is the first of its (key, tail)."""
    same = (records["key"][1:] == records["key"][:-1]) & (records["tail"][1:] == records["tail"][:-1])
    return np.concatenate([np.ones(min(1, len(records)), bool), ~same])


def num_copies(records: np.ndarray, config: DataConfig, split: str) -> np.ndarray:
    """How often each document is used, by its source's weight; held-out documents at most once.

    A weight of 2.25 uses each document twice and a quarter of them, chosen by their hash, once more.
    """
    weights = np.array([source.weight for source in config.sources])[records["source"]]
    whole = np.floor(weights)
    copies = (whole + (records["tail"] / _NUM_KEYS < weights - whole)).astype(np.uint64)
    return np.minimum(copies, 1) if split == HELDOUT else copies


def _sorted_parts(blocks: Sequence[Block]) -> Iterator[np.ndarray]:
    """All records in the order of (key, tail, order), a bounded number at a time; equal ones are never parted."""
    indices = [block.index() for block in blocks]
    num_parts = 1 + sum(map(len, indices)) // _DOCUMENTS_PER_PART
    edges = [part * _NUM_KEYS // num_parts for part in range(num_parts + 1)]
    for first, end in pairwise(edges):
        records = np.concatenate([index[_row(index, first) : _row(index, end)] for index in indices])
        yield records[np.lexsort((records["order"], records["tail"], records["key"]))]


def _row(index: np.ndarray, key: int) -> int:
    """Number of the block's documents whose key is below ``key``."""
    return len(index) if key >= _NUM_KEYS else bisect_left(index["key"], np.uint64(key))


def _count(dropped: list[Counter[str]], records: np.ndarray, chosen: np.ndarray, reason: str) -> None:
    for source, count in zip(*np.unique(records["source"][chosen], return_counts=True), strict=True):
        dropped[int(source)][reason] += int(count)


@dataclass
class ShardCutter:
    """Cuts the documents of one split, given in the order of their keys, into shards of about equal tokens."""

    split: str
    tokens_per_shard: int
    first_key: int
    end_key: int
    _ends: list[tuple[int, int]] = field(default_factory=list)  # (end key, documents) of each whole shard
    _documents: int = 0
    _tokens: int = 0

    def covers(self, keys: np.ndarray) -> np.ndarray:
        """Which keys belong to the split."""
        return (keys >= np.uint64(self.first_key)) & (keys <= np.uint64(self.end_key - 1))

    def add(self, keys: np.ndarray, tokens: np.ndarray) -> None:
        """Documents that follow those given before: uint64 keys, rising, and tokens (copies counted)."""
        reached = np.cumsum(tokens, dtype=np.int64)
        start, used = 0, 0
        while start < len(keys):
            full = int(np.searchsorted(reached, used + self.tokens_per_shard - self._tokens))
            last = max(full, start + _LEAST_DOCUMENTS - self._documents - 1)
            if last >= len(keys):
                self._documents += len(keys) - start
                self._tokens += int(reached[-1]) - used
                return
            self._ends.append((int(keys[last]) + 1, self._documents + last + 1 - start))
            self._documents, self._tokens = 0, 0
            start, used = last + 1, int(reached[last])

    def finish(self, least: int, heldout_fraction: float) -> list[ShardPlan]:
        """The shards; a small rest goes to the shard before it.

        Raises:
            UserError: the split has fewer than ``least`` documents.
        """
        total = self._documents + sum(documents for _, documents in self._ends)
        if total < least:
            raise UserError(
                f"{self.split} gets {total} documents, wanted at least {least}; "
                f"give a larger corpus or change heldout_fraction={heldout_fraction}"
            )
        ends = list(self._ends)
        is_small = self._documents < _LEAST_DOCUMENTS or self._tokens < self.tokens_per_shard // 2
        rest = self._documents
        if ends and is_small:
            rest += ends.pop()[1]
        ends.append((self.end_key, rest))
        firsts = [self.first_key, *(end for end, _ in ends)]
        return [
            ShardPlan(self.split, number, firsts[number], end, documents)
            for number, (end, documents) in enumerate(ends)
        ]


def _part_starts(blocks: Sequence[Block], shards: list[ShardPlan]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each shard's part of each block begins: (rows, sentences, ids)."""
    edges = [*(shard.first_key for shard in shards), _NUM_KEYS]
    starts = np.zeros((3, len(blocks), len(edges)), np.int64)
    for number, block in enumerate(blocks):
        index = block.index()
        rows = [_row(index, edge) for edge in edges]
        starts[0, number] = rows
        for place, column in ((1, "num_sentences"), (2, "num_ids")):
            starts[place, number] = np.concatenate([[0], np.cumsum(index[column], dtype=np.int64)])[rows]
    return starts[0], starts[1], starts[2]


def _write_plan(plan: Plan, work: WorkFolder) -> None:
    arrays = {name: getattr(plan, name) for name in ("first_rows", "first_sentences", "first_ids", "near_duplicates")}

    def write(temporary: Any) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(work.plan_arrays, write)
    write_json_atomically(
        work.plan_file,
        {"shards": [asdict(shard) for shard in plan.shards], "blocks": plan.blocks, "dropped": plan.dropped},
    )


def _read_plan(work: WorkFolder) -> Plan:
    described = json.loads(work.plan_file.read_text(encoding="utf-8"))
    with np.load(work.plan_arrays) as arrays:
        return Plan(
            [ShardPlan(**shard) for shard in described["shards"]],
            described["blocks"],
            described["dropped"],
            **arrays,
        )

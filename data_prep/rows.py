"""The third stage: one shard's documents -> rows -> an Arrow file and its record."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitbert.files import write_json_atomically
from bitbert.permutation import derive_key
from bitbert.shards import RowColumns, write_shard
from bitbert.tokenizer import Tokenizer

from .blocks import Block
from .config import DataConfig
from .encoder import id_dtype
from .pairs import NOT_NEXT, RowBuilder, RowSpan
from .plan import Plan, ShardPlan, first_of_equals, num_copies
from .splits import SPLITS
from .work_folder import WorkFolder

HISTOGRAM_BINS = 32


@dataclass(frozen=True)
class ShardDocuments:
    """The documents of one shard, each once, in the order of their keys.

    Attributes:
        ids: all their ids, in no particular order of documents.
        records: of ``INDEX_DTYPE``.
        first_ids: where each document begins in ``ids``.
        lengths: ids of each sentence, a document.
        copies: how often each document is used.
    """

    ids: np.ndarray
    records: np.ndarray
    first_ids: np.ndarray
    lengths: list[np.ndarray]
    copies: np.ndarray


def build_shard(
    config: DataConfig, plan: Plan, position: int, tokenizer: Tokenizer, work: WorkFolder
) -> dict[str, Any]:
    """Write shard ``position`` of the plan and return (and write last) its record."""
    shard = plan.shards[position]
    documents = load_documents(config, plan, position, id_dtype(tokenizer.vocab_size), work)
    columns = build_rows(documents, config, shard, tokenizer)
    path = work.shard_file(shard.split, shard.number)
    entry = write_shard(path, columns, tokenizer.vocab_size)
    record = {
        "split": shard.split,
        "number": shard.number,
        "file": entry,
        **_statistics(columns, documents, config),
    }
    write_json_atomically(work.shard_record(shard.split, shard.number), record)
    return record


def load_documents(config: DataConfig, plan: Plan, position: int, dtype: np.dtype, work: WorkFolder) -> ShardDocuments:
    """Gather one shard's documents from all blocks and leave out what the plan leaves out."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, name in enumerate(plan.blocks):
        rows, sentences, ids = (
            (int(starts[number, position]), int(starts[number, position + 1]))
            for starts in (plan.first_rows, plan.first_sentences, plan.first_ids)
        )
        if rows[0] == rows[1]:
            continue
        block = Block(work.block(name))
        parts.append(
            (
                np.array(block.index()[slice(*rows)]),
                block.lengths(sentences[0], sentences[1] - sentences[0]),
                block.ids(dtype, ids[0], ids[1] - ids[0]),
            )
        )
    records, all_lengths, all_ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    first_ids = _starts(records["num_ids"])
    first_sentences = _starts(records["num_sentences"])
    by_key = np.lexsort((records["order"], records["tail"], records["key"]))
    ordered = records[by_key]
    copies = num_copies(ordered, config, plan.shards[position].split)
    kept = first_of_equals(ordered) & ~np.isin(ordered["order"], plan.near_duplicates) & (copies > 0)
    chosen = by_key[kept]
    lengths = [
        all_lengths[start : start + count]
        for start, count in zip(first_sentences[chosen], records["num_sentences"][chosen], strict=True)
    ]
    return ShardDocuments(all_ids, ordered[kept], first_ids[chosen], lengths, copies[kept])


def build_rows(documents: ShardDocuments, config: DataConfig, shard: ShardPlan, tokenizer: Tokenizer) -> RowColumns:
    """Cut the documents into rows and put [CLS] and [SEP] in place."""
    ids = documents.ids.data
    cls, sep = (np.array([token], documents.ids.dtype).tobytes() for token in (tokenizer.cls_id, tokenizer.sep_id))
    packed = bytearray()
    lengths: list[int] = []
    segment_b_starts: list[int] = []
    labels: list[int] = []
    for span in _spans(documents, config, shard):
        length_a, length_b = span.end_a - span.first_a, span.end_b - span.first_b
        packed += cls
        packed += ids[span.first_a : span.end_a]
        packed += sep
        if length_b:
            packed += ids[span.first_b : span.end_b]
            packed += sep
        segment_b_starts.append(length_a + 2)
        lengths.append(length_a + 2 + (length_b + 1 if length_b else 0))
        labels.append(span.label)
    return RowColumns(
        np.frombuffer(packed, documents.ids.dtype),
        np.array(lengths, np.int64),
        np.array(segment_b_starts, np.uint16),
        np.array(labels, np.uint8),
    )


def _spans(documents: ShardDocuments, config: DataConfig, shard: ShardPlan) -> Iterator[RowSpan]:
    is_pairs = config.objective == "mlm_nsp"
    room = config.max_length - (3 if is_pairs else 2)
    edges = [
        [first, *(first + np.cumsum(lengths, dtype=np.int64)).tolist()]
        for first, lengths in zip(documents.first_ids.tolist(), documents.lengths, strict=True)
    ]
    stream = random.Random(derive_key(config.seed, SPLITS.index(shard.split), shard.number))
    builder = RowBuilder(room, config.short_sequence_probability, stream)
    for round_number in range(int(documents.copies.max())):
        for index in np.flatnonzero(documents.copies > round_number).tolist():
            yield from builder.pairs(edges, index) if is_pairs else builder.segments(edges[index])


def _starts(counts: np.ndarray) -> np.ndarray:
    ends = np.cumsum(counts, dtype=np.int64)
    return ends - counts.astype(np.int64)


def _statistics(columns: RowColumns, documents: ShardDocuments, config: DataConfig) -> dict[str, Any]:
    used = (documents.records["num_ids"] * documents.copies).astype(np.int64)
    by_source = [int(used[documents.records["source"] == number].sum()) for number in range(len(config.sources))]
    histogram, _ = np.histogram(columns.lengths, bins=HISTOGRAM_BINS, range=(0, config.max_length))
    return {
        "documents": int(documents.copies.sum()),
        "random_next": int((columns.next_sentence_labels == NOT_NEXT).sum()),
        "length_histogram": histogram.tolist(),
        "text_tokens_by_source": by_source,
    }

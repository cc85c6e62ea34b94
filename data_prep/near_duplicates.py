"""Near-duplicate documents: MinHash signatures (`rensa`), grouped by bands, the first of a group stays.

A signature is made where a document is read. Documents that agree in a whole band of their signatures are
compared; the one that comes later in the corpus is dropped when the estimated similarity reaches the
threshold. Bands are taken one after the other, and wide bands of a large corpus in parts, so memory stays
bounded.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bitbert.permutation import mix64

from .blocks import SIGNATURE_DTYPE, Block
from .config import NearDuplicateConfig

NUM_HASHES = 128
# 16 bands of 8: a pair of similarity 0.7 meets in a band with probability 0.61, of 0.8 with 0.95, of 0.9 with
# 0.9999.
_NUM_BANDS = 16
_BAND_WIDTH = NUM_HASHES // _NUM_BANDS
_DOCUMENTS_PER_PART = 2_000_000
_HASH_SEED = 1  # part of the definition: another one would drop other documents


class MinHasher:
    """Signatures of documents."""

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._ngram_words = config.ngram_words

    def signature(self, text: str) -> np.ndarray:
        """Array (128,) of uint32: for each of 128 hash functions the least hash of the document's word n-grams."""
        from rensa import RMinHash

        words = text.lower().split()
        count = max(1, len(words) - self._ngram_words + 1)
        hasher = RMinHash(num_perm=NUM_HASHES, seed=_HASH_SEED)
        hasher.update([" ".join(words[start : start + self._ngram_words]) for start in range(count)])
        return np.array(hasher.digest(), dtype=SIGNATURE_DTYPE)


def find_near_duplicates(blocks: Sequence[Block], config: NearDuplicateConfig) -> np.ndarray:
    """Orders (uint64, sorted) of the documents to drop; exact duplicates may be among them."""
    orders = [np.ascontiguousarray(block.index()["order"]) for block in blocks]
    signatures = [block.signatures(NUM_HASHES) for block in blocks]
    num_parts = 1 + sum(map(len, orders)) // _DOCUMENTS_PER_PART
    dropped: list[np.ndarray] = []
    for band in range(_NUM_BANDS):
        for part in range(num_parts):
            keys, documents, places = _band_entries(signatures, orders, band, part, num_parts)
            dropped.append(_later_ones(signatures, keys, documents, places, config.similarity))
    return np.unique(np.concatenate(dropped)) if dropped else np.zeros(0, np.uint64)


def _band_entries(
    signatures: list[np.ndarray], orders: list[np.ndarray], band: int, part: int, num_parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(band key, order, (block, row)) of the documents whose band key falls into ``part``."""
    keys, documents, places = [], [], []
    for number, mapped in enumerate(signatures):
        columns = np.array(mapped[:, band * _BAND_WIDTH : (band + 1) * _BAND_WIDTH])
        key = np.zeros(len(columns), np.uint64)
        for column in columns.T:
            key = mix64(key + column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        rows = np.flatnonzero(key % np.uint64(num_parts) == part)
        keys.append(key[rows])
        documents.append(orders[number][rows])
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    return np.concatenate(keys), np.concatenate(documents), np.concatenate(places)


def _later_ones(
    signatures: list[np.ndarray],
    keys: np.ndarray,
    documents: np.ndarray,
    places: np.ndarray,
    similarity: float,
) -> np.ndarray:
    """Of each group with one band key: the documents that are similar enough to the group's first."""
    by_key = np.lexsort((documents, keys))
    keys, documents, places = keys[by_key], documents[by_key], places[by_key]
    dropped = []
    for start, end in _groups(keys):
        group = np.stack([signatures[block][row] for block, row in places[start:end]])
        alike = (group[1:] == group[0]).mean(axis=1) >= similarity
        dropped.append(documents[start + 1 : end][alike])
    return np.concatenate(dropped) if dropped else np.zeros(0, np.uint64)


def _groups(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of two or more equal values in a sorted array."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, int)
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start > 1:
            yield start, end

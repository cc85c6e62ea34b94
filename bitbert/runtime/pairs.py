"""Heads for two texts in numpy: each text of a pair is encoded by itself, and the head sees what the two say."""

import numpy as np

from bitbert.errors import UserError


def split_pair(ids: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a pair's two texts, ``[CLS] a [SEP]`` and ``[CLS] b [SEP]``, from ``[CLS] a [SEP] b [SEP]``.

    Raises:
        UserError: the token types (n,) are not 0 at first and then 1, so that there is one text only.
    """
    others = np.flatnonzero(types)
    if not len(others) or not others[0]:
        raise UserError(
            "a sequence without a second text, wanted token types 0 and then 1: this checkpoint compares two texts"
        )
    return ids[: others[0]], np.concatenate([ids[:1], ids[others[0] :]])


def pair_features(first: np.ndarray, second: np.ndarray, eps: float) -> np.ndarray:
    """What the head sees of the mean states of the first and second texts, (pairs, hidden) each: (pairs, 4 hidden).

    [u, v, |u - v|, u v] with u = m / sqrt(mean(m^2) + eps) of a first text's mean m, and v of the second's.
    """
    u, v = (
        means / np.sqrt((means * means).mean(axis=1, keepdims=True) + means.dtype.type(eps))
        for means in (first, second)
    )
    return np.concatenate([u, v, abs(u - v), u * v], axis=1)

"""Training and held-out documents: two ranges of keys, so equal texts are always on the same side."""

TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)
_NUM_KEYS = 2**64


def key_range(split: str, heldout_fraction: float) -> tuple[int, int]:
    """Keys [first, end) of a split: held-out documents are those at the start of the shuffled corpus."""
    border = int(heldout_fraction * _NUM_KEYS)
    return (0, border) if split == HELDOUT else (border, _NUM_KEYS)

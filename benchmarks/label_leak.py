"""How far the next-sentence label of shards can be read off the way rows are cut, without reading the texts.

    python -m benchmarks.label_leak runs/demo/shards/train

Fits gradient-boosted trees on half of the rows to lengths and last tokens, and scores them on the other half.
"""

import argparse

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier

from bitbert.shards import ShardReader

FEATURES = ("tokens of A", "tokens of B", "tokens", "last token of A is the commonest one", "last token of B is it")


def surface(reader: ShardReader) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of all rows: (rows, 5) and (rows,)."""
    rows = [(np.asarray(row.input_ids), row.segment_b_start, row.next_sentence_label) for row in reader]
    commonest = np.bincount([ids[-2] for ids, _, _ in rows]).argmax()  # the full stop, in English
    features = [
        (start - 2, len(ids) - start - 1, len(ids), ids[start - 2] == commonest, ids[-2] == commonest)
        for ids, start, _ in rows
    ]
    return np.array(features, dtype=float), np.array([label for _, _, label in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shards", help="shard folder with next-sentence labels")
    features, labels = surface(ShardReader(parser.parse_args().shards))
    half = len(labels) // 2
    trees = GradientBoostingClassifier(random_state=0).fit(features[:half], labels[:half])
    larger = max(labels[half:].mean(), 1 - labels[half:].mean())
    score = trees.score(features[half:], labels[half:])
    print(f"{len(labels)} rows; larger label {larger:.3f}; read off the cut {score:.3f}")
    for name, importance in zip(FEATURES, trees.feature_importances_, strict=True):
        print(f"  {name:40} importance {importance:.2f}")


if __name__ == "__main__":
    main()

"""A pretraining's metrics in brief, for a record: each hundredth step, all evaluations, no layer by itself.

python benchmarks/metrics_digest.py RUN > benchmarks/results/release-pretrain.jsonl
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitbert.tracking import METRICS_FILE, read_metrics

EVERY = 100


def digest(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of lines of metrics.jsonl: losses, what was evaluated and what has no parts, in six decimals."""
    kept = (line for line in lines if line["step"] % EVERY == 0 or any(name.startswith("eval/") for name in line))
    return [
        {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in line.items()
            if "/" not in name or name.startswith(("loss/", "eval/"))
        }
        for line in kept
    ]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1]) / METRICS_FILE
    if not path.is_file():
        sys.exit(f"error: {sys.argv[1]!r} holds no {METRICS_FILE}; give the folder of a run's output")
    for line in digest(read_metrics(path)):
        print(json.dumps(line))


if __name__ == "__main__":
    main()

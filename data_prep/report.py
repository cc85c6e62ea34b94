"""The report of a build: what came in, what was left out and why, what the rows look like.

It holds no times and no machine, so it is the same bytes whenever the shards are.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import DataConfig, SourceConfig
from .plan import Plan
from .splits import SPLITS
from .units import Unit


def build_report(
    config: DataConfig,
    units: Sequence[Unit],
    unit_records: list[dict[str, Any]],
    plan: Plan,
    shard_records: list[dict[str, Any]],
) -> dict[str, Any]:
    """Merge the records of all units and shards.

    Keys: ``dropped`` (reason -> documents), ``sources`` (one entry each), ``train`` and ``heldout`` (see
    :func:`_describe_split`), ``notes`` (damaged files that were left before their end).
    """
    dropped = [Counter(plan.dropped[number]) for number in range(len(config.sources))]
    read = [Counter[str]() for _ in config.sources]
    for unit, record in zip(units, unit_records, strict=True):
        dropped[unit.source].update(record["dropped"])
        read[unit.source].update(documents=record["documents"], chars=record["chars"])
    tokens = [
        sum(record["text_tokens_by_source"][number] for record in shard_records)
        for number in range(len(config.sources))
    ]
    sources = [
        {
            "source": source.title,
            "license": source.license,
            "weight": source.weight,
            "documents_after_cleaning": read[number]["documents"],
            "chars_after_cleaning": read[number]["chars"],
            "dropped": dict(sorted(dropped[number].items())),
            "text_tokens": tokens[number],
            "share_of_tokens": round(tokens[number] / max(1, sum(tokens)), 6),
        }
        for number, source in enumerate(config.sources)
    ]
    return {
        "dropped": dict(sorted(sum(dropped, Counter[str]()).items())),
        "sources": sources,
        **{
            split: _describe_split([record for record in shard_records if record["split"] == split], config)
            for split in SPLITS
        },
        "notes": [note for record in unit_records for note in record["notes"]],
    }


def _describe_split(records: list[dict[str, Any]], config: DataConfig) -> dict[str, Any]:
    """Documents, rows, tokens, padding, balance of the pairs and lengths of one split.

    ``padding_share`` is the share of a batch that is padding when all rows are padded to max_length.
    ``length_histogram`` counts rows in equal bins from 0 to max_length.
    """
    rows = sum(record["file"]["rows"] for record in records)
    tokens = sum(record["file"]["tokens"] for record in records)
    described: dict[str, Any] = {
        "documents": sum(record["documents"] for record in records),
        "shards": len(records),
        "rows": rows,
        "tokens": tokens,
        "max_length": config.max_length,
        "padding_share": round(1 - tokens / (rows * config.max_length), 6),
        "length_histogram": [
            sum(counts) for counts in zip(*(record["length_histogram"] for record in records), strict=True)
        ],
    }
    if config.objective == "mlm_nsp":
        described["random_next_share"] = round(sum(record["random_next"] for record in records) / rows, 6)
    return described


def describe_sources(sources: Sequence[SourceConfig], units: Sequence[Unit]) -> list[dict[str, Any]]:
    """What the manifest says of each source: licence, commit of a dataset, names and sizes of local files."""
    described = []
    for number, source in enumerate(sources):
        own = [unit for unit in units if unit.source == number]
        files = sorted({unit.origin for unit in own if unit.kind != "hub"})
        entry: dict[str, Any] = {"source": source.title, "license": source.license, "weight": source.weight}
        if source.dataset is not None:
            entry["revision"] = own[0].stamp
        else:
            entry["files"] = [{"name": Path(file).name, "bytes": Path(file).stat().st_size} for file in files]
        described.append(entry)
    return described

"""The build: documents in, a folder with train/, heldout/ and the resolved config out, whole or not at all."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from bitbert.config import dump_config
from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import publish_folder, write_json_atomically
from bitbert.shards import TokenRow, write_shards
from bitbert.tokenizer import Tokenizer, load_tokenizer

from .config import DataConfig
from .pair_task import write_pair_task
from .pairs import PairBuilder
from .sentences import tokenize_document
from .sources import read_documents, source_files


def build_shards(config: DataConfig, *, replace: bool = False) -> dict[str, Any]:
    """Build all shards of ``config`` and return the report that is also written as report.json.

    Raises:
        UserError: a source, the tokenizer or the output does not fit; nothing is left behind.
    """
    output = Path(config.output)
    if output.exists() and not replace:
        raise UserError(f"output {str(output)!r} already exists; choose another output=..., or pass --replace to build it again")
    tokenizer = load_tokenizer(config.tokenizer)
    for source in config.sources:  # name every missing corpus before any work is done
        if source.path is not None:
            source_files(source)
    splits, dropped = _read_splits(config)
    provenance = config.model_dump(mode="json")
    with publish_folder(output, replace=replace) as temporary:
        report: dict[str, Any] = {"dropped": dict(dropped)}
        for name, texts in splits.items():
            folder = temporary / name
            folder.mkdir()
            rows = _rows(texts, tokenizer, config, name)
            manifest = write_shards(
                folder, rows, tokenizer=tokenizer, max_length=config.max_length, nsp=True, rows_per_shard=config.rows_per_shard, provenance=provenance
            )
            report[name] = {"documents": len(texts), "rows": manifest["rows"], "tokens": manifest["tokens"]}
        if config.pair_task is not None:
            report["pair_task"] = write_pair_task(temporary / "pair_task", splits["heldout"], config.pair_task, language=config.language, seed=config.seed)
        dump_config(config, temporary / "config.yaml")
        write_json_atomically(temporary / "report.json", report)
    return report


def _read_splits(config: DataConfig) -> tuple[dict[str, list[str]], Counter[str]]:
    """Texts by split, decided by each document's hash, and what was dropped."""
    splits: dict[str, list[str]] = {"train": [], "heldout": []}
    seen: set[bytes] = set()
    dropped: Counter[str] = Counter(empty=0, duplicate=0)
    for source in config.sources:
        for text in read_documents(source):
            digest = hashlib.sha256(f"{config.seed}:{text}".encode()).digest()
            if not text.strip():
                dropped["empty"] += 1
            elif digest in seen:
                dropped["duplicate"] += 1
            else:
                seen.add(digest)
                heldout = int.from_bytes(digest[:8], "big") / 2**64 < config.heldout_fraction
                splits["heldout" if heldout else "train"].append(text)
    for name, texts in splits.items():
        if len(texts) < 2:
            raise UserError(f"{name} gets {len(texts)} documents of {len(seen)}, wanted at least 2; give a larger corpus or change heldout_fraction={config.heldout_fraction}")
    return splits, dropped


def _rows(texts: list[str], tokenizer: Tokenizer, config: DataConfig, name: str) -> Iterator[TokenRow]:
    documents = [tokenize_document(text, tokenizer, config.language) for text in track(texts, description=f"{name}: tokenize")]
    documents = [document for document in documents if document.sentences]
    log(f"{name}: {len(documents)} documents, {sum(len(document.sentences) for document in documents)} sentences")
    builder = PairBuilder(
        documents,
        tokenizer,
        max_length=config.max_length,
        short_sequence_probability=config.short_sequence_probability,
        seed=config.seed,
    )
    for index in track(range(len(documents)), description=f"{name}: pairs"):
        yield from builder.rows(index)

"""The first stage: one unit of the corpus -> cleaned, split and tokenised documents in blocks."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from bitbert.files import write_json_atomically
from bitbert.tokenizer import load_tokenizer

from .blocks import BlockWriter, document_key, document_order
from .clean import clean_text, reason_to_drop
from .config import DataConfig
from .encoder import SentenceEncoder, build_encoder
from .near_duplicates import MinHasher
from .pair_task import SampleCollector
from .readers import UnitReader
from .sentences import raw_sentences
from .units import Unit
from .work_folder import WorkFolder

NO_TOKENS = "no_tokens"


@cache
def _encoder(tokenizer: str) -> SentenceEncoder:
    """One for each process: the cache of words lives through all units that a worker reads."""
    return build_encoder(load_tokenizer(tokenizer))


def read_unit(config: DataConfig, number: int, unit: Unit, work: WorkFolder) -> dict[str, Any]:
    """Read unit ``number`` into blocks; return (and write last) its record: blocks, drops, tokens.

    Raises:
        UserError: the unit cannot be read, under policy ``fail``.
    """
    source = config.sources[unit.source]
    reader = UnitReader(unit, source, config.bad_input, config.clean.max_chars)
    encoder = _encoder(config.tokenizer)
    writer = BlockWriter(work.block_stem(number), encoder.dtype)
    hasher = MinHasher(config.near_duplicates) if config.near_duplicates else None
    samples = SampleCollector(config)
    num_documents = num_chars = 0
    for order, text in enumerate(_kept_documents(reader, config)):
        raw = list(raw_sentences(text, config.language))
        sentences = [ids for ids in encoder.encode(raw) if ids]
        if not sentences:
            reader.drops[NO_TOKENS] += 1
            continue
        key = document_key(text, config.seed)
        signature = hasher.signature(text) if hasher else None
        writer.add(key, document_order(number, order), unit.source, sentences, signature)
        samples.add(key, document_order(number, order), raw)
        num_documents += 1
        num_chars += len(text)
    writer.flush()
    if config.pair_task is not None:
        samples.write(work.sample_file(number))
    record = {
        "blocks": writer.names,
        "documents": num_documents,
        "chars": num_chars,
        "dropped": dict(sorted(reader.drops.items())),
        "notes": reader.notes,
    }
    write_json_atomically(work.unit_record(number), record)
    return record


def _kept_documents(reader: UnitReader, config: DataConfig) -> Iterator[str]:
    for text in reader.documents():
        cleaned = clean_text(text, config.clean)
        reason = reason_to_drop(cleaned, config.clean)
        if reason is None:
            yield cleaned
        else:
            reader.drops[reason] += 1

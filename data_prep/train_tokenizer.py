"""Training a tokenizer of one's own: the same corpus and config give the same bytes on every run."""

import io
import os
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bitbert.config import dump_config
from bitbert.errors import UserError
from bitbert.files import publish_folder, write_atomically, write_text_atomically
from bitbert.tokenizer import SENTENCEPIECE_FILE, SPECIAL_TOKENS, Tokenizer, load_tokenizer, wordpiece_backend

from .clean import clean_text, reason_to_drop
from .config import TokenizerConfig
from .readers import UnitReader
from .sentences import split_sentences
from .sources import list_units
from .wordpiece import learn_vocabulary

_PAD, _UNK, _CLS, _SEP, _MASK = SPECIAL_TOKENS
# SentencePiece leaves out sentences above 4192 bytes without a word.
_MAX_SENTENCE_BYTES = 4000


def train_tokenizer(config: TokenizerConfig, *, replace: bool = False) -> Tokenizer:
    """Write the tokenizer's folder and return the tokenizer as it loads from there.

    Raises:
        UserError: the output exists, the corpus cannot be read, or it is too small for ``vocab_size``.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    output = Path(config.output)
    with publish_folder(output, replace=replace) as temporary:
        _TRAINERS[config.kind](config, temporary)
        dump_config(config, temporary / "config.yaml")
        load_tokenizer(str(temporary))  # what does not load is not published
    return load_tokenizer(str(output))


def _train_wordpiece(config: TokenizerConfig, folder: Path) -> None:
    words = count_words(config)
    tokens = learn_vocabulary(
        words, special_tokens=SPECIAL_TOKENS, vocab_size=config.vocab_size, min_frequency=config.min_frequency
    )
    write_text_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    backend = wordpiece_backend({token: number for number, token in enumerate(tokens)}, lowercase=config.lowercase)
    write_text_atomically(folder / "tokenizer.json", backend.to_str(pretty=True))


def count_words(config: TokenizerConfig) -> Counter[str]:
    """How often each word occurs, as BERT's normaliser and its cut at punctuation see words.

    The corpus is cut at white space first, so each distinct piece goes through the rules once. Above
    ``max_words`` distinct pieces the rarest are forgotten; of equally rare ones, the later in code point
    order.
    """
    from tokenizers import normalizers, pre_tokenizers

    pieces: Counter[str] = Counter()
    for text in _documents(config):
        pieces.update(text.split())
        if len(pieces) > 2 * config.max_words:
            pieces = Counter(dict(sorted(pieces.items(), key=lambda item: (-item[1], item[0]))[: config.max_words]))
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for piece, count in pieces.items():
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(piece)):
            words[word] += count
    return words


def _train_sentencepiece(config: TokenizerConfig, folder: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(_sample_sentences(config)),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type="unigram",
            normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
            # Control symbols, so that no text can spell them.
            control_symbols=[_CLS, _SEP, _MASK],
            pad_id=0,
            pad_piece=_PAD,
            unk_id=1,
            unk_piece=_UNK,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (
        RuntimeError,
        OSError,
    ) as error:  # the trainer reports a vocabulary that the text cannot fill this way
        reason = " ".join(str(error).split())
        raise UserError(
            f"SentencePiece cannot train vocab_size={config.vocab_size} on this corpus: {reason}"
        ) from error
    write_atomically(folder / SENTENCEPIECE_FILE, lambda path: path.write_bytes(model.getvalue()))


def _sample_sentences(config: TokenizerConfig) -> list[str]:
    """``max_sentences`` of the corpus, each with the same probability (reservoir sampling), all if there are fewer.

    Text without sentence ends counts in pieces of 4000 bytes.
    """
    stream = random.Random(config.seed)
    sentences = (
        piece
        for text in _documents(config)
        for sentence in split_sentences(text, config.language)
        for piece in _trainable_pieces(sentence)
    )
    sample = list(islice(sentences, config.max_sentences))
    for number, sentence in enumerate(sentences, start=len(sample) + 1):
        place = int(stream.random() * number)
        if place < len(sample):
            sample[place] = sentence
    if not sample:
        raise UserError(
            "the corpus has no sentence after cleaning; check the paths, the text field and the clean section"
        )
    return sample


def _trainable_pieces(sentence: str) -> Iterator[str]:
    """A sentence, cut between characters into pieces that are not too long for the trainer."""
    encoded = sentence.encode()
    start = 0
    while (end := start + _MAX_SENTENCE_BYTES) < len(encoded):
        while encoded[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield encoded[start:end].decode()
        start = end
    yield encoded[start:].decode()


def _documents(config: TokenizerConfig) -> Iterator[str]:
    for unit in list_units(config.sources, output=Path(config.output), policy=config.bad_input):
        reader = UnitReader(unit, config.sources[unit.source], config.bad_input, config.clean.max_chars)
        for text in reader.documents():
            cleaned = clean_text(text, config.clean)
            if reason_to_drop(cleaned, config.clean) is None:
                yield cleaned


_TRAINERS = {"wordpiece": _train_wordpiece, "sentencepiece": _train_sentencepiece}

"""WordPiece (`tokenizers`) and SentencePiece behind one face, with a fingerprint of what decides the ids.

The shards, the teacher and every packed model carry the fingerprint, so ids of one vocabulary never meet the
embedding table of another.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import read_json_object
from bitbert.resources import resolve
from bitbert.tokenizer_reference import REFERENCE_FILE, read_reference

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDPIECE_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"


class Tokenizer(ABC):
    """Text -> token ids without special tokens, plus the ids of the five special tokens.

    Attributes:
        kind: ``"wordpiece"`` or ``"sentencepiece"``.
        vocab_size: one more than the highest id, special tokens included.
        fingerprint: hex SHA-256 over everything that decides which ids a text gets.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
    """

    kind: str
    vocab_size: int
    fingerprint: str
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens and without truncation."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Id of one token, or None when the vocabulary lacks it."""

    @abstractmethod
    def save(self, folder: Path) -> str:
        """Write the tokenizer into ``folder`` and return the file's name."""

    def describe(self) -> dict[str, Any]:
        """What manifests and checkpoints record of a tokenizer."""
        return {
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            **{f"{name}_id": getattr(self, f"{name}_id") for name in ("pad", "unk", "cls", "sep", "mask")},
        }

    def encode_pair(self, first: str, second: str | None, max_length: int) -> tuple[list[int], list[int]]:
        """``[CLS] first [SEP]`` or ``[CLS] first [SEP] second [SEP]``: (input_ids, token_type_ids).

        Too long a pair is cut token by token from the end of the longer part, as in BERT.
        """
        return next(self.encode_pairs([first], None if second is None else [second], max_length))

    def encode_pairs(
        self, firsts: list[str], seconds: list[str] | None, max_length: int
    ) -> Iterator[tuple[list[int], list[int]]]:
        """:meth:`encode_pair` of many texts, or of many pairs, tokenized together.

        Raises:
            UserError: ``max_length`` is below the number of special tokens.
        """
        num_special = 2 if seconds is None else 3
        room = max_length - num_special
        if room < 0:
            raise UserError(f"max_length {max_length} has no room for [CLS] and [SEP], wanted at least {num_special}")
        if seconds is None:
            for a in self.encode_batch(firsts):
                yield join_segments(a[:room], None, self.cls_id, self.sep_id)
            return
        for a, b in zip(self.encode_batch(firsts), self.encode_batch(seconds), strict=True):
            while len(a) + len(b) > room:
                (a if len(a) >= len(b) else b).pop()
            yield join_segments(a, b, self.cls_id, self.sep_id)

    def _find_special_tokens(self, origin: str) -> None:
        missing = [token for token in SPECIAL_TOKENS if self.token_to_id(token) is None]
        if missing:
            raise UserError(
                f"tokenizer {origin!r} lacks {', '.join(missing)}; a BERT vocabulary has {', '.join(SPECIAL_TOKENS)}"
            )
        for token in SPECIAL_TOKENS:
            setattr(self, f"{token.strip('[]').lower()}_id", self.token_to_id(token))


def join_segments(a: list[int], b: list[int] | None, cls_id: int, sep_id: int) -> tuple[list[int], list[int]]:
    """Add [CLS] and [SEP] around one or two id lists: (input_ids, token_type_ids)."""
    input_ids = [cls_id, *a, sep_id]
    token_type_ids = [0] * len(input_ids)
    if b is not None:
        input_ids += [*b, sep_id]
        token_type_ids += [1] * (len(b) + 1)
    return input_ids, token_type_ids


class WordPieceTokenizer(Tokenizer):
    """WordPiece through `tokenizers`, from a ``tokenizer.json``, or from a ``vocab.txt``, whose rules are BERT's.

    Those are uncased unless a ``tokenizer_config.json`` beside the ``vocab.txt`` has another ``do_lower_case``.
    """

    kind = "wordpiece"

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        if path.suffix == ".json":
            try:
                self._backend = Backend.from_file(str(path))
            except Exception as error:  # the Rust binding raises bare Exception
                raise UserError(f"tokenizer file {str(path)!r} cannot be read: {error}") from error
        else:
            self._backend = wordpiece_backend(_read_vocabulary(path), **_read_case_rules(path.parent))
        self._backend.no_padding()
        self._backend.no_truncation()
        # Not the number of tokens: a vocab.txt with a token twice has fewer than ids.
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1
        self.fingerprint = _wordpiece_fingerprint(self._backend.to_str())
        self._find_special_tokens(str(path))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    @property
    def encodes_words_separately(self) -> bool:
        """Whether the ids of a text are those of its words, split at white space, one after the other.

        True for BERT's rules: neither the normaliser nor the cut into punctuation and letters looks across
        white space, and no added token holds any.
        """
        parts = json.loads(self._backend.to_str())
        types = tuple((parts[key] or {}).get("type") for key in ("normalizer", "pre_tokenizer", "model"))
        bert = ("BertNormalizer", "BertPreTokenizer", "WordPiece")
        return types == bert and all(token.split() == [token] for token in self.added_tokens)

    def encode_words(self, words: list[str]) -> tuple[list[int], list[int]]:
        """(ids of all ``words`` one after the other, number of ids of each word); a word holds no white space."""
        encoding = self._backend.encode(words, is_pretokenized=True, add_special_tokens=False)
        return encoding.ids, _count_by_word(encoding.word_ids, len(words))

    def encode_atoms(self, atoms: list[str]) -> tuple[list[int], list[int]]:
        """:meth:`encode_words`, faster, for words that the rules never cut: ASCII letters and digits, or one sign."""
        encoding = self._backend.encode(" ".join(atoms), add_special_tokens=False)
        return encoding.ids, _count_by_word(encoding.word_ids, len(atoms))

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that are found in the text before the rules apply, special ones included."""
        return [entry["content"] for entry in json.loads(self._backend.to_str())["added_tokens"]]

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``."""
        text: str = self._backend.to_str()
        return text

    def save(self, folder: Path) -> str:
        (folder / WORDPIECE_FILE).write_text(self.to_json(), encoding="utf-8")
        return WORDPIECE_FILE


def _count_by_word(word_ids: list[int | None], num_words: int) -> list[int]:
    counts = [0] * num_words
    for word in word_ids:
        if word is not None:
            counts[word] += 1
    return counts


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose control or user-defined symbols include the five BERT special tokens."""

    kind = "sentencepiece"

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._proto = path.read_bytes()
            self._backend = SentencePieceProcessor(model_proto=self._proto)
        except (OSError, RuntimeError) as error:
            raise UserError(f"SentencePiece model {str(path)!r} cannot be read: {error}") from error
        self.vocab_size = self._backend.get_piece_size()
        self.fingerprint = hashlib.sha256(self._proto).hexdigest()
        self._find_special_tokens(str(path))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._backend.encode(texts, out_type=int)

    def token_to_id(self, token: str) -> int | None:
        token_id = self._backend.piece_to_id(token)
        return token_id if self._backend.id_to_piece(token_id) == token else None

    def save(self, folder: Path) -> str:
        (folder / SENTENCEPIECE_FILE).write_bytes(self._proto)
        return SENTENCEPIECE_FILE


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from a file, a model folder, ``package://DIST/PATH`` or a Hugging Face id.

    A folder may hold a reference instead (``bitbert.tokenizer_reference``).

    Raises:
        UserError: nothing readable is there, or the vocabulary lacks a special token.
    """
    path = Path(resolve(name)).expanduser()
    if path.is_dir():
        candidates = (WORDPIECE_FILE, SENTENCEPIECE_FILE, "vocab.txt")
        found = [path / candidate for candidate in candidates if (path / candidate).is_file()]
        if not found and (path / REFERENCE_FILE).is_file():
            return read_reference(path, load_tokenizer)
        if not found:
            raise UserError(
                f"tokenizer folder {str(path)!r} has none of {', '.join(candidates)}; "
                "give a folder or file that holds one"
            )
        path = found[0]
    elif not path.is_file():
        path = _download(name)
    return SentencePieceTokenizer(path) if path.suffix == ".model" else WordPieceTokenizer(path)


def _download(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"tokenizer {name!r} does not exist; "
            "give a folder, a tokenizer.json, a vocab.txt, a .model file or a Hugging Face id"
        )
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, WORDPIECE_FILE))
    except Exception as error:  # offline, unknown id, gated: one answer for the user
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"tokenizer {name!r} is not a local path and could not be fetched from the Hugging Face hub ({reason})"
        ) from error


def wordpiece_backend(vocab: dict[str, int], *, lowercase: bool, strip_accents: bool | None = None) -> Any:
    """A `tokenizers` object with BERT's rules for ``vocab`` (token -> id).

    ``strip_accents`` None takes accents off where ``lowercase`` is true, as BERT does.
    """
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS if token in vocab]
    )
    return backend


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a vocab.txt: one token a line."""
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"vocabulary {str(path)!r} cannot be read: {error}") from error
    if tokens and not tokens[-1]:
        tokens.pop()
    return {token.rstrip("\r"): index for index, token in enumerate(tokens)}


def _read_case_rules(folder: Path) -> dict[str, Any]:
    """``lowercase`` and ``strip_accents`` of :func:`wordpiece_backend`; BERT's where ``folder`` does not say them."""
    path = folder / "tokenizer_config.json"
    found = read_json_object(path, "tokenizer config") if path.is_file() else {}
    lowercase, strip_accents = found.get("do_lower_case", True), found.get("strip_accents")
    if not isinstance(lowercase, bool) or not isinstance(strip_accents, bool | None):
        raise UserError(
            f"{str(path)!r} has do_lower_case {lowercase!r} and strip_accents {strip_accents!r}, wanted true or false; "
            "repair the file"
        )
    return {"lowercase": lowercase, "strip_accents": strip_accents}


def _wordpiece_fingerprint(serialized: str) -> str:
    """Hash of what decides the ids; padding, truncation and templates around the text do not count."""
    parts = json.loads(serialized)
    deciding = {key: parts[key] for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    deciding["added_tokens"] = sorted((entry["id"], entry["content"]) for entry in deciding["added_tokens"])
    canonical = json.dumps(deciding, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()

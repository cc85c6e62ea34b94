"""The configs of the two things this room builds: shards and tokenizers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig

Policy = Literal["fail", "skip"]
# The splitter takes any word for a language, and English rules for one that it does not know.
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]


class SourceConfig(FrozenConfig):
    """One corpus: local files, or a dataset of the Hugging Face hub. Exactly one of ``path`` and ``dataset``."""

    path: Annotated[str | None, Field(min_length=1, description="file, folder, glob or package://DIST/PATH")] = None
    dataset: Annotated[str | None, Field(description="Hugging Face datasets id, e.g. wikimedia/wikipedia")] = None
    name: Annotated[str | None, Field(description="the dataset's configuration, e.g. 20231101.en")] = None
    split: str = "train"
    revision: Annotated[str | None, Field(description="commit of the dataset, for builds that can be repeated")] = None
    text_field: Annotated[str, Field(description="field that holds the text in JSON and parquet rows")] = "text"
    license: Annotated[str, Field(description="recorded in the manifest")] = "not stated"
    weight: Annotated[
        float,
        Field(
            gt=0,
            le=100,
            description="times each document is used: 2 = twice, 0.25 = a quarter of the documents",
        ),
    ] = 1.0

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path (local) and dataset (Hugging Face id)")
        return self

    @property
    def title(self) -> str:
        """How messages and reports name the source."""
        return self.path or "/".join(filter(None, (self.dataset, self.name)))


Script = Literal["arabic", "cyrillic", "devanagari", "greek", "han", "hangul", "hebrew", "kana", "latin", "thai"]


class CleanConfig(FrozenConfig):
    """Which documents stay, and in what form."""

    repair_unicode: Annotated[bool, Field(description="mend mojibake, ligatures, controls and entities with ftfy")] = (
        True
    )
    min_chars: Annotated[int, Field(ge=1)] = 32
    max_chars: Annotated[int, Field(ge=1, description="longer documents are dropped: it bounds the memory")] = 8_000_000
    min_letter_share: Annotated[
        float, Field(ge=0, le=1, description="letters among the characters that are not white space")
    ] = 0.5
    scripts: Annotated[tuple[Script, ...], Field(description="of the wanted language; empty: any")] = ()
    min_script_share: Annotated[float, Field(ge=0, le=1, description="letters of those scripts among all letters")] = (
        0.5
    )

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars={self.min_chars} is above max_chars={self.max_chars}; no document could pass")
        return self


class NearDuplicateConfig(FrozenConfig):
    """MinHash over word n-grams: of documents that are this similar, the first stays."""

    similarity: Annotated[
        float, Field(ge=0.7, le=1, description="estimated Jaccard index from which a document is dropped")
    ] = 0.8
    ngram_words: Annotated[int, Field(ge=1)] = 5


class PairTaskConfig(FrozenConfig):
    """A small classification task cut from the held-out documents: are two sentences of the same article?"""

    train_pairs: Annotated[int, Field(ge=2)] = 4000
    eval_pairs: Annotated[int, Field(ge=2)] = 1000


class DataConfig(FrozenConfig):
    """Everything that decides the bytes of a shard build."""

    output: Annotated[str, Field(min_length=1, description="folder to create; gets train/, heldout/ and config.yaml")]
    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    tokenizer: Annotated[str, Field(description="file, model folder, package://DIST/PATH or Hugging Face id")]
    tokenizer_fingerprint: Annotated[
        str | None,
        Field(min_length=8, description="hex digits that the tokenizer's fingerprint must begin with"),
    ] = None
    language: Annotated[Language, Field(description="language of the sentence splitter, ISO 639-1")] = "en"
    seed: Annotated[int, Field(ge=0)] = 42
    objective: Annotated[
        Literal["mlm_nsp", "mlm"], Field(description="sentence pairs with a label, or single segments")
    ] = "mlm_nsp"
    max_length: Annotated[int, Field(ge=8, le=65535, description="tokens a row, special tokens included")] = 128
    short_sequence_probability: Annotated[float, Field(ge=0, le=1)] = 0.1
    heldout_fraction: Annotated[float, Field(gt=0, lt=1, description="share of documents kept for evaluation")] = 0.02
    rows_per_shard: Annotated[
        int,
        Field(
            ge=1,
            description="about; a shard is what a worker holds in memory, and where a random B is drawn from",
        ),
    ] = 65_536
    bad_input: Annotated[
        Policy, Field(description="a damaged file or row stops the build, or is counted and left out")
    ] = "fail"
    clean: CleanConfig = CleanConfig()
    near_duplicates: Annotated[
        NearDuplicateConfig | None, Field(description="absent: only exact duplicates are removed")
    ] = None
    pair_task: PairTaskConfig | None = None


class TokenizerConfig(FrozenConfig):
    """Everything that decides the bytes of a trained tokenizer."""

    output: Annotated[str, Field(min_length=1, description="folder to create; DataConfig.tokenizer can name it")]
    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    kind: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    vocab_size: Annotated[int, Field(ge=64, le=2**20, description="special tokens included")] = 30_522
    lowercase: Annotated[bool, Field(description="fold case and strip accents, as in bert-base-uncased")] = True
    min_frequency: Annotated[int, Field(ge=1, description="WordPiece: rarer pairs are not merged")] = 2
    max_words: Annotated[
        int, Field(ge=1000, description="WordPiece: distinct words kept while counting; the rarest go first")
    ] = 2_000_000
    max_sentences: Annotated[int, Field(ge=100, description="SentencePiece: sentences drawn from the corpus")] = (
        1_000_000
    )
    language: Language = "en"
    seed: Annotated[int, Field(ge=0)] = 42
    bad_input: Policy = "fail"
    clean: CleanConfig = CleanConfig()

"""The config of one shard build."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig


class SourceConfig(FrozenConfig):
    """One corpus: local files, or a dataset of the Hugging Face hub. Exactly one of ``path`` and ``dataset``."""

    path: Annotated[str | None, Field(description="file, folder, glob or package://DIST/PATH")] = None
    dataset: Annotated[str | None, Field(description="Hugging Face datasets id, e.g. wikimedia/wikipedia")] = None
    name: Annotated[str | None, Field(description="the dataset's configuration, e.g. 20231101.en")] = None
    split: str = "train"
    revision: Annotated[str | None, Field(description="commit of the dataset, for builds that can be repeated")] = None
    text_field: Annotated[str, Field(description="field that holds the text in JSON and parquet rows")] = "text"
    license: Annotated[str, Field(description="recorded in the manifest")] = "not stated"

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path (local) and dataset (Hugging Face id)")
        return self


class PairTaskConfig(FrozenConfig):
    """A small classification task cut from the held-out documents: are two sentences of the same article?"""

    train_pairs: Annotated[int, Field(ge=2)] = 4000
    eval_pairs: Annotated[int, Field(ge=2)] = 1000


class DataConfig(FrozenConfig):
    """Everything that decides the bytes of a shard build."""

    output: Annotated[str, Field(description="folder to create; gets train/, heldout/ and config.yaml")]
    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    tokenizer: Annotated[str, Field(description="file, model folder, package://DIST/PATH or Hugging Face id")]
    language: Annotated[str, Field(description="language of the sentence splitter, ISO 639-1")] = "en"
    seed: Annotated[int, Field(ge=0)] = 42
    max_length: Annotated[int, Field(ge=8, le=65535, description="tokens a row, special tokens included")] = 128
    short_sequence_probability: Annotated[float, Field(ge=0, le=1)] = 0.1
    heldout_fraction: Annotated[float, Field(gt=0, lt=1, description="share of documents kept for evaluation")] = 0.02
    rows_per_shard: Annotated[int, Field(ge=1)] = 65536
    pair_task: PairTaskConfig | None = None

"""The config of one pretraining run."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig
from bitbert.errors import UserError

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]


class DataSection(FrozenConfig):
    """Shard folders written by bitbert-data."""

    train: str
    heldout: str
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    bad_shards: Annotated[
        Literal["fail", "skip"], Field(description="a missing or damaged file stops the run, or its rows are left out")
    ] = "fail"


class ModelSection(FrozenConfig):
    """The student: a preset, and method fields that differ from it. Its shape is the teacher's."""

    method: Annotated[str, Field(description="bipft-b, bipft-a, baseline or bitbert")] = "bipft-b"
    fields: Annotated[
        dict[str, Any],
        Field(description="method or dropout fields of BitBertConfig that differ from the preset"),
    ] = Field(default_factory=dict)


class LossSection(FrozenConfig):
    """Weights of the loss terms; the published ones by default (arXiv 2312.08937)."""

    mlm: NonNegative = 1.0
    nsp: NonNegative = 1.0
    hidden: Annotated[
        float, Field(ge=0, description="mean over embedding output and layers of the hidden states' MSE")
    ] = 1.0
    nsp_distillation: Annotated[float, Field(ge=0, description="soft cross-entropy with the teacher's NSP logits")] = (
        1.0
    )
    mlm_distillation: Annotated[
        float, Field(ge=0, description="soft cross-entropy with the teacher's MLM logits at masked positions")
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, description="of the MLM-logit distillation")] = 1.0


class OptimizerSection(FrozenConfig):
    """AdamW with linear warm-up and linear decay to zero."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 5000
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="on weight matrices only")] = 0.0
    gradient_clipping: Annotated[float, Field(ge=0, description="global norm; 0 = off, as published")] = 0.0


class TrackingSection(FrozenConfig):
    """metrics.jsonl is always written; MLflow where a URI is given."""

    log_every: Positive = 10
    mlflow_uri: Annotated[str | None, Field(description="e.g. sqlite:///runs/mlflow.db")] = None
    experiment: str = "bitbert-pretrain"


class PretrainConfig(FrozenConfig):
    """Everything that decides a run. Batch sizes are given once: accumulation follows from them."""

    output: Annotated[str, Field(description="run folder")]
    data: DataSection
    tokenizer: Annotated[str, Field(description="the tokenizer of the shards; shipped with the model")]
    teacher: Annotated[str, Field(description="full-precision BERT: folder, package://DIST/PATH or Hugging Face id")]
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    tracking: TrackingSection = TrackingSection()
    steps: Positive = 500_000
    global_batch_size: Annotated[int, Field(ge=1, description="sequences a step, over all ranks")] = 512
    micro_batch_size: Annotated[int, Field(ge=1, description="sequences a rank at a time")] = 64
    seed: Annotated[int, Field(ge=0)] = 42
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations; 0 = only before and after")] = 1000
    eval_rows: Positive = 1024
    checkpoint_every: Annotated[int, Field(ge=0, description="steps between checkpoints; 0 = only the last")] = 1000
    keep_checkpoints: Positive = 2
    calibration_rows: Annotated[int, Field(ge=1, description="rows of the batch that initialises the step sizes")] = 64
    device: Literal["auto", "cpu"] = "auto"

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}; change one of them"
            )
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} is above steps {self.steps}; lower it"
            )
        return self

    def accumulation_steps(self, num_ranks: int) -> int:
        """Micro-batches a rank and step.

        Raises:
            UserError: the global batch does not divide over the ranks.
        """
        per_pass = self.micro_batch_size * num_ranks
        if self.global_batch_size % per_pass:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size} x {num_ranks} ranks = {per_pass}; "
                "change micro_batch_size or the number of ranks"
            )
        return self.global_batch_size // per_pass

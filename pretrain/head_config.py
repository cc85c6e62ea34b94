"""The config of one training of a teacher's masked-LM head."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig, Precision

from .config import (
    CheckpointEvery,
    DataSection,
    EvalEvery,
    OptimizerSection,
    Positive,
    RunFolder,
    Seed,
    TrackingSection,
)


class TeacherHeadConfig(FrozenConfig):
    """Everything that decides the run; names and meanings are those of a pretraining's config."""

    output: RunFolder
    data: DataSection
    tokenizer: Annotated[str, Field(description="the tokenizer of the shards; shipped with the teacher")]
    teacher: Annotated[str, Field(description="full-precision BERT without an MLM head; it is not changed")]
    optimizer: OptimizerSection = OptimizerSection(learning_rate=1e-3, warmup_steps=100)
    tracking: TrackingSection = TrackingSection(experiment="bitbert-teacher-head")
    steps: Positive = 5000
    batch_size: Annotated[int, Field(ge=1, description="rows a step")] = 32
    seed: Seed = 42
    eval_every: EvalEvery = 500
    eval_rows: Positive = 1024
    checkpoint_every: CheckpointEvery = 500
    keep_checkpoints: Positive = 2
    precision: Annotated[Precision, Field(description="of matrix products")] = "fp32"

    def rate_at(self, step: int) -> float:
        """Learning rate of the update number ``step`` (0-based)."""
        return self.optimizer.rate_at(step, self.steps)

    def course(self, end: int) -> tuple[tuple[object, ...], ...]:
        """As of a pretraining: here the rate of the last update before number ``end``."""
        return ((self.rate_at(end - 1),),)

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        needed = self.optimizer.warmup_steps + (self.optimizer.decay_steps or 0)
        if needed > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps and decay_steps are {needed} together, above steps {self.steps}; lower them"
            )
        return self

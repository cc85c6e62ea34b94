"""The config of a finetuning: one recipe for every task, and what single tasks change; BiPFT's by default."""

from typing import Annotated, Literal

from pydantic import Field

from bitbert.config import FrozenConfig, Pairs, Precision

_Rate = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_Length = Annotated[int, Field(ge=8)]


class TaskSection(FrozenConfig):
    """What one task changes of the recipe; None = nothing."""

    learning_rate: _Rate | None = None
    epochs: _Count | None = None
    batch_size: _Count | None = None
    max_length: _Length | None = None
    eval_every: Annotated[int, Field(ge=0)] | None = None
    pairs: Pairs | None = None


class TrackingSection(FrozenConfig):
    """metrics.jsonl is always written; MLflow is a mirror of it, one run a seed."""

    mlflow_uri: Annotated[str | None, Field(description="e.g. sqlite:///runs/mlflow.db")] = None
    experiment: str = "bitbert-finetune"


class FinetuneConfig(FrozenConfig):
    """AdamW on the whole model; by default at a constant rate, without warm-up, decay, clipping (arXiv 2312.08937)."""

    learning_rate: _Rate = 2e-5
    step_size_learning_rate: Annotated[
        float | None, Field(gt=0, description="of the binarizers' step sizes; None = learning_rate")
    ] = None
    epochs: Annotated[
        int | None, Field(ge=1, description="None = the published number for the task, 3 for one's own data")
    ] = None
    batch_size: _Count = 32
    eval_batch_size: _Count = 64
    max_length: _Length = 128
    optimizer: Annotated[
        Literal["adamw", "bert_adam"],
        Field(description="bert_adam: no bias correction and epsilon 1e-6, as in BERT's code, BiBERT's and BiT's"),
    ] = "adamw"
    pairs: Annotated[
        Pairs,
        Field(
            description="two texts in one sequence, as published (cross_encoder), or each encoded by itself and their "
            "vectors compared (bi_encoder)"
        ),
    ] = "cross_encoder"
    weight_decay: Annotated[float, Field(ge=0, description="on matrices only")] = 0.0
    schedule: Annotated[
        Literal["constant", "linear"], Field(description="after the warm-up: constant, or linear decay to zero")
    ] = "constant"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1, description="share of the steps with a rising rate")] = 0.0
    gradient_clipping: Annotated[float, Field(ge=0, description="norm; 0 = off")] = 0.0
    clip_each_tensor: Annotated[bool, Field(description="clip every tensor's norm by itself, as BertAdam does")] = False
    dropout: Annotated[
        float | None, Field(ge=0, lt=1, description="everywhere; None = the model's own, 0.1 from a packed file")
    ] = None
    selection: Annotated[
        Literal["best_epoch", "last_epoch", "train_split"],
        Field(
            description="which weights are kept and scored. best_epoch: the best on dev, as published, so that the dev "
            "score is optimistic; last_epoch: the last; train_split: the best on rows held out of the training set"
        ),
    ] = "best_epoch"
    selection_fraction: Annotated[float, Field(gt=0, lt=1, description="of the training rows, for train_split")] = 0.1
    eval_every: Annotated[
        int, Field(ge=0, description="evaluate (and select) every so many steps; 0 = after every epoch")
    ] = 0
    group_by_length: Annotated[
        bool,
        Field(description="batches of rows of like length, in random order: less padding"),
    ] = False
    precision: Annotated[
        Precision,
        Field(description="of matrix products with floats while training; scores are those of fp32"),
    ] = "fp32"
    max_train_rows: Annotated[int | None, Field(ge=1, description="train on the first rows only; for quick trials")] = (
        None
    )
    tasks: Annotated[dict[str, TaskSection], Field(description="by task name, e.g. tasks.cola.epochs=50")] = Field(
        default_factory=dict
    )
    tracking: TrackingSection = TrackingSection()

    def for_task(self, name: str, epochs: int) -> "FinetuneConfig":
        """This recipe with the task's own values in place; ``epochs`` where neither says a number."""
        section = self.tasks.get(name, TaskSection())
        changes = {key: value for key, value in section.model_dump().items() if value is not None}
        return self.model_copy(update={"epochs": self.epochs or epochs, "tasks": {}, **changes})

"""The config of a finetuning, the same for every task; BiPFT's recipe by default (arXiv 2312.08937)."""

from typing import Annotated, Literal

from pydantic import Field

from bitbert.config import FrozenConfig


class FinetuneConfig(FrozenConfig):
    """AdamW on the whole model; by default at a constant rate, without warm-up, decay and clipping."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    epochs: Annotated[
        int | None, Field(ge=1, description="None = the published number for the task, 3 for one's own data")
    ] = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    max_length: Annotated[int, Field(ge=8)] = 128
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Annotated[
        Literal["constant", "linear"], Field(description="after the warm-up: constant, or linear decay to zero")
    ] = "constant"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1, description="share of the steps with a rising rate")] = 0.0
    gradient_clipping: Annotated[float, Field(ge=0, description="global norm; 0 = off")] = 0.0
    selection: Annotated[
        Literal["best_epoch", "last_epoch"],
        Field(description="best_epoch: the epoch with the best dev score, as published; its score is optimistic"),
    ] = "best_epoch"
    max_train_rows: Annotated[int | None, Field(ge=1, description="train on the first rows only; for quick trials")] = (
        None
    )

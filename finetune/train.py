"""The training loop: one seed of one task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.memory import give_back_memory_now_and_then
from bitbert.model import BitBertPreTrainedModel
from bitbert.model.calibrate import calibrate_step_sizes
from bitbert.model.precision import products_in
from bitbert.tracking import Tracker, flatten

from .batches import batches, epoch_order, run_model
from .config import FinetuneConfig
from .data import TaskData
from .head import Examples, Feature
from .optim import build_optimizer, clip_gradients, rate_factor, set_rate
from .source import Source

Scores = dict[str, dict[str, float]]
Loss = Callable[[BitBertPreTrainedModel, dict[str, Tensor]], Tensor]
"""(model, batch with labels) -> the scalar that a training step minimises."""

SELECTION_SET = "selection"
_LOG_EVERY = 50


def task_loss(model: BitBertPreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The model's own loss: finetuning without a teacher."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class LabelledSet:
    """Examples with their features; ``examples`` is what scores are computed on."""

    examples: Examples
    features: list[Feature]


@dataclass(frozen=True)
class EncodedTask:
    """A task's features; the first evaluation set selects the weights."""

    train: LabelledSet
    evaluation: dict[str, LabelledSet]


@dataclass(frozen=True)
class Trained:
    """A finetuned model with the selected weights in place, and how it came to them.

    ``history`` holds every evaluation: step, epoch (a fraction within one), scores by set and metric.
    """

    model: BitBertPreTrainedModel
    step: int
    epoch: float
    scores: Scores
    history: list[dict[str, Any]]


def encode_task(task: TaskData, source: Source, config: FinetuneConfig) -> EncodedTask:
    """Features of everything with labels; with ``selection=train_split`` a part of the training rows is held out."""
    train: Examples = task.train
    evaluation: dict[str, Examples] = dict(task.evaluation)
    if config.max_train_rows is not None:
        train = train.take(np.arange(min(config.max_train_rows, len(train))))
    if config.selection == "train_split":
        # One split for all seeds, so that they differ in what finetuning draws and in nothing else.
        order = np.random.default_rng(0).permutation(len(train))
        num_held_out = max(round(config.selection_fraction * len(train)), 1)
        if num_held_out >= len(train):
            raise UserError(f"{task.title}: {len(train)} training rows are too few to hold some out; use last_epoch")
        evaluation = {SELECTION_SET: train.take(np.sort(order[:num_held_out])), **evaluation}
        train = train.take(np.sort(order[num_held_out:]))

    def encode(examples: Examples) -> LabelledSet:
        return LabelledSet(examples, task.head.encode(examples, source.tokenizer, config.max_length))

    return EncodedTask(encode(train), {name: encode(examples) for name, examples in evaluation.items()})


def train_seed(
    source: Source,
    task: TaskData,
    encoded: EncodedTask,
    config: FinetuneConfig,
    seed: int,
    tracker: Tracker,
    loss: Loss = task_loss,
) -> Trained:
    """Train one seed: it draws the head's first weights, the order of the rows, and dropout.

    Raises:
        UserError: the loss is not finite.
    """
    model = source.build(task.head, seed, config.dropout)
    random = np.random.default_rng(seed)
    features, pad_id = encoded.train.features, source.tokenizer.pad_id
    if not source.calibrated:
        first = next(batches(features, random.permutation(len(features)), config.batch_size, pad_id, None))
        calibrate_step_sizes(model, first)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    optimizer = build_optimizer(model, config)
    assert config.epochs is not None  # FinetuneConfig.for_task put it in place
    steps_per_epoch = -(-len(features) // config.batch_size)
    total = config.epochs * steps_per_epoch
    history: list[dict[str, Any]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    step, losses = 0, []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{task.title} seed {seed}", total=total)
        for _ in range(config.epochs):
            order = epoch_order(features, config.batch_size, random, group_by_length=config.group_by_length)
            for batch in batches(features, order, config.batch_size, pad_id, task.head):
                set_rate(optimizer, rate_factor(config, step, total))
                where = f"{task.title} seed {seed}, step {step + 1}"
                losses.append(_train_step(model, batch, loss, optimizer, config, where))
                step += 1
                give_back_memory_now_and_then(step)
                progress.advance(bar)
                if step % _LOG_EVERY == 0:
                    tracker.log(step, {"loss": float(np.mean(losses[-_LOG_EVERY:]))})
                if step % (config.eval_every or steps_per_epoch) and step != total:
                    continue
                scores = _evaluate(model, task, encoded, config, pad_id)
                history.append({"step": step, "epoch": step / steps_per_epoch, "scores": scores})
                tracker.log(step, flatten(scores, "eval."))
                log(f"{task.title} seed {seed} epoch {step / steps_per_epoch:.3g}/{config.epochs}: {show(scores)}")
                score = next(iter(scores.values()))[task.head.metrics[0]]
                if best is None or score > best[0] or config.selection == "last_epoch":
                    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                    best = (score, len(history) - 1, weights)
    assert best is not None  # the last step is always evaluated
    model.load_state_dict(best[2])
    chosen = history[best[1]]
    return Trained(model.eval(), chosen["step"], chosen["epoch"], chosen["scores"], history)


def _train_step(
    model: BitBertPreTrainedModel,
    batch: dict[str, Tensor],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    where: str,
) -> float:
    """One update at the optimizer's rate; returns the loss before it."""
    model.train()
    with products_in(config.precision, model.device):
        value = loss(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
    found = value.item()
    if not np.isfinite(found):
        raise UserError(f"{where}: the loss is {found}; lower learning_rate={config.learning_rate}")
    optimizer.zero_grad()
    value.backward()
    clip_gradients(model, config)
    optimizer.step()
    return found


def show(scores: Scores) -> str:
    """Scores on one line."""
    return "  ".join(
        f"{name} {metric} {value:.4f}" for name, values in scores.items() for metric, value in values.items()
    )


def _evaluate(
    model: BitBertPreTrainedModel, task: TaskData, encoded: EncodedTask, config: FinetuneConfig, pad_id: int
) -> Scores:
    scores = {}
    for name, labelled in encoded.evaluation.items():
        outputs = run_model(model, task.head, labelled.features, config.eval_batch_size, pad_id)
        predictions = task.head.predict(labelled.examples, labelled.features, outputs)
        scores[name] = task.head.score(predictions, labelled.examples)
    return scores

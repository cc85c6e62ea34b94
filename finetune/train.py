"""Training and evaluating one seed of one task, and the table over seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from bitbert.distributed import log
from bitbert.errors import UserError
from bitbert.files import read_json, write_json_atomically
from bitbert.model import BitBertForSequenceClassification
from bitbert.model.calibrate import calibrate_step_sizes
from bitbert.model.export import pack_model
from bitbert.model.verify import verify_packed
from bitbert.packed import save_packed

from .config import FinetuneConfig
from .data import Examples, TaskData, batches, encode
from .metrics import METRICS
from .source import Source

Scores = dict[str, dict[str, float]]
Encoded = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class EncodedTask:
    """A task's token ids: the training set's and each evaluation set's."""

    train: Encoded
    evaluation: dict[str, Encoded]


def finetune(
    source: Source, task: TaskData, config: FinetuneConfig, seeds: list[int], output: Path, *, model_name: str
) -> dict[str, Any]:
    """Finetune every seed, skip those that are done, and write ``output/results.json``.

    Each seed leaves ``output/seed-N/packed`` (the packed task model) and ``result.json``.

    Raises:
        UserError: ``output`` holds results of another finetuning.
    """
    if config.max_length > source.config.max_position_embeddings:
        raise UserError(
            f"max_length {config.max_length} is above the model's {source.config.max_position_embeddings} positions; "
            "lower it"
        )
    identity = {"task": task.name, "model": model_name, "config": config.model_dump(mode="json")}
    encoded = EncodedTask(
        encode(_limit(task.train, config), source.tokenizer, config.max_length),
        {name: encode(examples, source.tokenizer, config.max_length) for name, examples in task.evaluation.items()},
    )
    results = {}
    for seed in seeds:
        folder = output / f"seed-{seed}"
        found = _finished(folder, identity)
        results[seed] = found or _finetune_seed(source, task, encoded, config, seed, folder, identity)
        if found:
            log(f"{task.name} seed {seed}: already done, {_show(found['scores'])}")
    summary = identity | {
        "selection": config.selection,
        "majority": majority_scores(task),
        **_over_seeds(results),
    }
    write_json_atomically(output / "results.json", summary)
    return summary


def _finetune_seed(
    source: Source,
    task: TaskData,
    encoded: EncodedTask,
    config: FinetuneConfig,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:
    model = source.build(task, seed)
    labels, pad_id = task.train.labels, source.tokenizer.pad_id
    random = np.random.default_rng(seed)
    if not source.calibrated:
        first = next(batches(encoded.train, labels, random.permutation(len(encoded.train)), config.batch_size, pad_id))
        calibrate_step_sizes(model, {name: tensor for name, tensor in first.items() if name != "labels"})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    epochs = config.epochs or task.epochs
    step, steps_per_epoch = 0, -(-len(encoded.train) // config.batch_size)
    history: list[Scores] = []
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{task.name} seed {seed}", total=epochs * steps_per_epoch)
        for epoch in range(epochs):
            model.train()
            for batch in batches(
                encoded.train, labels, random.permutation(len(encoded.train)), config.batch_size, pad_id
            ):
                loss = model(**batch).loss
                if not torch.isfinite(loss):
                    raise UserError(
                        f"{task.name} seed {seed}, epoch {epoch + 1}: the loss is {loss.item()}; "
                        f"lower learning_rate={config.learning_rate}"
                    )
                optimizer.zero_grad()
                loss.backward()
                if config.gradient_clipping:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
                optimizer.param_groups[0]["lr"] = learning_rate(config, step, epochs * steps_per_epoch)
                optimizer.step()
                step += 1
                progress.advance(bar)
            history.append(
                {
                    name: _evaluate(model, task, examples, encoded.evaluation[name], config, pad_id)
                    for name, examples in task.evaluation.items()
                }
            )
            log(f"{task.name} seed {seed} epoch {epoch + 1}/{epochs}: {_show(history[-1])}")
            score = next(iter(history[-1].values()))[task.metrics[0]]
            if best is None or score > best[0] or config.selection == "last_epoch":
                best = (score, epoch, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert best is not None  # there is at least one epoch
    model.load_state_dict(best[2])
    result = {"seed": seed, "epoch": best[1] + 1, "scores": history[best[1]], "history": history, **identity}
    packed = pack_model(model, source.tokenizer, max_length=config.max_length)
    result["max_abs_difference"] = verify_packed(packed, model)
    save_packed(folder / "packed", packed, _card(result), replace=True)
    write_json_atomically(folder / "result.json", result)
    return result


def learning_rate(config: FinetuneConfig, step: int, total_steps: int) -> float:
    """Rate of update number ``step`` (0-based) of ``total_steps``, as a closed form."""
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (total_steps - step) / (total_steps - warmup_steps)


@torch.no_grad()
def _evaluate(
    model: BitBertForSequenceClassification,
    task: TaskData,
    examples: Examples,
    encoded: Encoded,
    config: FinetuneConfig,
    pad_id: int,
) -> dict[str, float]:
    model.eval()
    # Neighbours of like length share a batch: less padding, the same predictions.
    order = np.argsort([len(ids) for ids, _ in encoded], kind="stable")
    logits = (
        torch.cat(
            [
                model(**batch).logits
                for batch in batches(encoded, examples.labels, order, config.eval_batch_size, pad_id)
            ]
        )
        .float()
        .numpy()
    )
    outputs = logits[:, 0] if task.is_regression else logits.argmax(axis=-1)
    labels = examples.labels[order]
    return {name: METRICS[name](outputs, labels) for name in task.metrics}


def majority_scores(task: TaskData) -> Scores:
    """Scores of always answering the training set's most frequent class, or its mean score."""
    labels = task.train.labels
    constant = labels.mean() if task.is_regression else np.bincount(labels).argmax()
    return {
        name: {
            metric: METRICS[metric](np.full_like(examples.labels, constant), examples.labels) for metric in task.metrics
        }
        for name, examples in task.evaluation.items()
    }


def _over_seeds(results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Scores by seed, and mean and sample standard deviation over seeds (None for one seed)."""
    scores = {seed: result["scores"] for seed, result in results.items()}
    first = next(iter(scores.values()))

    def over(aggregate: Any) -> Scores:
        return {
            name: {metric: aggregate([score[name][metric] for score in scores.values()]) for metric in values}
            for name, values in first.items()
        }

    deviation = over(lambda values: float(np.std(values, ddof=1))) if len(scores) > 1 else None
    return {
        "seeds": {str(seed): score for seed, score in scores.items()},
        "mean": over(lambda values: float(np.mean(values))),
        "standard_deviation": deviation,
    }


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not (folder / "result.json").is_file():
        return None
    found: dict[str, Any] = read_json(folder / "result.json", "finetuning result")
    changed = [key for key, value in identity.items() if found.get(key) != value]
    if changed:
        raise UserError(
            f"{str(folder)!r} holds a result with another {changed[0]} ({found.get(changed[0])!r}); "
            "choose another --output, or remove the folder"
        )
    return found


def _limit(examples: Examples, config: FinetuneConfig) -> Examples:
    if config.max_train_rows is None:
        return examples
    kept = slice(config.max_train_rows)
    seconds = None if examples.second_texts is None else examples.second_texts[kept]
    return Examples(examples.texts[kept], seconds, examples.labels[kept])


def _show(scores: Scores) -> str:
    return "  ".join(
        f"{name} {metric} {value:.4f}" for name, values in scores.items() for metric, value in values.items()
    )


def _card(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {metric} | {value:.4f} |"
        for name, values in result["scores"].items()
        for metric, value in values.items()
    )
    selection = (
        "the epoch with the best score below, so the score is optimistic"
        if result["config"]["selection"] == "best_epoch"
        else "the last epoch"
    )
    return f"""# A packed 1-bit task model: {result["task"]}

Made by `bitbert-finetune` from `{result["model"]}`, seed {result["seed"]}, without a teacher.
Weights of epoch {result["epoch"]}: {selection}.

| evaluation set | metric | score |
| --- | --- | --- |
{rows}

Ask it with `bitbert-predict THIS_FOLDER "text" ["second text"]`.
"""

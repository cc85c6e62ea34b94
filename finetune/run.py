"""Every seed of a task, and every task of a plan; what is done is skipped."""

from pathlib import Path
from typing import Any

from bitbert.distributed import log
from bitbert.errors import UserError, did_you_mean
from bitbert.files import publish_folder, write_json_atomically, write_text_atomically
from bitbert.model.export import pack_model
from bitbert.model.methods import check_packable
from bitbert.model.verify import verify_packed
from bitbert.packed import save_packed
from bitbert.tracking import flatten

from .answers import answer_late, answer_tests
from .config import FinetuneConfig
from .data import TaskData
from .report import model_card, plot_scores, results_markdown, write_results
from .seed_folder import RESULT, describe_training, read_result, track_seed
from .source import Source
from .statistics import SELECTIONS, averages, over_seeds
from .submission import zip_submission
from .tasks import TASKS
from .train import EncodedTask, Trained, encode_task, show, train_seed


def run_plan(
    source: Source,
    tasks: list[TaskData],
    config: FinetuneConfig,
    seeds: list[int],
    output: Path,
    *,
    model_name: str,
) -> dict[str, Any]:
    """Finetune every task and write ``output``'s results.json, results.md and results.png.

    One task lies in ``output`` itself; of several each has its folder, and every seed its GLUE submission
    ``output/submission-seed-N.zip``.

    Raises:
        UserError: ``output`` holds results of another finetuning, or the recipe does not fit the model or the tasks.
    """
    known = {*TASKS, *(task.name for task in tasks)}
    unknown = sorted(set(config.tasks) - known)
    if unknown:
        raise UserError(
            f"the recipe has tasks.{unknown[0]}, which is no task{did_you_mean(unknown[0], known)}; "
            f"tasks: {', '.join(sorted(known))}"
        )
    for task in tasks:
        _resolve(task, config, source)
    if len(tasks) == 1:
        summary = finetune(source, tasks[0], config, seeds, output, model_name=model_name)
        write_results(output, summary, results_markdown(summary))
        plot_scores(summary, output / "results.png")
        return summary
    summaries = {}
    for task in tasks:
        folder = output / task.name
        summaries[task.name] = finetune(source, task, config, seeds, folder, model_name=model_name)
        write_results(folder, summaries[task.name], results_markdown(summaries[task.name]))
        summary = _plan_summary(summaries, model_name, seeds, output)
        write_results(output, summary, results_markdown(summary))  # readable while it goes on
    plot_scores(summary, output / "results.png")
    return summary


def finetune(
    source: Source,
    task: TaskData,
    config: FinetuneConfig,
    seeds: list[int],
    output: Path,
    *,
    model_name: str,
) -> dict[str, Any]:
    """Finetune every seed of one task, skip those that are done, and return the scores over seeds.

    Each seed leaves ``output/seed-N``: result.json, metrics.jsonl, answers to test sets, and the model: ``packed``, or
    ``model`` (latent weights) where the packed format does not know it.

    Raises:
        UserError: ``output`` holds results of another finetuning.
    """
    config = _resolve(task, config, source)
    task = task.answered_as(config.pairs)
    identity = {
        "task": task.name,
        "model": model_name,
        "weights_sha256": source.fingerprint,
        "data_sha256": task.fingerprint,
        **source.identity,
        **task.classes,
        "config": config.model_dump(mode="json", exclude={"tracking", "tasks"}),
    }
    encoded: EncodedTask | None = None
    results = {}
    for seed in seeds:
        folder = output / f"seed-{seed}"
        found = read_result(folder, identity)
        if found is not None:
            log(f"{task.title} seed {seed}: already done, {show(found['scores'])}")
            found = answer_late(folder, found, task, source.tokenizer, config)
        else:
            encoded = encoded or encode_task(task, source, config)
            found = _run_seed(source, task, encoded, config, seed, folder, identity)
        results[seed] = found
    return identity | {
        "title": task.title,
        "caveats": task.caveats_of(config.max_train_rows),
        "test_caveats": list(task.test_caveats),
        "num_rows": {"train": len(task.train)} | {name: len(examples) for name, examples in task.evaluation.items()},
        "selection": config.selection,
        "selection_meaning": SELECTIONS[config.selection],
        "majority": {name: task.head.baseline(task.train, part) for name, part in task.evaluation.items()},
        **over_seeds({seed: result["scores"] for seed, result in results.items()}),
        "answers": {
            str(seed): {name: f"seed-{seed}/{name}.tsv" for name in result["answers"]}
            for seed, result in results.items()
        },
    }


def _resolve(task: TaskData, config: FinetuneConfig, source: Source) -> FinetuneConfig:
    found = config.for_task(task.name, task.epochs)
    if found.max_length > source.config.max_position_embeddings:
        raise UserError(
            f"max_length {found.max_length} is above the model's {source.config.max_position_embeddings} positions; "
            "lower it"
        )
    return found


def _run_seed(
    source: Source,
    task: TaskData,
    encoded: EncodedTask,
    config: FinetuneConfig,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:
    with track_seed(folder, config.tracking, f"{task.name}-seed-{seed}", seed, identity) as tracker:
        trained = train_seed(source, task, encoded, config, seed, tracker)
        result = describe_training(seed, trained) | identity
        hashes = answer_tests(trained.model, task, task.test, source.tokenizer, config, folder)
        result |= {"answers": list(hashes), "test_sha256": hashes}
        _save_model(trained, task, source, config, folder, result)
        tracker.log(trained.step, flatten(result["scores"], "selected."))
    write_json_atomically(folder / RESULT, result)
    return result


def _save_model(
    trained: Trained, task: TaskData, source: Source, config: FinetuneConfig, folder: Path, result: dict[str, Any]
) -> None:
    result["packed"] = _is_packable(trained, task)
    if result["packed"]:
        packed = pack_model(trained.model, source.tokenizer, max_length=config.max_length)
        result["max_abs_difference"] = verify_packed(packed, trained.model)
        save_packed(folder / "packed", packed, model_card(result, task), replace=True)
        return
    with publish_folder(folder / "model", replace=True) as temporary:
        trained.model.save_pretrained(temporary)
        source.tokenizer.save(temporary)
        write_text_atomically(temporary / "README.md", model_card(result, task))


def _is_packable(trained: Trained, task: TaskData) -> bool:
    if not task.head.is_packable:
        return False
    try:
        check_packable(trained.model.config)
    except UserError as error:  # a method with more than 1 bit: its finetuning is worth keeping all the same
        log(f"{task.title}: {error}")
        return False
    return True


def _plan_summary(
    summaries: dict[str, dict[str, Any]], model_name: str, seeds: list[int], output: Path
) -> dict[str, Any]:
    missing: list[str] = []
    for seed in seeds:
        files = {
            name: output / task / path
            for task, summary in summaries.items()
            for name, path in summary["answers"][str(seed)].items()
        }
        missing = zip_submission(output / f"submission-seed-{seed}.zip", files)
    return {
        "model": model_name,
        "tasks": summaries,
        "averages": averages(summaries),
        "submission": {"files": [f"submission-seed-{seed}.zip" for seed in seeds], "missing": missing},
    }

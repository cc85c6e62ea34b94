"""Running the stages of a method on one task with one seed; what is done is skipped."""

from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import publish_folder, sha256_file, write_json_atomically, write_text_atomically
from bitbert.model import BitBertForSequenceClassification
from bitbert.model.export import pack_model
from bitbert.model.verify import verify_packed
from bitbert.packable import unpackable
from bitbert.packed import WEIGHTS_FILE, save_packed

from .config import FinetuneConfig
from .data import TaskData
from .distill import Distillation
from .seed_folder import RESULT, describe_training, read_result, track_seed
from .source import Source
from .stage_source import load_classifier, open_stage
from .stages import GIVEN, MethodConfig, StageConfig
from .train import Trained, encode_task, task_loss, train_seed


def run_stages(method: MethodConfig, model_name: str, task: TaskData, seed: int, output: Path) -> list[dict[str, Any]]:
    """Run every stage and return its result; stage S leaves ``output/S/seed-N``.

    There lie ``model`` (latent weights, or full precision), ``packed`` where the method has one bit throughout, and
    result.json, last: its presence says that the stage is done.

    Raises:
        UserError: a stage's start, teacher, method and task do not go together, or ``output`` holds another run.
    """
    if task.head.model_class is not BitBertForSequenceClassification:
        raise UserError(f"{task.title} is no classification or regression of texts, which methods are run on")
    results: dict[str, dict[str, Any]] = {}
    for name, stage in method.stages.items():
        folder = output / name / f"seed-{seed}"
        recipe = method.recipe_of(name).for_task(task.name, task.epochs)
        task = task.answered_as(recipe.pairs)
        earlier = [other for other in (stage.start, stage.teacher) if other in results]
        source = open_stage(name, stage, model_name if stage.start == GIVEN else str(_saved(folder, stage.start)))
        identity = {
            "stage": name,
            "task": task.name,
            "model": model_name,
            "start_sha256": source.fingerprint,
            "data_sha256": task.fingerprint,
            **source.identity,
            **task.classes,
            "config": recipe.model_dump(mode="json", exclude={"tracking", "tasks"}),
            "method": stage.model_dump(mode="json", exclude={"recipe"}),
            "after": {other: results[other]["weights_sha256"] for other in earlier},
        }
        found = read_result(folder, identity)
        results[name] = found or _run_stage(name, stage, source, recipe, task, seed, folder, identity)
    return list(results.values())


def _run_stage(
    name: str,
    stage: StageConfig,
    source: Source,
    config: FinetuneConfig,
    task: TaskData,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
) -> dict[str, Any]:
    if config.max_length > source.config.max_position_embeddings:
        raise UserError(
            f"stage {name!r}: max_length {config.max_length} is above the model's "
            f"{source.config.max_position_embeddings} positions; lower it"
        )
    teacher = stage.teacher
    loss = task_loss if teacher is None else Distillation(load_classifier(_saved(folder, teacher)), stage.distillation)
    with track_seed(folder, config.tracking, f"{task.name}-{name}-seed-{seed}", seed, identity) as tracker:
        trained = train_seed(source, task, encode_task(task, source, config), config, seed, tracker, loss)
        result = describe_training(seed, trained) | identity
        _save(trained, task, source, config, folder, result)
    write_json_atomically(folder / RESULT, result)
    return result


def _saved(folder: Path, earlier: str) -> Path:
    """The model that an earlier stage left beside the stage of ``folder``, with the same seed."""
    return folder.parent.parent / earlier / folder.name / "model"


def _save(
    trained: Trained, task: TaskData, source: Source, config: FinetuneConfig, folder: Path, result: dict[str, Any]
) -> None:
    """The latent or full-precision model, and the packed one; ``result`` says what they are, or why there is none."""
    model: Any = trained.model
    with publish_folder(folder / "model", replace=True) as temporary:
        model.save_pretrained(temporary)
        source.tokenizer.save(temporary)
        write_text_atomically(temporary / "README.md", _card(result, task))
    result["weights_sha256"] = sha256_file(folder / "model" / WEIGHTS_FILE)
    reason = (
        unpackable(model.config.to_dict()) if isinstance(model, BitBertForSequenceClassification) else "full precision"
    )
    result["not_packed"] = reason
    result["weights_bytes"] = (folder / "model" / WEIGHTS_FILE).stat().st_size
    if reason is None:
        packed = pack_model(model, source.tokenizer, max_length=config.max_length)
        result["max_abs_difference"] = verify_packed(packed, model)
        save_packed(folder / "packed", packed, _card(result, task), replace=True)
        result["weights_bytes"] = (folder / "packed" / WEIGHTS_FILE).stat().st_size


def _card(result: dict[str, Any], task: TaskData) -> str:
    method = result["method"]
    teacher = f"with stage `{method['teacher']}` as its teacher" if method["teacher"] else "without a teacher"
    rows = "\n".join(
        f"| {name} | {metric} | {value:.4f} |"
        for name, values in result["scores"].items()
        for metric, value in values.items()
    )
    caveats = "".join(f"\nNot a GLUE score: {caveat}.\n" for caveat in task.caveats)
    return f"""# {task.title}: stage {result["stage"]}

Made by `bitbert-method` from `{result["model"]}`, seed {result["seed"]}, {teacher}.
Method: {method["method"] or "as at its start"}.
Weights of epoch {result["epoch"]:.3g}, selection {result["config"]["selection"]}.

| evaluation set | metric | score |
| --- | --- | --- |
{rows}
{caveats}"""

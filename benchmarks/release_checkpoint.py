"""A packed checkpoint becomes a released one, with its model card.

    python benchmarks/release_checkpoint.py runs/l6/packed bitbert-l6-h384 --run runs/l6/pretrain \\
      --teacher-license Apache-2.0 --results runs/l6/glue/results.json --sentences runs/l6/sentences.json

writes checkpoints/bitbert-l6-h384: the bits of PACKED as they are, and a README.md put together from the records of the
runs: sources and licences from the manifests of the shards, the recipe from training.json, scores from results.json and
from what sentence_encoder.py wrote. For a task model PACKED is its packed/, --results its results.json and --run the
pretraining that it came from.
"""

import argparse
import re
import sys
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import yaml

from bitbert.config import check_config, load_config
from bitbert.errors import UserError
from bitbert.files import read_json
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.report import results_markdown
from bitbert.packed import RECIPE_FILE, PackedConfig, PackedModel, checkpoint_bytes, load_packed, save_packed
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.run import TRAINING_FILE
from bitbert.pretrain.run_folder import FINAL
from bitbert.resources import is_package_resource
from bitbert.runtime.info import describe_model
from bitbert.shards import read_manifest

_NAME = re.compile(r"bitbert-[a-z0-9][a-z0-9.-]*")
_NOT_THE_RECIPE = {"output", "data", "tokenizer", "teacher", "tracking", "device"}


def write_card(
    name: str,
    packed: PackedConfig,
    training: dict[str, Any],
    *,
    teacher_license: str,
    results: dict[str, Any] | None = None,
    sentences: dict[str, Any] | None = None,
    data: list[str] | None = None,
    tokenizer: list[str] | None = None,
    recipe: bool = False,
) -> str:
    """The model card, in Markdown.

    Args:
        training: training.json of the pretraining; the manifests of its shards must still be there.
        results: results.json of bitbert-finetune.
        sentences: what sentence_encoder.py wrote.
        tokenizer: sources of a vocabulary that is not part of the checkpoint.
        data: further lines on data and licences, e.g. of a task's training set.
        recipe: whether the checkpoint brings a recipe for finetuning.

    Raises:
        UserError: shards are missing, or ``training`` is not a pretraining's.
    """
    config = check_config(PretrainConfig, training["config"], TRAINING_FILE)
    task = packed.head not in ("none", "nsp")
    parts = [
        f"# {name}",
        f"A 1-bit BERT{' for one task' if task else ''} in BitBERT's packed format: weights, word table and "
        "activations have one bit each.",
        _bullets(f"{key}: {value}" for key, value in describe_model(packed)),
        "## Use",
        _use(name, packed, tokenizer, recipe),
        "## Data and licences",
        _data(config, teacher_license, data or []),
        "## Recipe",
        _recipe(config, training, results, task),
        "## Results",
        _results(training, results, sentences),
        "## Limits",
        _limits(packed, task),
    ]
    return "\n\n".join(parts) + "\n"


def _use(name: str, packed: PackedConfig, tokenizer: list[str] | None, recipe: bool) -> str:
    second = ' "the text after it?"' if packed.head == "nsp" else ' "another text"' if packed.compares_texts else ""
    lines = [f'    bitbert-predict {name} "a text"{second}']
    if packed.head == "nsp":
        lines.append(f"    bitbert-finetune {name} --task sst2 --glue-dir GLUE --output runs/sst2")
    asked = '("a text", "another text")' if packed.compares_texts else '"a text"'
    if packed.head in ("none", "nsp"):
        answer = f'encode(["a text"])  # float32 (1, {packed.hidden_size}), mean of its token states'
    elif packed.labels:
        answer = f"classify([{asked}])[0].label  # {' or '.join(packed.labels)}"
    else:
        answer = f"classify([{asked}])[0].score"
    lines += ["", "    from bitbert.runtime import Runtime", f'    Runtime.load("{name}").{answer}']
    notes = ["The hashes in SHA256SUMS are checked at every load."]
    if tokenizer is not None:
        sources = ", or ".join(f"`{source}`" for source in tokenizer)
        notes.append(f"The vocabulary is not part of this folder: it is read from {sources}, and checked by its hash.")
    else:
        notes.append("Nothing is downloaded.")
    if recipe:
        notes.append(f"Finetuning follows {RECIPE_FILE}; `--config` names another recipe, `KEY=VALUE` changes it.")
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def _data(config: PretrainConfig, teacher_license: str, more: list[str]) -> str:
    sources = {}
    for phase in config.resolved_phases():
        for source in read_manifest(Path(phase.train))["provenance"]["sources"]:
            sources[f"{_plain(source['source'])}: {source['license']}"] = None
    teacher = _first_teacher(config.teacher)
    lines = [f"pretraining text: {line}" for line in sources]
    lines += [f"teacher, whose weights it began from and was distilled from: `{teacher}`, {teacher_license}", *more]
    note = "Neither text nor weights of others are in this folder; their licences apply to what was learnt."
    return f"{_bullets(lines)}\n\n{note}"


def _plain(source: str) -> str:
    """A source without the folders of the machine it was on."""
    return Path(source).name if source.startswith(("/", ".")) else source


def _first_teacher(name: str) -> str:
    """The teacher by a name that means something elsewhere: one that got its head from us has that of its origin."""
    record = Path(name) / TRAINING_FILE
    if not is_package_resource(name) and record.is_file():
        return _first_teacher(read_json(record, "teacher's record")["config"]["teacher"]) + " with our masked-LM head"
    return _plain(name)


def _recipe(config: PretrainConfig, training: dict[str, Any], finetuned: dict[str, Any] | None, task: bool) -> str:
    values = config.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_THE_RECIPE)
    parts = [
        f"Pretrained by `bitbert-pretrain` for {training['steps']:,} steps, {training['tokens'] / 1e6:,.1f} M tokens, "
        f"in rows of at most {training['max_length']} tokens. What differs from the defaults:",
        _indented(values),
    ]
    recipes: dict[str, list[str]] = {}
    for result in _tasks(finetuned):
        recipe = check_config(FinetuneConfig, result["config"], "results")
        values = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"tracking"})
        recipes.setdefault(_indented(values), []).append(result["title"])
    what = "Finetuned" if task else "For the scores below, copies were finetuned"
    for text, names in recipes.items():
        parts += [f"{what} on {', '.join(names)} by `bitbert-finetune`, without a teacher:", text]
    return "\n\n".join(parts)


def _results(training: dict[str, Any], results: dict[str, Any] | None, sentences: dict[str, Any] | None) -> str:
    metrics = "; ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in training["final_metrics"].items())
    parts = [f"At the end of pretraining, on held-out text: {metrics}."]
    if results is not None:
        shown = {key: value for key, value in results.items() if key != "submission"}
        parts.append(results_markdown(shown).partition("\n\n")[2].strip())
    if sentences is not None:
        ours, teachers = (f"{100 * row['spearman']:.1f}" for row in sentences["rows"])
        parts.append(
            f"As a sentence encoder without finetuning, {sentences['set']}, Spearman of the cosines of mean-pooled "
            f"states x 100: {ours}; the full-precision teacher's: {teachers}."
        )
    return "\n\n".join(parts)


def _limits(packed: PackedConfig, task: bool) -> str:
    lines = [
        f"Texts are cut to {packed.max_length} tokens.",
        "One bit a weight and activation costs accuracy; compare the scores above with full precision before use.",
        "It has learnt what its text and its teacher say, errors and prejudices included; nothing was removed.",
    ]
    if task:
        asked = "pair of texts" if packed.compares_texts else "text"
        answer = "one of its labels" if packed.labels else "a score"
        lines.append(f"It knows its task alone, and answers every {asked} with {answer}.")
    else:
        lines.append("The masked-LM head is not part of the packed format: it encodes, and is there to be finetuned.")
    return _bullets(lines)


def _tasks(results: dict[str, Any] | None) -> list[dict[str, Any]]:
    if results is None:
        return []
    return list(results["tasks"].values()) if "tasks" in results else [results]


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _indented(values: dict[str, Any]) -> str:
    text = yaml.safe_dump(values, sort_keys=False, width=100).rstrip()
    return "\n".join(f"    {line}" for line in text.splitlines())


def release(
    packed: Path,
    name: str,
    run: Path,
    checkpoints: Path,
    *,
    teacher_license: str,
    results: Path | None = None,
    sentences: Path | None = None,
    data: list[str] | None = None,
    tokenizer: list[str] | None = None,
    labels: str | None = None,
    recipe: Path | None = None,
    replace: bool = False,
) -> Path:
    """Write ``checkpoints/name``; returns it.

    Raises:
        UserError: the name does not fit, something is missing or damaged, or the folder exists.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"name {name!r}, wanted one that begins with bitbert-, of small letters, digits, '-' and '.'")
    model = load_packed(packed)
    if labels is not None:
        model = _renamed(model, labels.split(","))
    training = read_json(run / FINAL / TRAINING_FILE, "training record")
    card = write_card(
        name,
        model.config,
        training,
        teacher_license=teacher_license,
        results=None if results is None else read_json(results, "results"),
        sentences=None if sentences is None else read_json(sentences, "sentence encoder's results"),
        data=data,
        tokenizer=tokenizer,
        recipe=recipe is not None,
    )
    save_packed(
        checkpoints / name,
        model,
        card,
        replace=replace,
        tokenizer_sources=tokenizer,
        recipe=None if recipe is None else _recipe_text(recipe),
    )
    return checkpoints / name


def _recipe_text(path: Path) -> str:
    load_config(FinetuneConfig, path)  # for what it refuses
    return path.read_text(encoding="utf-8")


def _renamed(model: PackedModel, labels: list[str]) -> PackedModel:
    if len(set(labels)) != len(model.config.labels):
        raise UserError(f"--labels names {len(set(labels))} classes, the model has {', '.join(model.config.labels)}")
    return replace_fields(model, config=replace_fields(model.config, labels=labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, help="packed checkpoint of bitbert-export or bitbert-finetune")
    parser.add_argument("name", help="e.g. bitbert-l6-h384")
    parser.add_argument("--run", type=Path, required=True, help="run of the pretraining")
    parser.add_argument("--teacher-license", required=True, help="e.g. Apache-2.0")
    parser.add_argument("--results", type=Path, help="results.json of bitbert-finetune")
    parser.add_argument("--sentences", type=Path, help="what sentence_encoder.py wrote")
    parser.add_argument(
        "--tokenizer",
        action="append",
        metavar="SOURCE",
        help="package://DIST/PATH or Hugging Face id that has the tokenizer, which is then named by its hash instead "
        "of copied: for vocabularies of others; may be repeated",
    )
    parser.add_argument("--data", action="append", help="a further line on data and licences; may be repeated")
    parser.add_argument("--labels", help="other names for the classes, in their order, e.g. negative,positive")
    parser.add_argument("--recipe", type=Path, help="how bitbert-finetune is to train it by default, a YAML file")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--replace", action="store_true")
    arguments = vars(parser.parse_args())
    try:
        folder = release(**arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{folder}: {checkpoint_bytes(folder):,} bytes; read {folder / 'README.md'} before you commit it")


if __name__ == "__main__":
    main()

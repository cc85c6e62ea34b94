"""Finetuning from bits against finetuning from latent weights: the score that each start reaches at each learning rate.

    python benchmarks/finetune_from_packed.py --json runs/finetune_from_packed.json

starts from the demo's model (`make demo` leaves it under runs/demo) in three ways:

    latent           the latent weights that pretraining ended with
    packed           the packed checkpoint, magnitudes spread as bitbert-finetune does
    packed-constant  the packed checkpoint, every latent weight at ±scale

All three are the same function before the first step. Nothing is selected: the last weights are scored on dev. The file
keeps every run; the same command goes on where it was stopped, and prints the table of what is there. --layers N keeps
the first N layers, for machines with little time.

Tasks are GLUE's, and two more single-sentence tasks from the same folder that a model of minutes can learn, where pairs
are beyond it: genre (STS-B's sentence1 -> captions, forums or news) and hypothesis (MNLI's label from sentence2 alone).
"""

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from places import GLUE
from torch import Tensor

from bitbert.files import write_json_atomically
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.data import TaskData
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.source import Source, open_source
from bitbert.finetune.statistics import mean_and_deviation
from bitbert.finetune.tasks import TASKS, find_tasks
from bitbert.finetune.train import EncodedTask, encode_task, train_seed
from bitbert.model import BitBertConfig
from bitbert.model.linear import BinaryLinear
from bitbert.tracking import Tracker

EXTRA_TASKS = {
    "genre": dataclasses.replace(
        TASKS["stsb"],
        name="genre",
        text_columns=("sentence1",),
        label_column="genre",
        labels=("main-captions", "main-forum", "main-forums", "main-news"),
        metrics=("accuracy",),
    ),
    "hypothesis": dataclasses.replace(
        TASKS["mnli"], name="hypothesis", text_columns=("sentence2",), dev=TASKS["mnli"].dev[:1], test=()
    ),
}
FORUM, FORUMS = 1, 2
STARTS = ("latent", "packed", "packed-constant")
KEY = ("start", "task", "learning_rate", "seed")


def main() -> None:
    arguments = _parse_arguments()
    recipe = {
        "layers": arguments.layers,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "max_train_rows": arguments.rows,  # drawn from the whole training set, not its first
        "max_length": arguments.max_length,
        "group_by_length": True,
        "schedule": "linear",
        "warmup_fraction": 0.1,
        "gradient_clipping": 1.0,
        "dropout": 0.0,  # a packed file does not keep the model's own; the same for all starts
        "selection": "last_epoch",
    }
    found = _load(arguments.json, recipe)
    sources = {
        "latent": open_source(arguments.latent, None),
        "packed": open_source(arguments.packed, None),
        "packed-constant": open_source(arguments.packed, None, spread=False),
    }
    if arguments.layers is not None:
        sources = {start: _first_layers(source, arguments.layers) for start, source in sources.items()}
    chosen = [EXTRA_TASKS.get(name) or find_tasks(name)[0] for name in arguments.tasks]
    tasks = [_sample(task, arguments.rows) for task in read_glue_tasks(chosen, arguments.glue_dir)]
    config = FinetuneConfig(**{name: value for name, value in recipe.items() if name != "layers"})
    encoded = {task.name: encode_task(task, sources["latent"], config) for task in tasks}
    done = {tuple(run[name] for name in KEY) for run in found["runs"]}
    for seed in arguments.seeds:
        for task in tasks:
            for rate in arguments.rates:
                for start in arguments.starts:
                    if (start, task.name, rate, seed) in done:
                        continue
                    settings = config.model_copy(update={"learning_rate": rate})
                    run = measure(sources[start], task, encoded[task.name], settings, seed)
                    found["runs"].append(
                        {"start": start, "task": task.name, "learning_rate": rate, "seed": seed, **run}
                    )
                    write_json_atomically(arguments.json, found)
    print(table(found["runs"]))


def measure(source: Source, task: TaskData, encoded: EncodedTask, config: FinetuneConfig, seed: int) -> dict[str, Any]:
    """Finetune once: the dev score, and the share of the layers' weights whose sign training changed."""
    started = time.process_time()
    before = _signs(source.build(task.head, seed))
    trained = train_seed(source, task, encoded, config, seed, Tracker(Path(), enabled=False))
    after = _signs(trained.model)
    flipped = sum(int((before[name] != after[name]).sum()) for name in before)
    name, values = next(iter(trained.scores.items()))
    return {
        "set": name,
        "metric": task.head.metrics[0],
        "score": values[task.head.metrics[0]],
        "constant": task.head.baseline(encoded.train.examples, encoded.evaluation[name].examples)[task.head.metrics[0]],
        "flip_ratio": flipped / sum(signs.numel() for signs in before.values()),
        "caveats": list(task.caveats),
        "cpu_s": round(time.process_time() - started, 1),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean ± sample standard deviation over seeds, times 100, and the share of flipped weights."""
    cells: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        cells[run["task"], run["start"], run["learning_rate"]].append(run)
    rates = sorted({rate for *_, rate in cells})
    lines = [
        "| task, metric | start | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "| --- | --- |" + " ---: |" * len(rates),
    ]
    for task in dict.fromkeys(run["task"] for run in runs):
        first = next(run for run in runs if run["task"] == task)
        name = f"{task}, {first['metric']} (constant answer {100 * first['constant']:.1f})"
        for start in (start for start in STARTS if any((task, start, rate) in cells for rate in rates)):
            lines.append(
                f"| {name} | {start} | " + " | ".join(_cell(cells[task, start, rate]) for rate in rates) + " |"
            )
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "-"
    scores = [100 * run["score"] for run in runs]
    return f"{mean_and_deviation(scores)} ({100 * np.mean([run['flip_ratio'] for run in runs]):.2f} % flipped)"


def _first_layers(source: Source, num_layers: int) -> Source:
    fields = source.config.to_diff_dict() | {"num_hidden_layers": num_layers}
    dropped = tuple(f"bitbert.layers.{index}." for index in range(num_layers, source.config.num_hidden_layers))
    tensors = {name: tensor for name, tensor in source.tensors.items() if not name.startswith(dropped)}
    return dataclasses.replace(source, config=BitBertConfig(**fields), tensors=tensors)


def _sample(task: TaskData, num_rows: int) -> TaskData:
    """The same random training rows for every start and seed: some files are sorted."""
    order = np.random.default_rng(0).permutation(len(task.train))[:num_rows]
    task = dataclasses.replace(task, train=task.train.take(order))
    if task.name == "genre":  # main-forum in train is main-forums in dev
        for examples in (task.train, *task.evaluation.values()):
            labels = examples.labels
            labels[labels == FORUMS] = FORUM
    return task


def _signs(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: (module.weight >= module.weight.mean()).detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, BinaryLinear)
    }


def _load(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {"recipe": recipe, "runs": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["recipe"] != recipe:
        raise SystemExit(f"{path} holds runs of another recipe, {found['recipe']}; choose another --json")
    return found


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for every run")
    parser.add_argument("--latent", default="runs/demo/pretrain", help="latent model")
    parser.add_argument("--packed", default="runs/demo/packed", help="the same model, packed")
    parser.add_argument("--glue-dir", type=Path, default=GLUE)
    parser.add_argument("--tasks", type=_list_of(str), default=["sst2", "genre", "hypothesis"])
    parser.add_argument("--seeds", type=_list_of(int), default=[0, 1, 2])
    parser.add_argument("--rates", type=_list_of(float), default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--starts", type=_list_of(str), default=list(STARTS))
    parser.add_argument("--layers", type=int, help="keep the first layers only")
    parser.add_argument("--rows", type=int, default=4000, help="training rows")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=16)
    return parser.parse_args()


def _list_of(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

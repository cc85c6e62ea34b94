"""What compare_methods.py runs: budget, groups of stages, and the configs of every command."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from places import DATA, GLUE, MINILM

from bitbert.errors import UserError

METHODS = ("full-precision", "baseline", "bit", "bibert", "bipft-a", "bipft-b")
PRETRAINED = ("bipft-a", "bipft-b")
STAGES = {"full-precision": ("full-precision", "bit-w1a2", "bit", "bibert"), "bit": ("bit-w1a2", "bit")}
"""Stages whose weights depend on a method's rate, where they are more than the method's own."""
GIVEN = "bitbert"
"""The method of ``--model``, which comes pretrained."""
ALL = (*METHODS, GIVEN)
_AT_THE_END = 10**9
"""No training has as many steps; the last one is always evaluated."""
_GROWING = ("methods", "tasks", "seeds", "model", "learning_rates", "apart")


@dataclass(frozen=True)
class Budget:
    """Everything that decides the numbers; the same for every method.

    Attributes:
        epochs, max_length: by task; ``""`` is the value of tasks that are not named.
        max_train_rows: by task; tasks that are not named use all rows.
        learning_rates: what each method chooses from, on ``rate_task``.
        apart: whether tasks of pairs are trained a second time with their texts encoded apart.
    """

    teacher: str
    tokenizer: str
    corpus: str
    glue_dir: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: dict[str, int]
    max_length: dict[str, int]
    max_train_rows: dict[str, int]
    learning_rates: tuple[float, ...]
    rate_task: str
    batch_size: int
    precision: str
    pretrain_steps: int
    pretrain_batch_size: int
    pretrain_max_length: int
    pretrain_learning_rate: float
    model: str | None
    apart: bool

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options for every field, with the defaults of the full comparison."""

        def words(text: str) -> tuple[str, ...]:
            return tuple(text.split(","))

        def rates(text: str) -> tuple[float, ...]:
            return tuple(map(float, text.split(",")))

        def by_task(text: str) -> dict[str, int]:
            pairs = (part.rpartition("=") for part in text.split(",") if part)
            return {task: int(number) for task, _, number in pairs}

        add = parser.add_argument
        add("--teacher", default=MINILM, help="full-precision BERT that every method starts from")
        add("--tokenizer", default=MINILM, help="of the teacher")
        add("--corpus", default=f"{DATA}/corpus/wiki-*.jsonl.xz", help="what BiPFT is pretrained on")
        add("--glue-dir", default=str(GLUE))
        add("--methods", type=words, default=METHODS)
        add("--tasks", type=words, default=("cola", "mrpc", "stsb", "rte", "sst2"))
        add("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2))
        add("--epochs", type=by_task, default={"": 2}, help="e.g. 2,rte=4")
        add("--max-length", type=by_task, default={"": 64, "rte": 96})
        add("--max-train-rows", type=by_task, default={"sst2": 4000})
        add("--learning-rates", type=rates, default=(5e-5, 2e-4, 8e-4, 2.4e-3))
        add("--rate-task", default="sst2", help="whose held-out training rows choose the rates")
        add("--batch-size", type=int, default=32)
        add("--precision", choices=("fp32", "bf16"), default="bf16", help="of products with floats in training")
        add("--pretrain-steps", type=int, default=1000)
        add("--pretrain-batch-size", type=int, default=32)
        add("--pretrain-max-length", type=int, default=64)
        add("--pretrain-learning-rate", type=float, default=2e-3)
        add("--apart", action="store_true", help="further rows: pairs of texts encoded apart")
        add("--model", help="a further row, bitbert: a run of bitbert-pretrain, or a packed or released model")

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Budget":
        """The budget of parsed options.

        Raises:
            UserError: a method or a task has an unknown name, or a default is missing.
        """
        fields = {name: getattr(arguments, name) for name in cls.__dataclass_fields__}
        if fields["model"] is not None:
            fields["methods"] = (*fields["methods"], GIVEN)
        budget = cls(**fields)
        unknown = [method for method in arguments.methods if method not in METHODS]
        if unknown:
            raise UserError(f"method {unknown[0]!r} is not compared; methods: {', '.join(METHODS)}")
        for name in ("epochs", "max_length"):
            if "" not in getattr(budget, name):
                raise UserError(f"--{name.replace('_', '-')} has no value for tasks that it does not name")
        return budget

    def fixed(self) -> dict[str, Any]:
        """What all results of a folder share; each method, task, seed and given model has a folder of its own."""
        return {key: value for key, value in self.describe().items() if key not in _GROWING}

    def describe(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Group:
    """Stages that one command runs one after the other.

    Attributes:
        start: folder of the pretraining run below the work folder, or the given model, or None for the teacher.
        methods: stages whose results are wanted.
    """

    name: str
    start: str | None
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A group on one task with one seed, and each method's rate.

    Attributes:
        search: the rate that is tried.
        apart: whether the texts of pairs are encoded apart.
    """

    group: Group
    task: str
    seed: int
    rates: dict[str, float]
    search: float | None = None
    apart: bool = False


def plan_jobs(budget: Budget, only: tuple[str, ...] = ALL) -> list[Group]:
    """The groups: those that start from the teacher share its task models; a pretrained method is one of its own."""
    wanted = [method for method in ALL if method in budget.methods and method in only]
    needs_teacher = any(method in ("bit", "bibert") for method in budget.methods)
    from_teacher = [method for method in wanted if method not in (*PRETRAINED, GIVEN)]
    if needs_teacher and "full-precision" not in from_teacher and (from_teacher or "full-precision" in only):
        from_teacher.insert(0, "full-precision")
    # Alone it is searched for, at every rate; with students it has the one that was found, and a folder apart.
    name = "full-precision" if from_teacher == ["full-precision"] else "teacher"
    groups = [Group(name, None, tuple(from_teacher))] if from_teacher else []
    groups += [Group(method, method, (method,)) for method in wanted if method in PRETRAINED]
    return groups + [Group(GIVEN, budget.model, (GIVEN,)) for method in wanted if method == GIVEN]


def method_config(budget: Budget, job: Job) -> dict[str, Any]:
    """The stages of a job for bitbert-method."""
    directions = {
        "logits": 1.0,
        "hidden_states": 1.0,
        "hidden_distance": "directions",
        "projections": 1.0,
        "labels": 0.5,
    }
    taught = {"start": "full-precision", "teacher": "full-precision"}
    stages: dict[str, dict[str, Any]] = {}
    for method in job.group.methods:
        recipe = {"recipe": _recipe(budget, job, job.rates[method])}
        if method == "full-precision":
            stages[method] = {"method": "full-precision", **recipe}
        elif method == "baseline":
            stages[method] = {"method": "baseline", **recipe}
        elif method == "bit":
            stages["bit-w1a2"] = {**taught, "method": "bit", "fields": {"activation_bits": 2}, **recipe}
            stages[method] = {"start": "bit-w1a2", "teacher": "bit-w1a2", "fields": {"activation_bits": 1}, **recipe}
        elif method == "bibert":
            stages[method] = {**taught, "method": "bibert", "distillation": directions, **recipe}
        else:
            stages[method] = dict(recipe)
    return {"stages": stages}


def _recipe(budget: Budget, job: Job, rate: float) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "pairs": "bi_encoder" if job.apart else "cross_encoder",
        "epochs": budget.epochs.get(job.task, budget.epochs[""]),
        "max_length": budget.max_length.get(job.task, budget.max_length[""]),
        "max_train_rows": budget.max_train_rows.get(job.task),
        "batch_size": budget.batch_size,
        "precision": budget.precision,
        "group_by_length": True,
        "schedule": "linear",
        "warmup_fraction": 0.1,
        "gradient_clipping": 1.0,
        "dropout": 0.1,
        "selection": "last_epoch" if job.search is None else "train_split",
        "eval_every": _AT_THE_END if job.search is None else 0,
    }


def data_config(budget: Budget, shards: Path) -> dict[str, Any]:
    """Shards of the corpus for bitbert-data."""
    return {
        "output": str(shards),
        "sources": [{"path": budget.corpus}],
        "tokenizer": budget.tokenizer,
        "max_length": budget.pretrain_max_length,
        "heldout_fraction": 0.05,
    }


def pretrain_config(budget: Budget, method: str, shards: Path, output: Path) -> dict[str, Any]:
    """A short pretraining with the demo's loss weights, the same for both variants of BiPFT."""
    steps = budget.pretrain_steps
    return {
        "output": str(output),
        "data": {"train": str(shards / "train"), "heldout": str(shards / "heldout")},
        "tokenizer": budget.tokenizer,
        "teacher": budget.teacher,
        "model": {"method": method, "fields": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}},
        "loss": {"hidden": 30.0, "nsp_distillation": 0.0},  # minutes are short, and MiniLM has no next-sentence head
        "optimizer": {
            "learning_rate": budget.pretrain_learning_rate,
            "warmup_steps": steps // 10,
            "gradient_clipping": 1.0,
        },
        "precision": budget.precision,
        "steps": steps,
        "global_batch_size": budget.pretrain_batch_size,
        "micro_batch_size": min(16, budget.pretrain_batch_size),
        "eval_every": 0,
        "eval_rows": 256,
        "checkpoint_every": max(steps // 4, 1),
        "seed": 42,
    }

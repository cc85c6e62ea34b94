"""The comparison of methods: what it runs is the same for all; a tiny one ends in its table and can be resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare_plan import METHODS, Budget, Group, Job, method_config, plan_jobs, pretrain_config
from bitbert.config import check_config
from bitbert.data_prep import __main__ as data_prep
from bitbert.errors import UserError
from bitbert.finetune import method as method_door
from bitbert.finetune.stages import MethodConfig
from bitbert.pretrain.config import PretrainConfig
from tests.conftest import tiny_documents, write_jsonl
from tests.finetune.conftest import saved_model, tiny_glue  # noqa: F401 (fixtures)


def budget(**changes: Any) -> Budget:
    import argparse

    parser = argparse.ArgumentParser()
    Budget.add_arguments(parser)
    arguments = parser.parse_args([])
    for name, value in changes.items():
        setattr(arguments, name, value)
    return Budget.of(arguments)


def test_groups_share_the_teacher_and_keep_its_students() -> None:
    shared = Group("teacher", None, ("full-precision", "baseline", "bit", "bibert"))
    alone = [Group(name, name, (name,)) for name in ("bipft-a", "bipft-b")]
    assert plan_jobs(budget()) == [shared, *alone]
    assert plan_jobs(budget(methods=("bit",))) == [Group("teacher", None, ("full-precision", "bit"))]
    assert plan_jobs(budget(methods=("baseline",))) == [Group("teacher", None, ("baseline",))]
    assert plan_jobs(budget(methods=("bipft-a",)), only=("full-precision",)) == []


def test_a_given_model_is_a_row_of_its_own() -> None:
    *published, given = plan_jobs(budget(model="bitbert-l6-h384"))
    assert published == plan_jobs(budget())
    assert given == Group("bitbert", "bitbert-l6-h384", ("bitbert",))
    with pytest.raises(UserError, match="method 'bitbert' is not compared"):
        budget(methods=("bitbert",))


def test_methods_differ_in_nothing_but_the_method() -> None:
    found = []
    for group in plan_jobs(budget()):
        config = method_config(budget(), Job(group, "sst2", 1, dict.fromkeys(METHODS, 3e-4)))
        found += list(check_config(MethodConfig, config, "plan").stages.items())
    recipes = [stage.recipe for _, stage in found]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert recipes[0] is not None
    assert (recipes[0].max_train_rows, recipes[0].learning_rate, recipes[0].selection) == (4000, 3e-4, "last_epoch")
    assert [name for name, _ in found] == [
        *("full-precision", "baseline", "bit-w1a2", "bit", "bibert", "bipft-a", "bipft-b")
    ]
    searched = Job(plan_jobs(budget())[0], "mrpc", 0, dict.fromkeys(METHODS, 3e-4), search=3e-4)
    assert method_config(budget(), searched)["stages"]["bibert"]["recipe"]["selection"] == "train_split"


def test_texts_apart_are_the_only_difference() -> None:
    rates = dict.fromkeys((*METHODS, "bitbert"), 3e-4)
    for group in plan_jobs(budget(model="bitbert-l6-h384")):
        configs = [
            check_config(MethodConfig, method_config(budget(), Job(group, "rte", 1, rates, apart=apart)), "plan")
            for apart in (False, True)
        ]
        for name in configs[0].stages:
            together, apart = (config.recipe_of(name) for config in configs)
            assert apart == together.model_copy(update={"pairs": "bi_encoder"})


def test_both_variants_are_pretrained_alike() -> None:
    configs = [pretrain_config(budget(), method, Path("shards"), Path("run")) for method in ("bipft-a", "bipft-b")]
    for config in configs:
        check_config(PretrainConfig, config, "plan")
        del config["model"]["method"]
    assert configs[0] == configs[1]


def test_the_table_has_means_deviations_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    from compare_report import table

    def row(method: str, task: str, seed: int, score: float) -> dict[str, Any]:
        packed = None if method == "full-precision" else 4 * 2**20
        known = {"pretraining_tokens": 0, "learning_rate": 2e-4, "packed_bytes": packed, "float_bytes": 80 * 2**20}
        return {"method": method, "apart": False, "task": task, "seed": seed, "score": score, **known}

    scores = {"full-precision": (0.9, 0.8, 0.95), "baseline": (0.6, 0.5, 0.3)}
    rows = []
    for method, (first, second, other) in scores.items():
        rows += [row(method, "rte", 0, first), row(method, "rte", 1, second), row(method, "cola", 0, other)]
    *_, whole, baseline = table(rows).splitlines()
    assert whole == "| full-precision | 0 | 80.0 | 0.0002 | 95.0 | 85.0 ± 7.1 | 90.0 | 100 % |"
    assert baseline == "| baseline | 0 | 4.0 | 0.0002 | 30.0 | 55.0 ± 7.1 | 42.5 | 47 % |"
    *_, partial = table(rows[:-1]).splitlines()
    assert partial == "| baseline | 0 | 4.0 | 0.0002 |  | 55.0 ± 7.1 |  |  |"
    apart = row("baseline", "rte", 0, 0.7) | {"apart": True}
    *_, together, line = table([*rows, apart]).splitlines()
    assert together == baseline
    assert line == "| baseline, apart | 0 | 4.0 | 0.0002 | 30.0 | 70.0 | 50.0 | 56 % |"  # cola is the same in both


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UserError, match="method 'bert' is not compared"):
        budget(methods=("bert",))
    with pytest.raises(UserError, match="--epochs has no value for tasks that it does not name"):
        budget(epochs={"rte": 1})


def test_rates_are_chosen_on_held_out_rows_students_after_their_teacher(
    tiny_glue: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from compare_methods import Comparison

    best = {"full-precision": 5e-5, "baseline": 8e-4, "bit": 5e-5, "bibert": 2e-4, "bipft-a": 8e-4, "bipft-b": 2e-4}
    jobs: list[Job] = []

    def finetune(self: object, job: Job) -> dict[str, Any]:
        jobs.append(job)
        points = {name: [{"scores": {"selection": {"accuracy": float(job.search == best[name])}}}] for name in best}
        return {name: {"history": points[name]} for name in job.group.methods}

    monkeypatch.setattr(Comparison, "_finetune", finetune)
    comparison = Comparison(budget(glue_dir=str(tiny_glue)), tmp_path / "work", tmp_path / "out.json", 1)
    comparison._choose_rates()
    assert comparison.rates == best
    taught = [job for job in jobs if "bit" in job.group.methods]
    assert len(taught) == 4
    assert all(job.rates["full-precision"] == 5e-5 for job in taught)
    rates_in_folder = {(job.search, comparison._folder(job.group)): set() for job in jobs}
    for job in jobs:
        rates_in_folder[job.search, comparison._folder(job.group)].add(job.rates.get("full-precision"))
    assert all(len(rates) == 1 for rates in rates_in_folder.values()), rates_in_folder
    assert all((job.task, job.seed) == ("sst2", 0) for job in jobs)

    longer = budget(glue_dir=str(tiny_glue), learning_rates=(5e-5, 2e-4, 8e-4, 2.4e-3, 9e-3))
    best["bibert"] = best["bit"] = 2.4e-3
    (tmp_path / "work" / "finetune" / "teacher" / "rte" / "bibert").mkdir(parents=True)
    with pytest.raises(UserError, match=r"bibert is best at 0.0024 .*results at 0.0002; remove .*rte/bibert, or"):
        Comparison(longer, tmp_path / "work", tmp_path / "out.json", 1)._choose_rates()
    shutil.rmtree(tmp_path / "work" / "finetune")
    Comparison(longer, tmp_path / "work", tmp_path / "out.json", 1)._choose_rates()
    assert json.loads((tmp_path / "work" / "rates.json").read_text())["chosen"] == best


def test_a_tiny_comparison_ends_in_its_table(
    tiny_teacher: Path,
    tiny_glue: Path,  # noqa: F811
    saved_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from compare_methods import Comparison

    (tmp_path / "given" / "final").mkdir(parents=True)
    for file in (saved_model / "final").iterdir():
        shutil.copy(file, tmp_path / "given" / "final")
    (tmp_path / "given" / "final" / "training.json").write_text('{"tokens": 123}')
    tiny = {
        "teacher": str(tiny_teacher),
        "tokenizer": str(tiny_teacher),
        "corpus": str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(120))),
        "glue_dir": str(tiny_glue),
        "methods": ("baseline", "bipft-a"),
        "model": str(tmp_path / "given"),
        "tasks": ("rte",),
        "learning_rates": (1e-3,),
        "seeds": (0,),
        "epochs": {"": 1},
        "max_length": {"": 32},
        "precision": "fp32",
        "pretrain_steps": 2,
        "pretrain_batch_size": 4,
        "pretrain_max_length": 32,
    }
    command_of_its_own = Comparison._command

    def command_here(self: Comparison, module: str, *arguments: str, log: str) -> None:
        """Most processes would spend their time on imports; DeepSpeed wants one of its own."""
        if module == "bitbert.pretrain":
            return command_of_its_own(self, module, *arguments, log=log)
        door = {"bitbert.data_prep": data_prep, "bitbert.finetune.method": method_door}[module]
        alone = ("--workers", "1") if door is data_prep else ()
        monkeypatch.setattr("sys.argv", [module, *arguments, *alone])
        with pytest.raises(SystemExit, match="0"):
            door.main()

    monkeypatch.setattr(Comparison, "_command", command_here)
    Comparison(budget(**tiny), tmp_path / "work", tmp_path / "compare.json", 1).run()
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["complete"]
    assert [(row["method"], row["task"], row["seed"]) for row in found["rows"]] == [
        ("baseline", "rte", 0),
        ("bipft-a", "rte", 0),
        ("bitbert", "rte", 0),
    ]
    assert found["rows"][2]["pretraining_tokens"] == 123
    for row in found["rows"]:
        assert row["packed_bytes"] > 1000
        assert (row["pretraining_tokens"] > 0) == (row["method"] != "baseline")
        assert row["learning_rate"] == 1e-3
    assert found["caveats"]["rte"]  # these are not GLUE's files
    assert (tmp_path / "compare.png").is_file()
    text = (tmp_path / "compare.md").read_text()
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| baseline", "| bipft-a", "| bitbert"]

    def command(self: object, module: str, *arguments: str, log: str) -> None:
        raise AssertionError(f"{module} runs again")

    monkeypatch.setattr(Comparison, "_command", command)
    Comparison(budget(**tiny), tmp_path / "work", tmp_path / "again.json", 1).run()
    assert json.loads((tmp_path / "again.json").read_text()) == found
    with pytest.raises(UserError, match=r"holds a comparison with batch_size=32, not 8; choose another --work"):
        Comparison(budget(**tiny | {"batch_size": 8}), tmp_path / "work", tmp_path / "again.json", 1)

    monkeypatch.setattr(Comparison, "_command", command_here)
    Comparison(budget(**tiny | {"apart": True, "tasks": ("rte", "sst2")}), tmp_path / "work", tmp_path / "c", 1).run()
    rows = json.loads((tmp_path / "c").read_text())["rows"]
    assert [(row["method"], row["apart"], row["task"]) for row in rows] == [
        (method, *rest)
        for method in ("baseline", "bipft-a", "bitbert")
        for rest in ((False, "rte"), (False, "sst2"), (True, "rte"))
    ]
    assert "| bipft-a, apart | " in (tmp_path / "c.md").read_text()
    monkeypatch.setattr(Comparison, "_command", command)

    more = Comparison(budget(**tiny | {"seeds": (0, 1)}), tmp_path / "work", tmp_path / "again.json", 1)
    with pytest.raises(AssertionError, match="method runs again"):
        more.run()
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == found["rows"]  # all of seed 0 comes first
    (tmp_path / "given" / "final" / "model.safetensors").write_bytes(
        (tmp_path / "work" / "bipft-a" / "final" / "model.safetensors").read_bytes()
    )
    changed = Comparison(budget(**tiny), tmp_path / "work", tmp_path / "again.json", 1)
    with pytest.raises(AssertionError, match="method runs again"):
        changed.run()

"""The published methods side by side on one small model: python benchmarks/compare_methods.py --json PATH

Full precision, the baseline, BiT, BiBERT, BiPFT-A and BiPFT-B start from the same teacher, are finetuned on the same
rows with the same schedule, batches, dropout and number of epochs, and differ in what the method is. Learning rates
come from one list for all: each method takes the one that is best on rows held out of one task's training set. Scores
are of the last epoch on dev, so nothing is chosen by them. BiPFT is first pretrained for --pretrain-steps; BiT and
BiBERT learn from the full-precision model of the task. --model adds a row for a model that comes pretrained. --apart
adds rows of every method, full precision and teachers included, with the texts of pairs encoded apart.

Everything lies under --work and is skipped when it is done: stop it and start the same command again, with further
methods, tasks, seeds or rates or another --model if you like. All methods run with the first seed, then with the next.
PATH is rewritten after every model, beside it a table (.md) and a plot (.png). --detach goes on in the background and
logs to WORK/log.txt.
"""

import argparse
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from background import detach
from compare_plan import (
    ALL,
    GIVEN,
    PRETRAINED,
    STAGES,
    Budget,
    Group,
    Job,
    data_config,
    method_config,
    plan_jobs,
    pretrain_config,
)
from compare_report import plot, table

from bitbert.errors import UserError
from bitbert.files import read_json, write_json_atomically, write_text_atomically
from bitbert.finetune.glue_files import read_glue_tasks
from bitbert.finetune.statistics import published_number
from bitbert.finetune.tasks import find_tasks
from bitbert.pretrain.run import TRAINING_FILE
from bitbert.pretrain.run_folder import FINAL

_TAIL = 5


class Comparison:
    """The work of one comparison: folders, commands and rows."""

    def __init__(self, budget: Budget, work: Path, path: Path, num_workers: int) -> None:
        self.budget, self.work, self.path, self.num_workers = budget, work, path, num_workers
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._check_settings()
        tasks = read_glue_tasks(find_tasks(",".join(budget.tasks)), Path(budget.glue_dir))
        self.caveats = {task.name: list(task.caveats) for task in tasks}
        self.has_pairs = {task.name: task.train.second_texts is not None for task in tasks}
        for task in tasks:
            limit = budget.max_train_rows.get(task.name)
            if limit is not None and limit < len(task.train):
                self.caveats[task.name].append(f"trained on the first {limit:,} of {len(task.train):,} rows")
        self.tokens: dict[str, int] = {}
        found = None if budget.model is None else _pretraining_tokens(Path(budget.model))
        if found is not None:
            self.tokens[GIVEN] = found
        self.rates: dict[str, float] = {}

    def run(self) -> None:
        """Pretrain, choose rates, finetune; PATH grows with every model."""
        self._pretrain()
        self._choose_rates()
        jobs = [
            Job(group, task, seed, {method: self.rates[method] for method in group.methods}, apart=apart)
            for apart in ((False, True) if self.budget.apart else (False,))
            for seed in self.budget.seeds
            for task in self.budget.tasks
            for group in plan_jobs(self.budget)
            if self.has_pairs[task] or not apart
        ]
        with ThreadPoolExecutor(self.num_workers) as pool:
            for future in [pool.submit(self._finetune_and_record, job) for job in jobs]:
                future.result()
        self._write(complete=True)

    def _check_settings(self) -> None:
        """Refuse to go on where results of other settings lie; what has a folder of its own may be added."""
        settings, fixed = self.work / "settings.json", self.budget.fixed()
        if settings.is_file():
            found = read_json(settings, "settings of a comparison")
            changed = [name for name, value in fixed.items() if found.get(name) != value]
            if changed:
                raise UserError(
                    f"{str(self.work)!r} holds a comparison with {changed[0]}={found.get(changed[0])!r}, not "
                    f"{fixed[changed[0]]!r}; choose another --work"
                )
        self.work.mkdir(parents=True, exist_ok=True)
        write_json_atomically(settings, fixed)

    def _pretrain(self) -> None:
        wanted = [method for method in PRETRAINED if method in self.budget.methods]
        if not wanted:
            return
        shards = self.work / "shards"
        if not shards.is_dir():
            self._command("bitbert.data_prep", self._save(data_config(self.budget, shards), "data"), log="data")

        def pretrain(method: str) -> None:
            if not (self.work / method / "final").is_dir():
                config = pretrain_config(self.budget, method, shards, self.work / method)
                self._command("bitbert.pretrain", self._save(config, method), log=method)
            self.tokens[method] = _pretraining_tokens(self.work / method) or 0

        with ThreadPoolExecutor(self.num_workers) as pool:
            list(pool.map(pretrain, wanted))

    def _choose_rates(self) -> None:
        """One task, one seed, rows held out of its training set, the same list for every method."""
        rates = self.budget.learning_rates
        if len(rates) == 1:
            self.rates = dict.fromkeys(ALL, rates[0])
            return
        found: dict[str, dict[float, float]] = {method: {} for method in ALL}
        for round_methods in (("full-precision",), ALL[1:]):  # students of a chosen teacher
            jobs = [
                Job(group, self.budget.rate_task, 0, self.rates | dict.fromkeys(round_methods, rate), search=rate)
                for group in plan_jobs(self.budget, only=round_methods)
                for rate in rates
            ]
            with ThreadPoolExecutor(self.num_workers) as pool:
                for job, results in zip(jobs, pool.map(self._finetune, jobs), strict=True):
                    for method in round_methods:
                        if method in results:
                            points = results[method]["history"]
                            scores = [published_number(job.task, point["scores"]["selection"]) for point in points]
                            found[method][job.search or 0.0] = max(scores)
            for method in round_methods:
                if found[method]:
                    self.rates[method] = max(found[method], key=lambda rate: found[method][rate])
        path = self.work / "rates.json"
        self._check_rates(read_json(path, "chosen rates")["chosen"] if path.is_file() else {})
        write_json_atomically(path, {"chosen": self.rates, "held_out_scores": found})

    def _check_rates(self, before: dict[str, float]) -> None:
        """Refuse to go on where a longer list of rates changed the choice of a method that has results."""
        for method, rate in self.rates.items():
            if before.get(method, rate) == rate:
                continue
            stages = STAGES.get(method, (method,))
            held = [
                str(folder)
                for stage in stages
                for kind in ("finetune", "apart")
                for folder in sorted(self.work.glob(f"{kind}/*/*/{stage}"))
            ]
            if held:
                raise UserError(
                    f"{method} is best at {rate:g} among these --learning-rates and has results at {before[method]:g}; "
                    f"remove {', '.join(held)}, or choose another --work"
                )

    def _finetune_and_record(self, job: Job) -> None:
        for method, result in self._finetune(job).items():
            if method not in self.budget.methods:
                continue
            (scores,) = [values for name, values in result["scores"].items() if name == "dev"]
            packed = result["not_packed"] is None
            row = {
                "method": method,
                "apart": job.apart,
                "task": job.task,
                "seed": job.seed,
                "score": published_number(job.task, scores) / 100,
                "scores": scores,
                "packed_bytes": result["weights_bytes"] if packed else None,
                "float_bytes": None if packed else result["weights_bytes"],
                "pretraining_tokens": self.tokens.get(method, None if method == GIVEN else 0),
                "learning_rate": self.rates[method],
            }
            with self._lock:
                self._rows.append(row)
                self._write(complete=False)

    def _finetune(self, job: Job) -> dict[str, dict[str, Any]]:
        """Run a job's stages, unless they are done, and read their results, by method."""
        kind = "apart" if job.apart else "finetune" if job.search is None else f"search/{job.search:g}"
        output = self.work / kind / self._folder(job.group)
        files = {
            method: output / job.task / method / f"seed-{job.seed}" / "result.json" for method in job.group.methods
        }
        if not all(file.is_file() for file in files.values()):
            name = f"{kind.replace('/', '-')}-{output.name}-{job.task}-{job.seed}"
            start = self._start(job.group)
            config = self._save(method_config(self.budget, job), name)
            arguments = ("--config", config, "--task", job.task, "--glue-dir", self.budget.glue_dir)
            options = ("--output", str(output), "--seeds", str(job.seed))
            self._command("bitbert.finetune.method", start, *arguments, *options, log=name)
        return {method: read_json(file, "stage result") for method, file in files.items()}

    def _folder(self, group: Group) -> str:
        """A given model's folder bears its weights' hash: another model under the same name is another row."""
        return group.name if group.name != GIVEN else f"{GIVEN}-{self._given_hash}"

    @cached_property
    def _given_hash(self) -> str:
        from bitbert.finetune.source import open_source

        assert self.budget.model is not None  # the group is there because of it
        return open_source(self.budget.model, None).fingerprint[:12]

    def _start(self, group: Group) -> str:
        if group.start is None:
            return self.budget.teacher
        return group.start if group.name == GIVEN else str(self.work / group.start)

    def _save(self, config: dict[str, Any], name: str) -> str:
        import yaml

        path = self.work / "configs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path, yaml.safe_dump(config, sort_keys=False))
        return str(path)

    def _command(self, module: str, *arguments: str, log: str) -> None:
        path = self.work / "logs" / f"{log}.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        if done.returncode:
            tail = path.read_text(encoding="utf-8").splitlines()[-_TAIL:]
            raise UserError(f"{module} failed; {path} ends with: {' | '.join(tail)}")

    def _write(self, *, complete: bool) -> None:
        order = {method: place for place, method in enumerate(ALL)}
        rows = sorted(self._rows, key=lambda row: (order[row["method"]], row["apart"], row["task"], row["seed"]))
        found = {
            "settings": self.budget.describe(),
            "learning_rates": self.rates,
            "caveats": self.caveats,
            "rows": rows,
            "complete": complete,
        }
        write_json_atomically(self.path, found)
        write_text_atomically(self.path.with_suffix(".md"), table(rows))
        plot(rows, self.path.with_suffix(".png"))


def _pretraining_tokens(run: Path) -> int | None:
    """What a run of bitbert-pretrain says of itself; None where ``run`` is none."""
    record = run / FINAL / TRAINING_FILE
    return int(read_json(record, "training record")["tokens"]) if record.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows; table and plot are beside it")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"))
    parser.add_argument("--workers", type=int, default=2, help="finetunings at a time; each has one thread by default")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    Budget.add_arguments(parser)
    arguments = parser.parse_args()
    try:
        budget = Budget.of(arguments)
        if arguments.detach:
            detach(__file__, arguments.work)
            return
        comparison = Comparison(budget, arguments.work, arguments.json, arguments.workers)
        comparison.path.parent.mkdir(parents=True, exist_ok=True)
        comparison.run()
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.json} and {arguments.json.with_suffix('.png')} are complete")


if __name__ == "__main__":
    main()

"""Recipes of pretraining at one small budget: python benchmarks/choose_recipe.py --json PATH [KEY=VALUE]...

benchmarks/recipes.yaml holds a base config and the recipes, each a list of changes to it, or of other recipes' lists;
KEY=VALUE changes the base of all. Each is pretrained on the same rows and masks, and measured on held-out rows
(distance_to_teacher.py) and as a sentence encoder without finetuning (STS-B dev, Spearman). What failed stays in the
table, with the reason.

Everything lies under --work and is skipped when it is done: stop it and start the same command again. PATH is rewritten
after every recipe, PATH with .md holds the table, best last layer first. --detach goes on in the background.
"""

import argparse
import copy
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from background import detach
from distance_to_teacher import measure
from places import GLUE
from sentence_encoder import correlations, read_pairs, teacher_encoder, torch_encoder

from bitbert.config import check_config, dump_config, parse_overrides, read_mapping
from bitbert.errors import UserError
from bitbert.files import read_json, write_json_atomically, write_text_atomically
from bitbert.model import BitBertForPreTraining
from bitbert.pretrain.config import LossSection, PretrainConfig
from bitbert.pretrain.run import TRAINING_FILE, open_shards
from bitbert.pretrain.run_folder import FINAL, refuse_other_run
from bitbert.pretrain.teacher import load_teacher
from bitbert.resources import require_local_or_hub
from bitbert.tokenizer import load_tokenizer
from bitbert.tracking import read_metrics

RECIPES = Path(__file__).with_name("recipes.yaml")
EXIT_PREEMPTED = 75
_MEASURES = "measures.json"


def read_recipes(path: Path, changes: list[str], work: Path, only: list[str]) -> dict[str, PretrainConfig]:
    """Every recipe's whole config, checked before anything runs.

    Raises:
        UserError: a recipe is unknown or does not fit, its teacher is missing, or its folder holds another one.
    """
    data = read_mapping(path)
    unknown = sorted(set(only) - set(data["recipes"]))
    if unknown:
        raise UserError(f"--only {unknown[0]} is not a recipe of {path}; known: {', '.join(data['recipes'])}")
    configs = {}
    for name in only or data["recipes"]:
        own = [*_flat(data["recipes"][name]), f"output={work / name}"]
        fields = parse_overrides(own, _base(data, changes))
        config = check_config(PretrainConfig, fields, f"recipe {name}")
        require_local_or_hub(config.teacher, f"recipe {name}: teacher")
        refuse_other_run(config)
        configs[name] = config
    return configs


def _flat(changes: list[Any]) -> Iterator[str]:
    for change in changes:
        if isinstance(change, list):
            yield from _flat(change)
        else:
            yield change


def _base(data: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    return parse_overrides(changes, copy.deepcopy(data["base"]))


class Series:
    """All recipes, and their rows so far."""

    def __init__(self, configs: dict[str, PretrainConfig], work: Path, path: Path, glue_dir: Path) -> None:
        self.configs, self.work, self.path = configs, work, path
        self.pairs = read_pairs(glue_dir)
        base = next(iter(configs.values()))
        tokenizer = load_tokenizer(base.tokenizer)
        self.teacher = load_teacher(base.teacher, LossSection(nsp_distillation=0.0), tokenizer)
        self.heldout = open_shards(base.data.heldout, tokenizer, base.data, base.seed)
        self.teacher_scores = correlations(teacher_encoder(base.teacher)[0], self.pairs)
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str, Any]] = {}

    def run(self, num_workers: int) -> None:
        with ThreadPoolExecutor(num_workers) as pool:
            for future in [pool.submit(self._one, name) for name in self.configs]:
                future.result()
        self._write(complete=not any("failed" in row for row in self._rows.values()))

    def _one(self, name: str) -> None:
        config = self.configs[name]
        folder = Path(config.output)
        failed = None if (folder / FINAL).is_dir() else self._pretrain(name, config)
        with self._lock:  # transformers builds one model at a time
            found = {"failed": failed} if failed else self._measured(folder, config)
            self._rows[name] = {"recipe": name, **found}
            self._write(complete=False)

    def _pretrain(self, name: str, config: PretrainConfig) -> str | None:
        """Run the recipe in a process of its own; returns why it failed."""
        file, log = self.work / "configs" / f"{name}.yaml", self.work / "logs" / f"{name}.txt"
        dump_config(config, file)
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            command = [sys.executable, "-m", "bitbert.pretrain", str(file)]
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment)
        if code.returncode == EXIT_PREEMPTED:
            raise UserError(f"recipe {name} was stopped; start the same command again to go on")
        last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
        return f"exit code {code.returncode}: {last}" if code.returncode else None

    def _measured(self, folder: Path, config: PretrainConfig) -> dict[str, Any]:
        """The measures of a finished run, taken once for a number of held-out rows."""
        path = folder / _MEASURES
        if path.is_file() and (found := read_json(path, "measures"))["heldout_rows"] == config.eval_rows:
            return dict(found)
        lines = read_metrics(folder / "metrics.jsonl")
        found = {
            "heldout_rows": config.eval_rows,
            "tokens": read_json(folder / FINAL / TRAINING_FILE, "training record")["tokens"],
            "wall_s": round(lines[-1]["time_s"] - lines[0]["time_s"], 1),
            **measure(folder / FINAL, self.teacher, self.heldout, config.eval_rows),
            "stsb": correlations(_student_encoder(folder / FINAL), self.pairs),
        }
        write_json_atomically(path, found)
        return found

    def _write(self, *, complete: bool) -> None:
        rows = sorted(self._rows.values(), key=lambda row: row.get("layer_error", [float("inf")])[-1])
        for row in rows:
            row["config"] = self.configs[row["recipe"]].model_dump(mode="json")
        write_json_atomically(self.path, {"teacher_stsb": self.teacher_scores, "rows": rows, "complete": complete})
        write_text_atomically(self.path.with_suffix(".md"), table(rows, self.teacher_scores))


def _student_encoder(final: Path) -> Any:
    student = BitBertForPreTraining.from_pretrained(final, dtype=torch.float32).eval()

    def states(**inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = student.bitbert(**inputs).last_hidden_state
        return found

    return torch_encoder(states, load_tokenizer(str(final)))


def table(rows: list[dict[str, Any]], teacher: dict[str, float]) -> str:
    """Markdown, a line a recipe."""
    lines = [
        "| recipe | last layer's error | its cosine | error of each layer | MLM loss | MLM accuracy % | STS-B |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
        f"| the teacher | 0 | 1 | | | | {100 * teacher['spearman']:.1f} |",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['recipe']} | failed: {row['failed']} | | | | | |")
            continue
        errors = " ".join(f"{error:.2f}" for error in row["layer_error"])
        lines.append(
            f"| {row['recipe']} | {row['layer_error'][-1]:.3f} | {row['layer_cosine'][-1]:.3f} | {errors} "
            f"| {row['mlm_loss']:.3f} | {100 * row['mlm_accuracy']:.1f} | {100 * row['stsb']['spearman']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows; the table is beside it")
    parser.add_argument("--recipes", type=Path, default=RECIPES)
    parser.add_argument("--only", default="", help="names of recipes, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--glue-dir", type=Path, default=GLUE)
    parser.add_argument("--workers", type=int, default=2, help="recipes at a time; each has one thread by default")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the base of all recipes")
    arguments = parser.parse_args()
    try:
        only = [name for name in arguments.only.split(",") if name]
        configs = read_recipes(arguments.recipes, arguments.changes, arguments.work, only)
        if arguments.detach:
            detach(__file__, arguments.work)
            return
        Series(configs, arguments.work, arguments.json, arguments.glue_dir).run(arguments.workers)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(arguments.json.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

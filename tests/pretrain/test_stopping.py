"""Stopping by file, and the check of a config before its shards exist."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bitbert.config import dump_config, load_config
from bitbert.errors import UserError
from bitbert.files import read_json, sha256_file, write_json_atomically
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.dry_run import describe_run
from bitbert.pretrain.manifest import write_manifest
from bitbert.pretrain.preempt import Preemption
from bitbert.pretrain.run_folder import claim_folder, list_checkpoints, refuse_other_run, step_of
from bitbert.pretrain.sync import sync_run
from tests.conftest import REPOSITORY, run_module
from tests.pretrain import runs
from tests.pretrain.settings import SMOKE, tiny_overrides


def test_a_stop_file_asks_until_it_is_acknowledged(tmp_path: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        preemption, other_rank = Preemption(tmp_path / "STOP"), Preemption()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not preemption.requested
    (tmp_path / "STOP").touch()
    assert preemption.requested
    assert not other_rank.requested  # the loop's sum over ranks tells it
    preemption.acknowledge()
    assert not preemption.requested
    assert list(tmp_path.iterdir()) == []


def test_a_config_recorded_before_a_key_existed_is_the_same_run(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, REPOSITORY / "configs/pretrain/smoke.yaml", [f"output={tmp_path}"])
    fields = config.model_dump(mode="json")
    del fields["loss"]["hidden_units"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(fields))
    refuse_other_run(config)
    loss = config.loss.model_copy(update={"hidden_units": "teacher_variance"})
    with pytest.raises(UserError, match='"hidden_units": "teacher_variance"'):
        refuse_other_run(config.model_copy(update={"loss": loss}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**fields, "gone": 1}))
    with pytest.raises(UserError, match="holds a run with gone=1, this config says null"):
        refuse_other_run(config)


@pytest.mark.parametrize("text", ["", "[1", "- a", "steps: 3", "\0"])
def test_a_damaged_record_of_the_config_is_named(tmp_path: Path, text: str) -> None:
    config = load_config(PretrainConfig, REPOSITORY / "configs/pretrain/smoke.yaml", [f"output={tmp_path}"])
    (tmp_path / "config.yaml").write_text(text)
    for use in (lambda: refuse_other_run(config), lambda: sync_run(tmp_path, "sqlite:///unused.db")):
        with pytest.raises(
            UserError, match=r"(?s)config.yaml' (is not valid YAML|holds (nothing|list|no run's config)).*; restore it"
        ):
            use()


WSD = ("optimizer.schedule=warmup-stable-decay", "optimizer.decay_steps=2", "eval_every=0", "keep_checkpoints=9")


def forget_in_state(checkpoint: Path, key: str) -> None:
    state = read_json(checkpoint / "state.json", "state")
    del state[key]
    write_json_atomically(checkpoint / "state.json", state)
    files = ("model.safetensors", "optimizer.safetensors", "state.json")
    write_manifest(checkpoint, {name: sha256_file(checkpoint / name) for name in files})


def test_a_copy_of_a_stable_run_decays_early_and_ends_like_a_run_of_that_length(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = (*tiny_overrides(tiny_shards, tiny_teacher), *WSD)
    long = tmp_path / "long"
    runs.run_here(long, *settings, "steps=8", "milestone_every=5")
    assert [step_of(folder) for folder in list_checkpoints(long / "checkpoints")] == [3, 5, 6, 8]
    copied = runs.as_killed_after(3, long, tmp_path / "copied")
    forget_in_state(copied / "checkpoints" / "step-00000003", "evaluated_at")  # as before there was such a key
    ending = ("steps=6", "optimizer.decay_steps=3")
    runs.run_here(copied, *settings, *ending)
    runs.run_here(tmp_path / "short", *settings, *ending)
    found, expected = (load_file(folder / "final" / "model.safetensors") for folder in (copied, tmp_path / "short"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert load_config(PretrainConfig, copied / "config.yaml", []).steps == 6

    cut = runs.as_killed_after(3, long, tmp_path / "cut")
    lines = runs.run_here(cut, *settings, "steps=3", "optimizer.decay_steps=1")
    assert [line["step"] for line in lines if "eval/mlm_loss" in line] == [0, 3]
    record = read_json(cut / "final" / "training.json", "record")
    assert record["final_metrics"].items() <= lines[-1].items()  # of the weights that it ends with

    for steps in (9, 7):  # its decay began at 6; fewer steps than were taken
        with pytest.raises(UserError, match=f"taken 8 of steps=8, and with steps={steps} and"):
            refuse_other_run(load_config(PretrainConfig, long / "config.yaml", [f"steps={steps}"]))
    linear = ["steps=6", "optimizer.schedule=linear", "optimizer.decay_steps=null"]
    dump_config(load_config(PretrainConfig, copied / "config.yaml", linear), tmp_path / "linear" / "config.yaml")
    (tmp_path / "linear" / "checkpoints" / "step-00000004").mkdir(parents=True)
    config = load_config(PretrainConfig, tmp_path / "linear" / "config.yaml", [f"output={tmp_path}/linear"])
    refuse_other_run(config)
    with pytest.raises(UserError, match=r"steps=12 .*\(linear\) some of these updates would have other rows or"):
        refuse_other_run(config.model_copy(update={"steps": 12}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seed=7"], "holds a run with seed=42, this config says 7"),
        (["output=runs/none", "model.method=bibert", "optimizer.step_size_rate=2"], "this model trains no step sizes"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    settings = [*tiny_overrides(tiny_shards, tiny_teacher), f"output={tmp_path}/run"]
    dump_config(load_config(PretrainConfig, SMOKE, settings), tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match=message):
        describe_run(load_config(PretrainConfig, SMOKE, [*settings, *changes]))


def test_a_copied_folder_is_an_mlflow_run_of_its_own_and_a_moved_one_is_not(tmp_path: Path) -> None:
    def claim(name: str) -> dict[str, str]:
        """The run ids that the folder's run then goes on in."""
        claim_folder(load_config(PretrainConfig, REPOSITORY / "configs/pretrain/smoke.yaml", [f"output={name}"]))
        return read_json(Path(name) / "mlflow.json", "run ids")

    run, copied, moved = (str(tmp_path / name) for name in ("run", "copied", "moved"))
    ids = {"sqlite:///a.db": "1", "sqlite:///b.db": "2"}
    write_json_atomically(Path(run) / "mlflow.json", ids)
    assert claim(run) == claim(f"{tmp_path}/./run") == ids
    shutil.copytree(run, copied)
    write_json_atomically(Path(run) / "mlflow.json", ids | {"sqlite:///b.db": "3"})
    assert claim(copied) == {"sqlite:///b.db": "2"}
    assert claim(run) == ids | {"sqlite:///b.db": "3"}
    shutil.move(run, moved)
    assert claim(moved) == ids | {"sqlite:///b.db": "3"}


def check(config: str, *arguments: object) -> tuple[int, str, str]:
    result = run_module("bitbert.pretrain", config, "--check", *arguments)
    return result.returncode, result.stdout, result.stderr


def test_check_needs_no_shards_and_prints_the_config(tmp_path: Path) -> None:
    code, output, _ = check("configs/pretrain/smoke.yaml", f"output={tmp_path}/run", "data.train=not/there")
    assert code == 0
    printed = yaml.safe_load(output)
    assert (printed["output"], printed["data"]["train"]) == (f"{tmp_path}/run", "not/there")
    assert printed["keep_checkpoints"] == 2  # a default
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "3"], "not a multiple of micro_batch_size 4 x 3 ranks = 12"),
        (["stepps=3"], "stepps: unknown key; did you mean 'steps'?"),
        (["model.method=bipft"], "method 'bipft' is not known; did you mean 'bipft-"),
        (["seed=7"], "holds a run with seed=42, this config says 7"),
    ],
)
def test_check_refuses_what_would_fail_on_the_nodes(tmp_path: Path, arguments: list[str], message: str) -> None:
    config = load_config(PretrainConfig, REPOSITORY / "configs/pretrain/smoke.yaml", [f"output={tmp_path}/run"])
    dump_config(config, tmp_path / "run" / "config.yaml")
    code, _, error = check("configs/pretrain/smoke.yaml", f"output={tmp_path}/run", *arguments)
    assert code == 2
    assert message in error

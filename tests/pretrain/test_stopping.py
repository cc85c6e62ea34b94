"""Stopping by file, and the check of a config before its shards exist."""

import signal
from pathlib import Path

import pytest
import yaml

from bitbert.config import dump_config, load_config
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.preempt import Preemption
from tests.conftest import REPOSITORY, run_module


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
        (["seed=7"], "holds a run with seed=42, this config says 7"),
    ],
)
def test_check_refuses_what_would_fail_on_the_nodes(tmp_path: Path, arguments: list[str], message: str) -> None:
    config = load_config(PretrainConfig, REPOSITORY / "configs/pretrain/smoke.yaml", [f"output={tmp_path}/run"])
    dump_config(config, tmp_path / "run" / "config.yaml")
    code, _, error = check("configs/pretrain/smoke.yaml", f"output={tmp_path}/run", *arguments)
    assert code == 2
    assert message in error

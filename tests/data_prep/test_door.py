"""The command line: its forms, its messages, its exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitbert.config import dump_config, load_config
from bitbert.data_prep.config import DataConfig, TokenizerConfig

from .conftest import REPOSITORY, make_documents, write_jsonl


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitbert.data_prep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def config_file(tmp_path: Path, make_config: Callable[..., DataConfig]) -> Path:
    path = tmp_path / "build.yaml"
    dump_config(make_config(write_jsonl(tmp_path / "a.jsonl", make_documents(120))), path)
    return path


def test_the_forms_of_the_command(tmp_path: Path, config_file: Path) -> None:
    """CONFIG alone builds; tasks and finish build the same; verify finds a flipped bit."""
    whole = run(config_file, f"output={tmp_path / 'whole'}", "--workers", 1)
    assert whole.returncode == 0, whole.stderr
    assert f"shards are in {tmp_path / 'whole'}" in whole.stdout
    for index in (0, 1):
        task = run(config_file, f"output={tmp_path / 'tasks'}", "--task-index", index, "--num-tasks", 2)
        assert task.returncode == 0, task.stderr
    finished = run("finish", config_file, f"output={tmp_path / 'tasks'}")
    assert finished.returncode == 0, finished.stderr
    shards = [tmp_path / name / "train" / "shard-00000.arrow" for name in ("whole", "tasks")]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    good = run("verify", tmp_path / "whole")
    assert (good.returncode, good.stdout.count("good")) == (0, 2)
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(content)
    bad = run("verify", tmp_path / "whole")
    assert bad.returncode == 2
    assert f"shard {str(shards[0])!r} differs from the sha256 in its manifest; build the shards again" in bad.stderr
    assert bad.stderr.count("\n") == 1


def test_a_dry_run_says_what_would_be_read_and_leaves_nothing(config_file: Path) -> None:
    before = sorted(config_file.parent.iterdir())
    result = run(config_file, "--dry-run")
    assert result.returncode == 0, result.stderr
    source, tokenizer = result.stdout.splitlines()
    assert source == f"{config_file.parent / 'a.jsonl'}: 1 units, 0.1 MiB"
    assert tokenizer.startswith("tokenizer: wordpiece, ")
    assert sorted(config_file.parent.iterdir()) == before
    assert "no file there" in run(config_file, "--dry-run", "sources=[{path: nowhere}]").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-index", 1], "--task-index and --num-tasks go together"),
        (["--task-index", 2, "--num-tasks", 2], "--task-index 2, wanted 0 to 1; number the array from 0"),
        (["--task-index", 0, "--num-tasks", 2, "--replace"], "--replace belongs to `bitbert-data finish`"),
        (["sedd=3"], "sedd: unknown key; did you mean 'seed'?"),
        (["tokenizer=./nowhere"], "tokenizer './nowhere' does not exist"),
        (["language=English"], "language: got 'English'"),
    ],
)
def test_mistakes_are_one_line(config_file: Path, arguments: list[object], message: str) -> None:
    result = run(config_file, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_names_the_commands() -> None:
    text = run("--help").stdout
    assert all(name in text for name in ("build", "finish", "tokenizer", "verify"))


def test_the_door_starts_without_heavy_packages() -> None:
    heavy = ("torch", "transformers", "datasets", "ftfy", "rensa", "sentencex", "tokenizers")
    code = f"import sys, bitbert.data_prep.__main__; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs" / "data_prep").glob("*.yaml")), ids=lambda path: path.name
)
def test_configs_of_the_repository_load(path: Path) -> None:
    config_class = TokenizerConfig if path.name.startswith("tokenizer") else DataConfig
    assert load_config(config_class, path).output.startswith("runs/")


def test_clean_lengths_in_the_wrong_order_are_refused(config_file: Path) -> None:
    result = run(config_file, "clean={min_chars: 50, max_chars: 20}")
    assert result.returncode == 2
    assert "min_chars=50 is above max_chars=20; no document could pass" in result.stderr
    assert os.listdir(config_file.parent).count("shards") == 0

"""The whole path as a user walks it: real text, real vocabulary, real teacher, the five commands, the smoke configs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitbert.model.export import unpack_model
from bitbert.packed import load_packed
from tests.conftest import REPOSITORY, run_module


def run(module: str, *arguments: object) -> str:
    result = run_module(module, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_from_text_to_an_answer(data_folder: Path, tmp_path: Path) -> None:
    shards, trained, packed, task = (tmp_path / name for name in ("shards", "trained", "packed", "task"))
    run(
        "bitbert.data_prep",
        "configs/data_prep/smoke.yaml",
        f"output={shards}",
        f"sources=[{{path: {data_folder}/corpus/tiny.jsonl}}]",
    )
    run(
        "bitbert.pretrain",
        "configs/pretrain/smoke.yaml",
        f"data={{train: {shards}/train, heldout: {shards}/heldout}}",
        f"output={trained}",
        "steps=3",
        "eval_every=0",
    )
    exported = run("bitbert.pretrain.export", trained, packed)
    assert "largest difference to torch" in exported
    pairs = [f"--{flag}={shards}/pair_task/{name}.csv" for flag, name in (("train", "train"), ("eval", "eval"))]
    table = run("bitbert.finetune", packed, *pairs, "--output", task, "--config", "configs/finetune/smoke.yaml")
    assert "constant answer 50.00" in table

    texts = ("The city lies on a river.", "It is the capital of the region.")
    answer = run("bitbert.runtime", task / "seed-0" / "packed", *texts)
    model = load_packed(task / "seed-0" / "packed")
    input_ids, token_type_ids = model.tokenizer.encode_pair(*texts, max_length=64)
    with torch.no_grad():
        logits = (
            unpack_model(model)
            .eval()(torch.tensor([input_ids]), token_type_ids=torch.tensor([token_type_ids]))
            .logits[0]
            .numpy()
        )
    printed = [float(value) for value in answer.split("[")[1].rstrip("]\n").split(",")]
    np.testing.assert_allclose(printed, logits, atol=1.5e-4)  # 1e-4, and four printed decimals
    assert answer.split()[0] == ("different", "same")[int(logits.argmax())]

    size = (packed / "model.safetensors").stat().st_size
    assert size < 4.2 * 2**20  # the full-precision encoder has 86.6 MiB


def test_export_refuses_an_unfinished_run_and_an_existing_folder(tmp_path: Path) -> None:
    result = run_module("bitbert.pretrain.export", tmp_path, tmp_path / "out")
    assert result.returncode == 2
    assert "has no finished model" in result.stderr
    (tmp_path / "final").mkdir()
    result = run_module("bitbert.pretrain.export", tmp_path, tmp_path)
    assert result.returncode == 2
    assert "already exists" in result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "bitbert.data_prep",
        "bitbert.pretrain",
        "bitbert.pretrain.export",
        "bitbert.finetune",
        "bitbert.runtime",
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(module: str, tmp_path: Path) -> None:
    arguments = {
        "bitbert.finetune": ("no/such/model", "--task", "sst2", "--glue-dir", tmp_path),
        "bitbert.pretrain.export": (tmp_path / "no", tmp_path / "out"),
    }
    result = run_module(module, *arguments.get(module, (tmp_path / "no-such-thing", "x=1")))
    assert result.returncode == 2, result.stderr
    assert [line for line in result.stderr.splitlines() if line] == [result.stderr.strip()]
    assert result.stderr.startswith("error: ")
    assert sorted(tmp_path.iterdir()) == []


def test_repository_names_no_machine() -> None:
    """No path of one machine in any tracked text file."""
    for folder in ("bitbert", "data_prep", "pretrain", "finetune", "configs", "docs", "tests", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".json"):
                assert str(REPOSITORY.parent) + "/" not in path.read_text(encoding="utf-8"), path

"""A run's metrics in brief, and the release's record of them."""

import json

from benchmarks.metrics_digest import digest
from bitbert.released import FOLDER
from tests.conftest import REPOSITORY


def test_a_digest_has_each_hundredth_step_and_all_evaluations() -> None:
    lines = [
        {"step": 20, "loss/mlm": 9.0},
        {"step": 30, "time_s": 5.5, "eval/mlm_loss": 8.123456789},
        {"step": 100, "loss/mlm": None, "flip_ratio": 0.5, "flip_ratio/layer_00": 0.25, "learning_rate": 0.1},
    ]
    assert digest(lines) == [
        {"step": 30, "time_s": 5.5, "eval/mlm_loss": 8.123457},
        {"step": 100, "loss/mlm": None, "flip_ratio": 0.5, "learning_rate": 0.1},
    ]


def test_the_record_is_the_released_runs() -> None:
    """To its last evaluation, which the model card shows."""
    record = (REPOSITORY / "benchmarks/results/release-pretrain.jsonl").read_text(encoding="ascii").splitlines()
    last = json.loads(record[-1])
    card = (FOLDER / "bitbert-l6-h384" / "README.md").read_text(encoding="utf-8")
    assert f"for {last['step']:,} steps" in card
    assert f"mlm_loss {last['eval/mlm_loss']:.4f}; mlm_accuracy {last['eval/mlm_accuracy']:.4f}" in card

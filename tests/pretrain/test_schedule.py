"""The learning rate is a formula: its values at every border, and that no schedule leaves its bounds."""

import math

import pytest

from bitbert.config import check_config
from bitbert.errors import UserError
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.schedule import learning_rate

TEN_OF_HUNDRED = {"peak": 2.0, "warmup_steps": 10, "total_steps": 100}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup-stable-decay"])
@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (4, 1.0), (9, 2.0), (10, 2.0)])
def test_warm_up(schedule: str, step: int, rate: float) -> None:
    assert learning_rate(step, schedule=schedule, **TEN_OF_HUNDRED) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("schedule", "fields", "values"),
    [
        ("linear", {}, {11: 2 * 89 / 90, 55: 1.0, 99: 2 / 90}),
        ("linear", {"floor": 0.1}, {10: 2.0, 55: 0.2 + 1.8 * 0.5, 99: 0.2 + 1.8 / 90}),
        ("cosine", {}, {11: 1 + math.cos(math.pi / 90), 55: 1.0, 99: 1 + math.cos(math.pi * 89 / 90)}),
        ("cosine", {"floor": 0.1}, {10: 2.0, 55: 0.2 + 1.8 * 0.5, 99: 0.2 + 0.9 * (1 + math.cos(math.pi * 89 / 90))}),
        ("warmup-stable-decay", {"decay_steps": 20}, {50: 2.0, 80: 2.0, 81: 1.9, 90: 1.0, 99: 0.1}),
        ("warmup-stable-decay", {}, {89: 2.0, 90: 2.0, 91: 1.8, 99: 0.2}),
        ("warmup-stable-decay", {"decay_steps": 20, "floor": 0.5}, {80: 2.0, 90: 1.5, 99: 1.05}),
    ],
)
def test_decays(schedule: str, fields: dict, values: dict[int, float]) -> None:
    for step, rate in values.items():
        assert learning_rate(step, schedule=schedule, **TEN_OF_HUNDRED, **fields) == pytest.approx(rate), step


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup-stable-decay"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 7)])
def test_short_runs_stay_within_bounds(schedule: str, warmup: int, total: int) -> None:
    rates = [
        learning_rate(step, schedule=schedule, peak=3.0, warmup_steps=warmup, total_steps=total)
        for step in range(total)
    ]
    assert all(0 < rate <= 3.0 for rate in rates)
    assert max(rates) == 3.0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def config(**changes: object) -> PretrainConfig:
    base = {
        "output": "runs/x",
        "data": {"train": "a/train", "heldout": "a/heldout"},
        "tokenizer": "t",
        "teacher": "t",
        "optimizer": {"learning_rate": 1.0, "warmup_steps": 2},
    }
    return check_config(PretrainConfig, {**base, **changes}, origin="test")


def test_phases_share_one_schedule() -> None:
    phased = config(phases=[{"steps": 6}, {"steps": 4, "train": "b/train", "heldout": "b/heldout"}])
    assert phased.steps == 10
    single = config(steps=10)
    assert [phased.rate_at(step) for step in range(10)] == [single.rate_at(step) for step in range(10)]


def test_a_phase_with_its_own_peak_or_warm_up_begins_a_schedule() -> None:
    phased = config(phases=[{"steps": 4}, {"steps": 2}, {"steps": 5, "learning_rate": 0.5, "warmup_steps": 1}])
    rates = [phased.rate_at(step) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.5, 0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 9, "phases": [{"steps": 6}, {"steps": 4}]}, "steps 9 is not the sum of the phases' steps, 10"),
        ({"steps": 1}, "optimizer.warmup_steps 2 is above steps 1"),
        ({"phases": [{"steps": 6}, {"steps": 4, "warmup_steps": 5}]}, "optimizer.warmup_steps 5 is above steps 4"),
        ({"phases": [{"steps": 6, "micro_batch_size": 48}]}, "global_batch_size 512 is not a multiple of micro_batch"),
        ({"steps": 9, "zero_stage": 1, "optimizer": {"name": "lamb", "warmup_steps": 1}}, "zero_stage 1 .* LAMB"),
        ({"phases": [{"stesp": 6}]}, "phases.0.steps: missing"),
        ({"steps": 9, "optimizer": {"warmup_steps": 1, "decay_steps": 3}}, "belongs to schedule warmup-stable-decay"),
        (
            {"steps": 9, "optimizer": {"warmup_steps": 7, "decay_steps": 3, "schedule": "warmup-stable-decay"}},
            "warmup_steps 7 and decay_steps 3 are more than steps 9",
        ),
    ],
)
def test_mistakes(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)

"""Non-finite steps: what counts as one, how many are borne, and which data a rollback passes over."""

import json

import pytest

from bitbert.pretrain.config import NonFiniteSection
from bitbert.pretrain.guard import NonFiniteGuard


def guard(**fields: object) -> NonFiniteGuard:
    return NonFiniteGuard(NonFiniteSection(**fields))


@pytest.mark.parametrize(
    ("losses", "squares", "problem"),
    [
        ({"mlm": 1.0}, 4.0, None),
        ({"mlm": float("nan")}, 4.0, "loss term mlm is nan"),
        ({"mlm": 1.0, "nsp": float("inf")}, 4.0, "loss term nsp is inf"),
        ({"mlm": 1.0}, float("nan"), "the gradient norm is nan"),
        ({"mlm": 1.0}, float("inf"), "the gradient norm is inf"),
        ({"mlm": 1.0}, 1e39, "the gradient norm is 3.16"),  # finite here, infinite in float32
    ],
)
def test_what_is_not_finite(losses: dict[str, float], squares: float, problem: str | None) -> None:
    found = guard().examine(losses, squares)
    assert found is None if problem is None else found is not None and found.startswith(problem)


def test_patience_counts_steps_in_a_row() -> None:
    watched = guard(patience=2)
    for problem in ("nan", None, "nan"):
        watched.count(problem)
        assert not watched.exhausted
    watched.count("nan")
    assert watched.exhausted
    assert watched.skipped == 3
    refusal = str(watched.refusal(7, "loss is nan", "checkpoints"))
    assert refusal.startswith("step 7: loss is nan, 2 in a row, no update was made; lower optimizer.learning_rate")


def test_rollbacks_shift_the_data_and_are_limited() -> None:
    watched = guard(action="rollback", max_rollbacks=2)
    assert "made; there is no checkpoint to go back to" in str(watched.refusal(2, "loss is nan", "checkpoints"))
    assert [watched.data_step(step) for step in (0, 9, 10, 11)] == [0, 9, 10, 11]
    watched.roll_back(failed=14, target=10)  # batches 10 ... 13 were trained on or skipped
    assert [watched.data_step(step) for step in (9, 10, 11)] == [9, 14, 15]
    assert watched.may_roll_back
    watched.roll_back(failed=12, target=10)  # then 14 and 15
    assert [watched.data_step(step) for step in (9, 10, 11)] == [9, 16, 17]
    assert not watched.may_roll_back
    assert "rolled back 2 times already" in str(watched.refusal(12, "loss is nan", "checkpoints"))


def test_state_survives_json() -> None:
    watched = guard(action="rollback")
    watched.count("nan")
    watched.roll_back(failed=5, target=3)
    watched.count("nan")
    again = NonFiniteGuard(watched.config, **json.loads(json.dumps(watched.state())))
    assert again == watched


def test_stop_means_no_rollback() -> None:
    assert not guard().may_roll_back
    assert "non_finite.action=rollback" in str(guard().refusal(1, "loss is nan", "checkpoints"))

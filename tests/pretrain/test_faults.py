"""Whole runs under faults: killed, non-finite, without a rank, on a full disk. In forked children, one a rank."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitbert.tracking import read_metrics
from tests.pretrain import forked

ROLLBACK = ("steps=9", "non_finite.action=rollback", "non_finite.patience=2")


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    torch.set_num_threads(1)
    forked.warm_up()


Start = Callable[..., list[forked.Child]]


@pytest.fixture(scope="module")
def settings(tiny_shards: Path, tiny_teacher: Path) -> Callable[[Path], list[str]]:
    return lambda output: forked.tiny_settings(tiny_shards, tiny_teacher, output)


@pytest.fixture
def start(settings: Callable[[Path], list[str]], tmp_path: Path) -> Start:
    """start(output, *overrides, ranks=1, prepare=...): the children of a run."""

    def begin(
        output: Path, *overrides: str, ranks: int = 1, prepare: Callable[[int], object] = lambda rank: None
    ) -> list[forked.Child]:
        logs = tmp_path / f"logs-{random.random()}"
        logs.mkdir()
        everything = [*settings(output), *overrides]
        if ranks == 1:
            return [forked.start(everything, logs / "rank-0.log", prepare=lambda: prepare(0))]
        return forked.start_ranks(everything, logs, ranks, prepare=prepare)

    return begin


@pytest.fixture(scope="module")
def reference(settings: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    child = forked.start(settings(folder / "run"), folder / "log")
    assert child.wait() == 0, child.text()
    return folder / "run"


def finish(children: list[forked.Child]) -> str:
    """Wait until all end well; rank 0's log."""
    codes = [child.wait() for child in children]
    assert not any(codes), children[0].text()
    return children[0].text()


def assert_same(folder: Path, reference: Path) -> None:
    """Weights, moments and logged losses, bit for bit."""
    for name in ("final/model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        found, expected = load_file(folder / name), load_file(reference / name)
        assert set(found) == set(expected)
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), f"{name}: {key}"
    losses = [
        [
            (line["step"], key, value)
            for line in read_metrics(each / "metrics.jsonl")
            for key, value in line.items()
            if key.startswith(("loss/", "eval/", "gradient_norm"))
        ]
        for each in (folder, reference)
    ]
    assert losses[0] == losses[1]


def test_killed_at_random_moments_and_lines_the_run_ends_with_the_same_bits(
    start: Start, reference: Path, tmp_path: Path
) -> None:
    draw = random.Random(4)
    for _ in range(3):  # at a random time ...
        (child,) = start(tmp_path / "run")
        time.sleep(draw.uniform(0.1, 1.5))
        child.kill()
        child.wait()
    for line in draw.sample(range(20, 1500), 3):  # ... and before a random line of the code that saves
        (child,) = start(tmp_path / "run", prepare=lambda rank, line=line: forked.die_at_line(line))
        assert child.wait() in (0, -signal.SIGKILL), child.text()
    finish(start(tmp_path / "run"))
    assert_same(tmp_path / "run", reference)


def test_a_signal_while_the_run_is_set_up_is_not_lost(start: Start, tmp_path: Path) -> None:
    """The scheduler's code, though there is nothing to save yet."""

    def signalled(rank: int) -> None:
        from bitbert.pretrain import loop

        check = loop.check_run
        loop.check_run = lambda config: (os.kill(os.getpid(), signal.SIGTERM), check(config))[1]

    (child,) = start(tmp_path / "run", prepare=signalled)
    assert child.wait() == 75, child.text()
    assert "after step 0; start the same command again" in child.text()
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def plant_nan(at: set[int], *, rank: int = 0, gradient: bool = False, on_step: bool = False) -> Callable[[int], None]:
    """Make the loss, or only its gradient, NaN on one rank for global batches ``at`` (or steps, with ``on_step``)."""

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, upstream: torch.Tensor) -> torch.Tensor:
            return upstream * float("inf")

    def prepare(own_rank: int) -> None:
        from bitbert.pretrain.loop import Trainer

        whole = Trainer._forward_backward

        def spoiled(trainer: Trainer, *arguments: object) -> object:
            objective = trainer.objective
            number = trainer.step if on_step else trainer.guard.data_step(trainer.step)

            def bad(*inner: object) -> dict[str, torch.Tensor]:
                terms = objective(*inner)
                if own_rank == rank and number in at:
                    terms["mlm"] = Spoil.apply(terms["mlm"]) if gradient else terms["mlm"] * float("nan")
                return terms

            trainer.objective = bad
            try:
                return whole(trainer, *arguments)
            finally:
                trainer.objective = objective

        Trainer._forward_backward = spoiled

    return prepare


def test_a_non_finite_step_on_one_rank_is_skipped_on_all(start: Start, tmp_path: Path) -> None:
    """A NaN loss and an infinite gradient behind a finite loss come to the same; data and schedule move on."""
    loss = finish(start(tmp_path / "loss", ranks=2, prepare=plant_nan({2, 4}, rank=1)))
    assert "step 3/6  loss term mlm is nan; update skipped on all ranks, 1 in a row" in loss
    gradient = finish(start(tmp_path / "gradient", ranks=2, prepare=plant_nan({2, 4}, rank=1, gradient=True)))
    assert "step 5/6  the gradient norm is nan; update skipped on all ranks, 1 in a row" in gradient
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("loss", "gradient")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    moments = load_file(tmp_path / "loss" / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    assert {tensor.item() for name, tensor in moments.items() if name.startswith("step|")} == {4.0}
    state = json.loads((tmp_path / "loss" / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["non_finite"] == {"in_a_row": 0, "skipped": 2, "passed_over": []}


def test_what_was_skipped_survives_a_kill(start: Start, tmp_path: Path) -> None:
    """Two bad steps before a checkpoint and one after it are three in a row, also with a restart between them."""
    (child,) = start(tmp_path / "run", prepare=plant_nan({1, 2, 3}))
    assert child.wait() == 2
    assert "step 4: loss term mlm is nan, 3 in a row, no update was made" in child.text()
    assert (
        json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").read_text())["non_finite"][
            "in_a_row"
        ]
        == 2
    )
    (child,) = start(tmp_path / "run", prepare=plant_nan({3}))
    assert child.wait() == 2
    assert "resumed from step-00000003" in child.text()
    assert "step 4: loss term mlm is nan, 3 in a row" in child.text()


def test_rollback_passes_over_the_batches_since_the_checkpoint(start: Start, tmp_path: Path) -> None:
    """And a kill right after it changes nothing: the checkpoint has been written again with what is passed over."""
    spoil = plant_nan({4, 5})
    text = finish(start(tmp_path / "run", *ROLLBACK, prepare=spoil))
    assert "rolled back to step 3, past the 3 batches since then" in text
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000009" / "state.json").read_text())
    assert state["non_finite"] == {"in_a_row": 0, "skipped": 2, "passed_over": [[3, 3]]}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss/mlm" in line] == [*range(1, 10)]

    def spoil_and_die(rank: int) -> None:
        from bitbert.pretrain.keeper import CheckpointKeeper

        spoil(rank)
        roll_back = CheckpointKeeper.roll_back
        CheckpointKeeper.roll_back = lambda *given: (roll_back(*given), os.kill(os.getpid(), signal.SIGKILL))

    (child,) = start(tmp_path / "killed", *ROLLBACK, prepare=spoil_and_die)
    assert child.wait() == -signal.SIGKILL
    assert "rolled back" not in finish(start(tmp_path / "killed", *ROLLBACK, prepare=spoil))
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("run", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_rollbacks_end(start: Start, tmp_path: Path) -> None:
    """Weights that are bad whatever the data: the run stops after max_rollbacks."""
    (child,) = start(tmp_path / "run", *ROLLBACK, "non_finite.max_rollbacks=1", prepare=plant_nan({4, 5}, on_step=True))
    assert child.wait() == 2
    assert child.text().count("rolled back to step 3") == 1
    assert "rolled back 1 times already; lower optimizer.learning_rate in a new run" in child.text()


@pytest.mark.parametrize(("victim", "how"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_rank_ends_the_other(start: Start, tmp_path: Path, victim: int, how: int) -> None:
    """Dead or only silent: one line, and a code that asks for no requeue."""
    children = start(tmp_path / "run", "steps=100000", "rank_timeout_s=20", ranks=2)
    wait_for(children[0], "step 2/")
    children[victim].kill(how)
    begun = time.monotonic()
    other = children[1 - victim]
    assert other.wait(60) == 69, other.text()
    assert time.monotonic() - begun < 30
    (line,) = [line for line in other.text().splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {1 - victim}: another rank is lost (")
    assert line.endswith("start the same command again to go on from the newest checkpoint")
    assert "Traceback" not in other.text()
    children[victim].kill()
    children[victim].wait()


def wait_for(child: forked.Child, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in child.text():
        assert time.monotonic() < deadline, child.text()
        time.sleep(0.02)


def test_replicas_that_differ_are_named_before_they_are_saved(start: Start, tmp_path: Path) -> None:
    def flip_a_bit(rank: int) -> None:
        from bitbert.pretrain.loop import Trainer

        check = Trainer._check_replicas

        def flipped(trainer: Trainer) -> None:
            if rank == 1 and trainer.step == 4:
                trainer.student.bitbert.layers[0].output.weight.data.view(torch.int32)[0, 0] ^= 1
            check(trainer)

        Trainer._check_replicas = flipped

    children = start(tmp_path / "run", "check_replicas_every=2", ranks=2, prepare=flip_a_bit)
    assert [child.wait() for child in children] == [2, 2], children[0].text()
    for child in children:
        assert "error: step 4: the parameters of rank 1 differ from those of the other ranks" in child.text()
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))] == ["step-00000003"]


def fill_disk(questions: range) -> Callable[[int], None]:
    """The disk has one byte free at these of the questions for its space; the first is asked at the start."""

    def prepare(rank: int) -> None:
        ask, asked = shutil.disk_usage, iter(range(10**9))
        shutil.disk_usage = lambda path: ask(path)._replace(free=1) if next(asked) in questions else ask(path)

    return prepare


def test_a_disk_full_for_a_while_costs_checkpoints_but_no_training(
    start: Start, reference: Path, tmp_path: Path
) -> None:
    text = finish(start(tmp_path / "run", "checkpoint_every=1", prepare=fill_disk(range(2, 4))))
    assert text.count("the older checkpoints are intact and training goes on") == 2
    assert_same(tmp_path / "run", reference)


def test_a_disk_that_stays_full_stops_the_run_with_numbers(start: Start, reference: Path, tmp_path: Path) -> None:
    (child,) = start(tmp_path / "run", "checkpoint_every=1", prepare=fill_disk(range(2, 99)))
    assert child.wait() == 2
    assert child.text().splitlines()[-1].startswith("error: the checkpoint of step 4 needs 1.")
    assert "MiB free; free some space; the older checkpoints are intact, start the same command again" in child.text()
    assert "resumed from step-00000001" in finish(start(tmp_path / "run"))
    assert_same(tmp_path / "run", reference)


def test_asked_to_stop_on_a_full_disk_the_run_says_what_it_lost(start: Start, tmp_path: Path) -> None:
    """No code that says all is well; and the request is spent, so that the next start trains."""

    def stopped(rank: int) -> None:
        from bitbert.pretrain.loop import Trainer

        fill_disk(range(1, 99))(rank)
        log_step = Trainer._log_step
        stop = tmp_path / "run" / "STOP"
        Trainer._log_step = lambda trainer, *given: (log_step(trainer, *given), trainer.step == 4 and stop.touch())

    (child,) = start(tmp_path / "run", "checkpoint_every=0", prepare=stopped)
    assert child.wait() == 2, child.text()
    assert child.text().splitlines()[-1].startswith("error: the checkpoint of step 4 needs 1.")
    assert "stopped as asked" not in child.text()
    assert not (tmp_path / "run" / "STOP").exists()


def test_no_room_for_a_checkpoint_is_said_before_training(start: Start, tmp_path: Path) -> None:
    (child,) = start(tmp_path / "run", prepare=fill_disk(range(99)))
    assert child.wait() == 2
    assert child.text().startswith("error: the next checkpoint needs ")
    assert "step 1/" not in child.text()

"""Gradual binarization: bits by step, step sizes at the switch, resume on both sides of it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bitbert.config import load_config
from bitbert.errors import UserError
from bitbert.model import BitBertForPreTraining
from bitbert.model.linear import Binarizer
from bitbert.pretrain import loop
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.preempt import PreemptedError
from bitbert.pretrain.run import check_run
from tests.pretrain.runs import as_killed_after, run_here
from tests.pretrain.settings import SMOKE, tiny_overrides


@pytest.fixture(scope="module")
def overrides(tiny_shards: Path, tiny_teacher: Path) -> list[str]:
    """Four bits for an update, two bits for two, then one bit for three."""
    return [
        *tiny_overrides(tiny_shards, tiny_teacher),
        "curriculum=[{activation_bits: 4, until: 1}, {activation_bits: 2, until: 3}]",
        "checkpoint_every=1",
        "keep_checkpoints=9",
        "eval_every=0",
    ]


@pytest.fixture(scope="module")
def whole_run(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curriculum") / "run"
    run_here(folder, *overrides)
    return folder


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def test_bits_by_step(overrides: list[str], tmp_path: Path) -> None:
    run = check_run(load_config(PretrainConfig, SMOKE, [*overrides, f"output={tmp_path}"]))
    assert [run.curriculum.bits(step) for step in range(6)] == [4, 2, 2, 1, 1, 1]


def test_every_forward_pass_has_its_bits(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers compute with, and that only the switches change step sizes between two updates."""
    bits, before, after = [], [], []
    update = loop.Engine.update
    forward = loop.Engine.__call__

    def alphas(engine: loop.Engine) -> list[float]:
        return [module.alpha.item() for module in engine.model.modules() if isinstance(module, Binarizer)]

    def spy_forward(engine: loop.Engine, **inputs: object) -> object:
        bits.append({module.bits for module in engine.model.modules() if isinstance(module, Binarizer)})
        before.append(alphas(engine))
        return forward(engine, **inputs)

    def spy_update(engine: loop.Engine, learning_rate: float) -> None:
        update(engine, learning_rate)
        after.append(alphas(engine))

    monkeypatch.setattr(loop.Engine, "__call__", spy_forward)
    monkeypatch.setattr(loop.Engine, "update", spy_update)
    run_here(tmp_path / "run", *overrides, "micro_batch_size=8", notes=(bits, before, after))
    assert bits == [{4}, {2}, {2}, {1}, {1}, {1}]
    model = BitBertForPreTraining.from_pretrained(tmp_path / "run" / "final")
    kinds = [module.kind for module in model.modules() if isinstance(module, Binarizer)]
    ratios = {1: {"signed": 7**0.5, "unsigned": 5**0.5}, 3: {"signed": 1.0, "unsigned": 3**0.5}}
    for step in range(1, 6):
        for kind, old, new in zip(kinds, after[step - 1], before[step], strict=True):
            assert new / old == pytest.approx(ratios.get(step, {}).get(kind, 1.0), rel=1e-5), (step, kind)
    assert model.config.activation_bits == 1


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_resume_before_at_and_after_a_switch(
    overrides: list[str], whole_run: Path, tmp_path: Path, killed_after: int
) -> None:
    folder = as_killed_after(killed_after, whole_run, tmp_path / "killed")
    run_here(folder, *overrides)
    expected = final(whole_run)
    for name, tensor in final(folder).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_signal_right_before_a_switch(
    overrides: list[str], whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the signal has the step sizes of the ended stage; the switch happens once, after the resume."""
    update, updates = loop.Engine.update, []

    def signalled(engine: loop.Engine, learning_rate: float) -> None:
        update(engine, learning_rate)
        updates.append(learning_rate)
        if len(updates) == 6:  # two micro-batches an update: the third, after which activations go to 1 bit
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Engine, "update", signalled)
    with pytest.raises(PreemptedError, match="after step 3"):
        run_here(tmp_path / "run", *overrides, "checkpoint_every=0")
    monkeypatch.undo()
    run_here(tmp_path / "run", *overrides, "checkpoint_every=0")
    for name, tensor in final(tmp_path / "run").items():
        assert torch.equal(tensor, final(whole_run)[name]), name


def test_zero_stages_take_part_in_the_switch(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO's optimizer updates copies of its own, which must get the new step sizes too.

    Step sizes are compared, not losses: keys' biases have gradients of rounding noise, which Adam makes updates of.
    """
    switched: list[torch.Tensor] = []
    change = loop.Engine.change_step_sizes

    def spy(engine: loop.Engine, with_what: Any) -> None:
        change(engine, with_what)
        with engine.whole_weights():
            alphas = [each.detach().clone() for name, each in engine.model.named_parameters() if name.endswith("alpha")]
        switched.append(torch.cat(alphas))

    monkeypatch.setattr(loop.Engine, "change_step_sizes", spy)
    changes = [*overrides, "curriculum=[{activation_bits: 2, until: 2}]", "steps=3", "checkpoint_every=0"]
    found = {}
    for stage in (0, 2, 3):
        run_here(tmp_path / str(stage), *changes, f"zero_stage={stage}", notes=(switched,))
        found[stage] = (switched[-1], final(tmp_path / str(stage)))
    for stage in (2, 3):
        assert torch.allclose(found[stage][0], found[0][0], rtol=1e-5), stage
        for name, alpha in found[0][1].items():
            if name.endswith("alpha"):  # a copy left as it was would put the old step size back with the next update
                assert torch.allclose(found[stage][1][name], alpha, atol=4e-3), (stage, name)


def test_a_curriculum_ends_elsewhere_than_one_bit_alone(overrides: list[str], whole_run: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "plain", *overrides, "curriculum=[]")
    name = "bitbert.layers.0.intermediate.weight"
    assert not torch.equal(final(tmp_path / "plain")[name], final(whole_run)[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["curriculum=[{activation_bits: 2, until: 6}]"], "curriculum stages end at 6 of 6 steps"),
        (["curriculum=[{activation_bits: 4, until: 3}, {activation_bits: 2, until: 3}]"], "end at 3, 3 of 6 steps"),
        (["curriculum=[{activation_bits: 3, until: 2}]"], "curriculum.0.activation_bits"),
        (["curriculum=[{activation_bits: 2, until: 2}]", "model.fields={activation_bits: 2}"], "goes over 2, 2 bits"),
        (["curriculum=[{activation_bits: 2, until: 2}]", "model.method=bibert"], "plain signs"),
    ],
)
def test_mistakes(overrides: list[str], tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_run(load_config(PretrainConfig, SMOKE, [*overrides, f"output={tmp_path}", *changes]))

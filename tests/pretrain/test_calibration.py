"""The step sizes that a run begins with: saved exactly, and trusted only where their hash is right."""

from pathlib import Path

import pytest
import torch

from bitbert.pretrain.student import load_step_sizes, save_step_sizes
from tests.conftest import tiny_model

VOCAB_SIZE = 60


def test_step_sizes_survive_exactly(tmp_path: Path) -> None:
    model, other = (tiny_model("bipft-b", vocab_size=VOCAB_SIZE, seed=seed) for seed in (0, 1))
    assert not load_step_sizes(other, tmp_path)
    save_step_sizes(model, tmp_path)
    assert load_step_sizes(other, tmp_path)
    expected = dict(model.named_parameters())
    found = [(name, each) for name, each in other.named_parameters() if name.endswith(".alpha")]
    assert found
    assert all(torch.equal(each, expected[name]) for name, each in found)


@pytest.mark.parametrize(
    ("place", "message"),
    [(-5, "step_sizes.json differs from its sha256"), (None, "step_sizes.json has 10 bytes where")],
)
def test_damaged_step_sizes_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int | None, message: str
) -> None:
    """One flipped bit of a digit still makes valid JSON; a file cut short does not."""
    model = tiny_model("bipft-b", vocab_size=VOCAB_SIZE)
    save_step_sizes(model, tmp_path)
    path = tmp_path / "calibration" / "step_sizes.json"
    data = bytearray(path.read_bytes())
    if place is None:
        del data[10:]
    else:
        data[place] ^= 1
    path.write_bytes(data)
    before = {name: each.clone() for name, each in model.named_parameters()}
    assert not load_step_sizes(model, tmp_path)
    assert f"calibration: {message}" in capsys.readouterr().err
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    save_step_sizes(model, tmp_path)
    assert load_step_sizes(model, tmp_path)

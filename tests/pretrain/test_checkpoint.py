"""Training checkpoints: whole, hashed, named when damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bitbert.errors import UserError
from bitbert.pretrain.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_model_weights,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
)


class Tied(nn.Module):
    """Two names for one weight, as the decoder and the word table have, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.decoder.weight = self.table.weight
        self.register_buffer("flag", torch.zeros(1, dtype=torch.bool))


def trained(seed: int, steps: int = 2) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        model.decoder(model.table(torch.arange(5))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.flag.fill_(True)
    return model, optimizer


def saved(root: Path, *steps: int, keep: int = 9) -> tuple[Tied, torch.optim.AdamW]:
    model, optimizer = trained(0)
    for step in steps:
        save_checkpoint(root, model, optimizer, {"step": step}, keep=keep)
    return model, optimizer


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 2)
    other, other_optimizer = trained(1, steps=0)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 2
    load_checkpoint(checkpoint, other, other_optimizer)
    for each, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        each.decoder(each.table(torch.arange(5))).square().sum().backward()
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.decoder.weight is other.table.weight


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 10, keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]


def cut(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "optimizer.safetensors differs from its sha256"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "does not exist"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json differs from its sha256"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert message in capsys.readouterr().err
    damage(tmp_path / "step-00000001")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        newest_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None


def test_unfinished_saves_are_invisible_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp-123").mkdir()
    assert len(list_checkpoints(tmp_path)) == 1
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_failed_save_leaves_the_old_ones(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 1)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, model, optimizer, {"step": 2, "unserializable": object()}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(UserError, match="holds another model"):
        load_model_weights(tmp_path / "step-00000001" / "model.safetensors", nn.Linear(2, 2))


def test_state_names_its_format(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    state = json.loads((tmp_path / "step-00000001" / "state.json").read_text(encoding="utf-8"))
    assert (state["format"], state["format_version"]) == ("bitbert-training", 1)

"""Training checkpoints: whole, hashed, named when damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitbert.distributed import Topology
from bitbert.errors import UserError
from bitbert.pretrain.checkpoint import (
    is_clean,
    load_model_weights,
    newest_checkpoint,
    remove_unfinished,
    restore_moments,
    restore_weights,
    save_checkpoint,
)
from bitbert.pretrain.run_folder import list_checkpoints
from bitbert.pretrain.zero import TrainingTensors

ALONE = Topology(0, 1, 0, "127.0.0.1", 0)


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


def saved(
    root: Path, *steps: int, keep: int = 9, milestone_every: int = 0, **state: object
) -> tuple[Tied, torch.optim.AdamW]:
    model, optimizer = trained(0)
    for step in steps:
        tensors = TrainingTensors(model, optimizer, ALONE)
        save_checkpoint(root, tensors, {"step": step, **state}, keep=keep, milestone_every=milestone_every)
    return model, optimizer


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 2)
    other, other_optimizer = trained(1, steps=0)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 2
    tensors = TrainingTensors(other, other_optimizer, ALONE)
    restore_weights(checkpoint, tensors)
    restore_moments(checkpoint, tensors)
    save_checkpoint(tmp_path / "again", tensors, {"step": 2}, keep=1)
    for file in ("model.safetensors", "optimizer.safetensors"):
        written = [(root / "step-00000002" / file).read_bytes() for root in (tmp_path, tmp_path / "again")]
        assert written[0] == written[1], file
    for each, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        each.decoder(each.table(torch.arange(5))).square().sum().backward()
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.decoder.weight is other.table.weight
    assert other.flag.item()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 10, keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert (tmp_path / "latest").read_text(encoding="utf-8") == "step-00000010\n"


def test_a_copy_under_another_name_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001-kept")
    saved(tmp_path, 2, keep=1, milestone_every=5)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert (tmp_path / "step-00000001-kept" / "state.json").is_file()


def test_milestones_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, 6, keep=1, milestone_every=2)
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["2", "4", "6"]


def test_the_newest_to_roll_back_to_is_kept(tmp_path: Path) -> None:
    """However many saves end in skipped updates."""
    saved(tmp_path, 1, 2, non_finite={"in_a_row": 0})
    saved(tmp_path, 3, 4, 5, non_finite={"in_a_row": 9}, keep=1)
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["2", "5"]
    checkpoint = newest_checkpoint(tmp_path, is_clean)
    assert checkpoint is not None
    assert checkpoint.step == 2
    saved(tmp_path, 6, non_finite={"in_a_row": 0}, keep=1)
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["6"]


def test_a_damaged_checkpoint_never_displaces_a_good_one(tmp_path: Path) -> None:
    """The run fell back from a damaged step 9 to step 6; when it saves step 7, that is the newest."""
    saved(tmp_path, 6, 9)
    cut(tmp_path / "step-00000009")
    saved(tmp_path, 7, keep=1)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000007"]


def test_files_are_safetensors_with_aligned_tensors(tmp_path: Path) -> None:
    model, _ = saved(tmp_path, 1)
    path = tmp_path / "step-00000001" / "model.safetensors"
    loaded = load_file(path)
    assert set(loaded) == {"table.weight", "decoder.bias", "flag"}
    assert torch.equal(loaded["table.weight"], model.table.weight)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    offsets = {name: entry["data_offsets"][0] for name, entry in json.loads(path.read_bytes()[8 : 8 + header]).items()}
    assert header % 8 == 0
    assert offsets["table.weight"] % 4 == offsets["decoder.bias"] % 4 == 0


def cut(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "bytes where manifest.json says"),
        (flip, "model.safetensors differs from its sha256"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not a mapping"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json does not name model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "does not exist"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json has 2 bytes where"),
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


def test_a_deleted_checkpoint_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "step-00000002")
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "checkpoint step-00000002, the latest, is missing" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(UserError, match="none of the 0 checkpoints"):
        newest_checkpoint(tmp_path)


def test_a_format_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbert.pretrain.checkpoint.FORMAT_VERSION", 1)
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 1, wanted 2"):
        newest_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None


def test_unfinished_saves_are_invisible_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp-123").mkdir()
    (tmp_path / ".step-00000000.gone-123").mkdir()
    assert len(list_checkpoints(tmp_path)) == 1
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_checkpoint_moved_aside_and_not_replaced_comes_back(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.old-123")
    remove_unfinished(tmp_path)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_failed_save_leaves_the_old_ones(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 1)
    with pytest.raises(TypeError):
        save_checkpoint(
            tmp_path, TrainingTensors(model, optimizer, ALONE), {"step": 2, "unserializable": object()}, keep=1
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(UserError, match="holds another model"):
        load_model_weights(tmp_path / "step-00000001" / "model.safetensors", nn.Linear(2, 2))


def test_moments_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"has .exp_avg_sq\|decoder.bias. of shape \[5\], the model has no such tensor"):
        restore_moments(
            newest_checkpoint(tmp_path), TrainingTensors(model, torch.optim.AdamW(model.parameters()), ALONE)
        )


def test_state_names_its_format(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    state = json.loads((tmp_path / "step-00000001" / "state.json").read_text(encoding="utf-8"))
    assert (state["format"], state["format_version"]) == ("bitbert-training", 2)

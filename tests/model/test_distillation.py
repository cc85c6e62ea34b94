"""Distillation losses: what is averaged, and that padding counts only where the mask says so."""

import pytest
import torch

from bitbert.model.distillation import (
    attention_scores,
    direction_matching,
    direction_mismatch,
    hidden_state_mse,
    similarity,
    soft_cross_entropy,
    teacher_layers,
)

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def test_soft_cross_entropy_averages_over_classes_and_rows() -> None:
    logits, target = torch.randn(3, 4), torch.randn(3, 4)
    expected = -(target.softmax(1) * logits.log_softmax(1)).sum() / 12
    assert soft_cross_entropy(logits, target).item() == pytest.approx(expected.item())
    hot = soft_cross_entropy(logits, target, temperature=4.0).item()
    assert hot == pytest.approx(16 * soft_cross_entropy(logits / 4, target / 4).item())


def test_directions_ignore_lengths() -> None:
    x = torch.randn(2, 5, 6)
    assert direction_mismatch(3 * x, x).item() == pytest.approx(0, abs=1e-6)
    assert direction_mismatch(-x, x).item() == pytest.approx(2)


def test_similarity_is_a_head() -> None:
    x = torch.randn(2, 5, 6)
    found = similarity(x, 3)
    assert found.shape == (2, 3, 5, 5)
    head = x[1, :, 2:4]
    assert torch.allclose(found[1, 1], head @ head.T / 2**0.5)
    other = torch.randn(2, 5, 6)
    assert torch.allclose(attention_scores(x, other, 3)[0, 2], x[0, :, 4:] @ other[0, :, 4:].T / 2**0.5)


@pytest.mark.parametrize("loss", [hidden_state_mse, direction_matching])
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 5, 5)])
def test_padding_does_not_count(loss, shape: tuple[int, ...]) -> None:
    ours, theirs = torch.randn(shape), torch.randn(shape)
    changed = ours.clone()
    changed[0, ..., 3:, :] = 50.0
    if len(shape) == 4:
        changed[0, ..., 3:] = 50.0
    assert loss([changed], [theirs], MASK).item() == pytest.approx(loss([ours], [theirs], MASK).item(), rel=1e-5)
    assert loss([changed], [theirs]).item() != pytest.approx(loss([ours], [theirs]).item(), rel=1e-4)
    everything = torch.ones_like(MASK)
    assert loss([ours], [theirs], everything).item() == pytest.approx(loss([ours], [theirs]).item(), rel=1e-5)


def test_masked_scores_are_no_direction() -> None:
    ours, theirs = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    ours[..., 3] = theirs[..., 3] = -10_000.0
    assert direction_matching([ours], [theirs]).item() > 0.1


def test_shallower_students_follow_every_other_layer() -> None:
    assert teacher_layers(3, 6) == ([1, 3, 5], [0, 2, 4, 6])
    assert teacher_layers(2, 2) == ([0, 1], [0, 1, 2])

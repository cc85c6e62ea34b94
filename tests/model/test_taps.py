"""Taps see what the projections give, with gradients, and leave no hook behind."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from bitbert.errors import UserError
from bitbert.model.taps import ProjectionTap
from tests.conftest import TINY_SHAPE, tiny_model

IDS = torch.randint(5, 59, (2, 7), generator=torch.Generator().manual_seed(0))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_student_projections_are_recorded_before_binarization_and_carry_gradients() -> None:
    model = tiny_model("bitbert", vocab_size=60)
    tap = ProjectionTap(model)
    with tap:
        output = model(IDS, output_hidden_states=True)
    first, second = tap.take()
    attention = model.bitbert.layers[1].attention
    for name in ("query", "key", "value"):
        expected = getattr(attention, name)(output.hidden_states[1])
        assert torch.equal(getattr(second, name), expected)
        assert getattr(first, name).shape == (2, 7, 32)
        assert getattr(second, name).unique().numel() > 2, "real values, not signs"
    second.value.square().sum().backward()
    assert attention.value.weight.grad.abs().sum() > 0
    assert attention.query.weight.grad is None, "the loss is of the value projection alone"
    assert model.bitbert.layers[0].attention.query.weight.grad.abs().sum() > 0, "lower layers learn from it"


def test_teacher_projections() -> None:
    torch.manual_seed(0)
    teacher = BertForPreTraining(BertConfig(vocab_size=60, **TINY_SHAPE)).eval()
    tap = ProjectionTap(teacher, layers=[-1])
    with torch.no_grad(), tap:
        hidden = teacher(IDS, output_hidden_states=True).hidden_states
    (last,) = tap.take()
    attention = teacher.bert.encoder.layer[1].attention.self
    for name in ("query", "key", "value"):
        assert torch.equal(getattr(last, name), getattr(attention, name)(hidden[1]))
        assert not getattr(last, name).requires_grad


def test_nothing_is_recorded_outside_of_the_block() -> None:
    model = tiny_model("bipft-b", vocab_size=60)
    before = hooks(model)
    tap = ProjectionTap(model, layers=[0])
    with tap:
        model(IDS)
        assert hooks(model) == before + 3
    kept = tap.take()[0].query
    assert hooks(model) == before
    model(IDS + 1)
    with pytest.raises(KeyError):
        tap.take()
    assert kept.shape == (2, 7, 32)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(UserError, match=f"layer {layer} does not exist: the model has 2 layers; use -2 to 1"):
        ProjectionTap(tiny_model("bipft-b", vocab_size=60), layers=[layer])


def test_a_model_without_attention() -> None:
    with pytest.raises(UserError, match="Linear has no self-attention"):
        ProjectionTap(torch.nn.Linear(2, 2))

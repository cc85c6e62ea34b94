"""LAMB against its formula, and which parameters decay and adapt."""

import pytest
import torch

from bitbert.errors import UserError
from bitbert.presets import PRESETS
from bitbert.pretrain.config import OptimizerSection
from bitbert.pretrain.lamb import Lamb
from bitbert.pretrain.optim import build_optimizer, set_learning_rate
from tests.conftest import tiny_model


def lamb_by_hand(weight: torch.Tensor, gradients: list[torch.Tensor], *, adapt: bool, decay: float) -> torch.Tensor:
    """Algorithm 2 of arXiv 1904.00962 in float64, beta 0.9 and 0.99, eps 1e-6, rate 0.1."""
    weight = weight.double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for number, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.99 * square + 0.01 * gradient.double() ** 2
        update = (mean / (1 - 0.9**number)) / ((square / (1 - 0.99**number)).sqrt() + 1e-6) + decay * weight
        ratio = weight.norm() / update.norm() if adapt and weight.norm() > 0 and update.norm() > 0 else 1.0
        weight = weight - 0.1 * ratio * update
    return weight


@pytest.mark.parametrize(("adapt", "decay"), [(True, 0.01), (True, 0.0), (False, 0.0)])
def test_lamb_is_its_formula(adapt: bool, decay: float) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4) * 5, [torch.randn(3, 4) for _ in range(4)]
    parameter = torch.nn.Parameter(start.clone())
    options = {"weight_decay": decay, "adapt": adapt}
    optimizer = Lamb([{"params": [parameter], **options}], lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = lamb_by_hand(start, gradients, adapt=adapt, decay=decay)
    assert torch.allclose(parameter.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_tensor_of_zeros_moves_and_one_without_gradient_does_not() -> None:
    zeros, idle = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([zeros, idle], lr=0.1, weight_decay=0.0)
    zeros.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.allclose(zeros, torch.full((2, 2), -0.1), rtol=1e-4)
    assert torch.equal(idle, torch.ones(2, 2))
    assert idle not in optimizer.state


def test_a_restored_state_goes_on_with_the_same_bits() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(4, 4) for _ in range(3)]
    whole, first = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    one, two = Lamb([whole], lr=0.1), Lamb([first], lr=0.1)
    for number, gradient in enumerate(gradients):
        whole.grad = gradient.clone()
        one.step()
        if number < 2:
            first.grad = gradient.clone()
            two.step()
    resumed = torch.nn.Parameter(first.detach().clone())
    three = Lamb([resumed], lr=0.1)
    three.state[resumed].update({name: value.clone() for name, value in two.state[first].items()})
    resumed.grad = gradients[2].clone()
    three.step()
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("method", sorted(PRESETS))
def test_groups(name: str, method: str) -> None:
    """Matrices and tables decay; step sizes, shifts, norms and biases neither decay nor adapt; frozen ones stay out."""
    model = tiny_model(method, vocab_size=60)
    optimizer = build_optimizer(model, OptimizerSection(name=name, weight_decay=0.5))
    names = {id(parameter): key for key, parameter in model.named_parameters() if parameter.requires_grad}
    matrices, others = ([names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups)
    assert sorted(matrices + others) == sorted(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert all(key.endswith("weight") and "LayerNorm" not in key and "_norm" not in key for key in matrices)
    assert not [key for key in others if key.endswith("weight") and "LayerNorm" not in key and "_norm." not in key]
    assert any(key.endswith(".bias") for key in others)
    for kind, learned in ((".alpha", model.config.step_sizes == "learned"), (".shift", model.config.input_shift)):
        assert any(key.endswith(kind) for key in others) == learned, kind
    assert any(key.endswith("split_weight") for key in matrices) == model.config.split_weights
    if name == "lamb":
        assert [group["adapt"] for group in optimizer.param_groups] == [True, False]


@pytest.mark.parametrize(("option", "what"), [("word_table_rate", "word table"), ("step_size_rate", "step sizes")])
def test_a_rate_for_what_is_not_there_is_refused(option: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"{option} is 0\.5, but this model trains no {what}; leave it out"):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerSection(**{option: 0.5}))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_word_table_and_step_sizes_move_at_their_share_of_the_rate(name: str) -> None:
    model = tiny_model("bipft-b", vocab_size=60)
    section = OptimizerSection(name=name, weight_decay=0.5, word_table_rate=0.25, step_size_rate=0.125)
    optimizer = build_optimizer(model, section)
    set_learning_rate(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8, 0.2, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0, 0.5, 0.0]
    (table,), steps = (group["params"] for group in optimizer.param_groups[2:])
    assert table is model.get_input_embeddings().weight
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    assert {names[id(step)] for step in steps} == {key for key in names.values() if key.endswith(".alpha")}
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in members}) == len(members) == len(list(model.parameters()))
    if name == "lamb":
        assert [group["adapt"] for group in optimizer.param_groups] == [True, False, True, False]

"""Binarizers against the published formulas, written out once more in plain arithmetic."""

import math

import pytest
import torch

from bitbert.model.binarize import (
    MIN_STEP,
    binarize_embedding_rows,
    binarize_signed,
    binarize_unsigned,
    binarize_weight,
    sign,
    step_size,
    weight_statistics,
)
from bitbert.model.layers import gelu
from bitbert.model.linear import Binarizer, BinaryEmbedding, BinaryLinear

torch.manual_seed(0)


def test_sign_of_zero_is_plus_one() -> None:
    assert sign(torch.tensor([0.0, -0.0, 1e-30, -1e-30])).tolist() == [1, 1, 1, -1]
    codes = binarize_signed(torch.zeros(3), torch.ones(1))
    assert codes.tolist() == [1, 1, 1]
    signs, _ = binarize_weight(torch.full((2, 2), 0.3), "tensor")  # every entry equals the mean
    assert signs.unique().tolist() == [1]


def test_signed_gradients() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 0.7, 3.0], requires_grad=True)
    alpha = torch.tensor([0.7], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    step = step_size(alpha, x.numel())
    (binarize_signed(x, step) * step).backward(upstream)
    inside = (x.detach().abs() <= 0.7).float()
    assert torch.allclose(x.grad, upstream * inside)
    assert alpha.grad.item() == pytest.approx(float((upstream * sign(x.detach())).sum()) / math.sqrt(6))


def test_unsigned_gradients() -> None:
    x = torch.tensor([-0.1, 0.0, 0.2, 0.25, 0.3, 0.5, 0.9], requires_grad=True)
    alpha = torch.tensor([0.5], requires_grad=True)
    upstream = torch.arange(1.0, 8.0)
    step = step_size(alpha, x.numel())
    codes = binarize_unsigned(x, step)
    assert codes.tolist() == [0, 0, 0, 0, 1, 1, 1]  # 0.25 = alpha / 2 rounds half to even: 0
    (codes * step).backward(upstream)
    ratio = x.detach() / 0.5
    window = ((ratio >= 0) & (ratio <= 1)).float()
    assert torch.allclose(x.grad, upstream * window)
    t = torch.where(ratio < 0, 0.0, torch.where(ratio > 1, 1.0, ratio.round() - ratio))
    assert alpha.grad.item() == pytest.approx(float((upstream * t).sum()) / math.sqrt(7), rel=1e-5)


def test_step_is_clamped_and_its_gradient_is_not_gated() -> None:
    alpha = torch.tensor([-1.0], requires_grad=True)
    step = step_size(alpha, 4)
    assert step.item() == pytest.approx(MIN_STEP)
    step.backward(torch.tensor([3.0]))
    assert alpha.grad.item() == 1.5


@pytest.mark.parametrize(("weight_scale", "dims"), [("tensor", None), ("channel", 1)])
def test_weight_values_and_identity_gradient(weight_scale: str, dims: int | None) -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    signs, scale = binarize_weight(weight, weight_scale)
    binary = signs * scale[:, None]
    magnitude = weight.detach().abs()
    expected_scale = magnitude.mean() if dims is None else magnitude.mean(dim=1, keepdim=True)
    assert torch.allclose(binary, expected_scale * torch.where(weight >= weight.mean(), 1.0, -1.0))
    upstream = torch.randn(5, 7)
    binary.backward(upstream)
    assert torch.allclose(weight.grad, upstream, atol=1e-6)


def test_zero_weights_give_no_nan() -> None:
    linear = BinaryLinear(4, 3, kind="signed", weight_scale="channel")
    with torch.no_grad():
        linear.weight.zero_()
    linear(torch.randn(2, 4)).sum().backward()
    assert torch.isfinite(linear.weight.grad).all()
    assert weight_statistics(linear.weight, "tensor")[1].item() > 0


def test_embedding_rows() -> None:
    table = BinaryEmbedding(6, 4)
    rows = table(torch.tensor([[1, 5]]))
    weight = table.weight.detach()
    expected = weight[[1, 5]].abs().mean(dim=1, keepdim=True) * torch.where(weight[[1, 5]] >= weight.mean(), 1.0, -1.0)
    assert torch.allclose(rows[0], expected)
    rows.sum().backward()
    assert table.weight.grad[[1, 5]].unique().tolist() == [1.0]
    assert table.weight.grad[[0, 2, 3, 4]].abs().sum() == 0
    assert binarize_embedding_rows(torch.zeros(1, 2), torch.zeros(())).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("kind", "factor"), [("signed", 2), ("unsigned", 4)])
def test_calibration_sets_the_published_initial_step(kind: str, factor: int) -> None:
    binarizer, x = Binarizer(kind), torch.rand(3, 5)
    assert not binarizer.calibrated
    binarizer.calibrating = True
    binarizer(x)
    assert binarizer.calibrated
    assert binarizer.alpha.item() == pytest.approx(factor * x.mean().item())


def test_linear_equals_its_formula() -> None:
    linear = BinaryLinear(70, 9, kind="signed", weight_scale="tensor")
    with torch.no_grad():
        for parameter in (linear.weight, linear.bias, linear.shift):
            parameter.normal_()
        linear.input_binarizer.alpha.fill_(0.3)
    x = torch.randn(4, 70)
    binary_x = 0.3 * torch.where(x + linear.shift >= 0, 1.0, -1.0)
    binary_w = linear.weight.abs().mean() * torch.where(linear.weight >= linear.weight.mean(), 1.0, -1.0)
    assert torch.allclose(linear(x), binary_x @ binary_w.T + linear.bias, atol=1e-4)


def test_gelu_is_gelu_and_keeps_the_sign_of_its_tail() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    y = gelu(x)
    reference = torch.nn.functional.gelu(x.detach().double())
    assert torch.allclose(y.double(), reference, atol=1e-6)
    assert (y[x < 0] < 0).all()
    assert (torch.nn.functional.gelu(x.detach())[x < 0] == 0).any()  # what the usual form loses
    y.sum().backward()
    expected = torch.autograd.functional.jacobian(
        lambda value: torch.nn.functional.gelu(value).sum(), x.detach().double()
    )
    assert torch.allclose(x.grad.double(), expected, atol=1e-6)

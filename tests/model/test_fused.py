"""The native training kernels against the torch code that they stand for."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitbert.errors import UserError
from bitbert.model import BitBertConfig, BitBertForPreTraining
from bitbert.model import kernels as kernels_module
from bitbert.model.attention import BinarySelfAttention
from bitbert.model.dropout import Dropout, draw, drop_limit
from bitbert.model.fused import weighted_squares
from bitbert.model.kernels import SWITCH, Codes, Scores, load_kernels, why_no_kernels
from bitbert.model.layers import ACTIVATIONS, gelu
from bitbert.model.linear import Binarizer, BinarizerStatistics, BinaryLinear
from bitbert.model.methods import CodedLinear
from bitbert.presets import preset_fields

Results = dict[str, Tensor]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Choose who computes: ``use("torch")`` or ``use("native")``, which is torch too where there are no kernels."""

    def choose(name: str) -> None:
        monkeypatch.setenv(SWITCH, name)
        load_kernels.cache_clear()

    yield choose
    load_kernels.cache_clear()


def run(module: nn.Module, x: Tensor, *arguments: Any, autocast: torch.dtype | None = None) -> Results:
    """Output and all gradients for a fixed upstream gradient, with fixed random numbers."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_(True)
    module.zero_grad()
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        output = module(x, *arguments)
    output = output[0] if isinstance(output, tuple) else output
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float32))
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "x": x.grad, **gradients}


def assert_close(found: Results, expected: Results, *, relative: float, absolute: float = 1e-7) -> None:
    """Each tensor within ``relative`` of the largest value of the expected one, and ``absolute``."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        limit = relative * tensor.abs().max().item() + absolute
        assert (found[name].float() - tensor.float()).abs().max().item() <= limit, name


def make_linear(in_features: int, out_features: int, kind: str, weight_scale: str) -> BinaryLinear:
    torch.manual_seed(0)
    linear = BinaryLinear(in_features, out_features, kind=kind, weight_scale=weight_scale)
    nn.init.normal_(linear.weight, std=0.05)
    nn.init.normal_(linear.bias)
    nn.init.normal_(linear.shift, std=0.1)
    linear.input_binarizer.alpha.data.fill_(0.8)
    return linear


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("weight_scale", ["tensor", "channel"])
@pytest.mark.parametrize("shape", [(4, 9, 48), (1, 1, 17), (2, 700, 130)])
def test_binary_linear(use: Any, kind: str, weight_scale: str, shape: tuple[int, ...]) -> None:
    linear = make_linear(shape[-1], 37, kind, weight_scale)
    x = torch.randn(shape)
    use("torch")
    expected = run(linear, x)
    use("native")
    found = run(linear, x)
    assert torch.equal(found["output"], expected["output"])  # integer products, scaled alike
    assert_close(found, expected, relative=2e-6)


@pytest.mark.parametrize("weight_scale", ["tensor", "channel"])
@pytest.mark.parametrize("weights", ["mean_centered", "row_centered", "uncentered", "ternary"])
@pytest.mark.parametrize(
    ("kind", "bits", "steps"), [("signed", 2, "learned"), ("unsigned", 4, "learned"), ("signed", 1, "one")]
)
def test_layers_of_other_methods(use: Any, weights: str, weight_scale: str, kind: str, bits: int, steps: str) -> None:
    linear = make_linear(130, 37, kind, weight_scale)
    if weights != "mean_centered":
        state = linear.state_dict()
        linear = CodedLinear(linear, weights, split=False)
        linear.load_state_dict(state)
    linear.input_binarizer.bits, linear.input_binarizer.steps = bits, steps
    linear.input_binarizer.alpha.data.fill_(1.0 if steps == "one" else 0.3)
    # Ratios that lie halfway between codes among them.
    x = torch.cat([torch.randn(1400, 130), torch.arange(-130.0, 130).view(2, 130) * 0.15])
    linear.shift.data[::2] = 0
    use("torch")
    expected = run(linear, x)
    use("native")
    found = run(linear, x)
    assert torch.equal(found["output"], expected["output"])
    assert_close(found, expected, relative=5e-6)


@pytest.mark.parametrize("width", [64, 384, 512])
def test_half_precision_keeps_every_forward_bit(use: Any, width: int) -> None:
    linear, x = make_linear(384, width, "signed", "tensor"), torch.randn(8, 16, 384)
    use("native")
    full, half = run(linear, x), run(linear, x, autocast=torch.bfloat16)
    if load_kernels() is not None:
        assert torch.equal(full["output"], half["output"])
    assert_close(half, full, relative=0.02)


def make_attention(dropout: float, step: float, **fields: Any) -> BinarySelfAttention:
    """Three heads of 8, and the given step size of what is attended."""
    torch.manual_seed(0)
    config = BitBertConfig(
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=48,
        num_hidden_layers=1,
        attention_probs_dropout_prob=dropout,
        **(preset_fields("bipft-b") | fields),
    )
    attention = BinarySelfAttention(config)
    for name, parameter in attention.named_parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
        if name.endswith("alpha"):
            parameter.data.fill_(0.9 if "probability" not in name else step)
    return attention


@pytest.mark.parametrize("positions", [1, 13, 40])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(
    ("weigh", "bits", "estimators"),
    [
        *(("softmax", bits, estimators) for bits in (1, 2, 4) for estimators in ("none", "shared", "per_head")),
        ("bi", 1, "none"),
        ("bi_strict", 1, "none"),
    ],
)
def test_attention(use: Any, positions: int, dropout: float, weigh: str, bits: int, estimators: str) -> None:
    method = {"residual_rank": 0} if estimators == "none" else {"residual_rank": 2, "residual_estimators": estimators}
    step = 2.2 / positions / (2**bits - 1) if weigh == "softmax" else 1.0
    attention = make_attention(dropout, step, attention=weigh, **method)
    if bits > 1:
        for module in attention.modules():
            if isinstance(module, Binarizer):
                module.bits = bits
    bias = torch.zeros(3, 1, 1, positions)
    bias[1, ..., positions // 2 + 1 :] = torch.finfo(torch.float32).min
    x = torch.randn(3, positions, 24)
    use("torch")
    expected = run(attention, x, bias)
    use("native")
    found = run(attention, x, bias)
    if weigh == "softmax":  # one number more at all keys changes nothing: gradients of what adds it cancel, to rounding
        for name in [name for name in expected if "key" in name and name.endswith((".bias", ".shift"))]:
            terms = expected[name.rpartition(".")[0] + ".weight"].abs().max().item()
            parts = ({name: results.pop(name)} for results in (found, expected))
            assert_close(*parts, relative=2e-5, absolute=1e-6 * terms + 1e-7)
    assert_close(found, expected, relative=2e-5)


def test_a_type_without_kernels_leaves_products_in_float32(use: Any) -> None:
    linear, x = make_linear(384, 64, "signed", "tensor"), torch.randn(8, 16, 384)
    attention, hidden = make_attention(0.0, 0.1), torch.randn(3, 20, 24)
    use("native")
    for module, inputs in ((linear, (x,)), (attention, (hidden, None))):
        relative = 0 if load_kernels() is not None else 0.02
        assert_close(run(module, *inputs, autocast=torch.float16), run(module, *inputs), relative=relative, absolute=0)


def test_neither_the_default_type_nor_strides_matter(use: Any) -> None:
    linear, attention = make_linear(64, 32, "unsigned", "channel"), make_attention(0.0, 0.1)
    inputs = ((linear, (torch.randn(2, 16, 64),)), (attention, (torch.randn(3, 20, 24), None)))
    use("native")
    expected = [run(module, *arguments) for module, arguments in inputs]
    linear.weight.data = linear.weight.data.t().contiguous().t()
    torch.set_default_dtype(torch.float64)
    try:
        found = [run(module, *arguments) for module, arguments in inputs]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, relative=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_attention_in_half_precision_keeps_integers_exact(use: Any, bits: int) -> None:
    """bfloat16 where every sum of codes fits into it, float32 where 300 positions do not, nor 60 of 15 x 8."""
    attention, x = make_attention(0.0, 0.001, residual_rank=0), torch.randn(3, 300 if bits == 1 else 60, 24)
    for module in attention.modules():
        if isinstance(module, Binarizer):
            module.bits = bits
    use("native")
    if load_kernels() is not None:
        assert torch.equal(
            run(attention, x, None)["output"], run(attention, x, None, autocast=torch.bfloat16)["output"]
        )


def test_masked_keys_have_no_probability_at_all(use: Any) -> None:
    """Not a subnormal one either: products with subnormal numbers take ten times as long."""
    use("native")
    scores, bias = torch.randn(1, 2, 20, 20), torch.zeros(1, 1, 1, 20)
    bias[..., 12:] = torch.finfo(torch.float32).min
    kernels = load_kernels()
    if kernels is None:
        probabilities = torch.softmax(scores + bias, dim=-1)
    else:
        numbers = {"factor": 1.0, "inverse_root": 1.0, "step": 0.1, "limit": 0, "codes": Codes.of("unsigned", 1)}
        _, probabilities, _ = kernels.attend(Scores(scores, residual=None, bias=bias, random=None, **numbers))
    assert torch.allclose(probabilities, torch.softmax(scores + bias, dim=-1), atol=1e-6)
    assert (probabilities[..., 12:] == 0).all()


def test_statistics_do_not_change_the_step(use: Any) -> None:
    """What is watched is what is computed, and watching decides nothing."""
    linear, x = make_linear(32, 8, "signed", "tensor"), torch.randn(4, 32)
    results = []
    for name in ("torch", "native"):
        use(name)
        linear.input_binarizer.monitor = None
        unwatched = run(linear, x)
        linear.input_binarizer.monitor = BinarizerStatistics()
        assert_close(run(linear, x), unwatched, relative=0)
        results.append(linear.input_binarizer.monitor.saturation)
    assert results[0] == results[1]
    assert 0 < results[0] < 1


def test_gelu(use: Any) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 30.0, -30.0])])
    use("torch")
    expected = run(nn.Identity(), x) | {"x": _gelu_gradient(x), "output": gelu(x)}
    use("native")
    assert_close({"x": _gelu_gradient(x), "output": gelu(x)}, expected, relative=1e-7)
    # The sign of the tail decides bits: it must not round to zero.
    assert (gelu(x)[(x < 0) & (x > -12)] < 0).all()
    tail = x[(x < -2) & (x > -5)]
    assert torch.allclose(gelu(tail).double(), tail.double() * torch.special.ndtr(tail.double()), rtol=1e-5, atol=0)


def _gelu_gradient(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    gelu(x).sum().backward()
    assert x.grad is not None
    return x.grad


def test_dropout_drops_the_same_with_and_without_kernels(use: Any) -> None:
    dropout, x = Dropout(0.3), torch.randn(5, 33, 7)
    use("torch")
    expected = run(dropout, x)
    use("native")
    found = run(dropout, x)
    assert_close(found, expected, relative=1e-6)
    assert torch.equal(found["output"] == 0, expected["output"] == 0)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_probability() -> None:
    torch.manual_seed(0)
    for probability in (0.1, 0.5, 0.999999):
        assert -(2**15) <= drop_limit(probability) < 2**15  # beyond it nothing would be dropped by the kernels
        dropped = (draw(torch.Size((1000, 999)), torch.device("cpu")) < drop_limit(probability)).float().mean().item()
        assert dropped == pytest.approx(probability, abs=0.002)


def test_any_number_of_threads_gives_the_same_bits(use: Any) -> None:
    use("native")
    linear, x = make_linear(96, 80, "unsigned", "channel"), torch.randn(3, 900, 96)
    threads = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            # torch's own products may round differently with more threads; what the kernels sum must not.
            kernels = load_kernels()
            if kernels is None:
                return
            unsigned = linear.input_binarizer.codes
            codes, window = kernels.binarize(x, linear.shift.data, 0.8, unsigned, torch.int8)
            fixed: dict[str, Any] = {"x": x, "shift": linear.shift.data, "step": 0.8, "factor": 1.0}
            dx, dshift, dstep = kernels.binarize_backward(x, window, unsigned, **fixed)
            _, dbias = kernels.upstream(x.view(-1, 96), torch.ones(1), torch.bfloat16)
            results.append((codes, window, dx, dshift, dstep, dbias))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_a_step_of_the_whole_model(use: Any) -> None:
    """Loss and gradients of one step, dropout included, agree but for bits on the rounding of exp and erfc."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    model = BitBertForPreTraining(BitBertConfig(vocab_size=50, **preset_fields("bipft-b"), **shape)).train()
    ids = torch.randint(5, 50, (4, 12))
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    losses, gradients = [], []
    for name in ("torch", "native"):
        use(name)
        torch.manual_seed(7)
        model.zero_grad()
        output = model(ids, attention_mask=mask, labels=ids, next_sentence_label=torch.tensor([0, 1, 0, 1]))
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_an_unknown_switch_is_refused(use: Any) -> None:
    use("fast")
    with pytest.raises(UserError, match="BITBERT_TRAINING_KERNELS is 'fast', wanted 'native' or 'torch'"):
        load_kernels()


def test_why_there_are_no_kernels(use: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use("torch")
    assert load_kernels() is None
    assert why_no_kernels() == "BITBERT_TRAINING_KERNELS=torch"
    use("native")
    monkeypatch.setattr(kernels_module, "LIBRARY", tmp_path / "absent.so")
    assert why_no_kernels() == "they were not built"


def test_a_library_that_does_not_load_is_refused(use: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use("native")
    (tmp_path / "broken.so").write_bytes(b"not a library")
    monkeypatch.setattr(kernels_module, "LIBRARY", tmp_path / "broken.so")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_kernels()


@pytest.mark.parametrize("shape", [(32, 64, 32), (288, 128, 544), (96, 3072, 96)])
@pytest.mark.parametrize("num_scales", ["tensor", "channel"])
def test_products_on_tiles_are_those_of_torch(shape: tuple[int, int, int], num_scales: str) -> None:
    kernels = load_kernels()
    if kernels is None:
        return
    rows, depth, width = shape
    codes, signs = torch.randint(-1, 2, (rows, depth)), torch.randint(0, 2, (width, depth)) * 2 - 1
    scale, bias = torch.rand(1 if num_scales == "tensor" else width), torch.randn(width)
    found = kernels.product(codes.to(torch.int8), signs.to(torch.int8), scale, bias)
    assert torch.equal(found, (codes @ signs.T).float() * scale + bias)


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 9, 48), (3, 700, 130)])
def test_weighted_squares(use: Any, shape: tuple[int, ...]) -> None:
    weights, b = torch.rand(*shape[:-1], 1), torch.randn(shape)
    results = []
    for name in ("torch", "native"):
        use(name)
        a = torch.ones(shape).requires_grad_(True)
        total = weighted_squares(a, b, weights)
        (3 * total).backward()
        assert a.grad is not None
        results.append({"total": total.detach(), "a": a.grad})
    assert_close(results[1], results[0], relative=1e-6)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activation_before_a_binary_linear(use: Any, activation: str, kind: str, bits: int) -> None:
    """The feed-forward block's second layer takes what comes before its activation, where the kernels run."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = make_linear(130, 37, kind, "tensor")
            self.output.input_binarizer.bits = bits

        def forward(self, x: Tensor) -> Tensor:
            if self.output.takes_activation(x):
                return self.output(x, after=activation)
            return self.output(ACTIVATIONS[activation](x))

    block, x = Block(), torch.randn(2, 700, 130)
    x[:, ::7] = 0
    use("torch")
    expected = run(block, x)
    use("native")
    assert block.output.takes_activation(x) == (load_kernels() is not None)
    found = run(block, x)
    assert_close(found, expected, relative=1e-5)
    block.output.input_binarizer.monitor = BinarizerStatistics()
    assert not block.output.takes_activation(x)


@pytest.mark.parametrize("shape", [(32, 16), (96, 80), (288, 1040), (5, 16), (32, 3)])
def test_transpose(shape: tuple[int, int]) -> None:
    kernels, x = load_kernels(), torch.randn(shape).bfloat16()
    if kernels is not None:
        found = kernels.transpose(x)
        assert torch.equal(found, x.T)
        assert found.is_contiguous()

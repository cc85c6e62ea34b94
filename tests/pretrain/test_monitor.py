"""What a person watches, against direct computations on a tiny model; speed against its formula."""

import time

import pytest
import torch

from bitbert.accounting import multiply_accumulates, shape_of
from bitbert.model.kernels import SWITCH, load_kernels
from bitbert.model.linear import Binarizer, BinaryLinear
from bitbert.presets import PRESETS
from bitbert.pretrain.config import LossSection
from bitbert.pretrain.monitor import BinaryMonitor, _count_ones, _pack
from bitbert.pretrain.throughput import Throughput, batch_operations
from tests.conftest import tiny_model

IDS = torch.randint(5, 59, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_packed_bits_count_as_many_ones(size: int) -> None:
    bits = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.4
    assert int(_count_ones(_pack(bits))) == int(bits.sum())
    assert len(_pack(bits)) == -(-size // 8)
    assert _pack(torch.tensor([False, True, True])).tolist() == [6]


def test_flip_ratio_by_layer() -> None:
    """Flip a known number of weights of one matrix of layer 1; nothing else moves."""
    model = tiny_model("bitbert", vocab_size=60)
    monitor = BinaryMonitor(model)
    monitor.watch(True)
    model(IDS)
    weight = model.bitbert.layers[1].intermediate.weight
    center = weight.mean()
    with torch.no_grad():
        above = (weight > center).flatten().nonzero().flatten()[:5]
        below = (weight < center).flatten().nonzero().flatten()[:5]
        flat = weight.view(-1)
        flat[above], flat[below] = 2 * center - flat[above], 2 * center - flat[below]
        flat[above] += center - weight.mean()  # the mean stays where it was, to rounding
    flipped = int(((weight >= weight.mean()).flatten()[torch.cat([above, below])] == (torch.arange(10) >= 5)).sum())
    metrics = monitor.metrics()
    layer = 4 * 32 * 32 + 2 * 32 * 64
    assert flipped == 10
    assert metrics["flip_ratio/layer_00"] == 0
    assert metrics["flip_ratio/pooler"] == 0
    assert metrics["flip_ratio/layer_01"] == pytest.approx(10 / layer, abs=2 / layer)
    assert metrics["flip_ratio"] == pytest.approx(metrics["flip_ratio/layer_01"] * layer / (2 * layer + 32 * 32))


@pytest.mark.parametrize("method", sorted(PRESETS))
def test_every_method_can_be_watched(method: str) -> None:
    """Negating all latent weights flips almost every sign, whatever a sign is relative to; ternary: most."""
    model = tiny_model(method, vocab_size=60)
    monitor = BinaryMonitor(model)
    monitor.watch(True)
    model(IDS)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BinaryLinear):
                module.weight.neg_()
    metrics = monitor.metrics()
    assert metrics["flip_ratio"] > (0.3 if method == "ternarybert" else 0.99)
    assert 0 < metrics["attention_ones"] <= 1  # with 8 bits all may be above 0


def test_attention_saturation_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "torch")  # the kernels leave out the binarizers that the hooks below look into
    load_kernels.cache_clear()
    model = tiny_model("bitbert", vocab_size=60)
    shares = []
    for module in model.bitbert.layers[0].modules():
        if isinstance(module, Binarizer):
            module.register_forward_pre_hook(
                lambda each, inputs: shares.append((inputs[0].abs() > each.alpha).float().mean().item())
            )
    monitor = BinaryMonitor(model)
    monitor.watch(True)
    torch.manual_seed(0)
    attentions = model(IDS, output_attentions=True).attentions
    metrics = monitor.metrics()
    for layer, attention in enumerate(attentions):
        assert metrics[f"attention_ones/layer_{layer:02d}"] == pytest.approx((attention > 0).float().mean().item())
    assert metrics["attention_ones"] == pytest.approx(
        (metrics["attention_ones/layer_00"] + metrics["attention_ones/layer_01"]) / 2
    )
    assert len(shares) == 10  # the inputs of six matrices; queries, keys, values and probabilities
    assert metrics["saturation/layer_00"] == pytest.approx(sum(shares) / 10)
    assert 0 < metrics["saturation"] < 1
    alpha = model.bitbert.layers[0].intermediate.input_binarizer.alpha
    assert metrics["binarizer_step/layer_00/intermediate.input"] == pytest.approx(alpha.item())
    assert metrics["binarizer_step/layer_01/attention.probability"] > 0
    assert metrics["binarizer_step/pooler/dense.input"] > 0
    assert len([name for name in metrics if name.startswith("binarizer_step/")]) == 2 * 10 + 1

    monkeypatch.setenv(SWITCH, "native")
    load_kernels.cache_clear()
    monitor.watch(True)
    torch.manual_seed(0)
    model(IDS)
    assert monitor.metrics() == pytest.approx(metrics, abs=1e-3)


def test_nothing_is_watched_between_logging_steps() -> None:
    model = tiny_model("bipft-b", vocab_size=60)
    monitor = BinaryMonitor(model)
    monitor.watch(True)
    model(IDS)
    monitor.metrics()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.monitor is None for module in model.modules() if isinstance(module, Binarizer))


def test_operations_of_a_batch_are_the_accounting_s() -> None:
    """One row of 9 tokens without padding: three times the student's forward pass and once the teacher's."""
    model = tiny_model("bipft-b", vocab_size=60)
    shape = shape_of(model.config)
    count = multiply_accumulates(shape, 9)
    encoder, head = 2 * (count["layer_weights"] + count["attention"]), 2 * 2 * (32 * 32 + 32 * 60)
    row, padded = torch.ones(1, 9), torch.nn.functional.pad(torch.ones(1, 9), (0, 5))
    for mask in (row, padded):
        assert batch_operations(shape, mask, 2, LossSection()) == 3 * (encoder + head) + encoder
        assert batch_operations(shape, mask, 2, LossSection(mlm_distillation=1)) == 4 * (encoder + head)


def test_throughput_leaves_out_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    throughput = Throughput(shape_of(tiny_model("bipft-b", vocab_size=60).config), LossSection(), peak_tflops=1e-12)
    throughput.resume()
    throughput.pause()  # 2 s of training, 8 s of evaluation
    throughput.pause()
    throughput.resume()
    throughput.tokens, throughput.operations = 100.0, 50.0
    assert throughput.report() == {"tokens_per_s": 100 / 5, "mfu": 50 / 5}
    assert throughput.tokens == throughput.seconds == 0

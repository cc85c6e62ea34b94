"""Training with products in bfloat16: the same decisions, rounded gradients."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitbert.distributed import Topology
from bitbert.model.precision import products_in
from bitbert.pretrain.config import LossSection
from bitbert.pretrain.data import BatchMaker
from bitbert.pretrain.evaluate import evaluate
from bitbert.pretrain.teacher import load_teacher
from bitbert.shards import ShardReader
from bitbert.tokenizer import Tokenizer
from bitbert.tracking import read_metrics
from tests.pretrain import forked
from tests.pretrain.test_objective import example

SHORT = ("steps=3", "checkpoint_every=0", "eval_every=0", "tracking.log_every=1")


def test_bf16_trains_like_fp32(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    forked.warm_up()
    runs = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / precision
        settings = [*forked.tiny_settings(tiny_shards, tiny_teacher, output), *SHORT, f"precision={precision}"]
        child = forked.start(settings, tmp_path / f"{precision}.log")
        assert child.wait(240) == 0, child.text()
        lines = read_metrics(output / "metrics.jsonl")
        runs[precision] = [line for line in lines if "loss/total" in line]
    assert len(runs["bf16"]) == 3
    for found, expected in zip(runs["bf16"], runs["fp32"], strict=True):
        for name in ("loss/mlm", "loss/hidden", "loss/total"):
            assert found[name] == pytest.approx(expected[name], rel=0.05)  # a rounded gradient flips other bits
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.2)
    assert runs["bf16"][-1]["loss/total"] != runs["fp32"][-1]["loss/total"]


def test_a_teacher_in_bf16_answers_in_float32(tiny_teacher: Path, tiny_tokenizer: Tokenizer) -> None:
    loss, (_, _, batch) = LossSection(mlm_distillation=1), example()
    full, half = (load_teacher(str(tiny_teacher), loss, tiny_tokenizer, name)(batch) for name in ("fp32", "bf16"))
    for ours, theirs in zip(half.hidden_states, full.hidden_states, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=0.1)
    assert half.mlm_logits is not None
    assert full.mlm_logits is not None
    assert half.mlm_logits.dtype == torch.float32
    assert 0 < (half.mlm_logits - full.mlm_logits).abs().max() < 0.1


def test_products_in() -> None:
    x = torch.randn(3, 4)
    with products_in("bf16", x.device):
        assert (x @ x.T).dtype == torch.bfloat16
    with products_in("fp32", x.device):
        assert (x @ x.T).dtype == torch.float32


def test_heldout_losses_are_summed_in_float32(tiny_shards: Path) -> None:
    """Uniform logits, whose loss is the logarithm of the number of classes whatever their type."""

    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, masked_positions: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(
                prediction_logits=torch.zeros(len(masked_positions), 200, dtype=torch.bfloat16),
                seq_relationship_logits=torch.zeros(len(input_ids), 2, dtype=torch.bfloat16),
                hidden_states=(torch.ones(*input_ids.shape, 4),),
            )

    engine = SimpleNamespace(
        topology=Topology(0, 1, 0, "127.0.0.1", 0), device=torch.device("cpu"), sum_over_ranks=torch.stack
    )
    batches = BatchMaker(ShardReader(tiny_shards / "heldout"), mask_probability=0.15, seed=42)
    states = SimpleNamespace(hidden_states=[torch.ones(1)])

    def measure() -> dict[str, float]:
        return evaluate(engine, Uniform(), lambda batch: states, batches, num_rows=24, batch_size=8)

    metrics = measure()
    assert metrics["eval/mlm_loss"].item() == pytest.approx(torch.tensor(200.0).log().item(), rel=1e-6)
    assert metrics["eval/nsp_loss"].item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    batches.reader.manifest["nsp"] = False  # no labels: nothing to score
    assert set(metrics) - set(measure()) == {"eval/nsp_loss", "eval/nsp_accuracy"}

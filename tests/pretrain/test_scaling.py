"""The closed forms of memory, communication and time: by hand, against recorded counts, against real tensors."""

import json

import pytest
import torch

from bitbert.accounting import Shape
from bitbert.model import BitBertConfig, BitBertForPreTraining, kernels
from bitbert.presets import preset_fields
from bitbert.pretrain import scaling
from bitbert.pretrain.config import LossSection
from bitbert.pretrain.data import Batch
from bitbert.pretrain.footprint import activation_bytes
from bitbert.pretrain.objective import GlobalCounts, Objective
from bitbert.pretrain.scaling import A100, payload, state_bytes
from bitbert.pretrain.scaling_table import memory_table, published_workload, speed_table
from bitbert.pretrain.teacher import TeacherOutput
from bitbert.pretrain.throughput import batch_operations, row_operations
from tests.conftest import REPOSITORY, TINY_SHAPE

RECORDED = json.loads((REPOSITORY / "benchmarks" / "results" / "scaling.json").read_text(encoding="utf-8"))


def test_state_by_hand() -> None:
    """1,000 values on 4 ranks."""
    assert state_bytes(1000, 0, 4).total == 16_000
    assert vars(state_bytes(1000, 1, 4)) == {"weights": 4000, "gradients": 1000, "masters": 1000, "moments": 2000}
    assert state_bytes(1000, 1, 4, accumulating=True).gradients == 4000
    assert state_bytes(1000, 2, 4, accumulating=True).gradients == 1000
    assert state_bytes(1000, 3, 4, whole=100).weights == 1000 + 400
    assert state_bytes(1000, 3, 1, whole=100).weights == 4000


def test_payload_and_wire_by_hand() -> None:
    assert payload(1000, 0, 3).wire(4) == pytest.approx(2 * 0.75 * 4000)
    assert payload(1000, 1, 3).wire(4) == pytest.approx(0.75 * 8000)
    assert payload(1000, 2, 3).wire(4) == pytest.approx(0.75 * (12_000 + 4000))
    assert payload(1000, 3, 3, whole=100).wire(4) == pytest.approx(0.75 * (12_000 + 3 * 3600 + 400))
    assert payload(1000, 0, 3).wire(1) == 0


@pytest.mark.parametrize("row", RECORDED["rows"], ids=lambda row: f"stage{row['stage']}-{row['ranks']}ranks")
def test_forms_agree_with_what_was_counted(row: dict) -> None:
    """benchmarks/bench_scaling.py on 1, 2 and 4 CPU ranks; a few small gradients wait outside of the partitions."""
    state = state_bytes(row["parameters"], row["stage"], row["ranks"], whole=row["whole"])
    for kind, slack in (("weights", 1e-3), ("masters", 1e-3), ("moments", 1e-3), ("gradients", 0.15)):
        assert row[f"{kind}_measured"] == pytest.approx(getattr(state, kind), rel=slack), kind
    if row["ranks"] > 1:
        sent = payload(row["parameters"], row["stage"], RECORDED["micro_batches"], whole=row["whole"])
        total = sent.all_reduce + sent.reduce + sent.all_gather
        assert row["communication_measured"] == pytest.approx(total, rel=0.01)


def test_estimate_by_hand() -> None:
    """One GPU does not communicate; two nodes are as fast as their network and latency let them."""
    work = {"stage": 0, "num_parameters": 10**6, "operations_per_row": 1e9, "row_tokens": 100}
    batch = {"global_batch_size": 64, "micro_batch_size": 4}
    alone = scaling.estimate(A100, world_size=1, **work, **batch)
    assert (alone.num_micro_batches, alone.communication_s) == (16, 0)
    assert alone.tokens_per_s == pytest.approx(100 * A100.peak_tflops * 1e12 * A100.mfu / 1e9)
    sixteen = scaling.estimate(A100, world_size=16, **work, **batch)
    assert sixteen.compute_s == pytest.approx(alone.compute_s / 16)
    ring = 2 * 15 / 16 * 4e6 / (A100.network_gb_s * 1e9 * A100.efficiency)
    assert sixteen.communication_s == pytest.approx(ring + 8 * A100.latency_s * A100.buckets)


def test_operations_of_a_full_row_are_those_of_a_batch_of_it() -> None:
    mask = torch.ones(3, 16)
    assert batch_operations(Shape(), mask, 6, LossSection()) == 3 * row_operations(Shape(), 16, 2, LossSection())


class _Teacher:
    def __init__(self, config: BitBertConfig) -> None:
        self.config = config

    def __call__(self, batch: Batch) -> TeacherOutput:
        state = (*batch.input_ids.shape, self.config.hidden_size)
        states = tuple(torch.zeros(state) for _ in range(self.config.num_hidden_layers + 1))
        return TeacherOutput(states, torch.zeros(len(batch.input_ids), 2), None)


def test_activations_are_those_of_a_real_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count without data equals the bytes that a real forward pass through the same operations keeps."""
    monkeypatch.setattr(kernels, "load_kernels", lambda: None)
    config = BitBertConfig(vocab_size=60, **TINY_SHAPE, **preset_fields("bitbert"))
    student = BitBertForPreTraining(config).train()
    ids = torch.zeros(3, 16, dtype=torch.int64)
    labels = torch.zeros(7, dtype=torch.int64)
    batch = Batch(ids, torch.ones_like(ids), ids, labels, labels, ids[:, 0])
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = Objective(student, _Teacher(config), LossSection())(student, batch, GlobalCounts(7.0, 48.0, 3.0))
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert terms
    counted = activation_bytes(config, LossSection(), rows=3, positions=16, mask_probability=7 / 48)
    assert counted == pytest.approx(real, rel=0.02)


def test_tables() -> None:
    tiny = Shape(vocab_size=60, **TINY_SHAPE)
    work = published_workload(tiny, 32, 256, 2)
    memory = memory_table(work, 4)
    assert [line.split()[0] for line in memory[1:]] == ["0", "1", "2", "3"]
    speed = speed_table(work, A100)
    assert [line.split()[0] for line in speed[2:]] == ["1", "2", "4", "8", "16", "64"]  # 256 do not divide the batch

"""What a pretraining step costs: ours with its teacher, full precision without one, and the published step.

    python benchmarks/bench_pretrain.py --json out.json --shape l6-h384 --rows 32 --tokens 128 --threads 2

Three training steps (forward, backward, AdamW) on the same random rows, in turn, round after round:

    ours       the trainer's own: BitBertForPreTraining, Teacher, objective and engine, all published terms
    hf         transformers' BertForPreTraining in full precision, without a teacher, logits at every position
    published  benchmarks/published_step.py: the published method, one operation after the other

Medians are printed, and ratios of medians. With one thread a step is timed by its CPU time, which is its time on a
core of its own; with more there is only the clock. Peak memory is that of a process that does two such steps, above
what the imports take. `--precision bf16` runs matrix products of all three in bfloat16.
"""

import argparse
from collections.abc import Callable
from typing import Any

SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "l6-h384": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}
SYSTEMS = ("ours", "hf", "published")
VOCAB_SIZE = 30522
MASKED_SHARE = 0.15
MIB = 1 << 20
"""ru_maxrss is in KiB on Linux."""


def make_rows(rows: int, tokens: int) -> tuple[Any, dict[str, Any]]:
    """One micro-batch of random rows without padding: as ours (masked positions) and as dense labels."""
    import torch

    from bitbert.pretrain.data import Batch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB_SIZE, (rows, tokens), generator=generator)
    positions = torch.randperm(rows * tokens, generator=generator)[: int(rows * tokens * MASKED_SHARE)].sort().values
    labels = torch.full((rows * tokens,), -100)
    labels[positions] = torch.randint(5, VOCAB_SIZE, positions.shape, generator=generator)
    next_sentence = torch.randint(2, (rows,), generator=generator)
    mask = torch.ones_like(ids)
    batch = Batch(ids, mask, torch.zeros_like(ids), positions, labels[positions], next_sentence)
    dense = {"input_ids": ids, "attention_mask": mask, "labels": labels.view(rows, tokens)}
    return batch, {**dense, "next_sentence_label": next_sentence}


def make_bert(shape: dict[str, int]) -> Any:
    from transformers import BertConfig, BertForPreTraining

    return BertForPreTraining(BertConfig(vocab_size=VOCAB_SIZE, **shape))


def make_step(system: str, shape: dict[str, int], options: argparse.Namespace) -> Callable[[], float]:
    """A function that does one training step and returns its loss."""
    import torch

    torch.manual_seed(0)
    batch, dense = make_rows(options.rows, options.tokens)
    if system == "ours":
        return our_step(shape, batch, options)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    bert = make_bert(shape)
    if system == "hf":
        model, loss_of = bert.train(), lambda: bert(**dense).loss
    else:
        from published_step import PublishedStudent, published_loss

        model = PublishedStudent(
            vocab=VOCAB_SIZE,
            hidden=shape["hidden_size"],
            heads=shape["num_attention_heads"],
            inner=shape["intermediate_size"],
            layers=shape["num_hidden_layers"],
        )
        teacher = bert.train()  # as published
        loss_of = lambda: published_loss(model, teacher, dense)  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=system == "hf")

    def step() -> float:
        with autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(shape: dict[str, int], batch: Any, options: argparse.Namespace) -> Callable[[], float]:
    """The trainer's step, without the reading of shards."""
    from bitbert.distributed import detect_topology
    from bitbert.model import BitBertConfig, preset_fields
    from bitbert.model.calibrate import calibrate_step_sizes
    from bitbert.model.convert import from_full_precision
    from bitbert.pretrain import engine as engine_module
    from bitbert.pretrain.config import PretrainConfig
    from bitbert.pretrain.objective import GlobalCounts, Objective, weighted_sum
    from bitbert.pretrain.optim import build_optimizer
    from bitbert.pretrain.teacher import Teacher

    config = PretrainConfig(
        output="-",
        data={"train": "-", "heldout": "-"},
        tokenizer="-",
        teacher="-",
        global_batch_size=options.rows,
        micro_batch_size=options.rows,
        device="cpu",
        precision=options.precision,
    )
    teacher = Teacher(make_bert(shape), frozenset({"mlm", "nsp", "pooler"}), config.loss, config.precision)
    student = from_full_precision(
        teacher.tensors, BitBertConfig(vocab_size=VOCAB_SIZE, **preset_fields("bipft-b"), **shape)
    )
    calibrate_step_sizes(student, batch.inputs())
    topology = detect_topology()
    device = engine_module.start(topology, "cpu")
    engine = engine_module.Engine(student.train(), build_optimizer(student, config.optimizer), config, topology, device)
    objective = Objective(student, teacher, config.loss)
    counts = GlobalCounts(len(batch.labels), batch.num_tokens, options.rows)

    def step() -> float:
        terms = objective(engine, batch, counts)
        engine.backward(weighted_sum(terms, config.loss), num_micro_batches=1)
        engine.update(1e-4)
        return sum(engine.sum_over_ranks(list(terms.values())))

    return step

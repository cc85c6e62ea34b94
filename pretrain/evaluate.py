"""Held-out evaluation: masked-LM and next-sentence loss and accuracy, and how far the states are from the teacher's."""

from typing import Any

import torch
from torch import nn

from .data import BatchMaker
from .engine import Engine
from .teacher import Teacher


@torch.no_grad()
def evaluate(
    engine: Engine, model: nn.Module, teacher: Teacher, batches: BatchMaker, *, num_rows: int, batch_size: int
) -> dict[str, float]:
    """Metrics over the first ``num_rows`` rows of the held-out shards' permutation; masks never change.

    Returns:
        ``eval/mlm_loss`` and ``eval/mlm_accuracy`` over masked tokens, ``eval/nsp_loss`` and ``eval/nsp_accuracy``
        over rows, where these have the label; ``eval/hidden_error``: ||h_s - h_t|| / ||h_t|| of the last layer over
        text tokens.
    """
    rows = batches.sample_rows(0, min(num_rows, len(batches.reader)))
    rank, world_size = engine.topology.rank, engine.topology.world_size
    sums = torch.zeros(8, dtype=torch.float64, device=engine.device)
    model.eval()
    for first in range(0, len(rows), batch_size * world_size):
        start = first + rank * batch_size
        mine = rows[start : start + batch_size]
        # Under ZeRO stage 3 a forward pass is collective: a rank without rows in the last round takes part in it.
        batch = batches.batch(mine or rows[:1]).to(engine.device)
        output: Any = model(**batch.inputs(), masked_positions=batch.masked_positions, output_hidden_states=True)
        if not mine:
            continue
        target = teacher(batch).hidden_states[-1]
        mask = batch.attention_mask.unsqueeze(-1)
        # In float32 as in training: a sum in bfloat16 has 8 significant bits.
        logits, nsp_logits = output.prediction_logits.float(), output.seq_relationship_logits.float()
        sums += torch.stack(
            [
                nn.functional.cross_entropy(logits, batch.labels, reduction="sum"),
                (logits.argmax(-1) == batch.labels).sum(),
                torch.as_tensor(len(batch.labels)),
                nn.functional.cross_entropy(nsp_logits, batch.next_sentence_label, reduction="sum"),
                (nsp_logits.argmax(-1) == batch.next_sentence_label).sum(),
                torch.as_tensor(len(batch.next_sentence_label)),
                ((output.hidden_states[-1] - target).square() * mask).sum(),
                (target.square() * mask).sum(),
            ]
        ).to(sums)
    model.train()
    mlm_loss, mlm_right, masked, nsp_loss, nsp_right, num_pairs, error, norm = engine.sum_over_ranks(list(sums))
    nsp = {"eval/nsp_loss": nsp_loss / num_pairs, "eval/nsp_accuracy": nsp_right / num_pairs}
    return {
        "eval/mlm_loss": mlm_loss / masked,
        "eval/mlm_accuracy": mlm_right / masked,
        **(nsp if batches.reader.manifest["nsp"] else {}),
        "eval/hidden_error": (error / norm) ** 0.5,
    }

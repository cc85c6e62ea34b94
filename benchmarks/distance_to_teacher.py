"""How far a pretrained model is from its teacher: python benchmarks/distance_to_teacher.py RUN

For held-out rows of RUN's own config, masked as in training: the relative error of the embeddings' and each layer's
states against the teacher's, ||h_s - h_t|| / ||h_t||, and their mean cosine; the share of keys that each layer attends
to, and its step of attention probabilities; masked-LM loss and accuracy.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from bitbert.config import load_config
from bitbert.errors import UserError
from bitbert.files import write_json_atomically
from bitbert.model import BitBertForPreTraining
from bitbert.pretrain.config import LossSection, PretrainConfig
from bitbert.pretrain.data import BatchMaker
from bitbert.pretrain.run import open_shards
from bitbert.pretrain.run_folder import CONFIG_FILE, FINAL
from bitbert.pretrain.teacher import Teacher, load_teacher
from bitbert.tokenizer import load_tokenizer


@torch.no_grad()
def measure(final: Path, teacher: Teacher, heldout: BatchMaker, num_rows: int, batch_size: int = 16) -> dict[str, Any]:
    """How near a student is to its teacher on the first ``num_rows`` held-out rows, masked as in training.

    Returns:
        ``layer_error`` and ``layer_cosine``: a number for the embeddings and each layer, over text tokens;
        ``attended`` and ``attention_step``: a number for each layer, the share of (query, key) pairs of text over all
        heads whose bit is 1, and the learned step, before its floor of 1e-5;
        ``mlm_loss`` and ``mlm_accuracy`` at masked positions.
    """
    student = BitBertForPreTraining.from_pretrained(final, dtype=torch.float32).eval()
    rows = heldout.sample_rows(0, min(num_rows, len(heldout.reader)))
    sums = torch.zeros(3, student.config.num_hidden_layers + 1, dtype=torch.float64)
    attended = torch.zeros(student.config.num_hidden_layers, dtype=torch.float64)
    loss = right = masked = tokens = pairs = 0.0
    wanted = {"output_hidden_states": True, "output_attentions": True}
    for start in range(0, len(rows), batch_size):
        batch = heldout.batch(rows[start : start + batch_size])
        output = student(**batch.inputs(), masked_positions=batch.masked_positions, **wanted)
        text = batch.attention_mask.bool()
        both = text[:, None, :, None] & text[:, None, None, :]
        attended += torch.stack([(bits.bool() & both).double().mean(dim=1).sum() for bits in output.attentions])
        pairs += both.sum().item()
        for layer, (ours, theirs) in enumerate(zip(output.hidden_states, teacher(batch).hidden_states, strict=True)):
            ours, theirs = ours[text].double(), theirs[text].double()
            cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
            sums[:, layer] += torch.stack([(ours - theirs).square().sum(), theirs.square().sum(), cosine.sum()])
        logits = output.prediction_logits
        loss += torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum").item()
        right += (logits.argmax(-1) == batch.labels).sum().item()
        masked, tokens = masked + len(batch.labels), tokens + batch.num_tokens
    return {
        "layer_error": (sums[0] / sums[1]).sqrt().tolist(),
        "layer_cosine": (sums[2] / tokens).tolist(),
        "attended": (attended / pairs).tolist(),
        "attention_step": [layer.attention.probability_binarizer.alpha.item() for layer in student.bitbert.layers],
        "mlm_loss": loss / masked,
        "mlm_accuracy": right / masked,
    }


def measure_run(run: Path, num_rows: int | None) -> dict[str, Any]:
    """The measures of a finished run; ``num_rows`` None takes as many held-out rows as its own evaluations.

    Raises:
        UserError: ``run`` is no finished run of bitbert-pretrain, or its teacher or shards are not there.
    """
    config = load_config(PretrainConfig, run / CONFIG_FILE)
    if not (run / FINAL).is_dir():
        raise UserError(f"run {str(run)!r} has no {FINAL}/; finish it, or give another")
    tokenizer = load_tokenizer(config.tokenizer)
    teacher = load_teacher(config.teacher, LossSection(nsp_distillation=0.0), tokenizer)
    heldout = open_shards(config.data.heldout, tokenizer, config.data, config.seed)
    rows = num_rows or config.eval_rows
    return {"run": str(run), "heldout_rows": rows, **measure(run / FINAL, teacher, heldout, rows)}


def table(found: dict[str, Any]) -> str:
    """Markdown: a column a layer, embeddings first."""
    errors, cosines = found["layer_error"], found["layer_cosine"]
    return "\n".join(
        [
            "| | embeddings | " + " | ".join(f"layer {layer}" for layer in range(1, len(errors))) + " |",
            "| --- |" + " ---: |" * len(errors),
            "| relative error | " + " | ".join(f"{error:.3f}" for error in errors) + " |",
            "| cosine | " + " | ".join(f"{cosine:.3f}" for cosine in cosines) + " |",
            "| attended | | " + " | ".join(f"{100 * share:.1f} %" for share in found["attended"]) + " |",
            "| step | | " + " | ".join(f"{step:.2g}" for step in found["attention_step"]) + " |",
            "",
            f"masked-LM loss {found['mlm_loss']:.3f}, accuracy {100 * found['mlm_accuracy']:.1f} %",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished bitbert-pretrain run")
    parser.add_argument("--rows", type=int, help="held-out rows; as many as in the run's evaluations by default")
    parser.add_argument("--json", type=Path, help="file for the figures; the table is printed in any case")
    arguments = parser.parse_args()
    try:
        found = measure_run(arguments.run, arguments.rows)
    except UserError as error:
        sys.exit(f"error: {error}")
    if arguments.json is not None:
        write_json_atomically(arguments.json, found)
    print(table(found))


if __name__ == "__main__":
    main()

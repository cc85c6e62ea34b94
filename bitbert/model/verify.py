"""The proof, before publication, that a packed model computes what torch computes."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bitbert.errors import UserError
from bitbert.model.export import unpack_model
from bitbert.packed import PackedModel
from bitbert.runtime.forward import Runtime

TOLERANCE = 1e-4
_PROBE_LENGTHS = (2, 9, 17, 33, 64)


@torch.no_grad()
def verify_packed(packed: PackedModel, model: PreTrainedModel) -> float:
    """Compare the runtime's logits with torch's on fixed random sequences of several lengths.

    In float64 nothing lies within rounding of a threshold, so every binary decision must agree: all logits must be
    within 1e-4 of those of the unpacked model. In float32 a value within rounding of its threshold may fall either
    way and change much; most probes must still agree with ``model`` itself.

    Returns:
        the median over probes of the largest float32 difference.

    Raises:
        UserError: the packed model does not agree; nothing should be published.
    """
    exact, single = Runtime(packed, np.float64), Runtime(packed)
    double_model = unpack_model(packed).double().eval()
    was_training = model.training
    model.eval()
    differences = []
    for input_ids, token_type_ids in probe_sequences(packed):
        inputs = {"input_ids": torch.tensor([input_ids]), "token_type_ids": torch.tensor([token_type_ids])}
        expected = _logits(double_model(**inputs))
        worst = float(np.abs(exact.logits(input_ids, token_type_ids) - expected).max())
        if not worst <= TOLERANCE:
            raise UserError(
                f"the packed model differs from torch by {worst:.1e} on a sequence of {len(input_ids)} tokens, "
                f"wanted at most {TOLERANCE:.0e}; it was not published, please report this"
            )
        device_inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        found = _logits(model(**device_inputs))
        differences.append(float(np.abs(single.logits(input_ids, token_type_ids) - found).max()))
    model.train(was_training)
    median = float(np.median(differences))
    if not median <= TOLERANCE:
        raise UserError(
            f"the packed model differs from the trained model by {median:.1e} (median over probes), "
            f"wanted at most {TOLERANCE:.0e}; it was not published, please report this"
        )
    return median


def probe_sequences(packed: PackedModel) -> list[tuple[list[int], list[int]]]:
    """Fixed sequences of ordinary tokens within the model's length: (input_ids, token_type_ids) each."""
    random = np.random.default_rng(0)
    tokenizer, config = packed.tokenizer, packed.config
    probes = []
    for length in sorted({min(length, config.max_length) for length in (*_PROBE_LENGTHS, config.max_length)}):
        ids = random.integers(0, config.vocab_size, size=length)
        ids[0], ids[-1] = tokenizer.cls_id, tokenizer.sep_id
        types = (np.arange(length) >= length // 2).astype(int) * (config.type_vocab_size > 1)
        probes.append((ids.tolist(), types.tolist()))
    return probes


def _logits(output: Any) -> np.ndarray:
    logits = getattr(output, "seq_relationship_logits", None)
    if logits is None:
        logits = output.logits
    return logits[0].float().cpu().numpy() if logits.dtype != torch.float64 else logits[0].numpy()

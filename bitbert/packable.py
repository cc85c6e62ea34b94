"""Which models the packed format can hold: one bit a weight, one bit an activation, and a function it describes."""

from collections.abc import Mapping
from typing import Any


def unpackable(fields: Mapping[str, Any]) -> str | None:
    """Why a model cannot be packed, or None.

    Args:
        fields: a latent model's config, as a mapping; absent fields mean 1 bit.
    """
    bits, head_size = fields.get("activation_bits", 1), fields.get("attention_head_size")
    reasons = {
        f"its activations have {bits} bits": bits != 1,
        "its weights are ternary": fields.get("weight_binarizer") == "ternary",
        "each of its weights is the sum of two binary ones": fields.get("split_weights", False),
        "its step sizes are those of each batch (minmax)": fields.get("step_sizes") == "minmax",
        f"its heads are {head_size} wide": (
            head_size is not None and head_size * fields["num_attention_heads"] != fields["hidden_size"]
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)

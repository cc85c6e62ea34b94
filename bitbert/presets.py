"""The methods by name: fields of BitBertConfig. Plain data, so that a config is checked without importing torch."""

from typing import Any

from bitbert.errors import UserError, did_you_mean

ELASTIC: dict[str, Any] = {
    "weight_binarizer": "mean_centered",
    "weight_scale": "tensor",
    "split_weights": False,
    "step_sizes": "learned",
    "input_shift": True,
    "attention": "softmax",
    "hidden_act": "gelu",
    "ffn_input": "signed",
    "mlm_head_act": "relu",
    "activation_bits": 1,
    "residual_estimators": "shared",
    "residual_init": "normal",
}

_PLAIN: dict[str, Any] = {"residual_rank": 0, "pooler": "plain"}
_TERNARY: dict[str, Any] = {"weight_binarizer": "ternary", "step_sizes": "minmax", "input_shift": False}

PRESETS: dict[str, dict[str, Any]] = {
    # BiPFT-B (arXiv 2312.08937): elastic binarizers, residual estimators of rank 1, pooler with norm and skip.
    "bipft-b": {**ELASTIC, "residual_rank": 1, "pooler": "residual_norm"},
    # BiPFT-A: the same binary BERT, pretrained the same way, without estimators.
    "bipft-a": {**ELASTIC, "residual_rank": 0, "pooler": "residual_norm"},
    # The task-specific baseline: elastic binarizers in an otherwise vanilla BERT, finetuned without pretraining.
    "baseline": {**ELASTIC, **_PLAIN},
    # Ours: BiPFT-B with a scale an output channel and two-set binarization in the feed-forward block.
    "bitbert": {
        **ELASTIC,
        "weight_scale": "channel",
        "residual_rank": 1,
        "hidden_act": "relu",
        "ffn_input": "unsigned",
        "pooler": "residual_norm",
        "mlm_head_act": "gelu",
    },
    # BiT (arXiv 2205.13016): the baseline with two-set binarization, {0, a} after softmax and ReLU, {-a, a} elsewhere.
    "bit": {**ELASTIC, **_PLAIN, "hidden_act": "relu", "ffn_input": "unsigned"},
    # BiBERT (arXiv 2203.06390): row-centred weights, plain signs, Bi-Attention.
    "bibert": {
        **ELASTIC,
        **_PLAIN,
        "weight_binarizer": "row_centered",
        "weight_scale": "channel",
        "step_sizes": "one",
        "input_shift": False,
        "attention": "bi",
    },
    # TernaryBERT (arXiv 2009.12812): ternary weights, 8-bit activations; activation_bits=2 for its 2-bit rows.
    "ternarybert": {**ELASTIC, **_PLAIN, **_TERNARY, "activation_bits": 8},
    # BinaryBERT (arXiv 2012.15701): what ternary weight splitting leaves, with 4-bit elastic activations and ReLU.
    "binarybert": {
        **ELASTIC,
        **_PLAIN,
        **_TERNARY,
        "weight_binarizer": "uncentered",
        "split_weights": True,
        "step_sizes": "learned",
        "hidden_act": "relu",
        "ffn_input": "unsigned",
        "activation_bits": 4,
    },
}

METHOD_FIELDS = ("method", *PRESETS["bipft-b"])
"""The fields that make a method; bitbert.model.configuration says what they mean."""


def why_no_preset(method: str) -> str | None:
    """What is wrong with the name ``method``, or None where it is a preset's."""
    if method in PRESETS:
        return None
    return f"method {method!r} is not known{did_you_mean(method, PRESETS)}; presets: {', '.join(sorted(PRESETS))}"


def preset_fields(method: str) -> dict[str, Any]:
    """Config fields of a preset, its name included.

    Raises:
        UserError: there is no such preset.
    """
    problem = why_no_preset(method)
    if problem is not None:
        raise UserError(problem)
    return {"method": method, **PRESETS[method]}

"""Pairs of texts for a bi-encoder: each text is encoded by itself, and a head sees what the two vectors say.

Where one sequence holds both texts (a cross-encoder, BERT's way), [CLS] must find by attention what they have in
common, and 1-bit attention learns that slowly. Vectors of single texts are what pretraining has made already.
"""

from typing import Any

import torch
from torch import Tensor

from bitbert.errors import UserError


def compares_texts(config: Any) -> bool:
    """Whether a model with this config, ours or HF's, encodes the texts of pairs apart."""
    return getattr(config, "pairs", None) == "bi_encoder"


def encode_apart(
    encoder: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    **options: Any,
) -> Any:
    """``encoder``'s output on the texts of pairs; its pooled output is each pair's :func:`pair_features`.

    Args:
        encoder: our encoder or HF's; hidden states and attentions are those of the texts, (2 batch, ...).
        options: of the encoder's forward pass.
    """
    texts, mask = split_pairs(input_ids, attention_mask, token_type_ids)
    output = encoder(texts, attention_mask=mask, **options)
    output.pooler_output = pair_features(output.last_hidden_state, mask, encoder.config.layer_norm_eps)
    return output


def split_pairs(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pairs ``[CLS] a [SEP] b [SEP]`` as twice as many texts: all ``[CLS] a [SEP]``, then all ``[CLS] b [SEP]``.

    Args:
        input_ids, attention_mask, token_type_ids: (batch, positions), padded on the right; types are 0 and then 1.

    Returns:
        ids and mask, (2 batch, longest text), int64; padding has id 0. In a traced or exported graph, which serves
        other batches too, the longest text counts as long as the pairs are, and nothing is checked.

    Raises:
        UserError: a row has one text only.
    """
    is_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
    second = torch.zeros_like(mask) if token_type_ids is None else (token_type_ids > 0).to(mask.dtype) * mask
    before = second.argmax(dim=1, keepdim=True)  # tokens of the first text; 0 where there is no second
    if not is_graph and (before == 0).any():
        raise UserError(
            "a row without a second text, wanted token_type_ids 0 and then 1: this model (pairs bi_encoder) compares "
            "two texts"
        )
    after = mask.sum(dim=1, keepdim=True) - before + 1  # tokens of the second text, with the [CLS] it is given
    longest = input_ids.shape[1] if is_graph else int(torch.cat([before, after]).max())
    place = torch.arange(longest, device=input_ids.device)
    masks = [(place < before).to(mask.dtype), (place < after).to(mask.dtype)]
    shifted = (before - 1 + place).clamp(max=input_ids.shape[1] - 1)
    first_ids, second_ids = input_ids[:, :longest], input_ids.gather(1, shifted)
    second_ids = torch.cat([input_ids[:, :1], second_ids[:, 1:]], dim=1)
    mask = torch.cat(masks)
    return torch.cat([first_ids, second_ids]) * mask, mask


def pair_features(states: Tensor, mask: Tensor, eps: float) -> Tensor:
    """What the head sees of the texts of :func:`split_pairs`: [u, v, |u - v|, u v], (batch, 4 hidden).

    u = m / sqrt(mean(m^2) + eps) of the first text's mean state m, v of the second's: their size says nothing, and
    sum(u v) / hidden is the cosine.

    Args:
        states: (2 batch, positions, hidden), the last layer's.
        mask: (2 batch, positions).
    """
    weights = mask.to(states.dtype).unsqueeze(-1)
    mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
    u, v = (mean * (mean.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).chunk(2)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)

"""torch custom ops on packed bits: the runtime's kernels behind the dispatcher, with shapes for the compiler.

The ops are for inference: they have no gradient, and asking for one is an error of torch's.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bitbert.packed import unpack_bits
from bitbert.runtime.bitops import NUMPY, choose_isa
from bitbert.runtime.native import Matrix
from bitbert.runtime.numpy_bitops import mask_products, pack_words, sign_products

# Weights laid out for the kernels, once for each tensor and again when it was written to.
_laid_out: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@torch.library.custom_op("bitbert::packed_linear", mutates_args=())
def packed_linear(
    x: Tensor, weight_bits: Tensor, weight_scale: Tensor, bias: Tensor, shift: Tensor, step: Tensor, mask: bool
) -> Tensor:
    """y = products * (scale * step) + bias, products of the codes of x + shift with the packed weights.

    Args:
        x: (..., in), any float type; the codes are taken in float32.
        weight_bits: uint8 (out, row bytes), bit 1 = negative.
        weight_scale: (1,) or (out,).
        bias: (out,). shift: (in,). step: (1,).
        mask: codes are 1[x + shift > step / 2] instead of signs.

    Returns:
        float32 (..., out).
    """
    shifted = (x.float() + shift.float()).numpy(force=True).reshape(-1, x.shape[-1])
    codes = shifted > np.float32(step.item()) / 2 if mask else shifted < 0
    products = _multiply(pack_words(codes), weight_bits, x.shape[-1], mask)
    floats = torch.from_numpy(products.astype(np.float32)).to(x.device)
    return (floats * (weight_scale.float() * step.float()) + bias.float()).reshape(*x.shape[:-1], -1)


@packed_linear.register_fake
def _(
    x: Tensor, weight_bits: Tensor, weight_scale: Tensor, bias: Tensor, shift: Tensor, step: Tensor, mask: bool
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_bits.shape[0]), dtype=torch.float32)


@torch.library.custom_op("bitbert::packed_embedding", mutates_args=())
def packed_embedding(input_ids: Tensor, weight_bits: Tensor, weight_scale: Tensor, width: int) -> Tensor:
    """Rows of a packed table, scale * (+1 or -1).

    Args:
        input_ids: int64, any shape.
        weight_bits: uint8 (vocabulary, row bytes). weight_scale: (vocabulary,).
        width: values a row.

    Returns:
        float32 (*input_ids.shape, width).
    """
    negative = unpack_bits(weight_bits[input_ids].numpy(force=True), width)
    scale = weight_scale.float()[input_ids].unsqueeze(-1)
    return torch.where(torch.from_numpy(negative).to(scale.device), -scale, scale)


@packed_embedding.register_fake
def _(input_ids: Tensor, weight_bits: Tensor, weight_scale: Tensor, width: int) -> Tensor:
    return weight_scale.new_empty((*input_ids.shape, width), dtype=torch.float32)


def _multiply(codes: np.ndarray, weight_bits: Tensor, num_bits: int, mask: bool) -> np.ndarray:
    isa = choose_isa()
    if isa == NUMPY:
        words = weight_bits.numpy(force=True).view("<u8")
        return mask_products(codes, words) if mask else sign_products(codes, words, num_bits)
    found = _laid_out.get(weight_bits)
    if found is None or found[0] != (weight_bits._version, isa):
        matrix = Matrix(weight_bits.numpy(force=True).view("<u8"), num_bits, isa)
        found = _laid_out[weight_bits] = ((weight_bits._version, isa), matrix)
    products: np.ndarray = found[1].multiply(codes, mask=mask)
    return products

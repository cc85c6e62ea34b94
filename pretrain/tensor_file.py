"""A safetensors file written one tensor at a time, its hash taken on the way.

``safetensors.torch.save_file`` wants all tensors at once; a rank that gathers a partitioned model would then hold the
whole of it beside its own part. The format allows a stream: its header names dtypes, shapes and offsets only.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a file before its values are there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def file_bytes(specs: Sequence[TensorSpec]) -> int:
    """Size in bytes of the file that :func:`write_tensors` makes of ``specs``."""
    return len(_header(specs)) + sum(spec.num_bytes for spec in specs)


def write_tensors(path: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor]) -> str:
    """Write ``tensors``, in the order of ``specs``, and return the SHA-256 of the file.

    Wide elements should come first in ``specs``, so that every tensor starts at a multiple of its element size.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        header = _header(specs)
        file.write(header)
        digest.update(header)
        for spec, tensor in zip(specs, tensors, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), spec.name
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def _header(specs: Sequence[TensorSpec]) -> bytes:
    """Little-endian length and JSON, padded with blanks to 8 bytes as the safetensors format says."""
    entries, offset = {}, 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

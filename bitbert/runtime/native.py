"""The native library through ctypes: native/include/bitbert.h, declared and wrapped.

The library has a plain C interface, so one binary serves every Python version. It is optional: where no
compiler built it, :func:`load_library` returns None and numpy answers instead.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bitbert.errors import UserError
from bitbert.packed import CHOICES, SIZES, PackedConfig
from bitbert.shared_library import load_shared_library

LIBRARY = Path(__file__).with_name("libbitbert.so")
_ABI_VERSION = 2
_HEADS = {
    "none": 0,
    "nsp": 1,
    "classification": 2,
    "regression": 2,
    "pair_classification": 3,
    "pair_regression": 3,
}
_INTEGERS = (*SIZES, "residual_rank")
# A choice's code is its place among the choices.
_CHOSEN = ("attention", "residual_estimators", "hidden_act", "ffn_input", "pooler")


class _Config(Structure):
    _fields_ = (
        *((name, c_int32) for name in (*_INTEGERS, *_CHOSEN, "head", "num_outputs", "channel_scale")),
        ("layer_norm_eps", c_double),
    )


class _Tensor(Structure):
    _fields_ = (("name", c_char_p), ("data", c_void_p), ("num_bytes", c_size_t))


class _Batch(Structure):
    _fields_ = (
        ("input_ids", POINTER(c_int32)),
        ("token_type_ids", POINTER(c_int32)),
        ("lengths", POINTER(c_int32)),
        ("num_sequences", c_size_t),
    )


class _Outputs(Structure):
    _fields_ = tuple((name, POINTER(c_float)) for name in ("states", "last", "pooled", "logits"))


@cache
def load_library() -> ctypes.CDLL | None:
    """The native library, or None where it was not built.

    Raises:
        UserError: the library cannot be loaded, or is of another version than this package.
    """
    library = load_shared_library(
        LIBRARY, version_function="bitbert_abi_version", version=_ABI_VERSION, otherwise="set BITBERT_ISA=numpy"
    )
    if library is None:
        return None
    for name, result, arguments in (
        ("bitbert_error", c_char_p, ()),
        ("bitbert_instruction_sets", c_char_p, ()),
        ("bitbert_create", c_void_p, (POINTER(_Config), POINTER(_Tensor), c_size_t, c_char_p)),
        ("bitbert_close", None, (c_void_p,)),
        ("bitbert_get_isa", c_char_p, (c_void_p,)),
        ("bitbert_set_threads", c_int, (c_void_p, c_int)),
        ("bitbert_run", c_int, (c_void_p, POINTER(_Batch), POINTER(_Outputs))),
        ("bitbert_time_products", c_double, (c_void_p, c_size_t)),
        ("bitbert_matrix_create", c_void_p, (c_void_p, c_size_t, c_size_t, c_size_t, c_char_p)),
        ("bitbert_matrix_multiply", c_int, (c_void_p, c_void_p, c_size_t, c_int, c_void_p)),
        ("bitbert_matrix_free", None, (c_void_p,)),
        ("bitbert_peak", c_double, (c_char_p,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that the library can use on this processor, best first; empty without a library."""
    library = load_library()
    return tuple(library.bitbert_instruction_sets().decode().split()) if library else ()


def _require() -> ctypes.CDLL:
    library = load_library()
    if library is None:
        raise UserError("the native library was not built; install bitbert where a C compiler is, or use numpy")
    return library


def _failure(library: ctypes.CDLL) -> UserError:
    return UserError(library.bitbert_error().decode(errors="replace"))


class Matrix:
    """A packed right operand, laid out once for many products.

    Args:
        words: uint64 (rows, words), packed signs as :func:`bitbert.packed.pack_bits` makes them.
        num_bits: values a row.
        isa: instruction set to force; None takes the fastest.
    """

    def __init__(self, words: np.ndarray, num_bits: int, isa: str | None = None) -> None:
        self._library = _require()
        self._words = np.ascontiguousarray(words, dtype=np.uint64)
        self.num_rows, num_words = self._words.shape
        self._handle = self._library.bitbert_matrix_create(
            _address(self._words), self.num_rows, num_words, num_bits, _encode(isa)
        )
        if not self._handle:
            raise _failure(self._library)

    def multiply(self, left: np.ndarray, *, mask: bool) -> np.ndarray:
        """Products of every left row with every row of the matrix: uint64 (m, words) -> int32 (m, rows).

        ``mask`` takes the left bits as {0, 1} instead of signs.
        """
        left = np.ascontiguousarray(left, dtype=np.uint64)
        if left.shape[1] != self._words.shape[1]:
            raise UserError(f"left rows have {left.shape[1]} words, wanted {self._words.shape[1]} as in the matrix")
        out = np.empty((len(left), self.num_rows), dtype=np.int32)
        if self._library.bitbert_matrix_multiply(self._handle, _address(left), len(left), int(mask), _address(out)):
            raise _failure(self._library)
        return out

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.bitbert_matrix_free(self._handle)
            self._handle = None


def peak_macs_per_second(isa: str) -> float:
    """Multiply-accumulates a second of the instruction set on registers alone: xor, popcount and add, or tiles."""
    library = _require()
    peak = float(library.bitbert_peak(_encode(isa)))
    if not peak:
        raise _failure(library)
    return peak


class NativeModel:
    """A packed model in the native library.

    Args:
        isa: instruction set to force; None takes the fastest.
    """

    def __init__(self, config: PackedConfig, tensors: dict[str, np.ndarray], isa: str | None = None) -> None:
        self._library = _require()
        self._shape = (config.num_hidden_layers, config.hidden_size, config.num_outputs)
        arrays = {name: np.require(tensor, requirements=["C", "ALIGNED"]) for name, tensor in tensors.items()}
        listed = (_Tensor * len(arrays))(
            *(_Tensor(name.encode(), _address(array), array.nbytes) for name, array in arrays.items())
        )
        # The library reads the embedding tables where they lie; everything else is repacked and may go.
        self._tables = [array for name, array in arrays.items() if name.startswith("bitbert.embeddings.")]
        self._handle = self._library.bitbert_create(byref(_native_config(config)), listed, len(arrays), _encode(isa))
        if not self._handle:
            raise _failure(self._library)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._library.bitbert_get_isa(self._handle).decode())

    def set_threads(self, num_threads: int) -> None:
        """Use ``num_threads`` threads, 1 to 256; the results are the same bits for any number."""
        if self._library.bitbert_set_threads(self._handle, num_threads):
            raise _failure(self._library)

    def run(
        self, input_ids: Sequence[Any], token_type_ids: Sequence[Any], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Run sequences of ids, without padding.

        Args:
            input_ids, token_type_ids: one sequence of integers a text.
            wanted: of ``"states"`` (layers + 1, tokens, hidden), ``"last"`` (tokens, hidden), ``"pooled"``
                (texts, hidden) and ``"logits"`` (texts, outputs); tokens are those of all texts, end to end. With
                a head for pairs, each sequence is a pair.

        Returns:
            the wanted arrays, float32.
        """
        lengths = np.array([len(ids) for ids in input_ids], dtype=np.int32)
        ids, types = (_join(sequences) for sequences in (input_ids, token_type_ids))
        if len(ids) != len(types):
            raise UserError(f"{len(types)} token type ids for {len(ids)} tokens, wanted as many")
        num_layers, hidden, num_outputs = self._shape
        shapes = {
            "states": (num_layers + 1, len(ids), hidden),
            "last": (len(ids), hidden),
            "pooled": (len(lengths), hidden),
            "logits": (len(lengths), num_outputs),
        }
        arrays = {name: np.empty(shapes[name], dtype=np.float32) for name in wanted}
        batch = _Batch(_pointer(ids, c_int32), _pointer(types, c_int32), _pointer(lengths, c_int32), len(lengths))
        outputs = _Outputs(**{name: _pointer(array, c_float) for name, array in arrays.items()})
        if self._library.bitbert_run(self._handle, byref(batch), byref(outputs)):
            raise _failure(self._library)
        return arrays

    def time_products(self, num_tokens: int) -> float:
        """Seconds that the bit products alone of one sequence of ``num_tokens`` take, on one thread."""
        seconds = float(self._library.bitbert_time_products(self._handle, num_tokens))
        if not seconds:
            raise _failure(self._library)
        return seconds

    def close(self) -> None:
        """Free the model's memory; it cannot be used afterwards."""
        if getattr(self, "_handle", None):
            self._library.bitbert_close(self._handle)
            self._handle = None

    __del__ = close


def _native_config(config: PackedConfig) -> _Config:
    fields: dict[str, Any] = {name: getattr(config, name) for name in (*_INTEGERS, "layer_norm_eps", "num_outputs")}
    fields |= {name: CHOICES[name].index(getattr(config, name)) for name in _CHOSEN}
    return _Config(head=_HEADS[config.head], channel_scale=int(config.weight_scale == "channel"), **fields)


def _join(sequences: Sequence[Any]) -> np.ndarray:
    joined = (
        np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences]) if sequences else np.empty(0)
    )
    # Ids beyond 32 bits become -1, which the library refuses with a sentence.
    return np.where((joined >= 0) & (joined < 2**31), joined, -1).astype(np.int32)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _pointer(array: np.ndarray, kind: Any) -> Any:
    return array.ctypes.data_as(POINTER(kind))


def _encode(isa: str | None) -> bytes | None:
    return None if isa is None else isa.encode()

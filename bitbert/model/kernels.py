"""The native kernels of training through ctypes: native/training/training.h, declared and wrapped.

They fuse the element-wise work around the products of a 1-bit step on processors with AVX-512 and VNNI. They are
optional: where no compiler built them, on other processors and on other devices, the torch code of
:mod:`bitbert.model.binarize` computes the same, to the rounding of exp and erfc.
"""

import ctypes
import os
import threading
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int16, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitbert.errors import UserError
from bitbert.model.levels import level_range
from bitbert.shared_library import load_shared_library

LIBRARY = Path(__file__).with_name("libbitbert_training.so")
SWITCH = "BITBERT_TRAINING_KERNELS"
"""Environment variable: ``torch`` leaves the native kernels out."""
_ABI_VERSION = 6
_TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float32: 2}
_KINDS = {"signed": 0, "unsigned": 1, "levels": 2, "bool": 3, "strict_bool": 4}
_ACTIVATIONS = {"identity": 0, "gelu": 1, "relu": 2}
_P, _N = c_void_p, c_size_t


class _Activations(Structure):
    _fields_ = (
        ("x", _P),
        ("shift", _P),
        ("step", c_float),
        ("kind", c_int),
        ("lowest", c_float),
        ("highest", c_float),
        ("activation", c_int),
        ("rows", _N),
        ("width", _N),
    )


class _Scores(Structure):
    _fields_ = (
        ("scores", _P),
        ("type", c_int),
        *((name, c_float) for name in ("factor", "inverse_root", "step")),
        ("kind", c_int),
        ("highest", c_float),
        ("residual", _P),
        ("num_sets", _N),
        ("bias", _P),
        ("random", _P),
        ("limit", c_int16),
        *((name, _N) for name in ("batch", "heads", "queries", "keys")),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "binarize": (POINTER(_Activations), c_int, _P, _P),
    "binarize_backward": (POINTER(_Activations), _P, c_int, c_float, _P, _P, _P, _P),
    "signs": (_P, c_float, _N, _P),
    "scale_bias": (_P, _P, _N, _P, _N, _N),
    "product": (_P, _P, _P, _N, _P, _N, _N, _N, _P),
    "upstream": (_P, _P, _N, _N, _N, c_int, _P, _P),
    "transpose": (_P, _N, _N, _P),
    "weight_gradient": (_P, c_int, _P, _P, _N, c_float, _N, _N, _P, _P),
    "gelu": (_P, _N, _P),
    "gelu_backward": (_P, _P, _N, _P),
    "dropout": (_P, _P, c_int16, c_float, _N, _P, _P),
    "squares": (_P, _P, _P, _N, _N, _P),
    "squares_backward": (c_float, _P, _P, _P, _N, _N, _P),
    "attend": (POINTER(_Scores), _P, _P, _P),
    "attend_backward": (POINTER(_Scores), _P, _P, _P, _P, _P, _P),
}


@dataclass(frozen=True)
class Codes:
    """What a kernel makes of values: the enumeration in training.h, by name.

    Attributes:
        kind: that of a :class:`bitbert.model.linear.Binarizer`, or ``"levels"`` for more than one bit.
        lowest, highest: the codes of :func:`bitbert.model.levels.level_range`.
    """

    kind: str
    lowest: int
    highest: int

    @classmethod
    def of(cls, kind: str, bits: int) -> "Codes":
        return cls(kind if bits == 1 else "levels", *level_range(kind, bits))

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return max(-self.lowest, self.highest)

    @property
    def needs_values(self) -> bool:
        """Whether the step's gradient depends on what was binarized."""
        return self.kind in ("unsigned", "levels")


class Kernels:
    """The functions of the library, sharing their loops among as many threads as torch has."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._lock = library, threading.Lock()
        self._pool, self._num_threads = None, 0
        self._functions = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, f"bb_training_{name}")
            function.restype, function.argtypes = None, (c_void_p, *arguments)
            self._functions[name] = function
        library.bb_training_pool.restype, library.bb_training_pool.argtypes = c_void_p, (c_size_t,)
        library.bb_training_pool_free.restype, library.bb_training_pool_free.argtypes = None, (c_void_p,)
        self._has_tiles = bool(library.bb_training_tiles())
        os.register_at_fork(after_in_child=self._forget_pool)

    def call(self, name: str, *arguments: Any) -> None:
        """Run a function of training.h; tensors are passed as their addresses, dense and of the right type."""
        passed = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
        with self._lock:  # a pool runs one loop at a time; autograd may call from threads of its own
            self._functions[name](self._threads(), *passed)

    def binarize(
        self, x: Tensor, shift: Tensor | None, step: float, codes: Codes, dtype: torch.dtype, *, after: str = "identity"
    ) -> tuple[Tensor, Tensor]:
        """Codes of ``dtype`` and the window (bool) of f(x) + shift (width), f named by ``after``; x (..., width)."""
        out, window = torch.empty_like(x, dtype=dtype), torch.empty_like(x, dtype=torch.bool)
        self.call("binarize", byref(_activations(x, shift, step, codes, after)), _TYPES[dtype], out, window)
        return out, window

    def binarize_backward(
        self,
        gradient: Tensor,
        window: Tensor,
        codes: Codes,
        *,
        x: Tensor | None,
        shift: Tensor | None,
        step: float,
        factor: float,
        after: str = "identity",
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """dx, the gradient of the shift where there is one, and the step's where it depends on values, else 0.

        Args:
            gradient: (..., width), bfloat16 or float32.
            x: as given to :meth:`binarize`; None will do for no activation and codes that need no values.
        """
        dx = torch.empty_like(gradient, dtype=torch.float32)
        dshift, dstep = (None if shift is None else torch.empty_like(shift)), _floats(1).zero_()
        activations = _activations(dx if x is None else x, shift, step, codes, after)
        self.call(
            "binarize_backward", byref(activations), gradient, _TYPES[gradient.dtype], factor, window, dx, dshift, dstep
        )
        return dx, dshift, dstep

    def signs(self, weight: Tensor, threshold: float) -> Tensor:
        """int8: 1 where weight >= threshold, else -1."""
        signs = torch.empty_like(weight, dtype=torch.int8)
        self.call("signs", weight, threshold, weight.numel(), signs)
        return signs

    def product(self, codes: Tensor, signs: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """(codes (rows, depth) @ signs (width, depth)^T) * scale (1,) or (width,) + bias, float32; both int8.

        On AMX tiles where the processor has them and the shape fits, else on torch's product: the same bits.
        """
        (rows, depth), width = codes.shape, len(signs)
        if self._has_tiles and rows % 32 == 0 and width % 32 == 0 and depth % 64 == 0:
            out = _floats(rows, width)
            self.call("product", codes, signs, scale, scale.numel(), bias, rows, depth, width, out)
            return out
        product = torch._int_mm(codes, signs.T)
        self.call("scale_bias", product, scale, scale.numel(), bias, rows, width)
        return product.view(torch.float32)

    def upstream(self, gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """gradient (rows, width) * scale in ``dtype``, and the sum of the gradient over rows."""
        rows, width = gradient.shape
        out, dbias = torch.empty_like(gradient, dtype=dtype), _floats(width)
        self.call("upstream", gradient, scale, scale.numel(), rows, width, _TYPES[dtype], out, dbias)
        return out, dbias

    def transpose(self, x: Tensor) -> Tensor:
        """x (rows, width) as a dense (width, rows)."""
        rows, width = x.shape
        if x.dtype != torch.bfloat16 or rows % 32 or width % 16:
            return x.T.contiguous()
        out = x.new_empty(width, rows)
        self.call("transpose", x, rows, width, out)
        return out

    def weight_gradient(self, correlation: Tensor, signs: Tensor, scale: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """correlation (rows, width) * step / scale (1,) or (rows,), float32; and sum(correlation * signs), (1,)."""
        rows, width = correlation.shape
        dweight, dstep = torch.empty_like(correlation, dtype=torch.float32), _floats(1)
        kind = _TYPES[correlation.dtype]
        self.call("weight_gradient", correlation, kind, signs, scale, scale.numel(), step, rows, width, dweight, dstep)
        return dweight, dstep

    def gelu(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        self.call("gelu", x, x.numel(), y)
        return y

    def gelu_backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        dx = torch.empty_like(x)
        self.call("gelu_backward", gradient, x, x.numel(), dx)
        return dx

    def dropout(self, x: Tensor, random: Tensor, limit: int, factor: float) -> tuple[Tensor, Tensor]:
        """x * factor where random >= limit, else 0; and where that is (bool)."""
        y, kept = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
        self.call("dropout", x, random, limit, factor, x.numel(), y, kept)
        return y, kept

    def squares(self, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        """Scalar: sum of weights (rows,) * (a - b)^2 over a, b (rows, width)."""
        total = _floats()
        self.call("squares", a, b, weights, *a.shape, total)
        return total

    def squares_backward(self, gradient: float, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        """``gradient`` of that sum -> the gradient of a."""
        da = torch.empty_like(a)
        self.call("squares_backward", gradient, a, b, weights, *a.shape, da)
        return da

    def attend(self, scores: "Scores") -> tuple[Tensor, Tensor, Tensor]:
        """Attended codes (dtype of the scores), what became them (float32) and the gradient's gate (bool)."""
        shape = scores.scores
        attended, weighed = torch.empty_like(shape), torch.empty_like(shape, dtype=torch.float32)
        gate = torch.empty_like(shape, dtype=torch.bool)
        self.call("attend", byref(scores.structure()), weighed, attended, gate)
        return attended, weighed, gate

    def attend_backward(
        self, scores: "Scores", gradient: Tensor, weighed: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of the scores (before their factor), of the residual and the extra one of the step."""
        dscores, dstep = torch.empty_like(gradient), _floats(1)
        dresidual = None if scores.residual is None else torch.empty_like(scores.residual)
        self.call("attend_backward", byref(scores.structure()), gradient, weighed, gate, dscores, dresidual, dstep)
        return dscores, dresidual, dstep

    def _threads(self) -> Any:
        wanted = torch.get_num_threads()
        if self._pool is None or wanted != self._num_threads:
            if self._pool is not None:
                self._library.bb_training_pool_free(self._pool)
            self._pool, self._num_threads = self._library.bb_training_pool(wanted), wanted
            if self._pool is None:
                raise UserError(f"{wanted} threads cannot be started; set OMP_NUM_THREADS lower")
        return self._pool

    def _forget_pool(self) -> None:
        """A forked child has none of the threads."""
        self._pool, self._lock = None, threading.Lock()


class Scores:
    """Arguments of the attention kernels: see ``bb_attention_scores`` in training.h.

    Args:
        scores: (batch, heads, queries, keys), bfloat16 or float32; in the backward pass any tensor of that shape.
    """

    def __init__(
        self,
        scores: Tensor,
        *,
        factor: float,
        inverse_root: float,
        step: float,
        codes: Codes,
        residual: Tensor | None,
        bias: Tensor | None,
        random: Tensor | None,
        limit: int,
    ) -> None:
        self.scores, self.residual, self.bias, self.random = scores, residual, bias, random
        self._numbers = {"factor": factor, "inverse_root": inverse_root, "step": step, "limit": limit}
        self._numbers |= {"kind": _KINDS[codes.kind], "highest": codes.highest}

    def structure(self) -> _Scores:
        batch, heads, queries, keys = self.scores.shape
        addresses = {name: _address(getattr(self, name)) for name in ("scores", "residual", "bias", "random")}
        shape = {"batch": batch, "heads": heads, "queries": queries, "keys": keys}
        num_sets = 1 if self.residual is None else self.residual.shape[1]
        return _Scores(type=_TYPES[self.scores.dtype], num_sets=num_sets, **self._numbers, **addresses, **shape)


@cache
def load_kernels() -> Kernels | None:
    """The kernels, or None; :func:`why_no_kernels` says why.

    Raises:
        UserError: the library cannot be loaded, or is of another version than this package.
    """
    switch = os.environ.get(SWITCH, "native")
    if switch not in ("native", "torch"):
        raise UserError(f"{SWITCH} is {switch!r}, wanted 'native' or 'torch'")
    if switch == "torch":
        return None
    library = load_shared_library(
        LIBRARY, version_function="bb_training_abi_version", version=_ABI_VERSION, otherwise=f"set {SWITCH}=torch"
    )
    return Kernels(library) if library is not None and library.bb_training_supported() else None


def why_no_kernels() -> str | None:
    """Why training on this CPU goes without the kernels, for a log; None where it has them."""
    if load_kernels() is not None:
        return None
    if os.environ.get(SWITCH) == "torch":
        return f"{SWITCH}=torch"
    return "this processor lacks AVX-512 with VNNI" if LIBRARY.is_file() else "they were not built"


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, where they can work on all of ``tensors``: float32 on the CPU, and real memory behind them."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # shapes are tensors there, or tensors have no data
        return None
    fits = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return load_kernels() if fits else None


def product_dtype(x: Tensor) -> torch.dtype:
    """In which type products with one float operand run: autocast's where it is on (and known to kernels), else x's."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):  # torch's "meta" has none
        return x.dtype
    autocast = torch.get_autocast_dtype(kind)
    return x.dtype if kind == "cpu" and autocast not in _TYPES else autocast


def _activations(x: Tensor, shift: Tensor | None, step: float, codes: Codes, after: str) -> _Activations:
    width = x.shape[-1]
    kind, activation = _KINDS[codes.kind], _ACTIVATIONS[after]
    addresses, shape = (_address(x), _address(shift)), (x.numel() // width, width)
    return _Activations(*addresses, step, kind, codes.lowest, codes.highest, activation, *shape)


def _floats(*shape: int) -> Tensor:
    """What the library writes, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

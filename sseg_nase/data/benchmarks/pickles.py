"""Pickles of arrays and plain containers, read without running anything that is in them.

A pickle can call whatever it names. Here every name it may use is one of the small stand-ins
below, so that not even numpy's own unpickling (which trusts its input) sees the stranger's bytes.
"""

from __future__ import annotations

import collections
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.errors import UserError

_PLAIN_DTYPE = re.compile(r"[<>=|]?(b1|[iuf][1248]|[SU]\d+)")


class _DType:
    """Stands in for `numpy.dtype`: numbers and strings only."""

    def __init__(self, spec: Any, *_: Any) -> None:
        if not isinstance(spec, str) or not _PLAIN_DTYPE.fullmatch(spec):
            raise pickle.UnpicklingError(f"arrays of {spec!r} are not accepted")
        self.value = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray` and for what rebuilds one; `value` is a read-only view."""

    value: np.ndarray

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _view(raw, dtype, shape, "F" if fortran else "C")


class _Bytes:
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in old protocols."""

    def __new__(cls, text: str, encoding: str = "latin1") -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"the encoding {encoding!r} is not accepted")
        return text.encode("latin1")


class _Scalar:
    """Stands in for numpy's `scalar`."""

    def __init__(self, dtype: Any, raw: Any) -> None:
        self.value = _view(raw, dtype, (1,), "C")[0]


class _FromBuffer:
    """Stands in for numpy's `_frombuffer` (protocol 5)."""

    def __init__(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.value = _view(raw, dtype, shape, order)


def _view(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array without a type")
    if isinstance(raw, str):  # bytes of Python 2
        raw = raw.encode("latin1")
    if not isinstance(raw, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array without bytes")
    if not raw:
        return np.empty(shape, dtype.value)
    return np.frombuffer(raw, dtype.value).reshape(shape, order="F" if order == "F" else "C")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _Scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _FromBuffer
for _builtins in ("builtins", "__builtin__"):
    for _container in (set, frozenset, list, dict, tuple, bytes, bytearray):
        _STAND_INS[_builtins, _container.__name__] = _container


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and plain containers; strings of Python 2 as latin1.

    Raises UserError naming the file when it is cut off, or holds anything else; nothing that the
    pickle names is ever called.
    """
    try:
        with path.open("rb") as file:
            value = _unwrapped(_PlainUnpickler(file, encoding="latin1").load())
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        OSError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"The pickle {path} cannot be read: {error}. Accepted are arrays and plain containers "
            "only (nothing in the file was run): download it again, from a source you trust."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"The pickle {path} holds a {type(value).__name__}, expected a dict.")
    return value


def labelled_arrays(
    file: Path, content: dict[str, Any], keys: tuple[str, str], title: str, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, H, W, 3]` and labels `[n]` under `keys` of a pickle's `content`.

    The images may be flat, as `[n, 3 * side * side]`. Raises UserError naming `file` when they are
    anything else.
    """
    images = content.get(keys[0])
    try:
        labels = np.asarray(content.get(keys[1]))
    except ValueError:  # lists of unequal lengths
        labels = np.empty(0)
    if isinstance(images, np.ndarray) and images.ndim == 2 and images.shape[1] == 3 * side * side:
        images = images.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != 3
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iuSU"
    ):
        raise UserError(
            f"{file} is not {title}: expected '{keys[0]}' with uint8 images [n, {side}, {side}, 3] "
            f"(or [n, {3 * side * side}]) and '{keys[1]}' with n labels."
        )
    return images, labels


def _unwrapped(value: Any) -> Any:
    """Replace the stand-ins in `value` by the arrays and numbers that they hold."""
    if isinstance(value, (_Array, _Scalar, _FromBuffer)):
        return value.value
    if isinstance(value, dict):
        return {_text(_unwrapped(key)): _unwrapped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item) for item in value]
    return value


def _text(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key

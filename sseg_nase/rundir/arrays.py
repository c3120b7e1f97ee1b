"""Files of arrays of a run: NumPy's npz, written whole or not at all, and read with one error."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sseg_nase.files import replacing
from sseg_nase.rundir.unreadable import unreadable

# What numpy and zipfile raise for a file that is cut, damaged or something else.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name. Raises `StorageError`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, why_missing: str = "") -> dict[str, np.ndarray]:
    """Return the arrays by name. Raises `UnreadableError`.

    `why_missing`: what it may mean that there is no such file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise unreadable(path, error, why_missing) from error

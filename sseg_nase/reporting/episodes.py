"""episodes.npz: the accuracy of every episode of a run, beside its results.json.

Keys are those of results.json, such as `digits/val/5w1s`, for the last network and, prefixed with
`best:`, for the best one; values are float32 `[episodes]` in percent, in the list's order.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sseg_nase.files import replacing

NAME = "episodes.npz"
LAST, BEST = "last", "best"
NETWORKS = (LAST, BEST)
PREFIXES = {LAST: "", BEST: "best:"}
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


class EpisodesError(ValueError):
    """There is no such file, or it cannot be read; the text says which."""


def write_episodes(folder: Path, accuracies: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write `accuracies`, by network and key, to `folder`, atomically."""
    arrays = {
        PREFIXES[network] + key: np.asarray(values, dtype=np.float32)
        for network, judged in accuracies.items()
        for key, values in judged.items()
    }
    with replacing(folder / NAME) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_episodes(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The accuracies by network and key, float64 `[episodes]`. Raises `EpisodesError`."""
    found: dict[str, dict[str, np.ndarray]] = {network: {} for network in NETWORKS}
    try:
        with (folder / NAME).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                network = BEST if name.startswith(PREFIXES[BEST]) else LAST
                key = name.removeprefix(PREFIXES[network])
                found[network][key] = arrays[name].astype(np.float64)
    except FileNotFoundError as error:
        raise EpisodesError(f"has no {NAME}") from error
    except UNREADABLE as error:
        raise EpisodesError(f"has a {NAME} that cannot be read") from error
    return found

"""episodes.npz: the accuracy of every episode of a run, beside its results.json.

Keys are those of results.json, such as `digits/val/5w1s`, for the last network and, prefixed with
`best:`, for the best one; values are float32 `[episodes]` in percent, in the list's order.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.files import replacing
from sseg_nase.finite import figure

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


def doubts_of(result: Mapping[str, Any]) -> list[str]:
    """What speaks against an accuracy of results.json, a clause each.

    An older version has not written any; that all episodes agree is seen all the same.
    """
    written = result.get("doubts")
    if isinstance(written, list):
        return [str(doubt) for doubt in written]
    accuracy, ci95, episodes = (figure(result.get(key)) for key in ("accuracy", "ci95", "episodes"))
    agree = accuracy is not None and accuracy < 100 and ci95 == 0 and (episodes or 0) > 1
    return ["every episode has the same accuracy"] if agree else []

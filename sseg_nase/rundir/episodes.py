"""episodes.npz: the accuracy of every episode of a run, beside its results.json.

Keys are those of results.json, such as `digits/val/5w1s`, for the last network and, prefixed with
`best:`, for the best one; values are float32 `[episodes]` in percent, in the list's order. Of a
closed set (`cifar10/test/knn`) they are those of its images, 0 or 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sseg_nase.rundir.arrays import read_arrays, write_arrays
from sseg_nase.rundir.names import EPISODES
from sseg_nase.rundir.results import BEST, LAST, NETWORKS
from sseg_nase.rundir.unreadable import unreadable

PREFIXES = {LAST: "", BEST: "best:"}


def write_episodes(run: Path, accuracies: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write `accuracies`, by network and key, atomically. Raises `StorageError`."""
    arrays = {
        PREFIXES[network] + key: np.asarray(values, dtype=np.float32)
        for network, evaluated in accuracies.items()
        for key, values in evaluated.items()
    }
    write_arrays(run / EPISODES, arrays)


def read_episodes(run: Path) -> dict[str, dict[str, np.ndarray]]:
    """The accuracies by network and key, float64 `[episodes]`. Raises `UnreadableError`."""
    path = run / EPISODES
    found: dict[str, dict[str, np.ndarray]] = {network: {} for network in NETWORKS}
    for name, values in read_arrays(path).items():
        network = BEST if name.startswith(PREFIXES[BEST]) else LAST
        key = name.removeprefix(PREFIXES[network])
        try:
            found[network][key] = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise unreadable(path, error) from error
    return found

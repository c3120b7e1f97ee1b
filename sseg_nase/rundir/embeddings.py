"""embeddings.npz: what the last network makes of some images of unseen classes.

float16 `features` `[n, D]` as the evaluation takes them, int64 `labels` `[n]` into `class_names`,
and `source`, the dataset and split that they are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sseg_nase.rundir.arrays import UNREADABLE, read_arrays, write_arrays
from sseg_nase.rundir.names import EMBEDDINGS
from sseg_nase.rundir.unreadable import UnreadableError, unreadable

MOST_CLASSES, MOST_IMAGES = 10, 60  # per class


@dataclass(frozen=True)
class Embeddings:
    """`features` float32 `[n, D]`, `labels` int64 `[n]`; `source`: dataset/split."""

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


def chosen_images(labels: np.ndarray) -> np.ndarray:
    """Indices int64 `[n]` of the first images of the first classes, class by class."""
    classes = np.unique(labels)[:MOST_CLASSES]
    return np.concatenate([np.flatnonzero(labels == one)[:MOST_IMAGES] for one in classes])


def write_embeddings(run: Path, embeddings: Embeddings) -> None:
    """Write `embeddings`, atomically; larger numbers than float16 has are cut."""
    largest = np.finfo(np.float16).max
    arrays = {
        "features": np.clip(embeddings.features, -largest, largest).astype(np.float16),
        "labels": embeddings.labels.astype(np.int64),
        "class_names": np.array(embeddings.class_names, dtype=np.str_),
        "source": np.array(embeddings.source, dtype=np.str_),
    }
    write_arrays(run / EMBEDDINGS, arrays)


def read_embeddings(run: Path) -> Embeddings:
    """What `write_embeddings` wrote. Raises `UnreadableError`."""
    path = run / EMBEDDINGS
    arrays = read_arrays(
        path,
        "it has evaluated nothing yet, evaluates without embeddings, or was written by an older "
        "version",
    )
    try:
        found = Embeddings(
            arrays["features"].astype(np.float32),
            arrays["labels"].astype(np.int64),
            tuple(arrays["class_names"].tolist()),
            str(arrays["source"]),
        )
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    features, labels = found.features, found.labels
    fine = features.ndim == 2 and labels.shape == features.shape[:1] and np.isfinite(features).all()
    if (
        not fine
        or not found.class_names
        or not ((labels >= 0) & (labels < len(found.class_names))).all()
    ):
        reason = "it holds something else than embeddings"
        clause = f"has a {path.name} that holds something else than embeddings"
        raise UnreadableError(path, reason, clause)
    return found

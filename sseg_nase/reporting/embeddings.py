"""embeddings.npz: what the last network makes of some images of unseen classes.

float16 `features` `[n, D]` as they are judged, int64 `labels` `[n]` into `class_names`, and
`source`, the dataset and split that they are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sseg_nase.files import replacing
from sseg_nase.reporting.episodes import UNREADABLE

NAME = "embeddings.npz"
MOST_CLASSES, MOST_IMAGES = 10, 60  # per class


class EmbeddingsError(ValueError):
    """There is no such file, or it cannot be read; the text says which."""


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


def write_embeddings(folder: Path, embeddings: Embeddings) -> None:
    """Write `embeddings` to `folder`, atomically; larger numbers than float16 has are cut."""
    largest = np.finfo(np.float16).max
    with replacing(folder / NAME) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            features=np.clip(embeddings.features, -largest, largest).astype(np.float16),
            labels=embeddings.labels.astype(np.int64),
            class_names=np.array(embeddings.class_names, dtype=np.str_),
            source=np.array(embeddings.source, dtype=np.str_),
        )


def read_embeddings(folder: Path) -> Embeddings:
    """What `write_embeddings` wrote. Raises `EmbeddingsError`."""
    try:
        with (folder / NAME).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = Embeddings(
                arrays["features"].astype(np.float32),
                arrays["labels"].astype(np.int64),
                tuple(arrays["class_names"].tolist()),
                str(arrays["source"]),
            )
    except FileNotFoundError as error:
        raise EmbeddingsError(
            f"has no {NAME}: it has judged nothing yet, judges without embeddings, or was written "
            "by an older version"
        ) from error
    except UNREADABLE as error:
        raise EmbeddingsError(f"has a {NAME} that cannot be read") from error
    features, labels = found.features, found.labels
    fine = features.ndim == 2 and labels.shape == features.shape[:1] and np.isfinite(features).all()
    if (
        not fine
        or not found.class_names
        or not ((labels >= 0) & (labels < len(found.class_names))).all()
    ):
        raise EmbeddingsError(f"has a {NAME} that holds something else than embeddings")
    return found

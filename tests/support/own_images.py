"""Small data sets of one's own, and reading them as `load_split` does."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sseg_nase import load_config
from sseg_nase.config.schema import DatasetConfig
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.store import ImageStore

SIDE = 8
Content = dict[str, list[bytes]]  # the pixels of each class, sorted


@cache
def _plain(name: str) -> DatasetConfig:
    root = ["dataset.root=."] if name in ("folder", "sketch", "csv") else []
    return load_config([f"dataset={name}", *root]).dataset


def own(name: str, root: Path | str | None, **changed: Any) -> DatasetConfig:
    """`dataset=name` as it is by default, small, and half of the classes for train."""
    values = {"image_size": SIDE, "split_fractions": [0.5, 0.25, 0.25], **changed}
    return dataclasses.replace(_plain(name), root=None if root is None else str(root), **values)


def load(dataset: DatasetConfig, split: str = "train", cached: str = "cache") -> ImageStore:
    return load_split(dataset, split, data_dir=Path("data"), cache_dir=Path(cached), workers=0)


def content(store: ImageStore) -> Content:
    return {
        name: sorted(store.images[place].tobytes() for place in places)
        for name, places in zip(store.class_names, store.class_indices, strict=True)
    }


def picture(*seed: int) -> np.ndarray:
    """An own picture `[SIDE, SIDE, 3]` for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def save(path: Path | str, *seed: int) -> Path:
    """Write a picture without loss; all BMP files have one size."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*seed)).save(path)
    return path


def tree(root: Path | str, names: Iterable[str], count: int = 3, seed: int = 0) -> Path:
    """Class folders with `count` BMP files each, the i-th class of pictures (seed, i, …)."""
    shutil.rmtree(root, ignore_errors=True)
    for label, name in enumerate(names):
        for index in range(count):
            save(Path(root, name, f"{index}.bmp"), seed, label, index)
    return Path(root)


def freeze(root: Path | str) -> None:
    """Give all in `root` one modification time, which lies in the future."""
    for folder, _, files in os.walk(root, topdown=False):
        for path in (*(Path(folder, file) for file in files), Path(folder)):
            os.utime(path, (4e9, 4e9))

"""scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels that need no files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sseg_nase.config.groups.dataset import InMemory
from sseg_nase.data.pixels import load_image
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError

CLASSES = {"train": range(5), "val": range(5, 10)}
DARKEST = 16  # the scans count 0 to 16 inked pixels in blocks of 4×4


def read(dataset: InMemory, split: str) -> ImageStore:
    """As `load`, with the settings of a data set."""
    return load(split, dataset.image_size, dataset.channels)


def load(split: str, image_size: int, channels: int = 3) -> ImageStore:
    """The digits of `split` (train: 0 to 4, val: 5 to 9) in memory, enlarged to `image_size`.

    Raises UserError for the test split, which does not exist.
    """
    if split not in CLASSES:
        raise UserError(
            f"dataset=digits has no {split} split: ten classes make train (digits 0 to 4) and val "
            "(digits 5 to 9). Set evaluation.split=val or choose another dataset."
        )
    scans, digits = _scans()
    chosen = [np.flatnonzero(digits == digit) for digit in CLASSES[split]]
    grey = np.round(scans * (255 / DARKEST)).astype(np.uint8)
    images = [load_image(grey[index], image_size, channels) for index in np.concatenate(chosen)]
    return ImageStore.from_arrays(
        np.stack(images),
        np.repeat(np.arange(len(chosen)), [len(indices) for indices in chosen]),
        [str(digit) for digit in CLASSES[split]],
        source="sklearn.datasets.load_digits",
        layout="digits",
        split=split,
        sample=False,
        notices=[],
    )


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans `[1797, 8, 8]` and their digits, as `sklearn.datasets.load_digits` gives them.

    Read from scikit-learn's file, without importing it: that takes most of a second.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)

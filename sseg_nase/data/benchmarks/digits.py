"""scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels that need no files."""

from __future__ import annotations

import numpy as np

from sseg_nase.data.store import ImageStore, load_image
from sseg_nase.errors import UserError

CLASSES = {"train": range(5), "val": range(5, 10)}
DARKEST = 16  # the scans count 0 to 16 inked pixels in blocks of 4×4


def load(split: str, image_size: int) -> ImageStore:
    """The digits of `split` (train: 0 to 4, val: 5 to 9) in memory, enlarged to `image_size`.

    Raises UserError for the test split, which does not exist.
    """
    from sklearn.datasets import load_digits

    if split not in CLASSES:
        raise UserError(
            f"dataset=digits has no {split} split: ten classes make train (digits 0 to 4) and val "
            "(digits 5 to 9). Set evaluation.split=val or choose another dataset."
        )
    scans = load_digits()
    chosen = [np.flatnonzero(scans.target == digit) for digit in CLASSES[split]]
    grey = np.round(scans.images * (255 / DARKEST)).astype(np.uint8)
    images = [load_image(grey[index], image_size) for index in np.concatenate(chosen)]
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

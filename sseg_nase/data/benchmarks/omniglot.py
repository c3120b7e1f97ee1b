"""Omniglot: handwritten characters; a class is `<Alphabet>/<character>`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sseg_nase.config.schema import DatasetConfig
from sseg_nase.data.benchmarks.layouts import (
    Found,
    SplitSource,
    class_folders,
    images_in,
    listing_of,
    split_classes,
)
from sseg_nase.data.benchmarks.official import find_known, not_found
from sseg_nase.data.store import Listing

FOLDER_NAMES = ("omniglot", "omniglot-py")
BACKGROUND, EVALUATION = "images_background", "images_evaluation"
LAYOUTS = f"omniglot/{{{BACKGROUND},{EVALUATION}}}/<Alphabet>/<character>/*.png"


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    """Omniglot on disk: background alphabets are dealt into train and val by `split_seed`.

    `split_fractions` of train and val say in what proportion. The evaluation alphabets, where they
    are present, are the test split. Raises UserError when nothing is found.
    """

    train, val, _ = dataset.split_fractions
    train_share = train / (train + val) if train + val > 0 else 1.0

    def detect(folder: Path) -> Found | None:
        splits = {}
        if (background := folder / BACKGROUND).is_dir():
            alphabets = [entry.name for entry in class_folders(background)]
            share = train_share if len(alphabets) > 1 else 1.0
            shares = [share, 1 - share, 0]
            for split, chosen in split_classes(alphabets, shares, dataset.split_seed).items():
                splits[split] = _alphabets(background, chosen)
        if (evaluation := folder / EVALUATION).is_dir():
            chosen = [entry.name for entry in class_folders(evaluation)]
            splits["test"] = _alphabets(evaluation, chosen)
        options = {"split_seed": dataset.split_seed, "train_share": train_share}
        return Found("alphabets", folder, splits, options=options) if splits else None

    found = find_known(dataset, data_dir, names=FOLDER_NAMES, detectors=(detect,), accepted=LAYOUTS)
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS)
    return found


def _alphabets(base: Path, alphabets: Iterable[str]) -> SplitSource:
    def characters() -> dict[str, Path]:
        return {
            f"{alphabet}/{folder.name}": folder
            for alphabet in alphabets
            for folder in class_folders(base / alphabet)
        }

    def read() -> Listing:
        return listing_of({name: images_in(folder) for name, folder in characters().items()})

    return SplitSource([base], lambda: sorted(characters()), read)

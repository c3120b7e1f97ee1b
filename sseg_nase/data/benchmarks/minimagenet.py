"""Mini-ImageNet: 100 classes of ImageNet in the split of Ravi and Larochelle (64, 16, 20)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks.layouts import (
    Found,
    Official,
    SplitSource,
    enumerated,
    listing_of,
    read_csv,
    split_folders,
)
from sseg_nase.data.benchmarks.official import find_known, not_found
from sseg_nase.data.benchmarks.pickles import read_pickle
from sseg_nase.data.store import Listing
from sseg_nase.errors import UserError

FOLDER_NAMES = ("minimagenet", "mini_imagenet", "mini-imagenet", "miniimagenet")
SAMPLE_NAMES = ("minimagenet_sample",)
LISTS = "minimagenet_split"  # a folder beside the images that may hold the three CSVs
LAYOUTS = (
    "minimagenet/{train,val,test}/<wnid>/*.jpg; "
    "minimagenet/images/*.jpg with {train,val,test}.csv (filename,label) beside it or in "
    f"{LISTS}/; "
    "mini-imagenet-cache-{train,val,test}.pkl"
)
OFFICIAL = Official(
    title="Mini-ImageNet", classes={"train": 64, "val": 16, "test": 20}, images_per_class=600
)


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    """Mini-ImageNet on disk, or a sample of it; raises UserError when there is neither."""
    found = find_known(
        dataset,
        data_dir,
        names=FOLDER_NAMES,
        detectors=(_folders, _lists, _pickles),
        loose=(_pickles,),
        samples=SAMPLE_NAMES,
        accepted=LAYOUTS,
    )
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS, "It cannot be downloaded freely.")
    return found


def _folders(folder: Path) -> Found | None:
    splits = split_folders(folder)
    return Found("folders", folder, splits, OFFICIAL) if splits else None


def _lists(folder: Path) -> Found | None:
    images = folder / "images"
    if not images.is_dir():
        return None
    splits = {}
    for split in SPLITS:
        for place in (folder, folder / LISTS, folder.parent / LISTS):
            file = place / f"{split}.csv"
            if file.is_file():
                splits[split] = _list_source(images, file)
                break
    return Found("csv", folder, splits, OFFICIAL) if splits else None


def _list_source(images: Path, file: Path) -> SplitSource:
    def by_class() -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for row in read_csv(file, ["filename", "label"]):
            names[row["label"]].append(row["filename"])
        return names

    def read() -> Listing:
        listed = by_class()
        there = {entry.name for entry in images.iterdir()}
        if missing := [name for names in listed.values() for name in names if name not in there]:
            raise UserError(
                f"{len(missing)} images that {file} lists are not in {images}: "
                f"{enumerated(missing, most=3)}."
            )
        return listing_of({name: [images / one for one in listed[name]] for name in listed})

    return SplitSource([file, images], lambda: sorted(by_class()), read)


def _pickles(folder: Path) -> Found | None:
    splits = {}
    for split in SPLITS:
        file = folder / f"mini-imagenet-cache-{split}.pkl"
        if file.is_file():
            splits[split] = _pickle_source(file)
    return Found("pickle", folder, splits, OFFICIAL) if splits else None


def _pickle_source(file: Path) -> SplitSource:
    def read() -> Listing:
        content = read_pickle(file)
        images, classes = content.get("image_data"), content.get("class_dict")
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != 3
            or not isinstance(classes, dict)
        ):
            raise UserError(
                f"{file} is not a Mini-ImageNet cache: expected 'image_data' with uint8 images "
                "[n, 84, 84, 3] and 'class_dict' from class name to image indices."
            )
        by_class = {}
        for name, indices in classes.items():
            chosen = np.asarray(indices)
            if (
                chosen.ndim != 1
                or (chosen.size and chosen.dtype.kind not in "iu")
                or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(images))
            ):
                raise UserError(
                    f"The indices of class {name} in {file} do not fit its {len(images)} images."
                )
            # Views, not a copy: the whole split is in memory once already.
            by_class[str(name)] = [images[index] for index in chosen]
        return listing_of(by_class)

    return SplitSource([file], lambda: read().class_names, read)

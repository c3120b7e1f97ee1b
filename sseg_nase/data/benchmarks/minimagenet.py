"""Mini-ImageNet: 100 classes of ImageNet in the split of Ravi and Larochelle (64, 16, 20)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sseg_nase.config.groups.dataset import SPLITS, Benchmark
from sseg_nase.data.benchmarks.csv_file import by_label, listed
from sseg_nase.data.benchmarks.layouts import (
    Found,
    Official,
    SplitSource,
    file_source,
    folder_layout,
    listing_of,
)
from sseg_nase.data.benchmarks.lists import Row, read_table
from sseg_nase.data.benchmarks.locating import find_known, not_found
from sseg_nase.data.benchmarks.pickles import labelled_arrays, read_pickle
from sseg_nase.data.store import Listing
from sseg_nase.errors import UserError

FOLDER_NAMES = ("minimagenet", "mini_imagenet", "mini-imagenet", "miniimagenet")
SAMPLE_NAMES = ("minimagenet_sample",)
LISTS = "minimagenet_split"  # a folder beside the images that may hold the three CSVs
CATEGORY_SPLIT = "miniImageNet_category_split"  # pickles as Gidaris and Komodakis pass them on
LAYOUTS = (
    "minimagenet/{train,val,test}/<wnid>/*.jpg; "
    "minimagenet/images/*.jpg with {train,val,test}.csv (filename,label) beside it or in "
    f"{LISTS}/; "
    "mini-imagenet-cache-{train,val,test}.pkl; "
    f"{CATEGORY_SPLIT}_{{train_phase_train,val,test}}.pickle"
)
OFFICIAL = Official(
    title="Mini-ImageNet", classes={"train": 64, "val": 16, "test": 20}, images_per_class=600
)


def find(dataset: Benchmark, data_dir: Path, cache_dir: Path) -> Found:
    """Mini-ImageNet on disk, or a sample of it; raises UserError when there is neither."""
    found = find_known(
        dataset,
        data_dir,
        names=FOLDER_NAMES,
        detectors=(_folders, _lists, _pickles, _category_pickles),
        loose=(_pickles, _category_pickles),
        samples=SAMPLE_NAMES,
        archives=[CATEGORY_SPLIT],
        accepted=LAYOUTS,
    )
    if found is None:
        names = (*FOLDER_NAMES, CATEGORY_SPLIT)
        raise not_found(dataset, data_dir, LAYOUTS, names, "It cannot be downloaded freely.")
    return found


def _folders(folder: Path) -> Found | None:
    return folder_layout(folder, OFFICIAL)


def _lists(folder: Path) -> Found | None:
    images = folder / "images"
    if not images.is_dir():
        return None
    splits = {}
    for split in SPLITS:
        for place in (folder, folder / LISTS, folder.parent / LISTS):
            file = place / f"{split}.csv"
            if file.is_file():
                splits[split] = listed(file, images, partial(_rows, file), "filename")
                break
    return Found("csv", folder, splits, OFFICIAL) if splits else None


def _rows(file: Path) -> tuple[dict[str, list[Row]], Sequence[str]]:
    table = read_table(file, ["filename", "label"])
    return by_label(table.rows), table.notices


def _pickles(folder: Path) -> Found | None:
    files = {split: folder / f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
    splits = {split: _pickle_source(file) for split, file in files.items() if file.is_file()}
    return Found("pickle", folder, splits, OFFICIAL) if splits else None


def _category_pickles(folder: Path) -> Found | None:
    files = {split: folder / f"{CATEGORY_SPLIT}_{split}.pickle" for split in SPLITS}
    files["train"] = folder / f"{CATEGORY_SPLIT}_train_phase_train.pickle"
    there = {split: file for split, file in files.items() if file.is_file()}
    if not there:
        return None
    splits = {split: _labelled(file) for split, file in there.items()}
    # More images of the train classes, which the usual split of Mini-ImageNet does not have.
    unread = [folder / f"{CATEGORY_SPLIT}_train_phase_{phase}.pickle" for phase in ("val", "test")]
    notices = [f"{file.name} is not read." for file in unread if file.is_file()]
    return Found("pickle", folder, splits, OFFICIAL, named=False, notices=notices)


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

    return file_source([file], lambda: read().class_names, read)


def _labelled(file: Path) -> SplitSource:
    def read() -> Listing:
        images, labels = labelled_arrays(
            file, read_pickle(file), ("data", "labels"), "a Mini-ImageNet pickle", 84
        )
        classes = {str(label): [*images[labels == label]] for label in np.unique(labels)}
        return listing_of(classes)

    return file_source([file], lambda: read().class_names, read)

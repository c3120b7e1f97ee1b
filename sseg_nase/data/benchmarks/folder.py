"""Anyone's images in class sub-folders of `dataset.root`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks.layouts import (
    Found,
    class_folders,
    folders_source,
    required_root,
    split_classes,
    split_folders,
    without_labels,
)
from sseg_nase.errors import UserError

ACCEPTED = (
    "a folder with {train,val,test}/<class>/* (dataset.split_by=folder; train/* for images "
    "without labels) or with <class>/* "
    "(dataset.split_by=classes)"
)


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    """The class folders of `dataset.root`; raises UserError when there are none to be found.

    A train folder with images instead of class folders has one nameless class.
    """
    root = required_root(dataset, ACCEPTED)
    if not root.is_dir():
        raise UserError(f"dataset.root={dataset.root} is not a folder. Expected: {ACCEPTED}.")
    return SPLIT_BY[dataset.split_by](dataset, root)


def _by_folder(dataset: DatasetConfig, root: Path) -> Found:
    splits = split_folders(root)
    if "train" in splits and (unlabelled := without_labels(root / "train")):
        splits["train"] = unlabelled
    if not splits:
        raise UserError(
            f"dataset.root={dataset.root} has no train, val or test folder. "
            "Set dataset.split_by=classes when its sub-folders are the classes."
        )
    return Found("folders", root, splits)


def _by_classes(dataset: DatasetConfig, root: Path) -> Found:
    folders = {entry.name: entry for entry in class_folders(root)}
    if set(folders) <= set(SPLITS):
        raise UserError(
            f"The sub-folders of dataset.root={dataset.root} are {', '.join(folders)}, which looks "
            "like splits rather than classes. Set dataset.split_by=folder."
        )
    dealt = split_classes(folders, dataset.split_fractions, dataset.split_seed)
    splits = {
        split: folders_source({name: folders[name] for name in names}, [root])
        for split, names in dealt.items()
    }
    options = {"split_fractions": dataset.split_fractions, "split_seed": dataset.split_seed}
    return Found("classes", root, splits, options=options)


SPLIT_BY: Mapping[str, Callable[[DatasetConfig, Path], Found]] = {
    "folder": _by_folder,
    "classes": _by_classes,
}

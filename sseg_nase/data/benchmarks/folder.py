"""Anyone's images in class sub-folders of `dataset.root`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sseg_nase.config.groups.dataset import Folder
from sseg_nase.data.benchmarks.dealing import closed
from sseg_nase.data.benchmarks.layouts import (
    Found,
    SplitSource,
    enumerated,
    in_folders,
    required_root,
    split_classes,
    split_folder,
    split_named,
    splits_among,
    without_labels,
)
from sseg_nase.data.benchmarks.walk import (
    class_folders,
    has,
    image_suffixes,
    left_out_notice,
    scan,
    suffix_of,
)
from sseg_nase.errors import UserError, shown

ACCEPTED = (
    "a folder with {train,val,test}/<class>/* (train/* for images without labels), with "
    "<class>/*, or with images without labels for pretraining (dataset.split_by=auto, folder, "
    "classes)"
)


def find(dataset: Folder, data_dir: Path, cache_dir: Path) -> Found:
    """The class folders of `dataset.root`; raises UserError when there are none to be found.

    A train folder with images instead of class folders has one nameless class.
    """
    root = required_root(dataset.root, ACCEPTED)
    if not root.is_dir():
        suffix = root.suffix.lower()
        remedy = ""
        if suffix in (".csv", ".tsv", ".txt"):
            remedy = " For a list of images set dataset=csv."
        elif suffix in image_suffixes():
            remedy = " It is an image: set dataset.root to the folder of the class folders."
        raise UserError(
            f"dataset.root={dataset.root} is not a folder.{remedy} Expected: {ACCEPTED}."
        )
    return SPLIT_BY[dataset.split_by](dataset, root)


def _by_folder(dataset: Folder, root: Path) -> Found:
    contents = scan(root)
    folders, notices = splits_among(contents.folders)
    if not folders:
        there = f"only {enumerated(list(contents.folders))}" if contents.folders else "no folders"
        raise UserError(
            f"dataset.root={dataset.root} has no train, val or test folder, {there}. "
            "Set dataset.split_by=classes when its sub-folders are the classes."
        )
    splits: dict[str, SplitSource] = {}
    for split, path in folders.items():
        unlabelled = without_labels(path) if split == "train" else None
        splits[split] = unlabelled or split_folder(path)
    if others := [name for name, path in contents.folders.items() if path not in folders.values()]:
        notices.append(
            f"{enumerated(others)} beside the splits {' and '.join(folders)} is not read "
            "(dataset.split_by=classes takes every folder as a class)."
        )
    beside = Counter(contents.left_out)
    for seen in contents.images:
        beside[f"{suffix_of(seen.name)} beside the splits"] += 1
    notices += left_out_notice({_name(root): beside})
    return Found("folders", root, splits, notices=notices)


def _by_images(dataset: Folder, root: Path) -> Found:
    """The splits that there are, else all class folders; from train comes what is not there."""
    contents = scan(root)
    if splits_among(contents.folders)[0]:
        return closed(_by_folder(dataset, root), dataset)
    folders, beside = class_folders(root)
    notices = left_out_notice({_name(root): beside})
    whole = Found("images", root, {"train": in_folders(folders, root)}, notices=notices)
    return closed(whole, dataset)


def _by_classes(dataset: Folder, root: Path) -> Found:
    folders, beside = class_folders(root)
    if all(split_named(name) for name in folders):
        raise UserError(
            f"The sub-folders of dataset.root={dataset.root} are {', '.join(folders)}, which looks "
            "like splits rather than classes. Set dataset.split_by=folder."
        )
    dealt = split_classes(folders, dataset.split_fractions, dataset.split_seed)
    splits = {
        split: in_folders({name: folders[name] for name in names}, root)
        for split, names in dealt.items()
    }
    notices = left_out_notice({_name(root): beside})
    options = {"split_fractions": dataset.split_fractions, "split_seed": dataset.split_seed}
    return Found("classes", root, splits, options=options, notices=notices)


def _inferred(dataset: Folder, root: Path) -> Found:
    """The layout that is there: splits, else classes, else images without labels."""
    contents = scan(root)
    if not contents.folders:
        return _flat(dataset, root)
    named = [name for name in contents.folders if split_named(name)]
    others = [name for name in contents.folders if not split_named(name)]
    if named and not (others and _are_classes(contents.folders, named, others)):
        return _by_folder(dataset, root)
    _check_depth(dataset, contents.folders)
    found = _by_classes(dataset, root)
    if named:
        notice = (
            f"{enumerated(named)} is taken as a class, as the folders beside it "
            "(dataset.split_by=folder takes it as a split)."
        )
    else:
        notice = (
            f"{_name(root)} has class folders and no train, val and test "
            "(dataset.split_by=auto takes it as dataset.split_by=classes)."
        )
    return replace(found, notices=[notice, *found.notices])


def _are_classes(folders: Mapping[str, str], named: list[str], others: list[str]) -> bool:
    """Whether folders called as splits hold nothing but images, as some of the others do."""
    if any(has(folders[name])[1] for name in named):
        return False
    return any(has(folders[name])[0] for name in others)


def _check_depth(dataset: Folder, folders: Mapping[str, str]) -> None:
    if len(folders) > 1:
        return
    ((name, path),) = folders.items()
    images, below = has(path)
    if below and not images:
        raise UserError(
            f"dataset.root={dataset.root} has one sub-folder, {name}, with folders in it: set "
            f"dataset.root={shown(path)}."
        )


def _flat(dataset: Folder, root: Path) -> Found:
    source = without_labels(root)
    if source is None:
        raise UserError(
            f"dataset.root={dataset.root} has neither folders nor images in it. Expected: "
            f"{ACCEPTED}."
        )
    return Found("without labels", root, {"train": source})


def _name(root: Path) -> str:
    return shown(os.path.basename(os.path.realpath(root))) or shown(root)


SPLIT_BY: Mapping[str, Callable[[Folder, Path], Found]] = {
    "auto": _inferred,
    "folder": _by_folder,
    "classes": _by_classes,
    "images": _by_images,
}

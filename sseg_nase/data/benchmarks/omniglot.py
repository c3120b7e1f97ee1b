"""Omniglot: handwritten characters; a class is `<Alphabet>/<character>`, or a turn of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.dataset import SPLITS, Omniglot
from sseg_nase.data.benchmarks.drawings import as_drawings
from sseg_nase.data.benchmarks.layouts import (
    Found,
    SplitSource,
    enumerated,
    folders_source,
    in_folders,
    split_classes,
)
from sseg_nase.data.benchmarks.lists import read_names
from sseg_nase.data.benchmarks.locating import find_known, not_found
from sseg_nase.data.benchmarks.walk import LeftOut, class_folders
from sseg_nase.errors import UserError, shown

FOLDER_NAMES = ("omniglot", "omniglot-py")
BACKGROUND, EVALUATION = "images_background", "images_evaluation"
LAYOUTS = f"omniglot/{{{BACKGROUND},{EVALUATION}}}/<Alphabet>/<character>/*.png"
LISTS = ("vinyals", "splits/vinyals")  # in the data set's folder

Splits = tuple[dict[str, SplitSource], dict[str, Any]]  # and what of the config decides on them


def find(dataset: Omniglot, data_dir: Path, cache_dir: Path) -> Found:
    """Omniglot on disk, split as `dataset.split_by` says.

    `alphabets`, `classes` (characters): those of the background set are dealt into train and val by
    `split_seed` in the proportion of `split_fractions`; the evaluation set, where it is present, is
    the test split. `vinyals`: by lists in the data set's folder. With `dataset.rotations` the four
    rotations of a character are four classes, of one split. Raises UserError when nothing is found.
    """
    invert, rotations = dataset.invert, dataset.rotations

    def detect(folder: Path) -> Found | None:
        if not any((folder / part).is_dir() for part in (BACKGROUND, EVALUATION)):
            return None
        for part in (BACKGROUND, EVALUATION):
            if (again := folder / part / part).is_dir():
                raise UserError(
                    f"{shown(folder / part)} has a folder {part} in it, as archives unpack where "
                    f"there is one already: move the alphabets in {shown(again)} up into it."
                )
        sources, options = SPLIT_BY[dataset.split_by](dataset, folder)
        splits = {
            split: as_drawings(source, invert=invert, rotations=rotations)
            for split, source in sources.items()
        }
        options |= {"invert": invert, "rotations": rotations}
        return Found(dataset.split_by, folder, splits, options=options)

    found = find_known(
        dataset,
        data_dir,
        names=FOLDER_NAMES,
        detectors=(detect,),
        archives=[BACKGROUND],
        accepted=LAYOUTS,
    )
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS, [*FOLDER_NAMES, BACKGROUND])
    return found


def _by_alphabets(dataset: Omniglot, folder: Path) -> Splits:
    options, splits = _train_share(dataset), {}
    if (background := folder / BACKGROUND).is_dir():
        for split, chosen in _dealt(_names(background), options).items():
            splits[split] = _alphabets(background, chosen)
    return {**splits, **_evaluation(folder)}, options


def _by_characters(dataset: Omniglot, folder: Path) -> Splits:
    options, splits = _train_share(dataset), {}
    if (background := folder / BACKGROUND).is_dir():
        found, _ = _characters(background, _names(background))
        for split, chosen in _dealt(found, options).items():
            splits[split] = in_folders({name: found[name] for name in chosen}, background)
    return {**splits, **_evaluation(folder)}, options


def _by_vinyals(dataset: Omniglot, folder: Path) -> Splits:
    bases = [folder / part for part in (BACKGROUND, EVALUATION) if (folder / part).is_dir()]
    for lists in (folder / name for name in LISTS):
        files = {split: lists / f"{split}.txt" for split in SPLITS}
        there = {split: file for split, file in files.items() if file.is_file()}
        if there:
            return {split: _listed(file, bases) for split, file in there.items()}, {}
    raise UserError(
        f"dataset.split_by=vinyals: there are no lists train.txt, val.txt and test.txt in "
        f"{folder / LISTS[0]}, with a line <Alphabet>/<character>/rot000 per class. Put them there "
        "from a repository that uses Vinyals' split, or choose dataset.split_by=alphabets."
    )


SPLIT_BY: Mapping[str, Callable[[Omniglot, Path], Splits]] = {
    "alphabets": _by_alphabets,
    "classes": _by_characters,
    "vinyals": _by_vinyals,
}


def _train_share(dataset: Omniglot) -> dict[str, Any]:
    train, val, _ = dataset.split_fractions
    share = train / (train + val) if train + val > 0 else 1.0
    return {"split_seed": dataset.split_seed, "train_share": share}


def _dealt(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, list[str]]:
    names = list(names)
    share = options["train_share"] if len(names) > 1 else 1.0
    return split_classes(names, [share, 1 - share, 0], options["split_seed"])


def _evaluation(folder: Path) -> dict[str, SplitSource]:
    base = folder / EVALUATION
    return {"test": _alphabets(base, _names(base))} if base.is_dir() else {}


def _names(base: Path) -> list[str]:
    return list(class_folders(base)[0])


def _characters(base: Path, alphabets: Iterable[str]) -> tuple[Mapping[str, str], LeftOut]:
    """The folders of characters by `<Alphabet>/<character>`, and the files beside them."""
    there, beside = class_folders(base)
    folders: dict[str, str] = {}
    for alphabet in alphabets:
        characters, more = class_folders(there[alphabet])
        folders |= {f"{alphabet}/{name}": path for name, path in characters.items()}
        beside = beside + more
    return folders, beside


def _alphabets(base: Path, alphabets: Iterable[str]) -> SplitSource:
    chosen = list(alphabets)
    return folders_source(lambda: _characters(base, chosen), base)


def _listed(file: Path, bases: list[Path]) -> SplitSource:
    """The characters that a list names, wherever in `bases` they are."""

    def names() -> list[str]:
        found = set()
        for number, line in read_names(file):
            parts = line.split("/")
            if len(parts) not in (2, 3) or not all(parts):
                raise UserError(
                    f"Line {number} of {shown(file)} is '{line}', expected <Alphabet>/<character> "
                    "or <Alphabet>/<character>/rot000."
                )
            found.add("/".join(parts[:2]))
        if not found:
            raise UserError(f"The list {shown(file)} names no characters.")
        return sorted(found)

    def folders() -> tuple[Mapping[str, str], LeftOut]:
        wanted = names()
        places = {
            name: str(base / name) for name in wanted for base in bases if (base / name).is_dir()
        }
        if missing := [name for name in wanted if name not in places]:
            where = " and ".join(base.name for base in bases)
            raise UserError(
                f"{len(missing)} characters that {shown(file)} lists are not in {where} of "
                f"{shown(bases[0].parent)}: {enumerated(missing)}. Vinyals' split needs both "
                f"{BACKGROUND} and {EVALUATION}."
            )
        return places, Counter()

    return replace(folders_source(folders, bases[0].parent), classes=names)

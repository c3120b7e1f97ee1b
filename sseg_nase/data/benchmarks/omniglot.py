"""Omniglot: handwritten characters; a class is `<Alphabet>/<character>`, or a turn of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks.drawings import as_drawings
from sseg_nase.data.benchmarks.layouts import (
    Found,
    SplitSource,
    class_folders,
    enumerated,
    folders_source,
    images_in,
    listing_of,
    split_classes,
)
from sseg_nase.data.benchmarks.official import find_known, not_found
from sseg_nase.data.store import Listing
from sseg_nase.errors import UserError

FOLDER_NAMES = ("omniglot", "omniglot-py")
BACKGROUND, EVALUATION = "images_background", "images_evaluation"
LAYOUTS = f"omniglot/{{{BACKGROUND},{EVALUATION}}}/<Alphabet>/<character>/*.png"
LISTS = ("vinyals", "splits/vinyals")  # in the data set's folder

Splits = tuple[dict[str, SplitSource], dict[str, Any]]  # and what of the config decides on them


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    """Omniglot on disk, split as `dataset.split_by` says.

    `alphabets`, `classes` (characters): those of the background set are dealt into train and val by
    `split_seed` in the proportion of `split_fractions`; the evaluation set, where it is present, is
    the test split. `vinyals`: by lists in the data set's folder. With `dataset.rotations` the four
    rotations of a character are four classes, of one split. Raises UserError when nothing is found.
    """
    invert, rotations = bool(dataset.invert), bool(dataset.rotations)

    def detect(folder: Path) -> Found | None:
        if not any((folder / part).is_dir() for part in (BACKGROUND, EVALUATION)):
            return None
        sources, options = SPLIT_BY[dataset.split_by](dataset, folder)
        splits = {
            split: as_drawings(source, invert=invert, rotations=rotations)
            for split, source in sources.items()
        }
        options |= {"invert": invert, "rotations": rotations}
        return Found(dataset.split_by, folder, splits, options=options)

    found = find_known(dataset, data_dir, names=FOLDER_NAMES, detectors=(detect,), accepted=LAYOUTS)
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS)
    return found


def _by_alphabets(dataset: DatasetConfig, folder: Path) -> Splits:
    options, splits = _train_share(dataset), {}
    if (background := folder / BACKGROUND).is_dir():
        alphabets = [entry.name for entry in class_folders(background)]
        for split, chosen in _dealt(alphabets, options).items():
            splits[split] = _alphabets(background, chosen)
    return {**splits, **_evaluation(folder)}, options


def _by_characters(dataset: DatasetConfig, folder: Path) -> Splits:
    options, splits = _train_share(dataset), {}
    if (background := folder / BACKGROUND).is_dir():
        found = _characters(background, _names(background))
        for split, chosen in _dealt(found, options).items():
            splits[split] = folders_source({name: found[name] for name in chosen}, [background])
    return {**splits, **_evaluation(folder)}, options


def _by_vinyals(dataset: DatasetConfig, folder: Path) -> Splits:
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


SPLIT_BY: Mapping[str, Callable[[DatasetConfig, Path], Splits]] = {
    "alphabets": _by_alphabets,
    "classes": _by_characters,
    "vinyals": _by_vinyals,
}


def _train_share(dataset: DatasetConfig) -> dict[str, Any]:
    assert dataset.split_fractions is not None
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
    return [entry.name for entry in class_folders(base)]


def _characters(base: Path, alphabets: Iterable[str]) -> dict[str, Path]:
    return {
        f"{alphabet}/{folder.name}": folder
        for alphabet in alphabets
        for folder in class_folders(base / alphabet)
    }


def _alphabets(base: Path, alphabets: Iterable[str]) -> SplitSource:
    chosen = list(alphabets)

    def read() -> Listing:
        found = _characters(base, chosen)
        return listing_of({name: images_in(folder) for name, folder in found.items()})

    return SplitSource([base], lambda: sorted(_characters(base, chosen)), read)


def _listed(file: Path, bases: list[Path]) -> SplitSource:
    """The characters that a list names, wherever in `bases` they are."""

    def names() -> list[str]:
        found = set()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            parts = line.strip().split("/")
            if parts == [""]:
                continue
            if len(parts) not in (2, 3) or not all(parts):
                raise UserError(
                    f"Line {number} of {file} is '{line}', expected <Alphabet>/<character> or "
                    "<Alphabet>/<character>/rot000."
                )
            found.add("/".join(parts[:2]))
        if not found:
            raise UserError(f"The list {file} names no characters.")
        return sorted(found)

    def read() -> Listing:
        places = {name: base / name for name in names() for base in bases if (base / name).is_dir()}
        if missing := [name for name in names() if name not in places]:
            where = " and ".join(base.name for base in bases)
            raise UserError(
                f"{len(missing)} characters that {file} lists are not in {where} of "
                f"{bases[0].parent}: {enumerated(missing)}. Vinyals' split needs both "
                f"{BACKGROUND} and {EVALUATION}."
            )
        return listing_of({name: images_in(folder) for name, folder in places.items()})

    return SplitSource([file, *bases], names, read)

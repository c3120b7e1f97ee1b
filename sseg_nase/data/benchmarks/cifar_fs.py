"""CIFAR-FS: the classes of CIFAR-100 as Bertinetto et al. split them (arXiv:1805.08136)."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.groups.dataset import SPLITS, Benchmark
from sseg_nase.data.benchmarks.layouts import (
    Found,
    Official,
    SplitSource,
    file_source,
    folder_layout,
    folders_source,
    listing_of,
)
from sseg_nase.data.benchmarks.lists import read_names
from sseg_nase.data.benchmarks.locating import find_known, not_found, packed
from sseg_nase.data.benchmarks.pickles import labelled_arrays, read_pickle
from sseg_nase.data.benchmarks.walk import LeftOut, native
from sseg_nase.data.store import Listing, locked
from sseg_nase.errors import UserError, shown

logger = logging.getLogger("sseg_nase")

FOLDER_NAMES = ("cifar_fs", "cifar-fs", "cifarfs", "cifar100")
ARCHIVE = "cifar-100-python"
PACKED_NAMES = (*FOLDER_NAMES, "cifar-100", "cifar100", ARCHIVE)
DOWNLOAD_PATIENCE = 10.0  # seconds without an answer
LAYOUTS = (
    "cifar_fs/{train,val,test}/<class>/*.png; "
    "cifar_fs/data/<class>/*.png with cifar_fs/splits/bertinetto/{train,val,test}.txt; "
    "CIFAR_FS_{train,val,test}.pickle; "
    f"the official CIFAR-100 archive unpacked as {ARCHIVE}/{{train,test,meta}}"
)

_TRAIN = """
apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud
cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard
lawn_mower lion lizard lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear
pine_tree plate porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider
squirrel streetcar sunflower tank tiger train trout tulip turtle willow_tree wolf
"""
_VAL = """
beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea
shark television tractor
"""
_TEST = """
baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail
sweet_pepper table telephone wardrobe whale woman worm
"""
CLASSES = {
    split: frozenset(names.split())
    for split, names in (("train", _TRAIN), ("val", _VAL), ("test", _TEST))
}
FINE_LABELS = tuple(sorted(frozenset().union(*CLASSES.values())))  # CIFAR-100's label ids
OFFICIAL = Official(
    title="CIFAR-FS",
    classes={split: len(names) for split, names in CLASSES.items()},
    images_per_class=600,
    names=CLASSES,
)


def find(dataset: Benchmark, data_dir: Path, cache_dir: Path) -> Found:
    """CIFAR-FS on disk, else CIFAR-100 downloaded into `data_dir`.

    Raises UserError when `dataset.root` holds no known layout, or when nothing is on disk and the
    download fails.
    """

    def on_disk() -> Found | None:
        return find_known(
            dataset,
            data_dir,
            names=FOLDER_NAMES,
            detectors=(_folders, _bertinetto, _pickles, _archive),
            loose=(_pickles, _archive),
            archives=PACKED_NAMES,
            accepted=LAYOUTS,
        )

    if found := on_disk():
        return found
    if archive := packed(data_dir, PACKED_NAMES):
        raise not_found(dataset, data_dir, LAYOUTS, archive=archive)
    try:
        with locked(cache_dir / "cifar100-download"):
            # Another process may have downloaded it while this one waited.
            if (found := on_disk()) is None:
                _download(data_dir)
                found = on_disk()
    except (OSError, RuntimeError, HTTPException) as error:  # URLError is an OSError
        tried = f"Downloading CIFAR-100 into that folder was tried and failed: {_short(error)}."
        raise not_found(dataset, data_dir, LAYOUTS, more=tried) from error
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS, more="The downloaded archive is incomplete.")
    return found


def _folders(folder: Path) -> Found | None:
    return folder_layout(folder, OFFICIAL)


def _bertinetto(folder: Path) -> Found | None:
    data, lists = folder / "data", folder / "splits" / "bertinetto"
    splits = {}
    for split in SPLITS:
        file = lists / f"{split}.txt"
        if data.is_dir() and file.is_file():
            splits[split] = _listed_classes(data, file)
    return Found("bertinetto", folder, splits, OFFICIAL) if splits else None


def _listed_classes(data: Path, file: Path) -> SplitSource:
    @cache
    def lines() -> dict[str, int]:
        found: dict[str, int] = {}
        for line, name in read_names(file):
            if name in found:
                raise UserError(f"Lines {found[name]} and {line} of {shown(file)} are both {name}.")
            found[name] = line
        if not found:
            raise UserError(f"The list {shown(file)} names no classes.")
        return found

    def folders() -> tuple[dict[str, str], LeftOut]:
        for name, line in lines().items():
            if not (data / name).is_dir():
                raise UserError(
                    f"{shown(file)} lists the class {name} (line {line}), but there is no folder "
                    f"{shown(data / name)}."
                )
        return {name: native(str(data / name)) for name in lines()}, Counter()

    return replace(folders_source(folders, data), classes=lambda: sorted(lines()))


def _pickles(folder: Path) -> Found | None:
    splits = {}
    for split in SPLITS:
        file = folder / f"CIFAR_FS_{split}.pickle"
        if file.is_file():
            splits[split] = _pickle_source(file)
    return Found("pickle", folder, splits, OFFICIAL, named=False) if splits else None


def _pickle_source(file: Path) -> SplitSource:
    def read() -> Listing:
        content = read_pickle(file)
        images, labels = _arrays(file, content, "data", "labels")
        return listing_of(_named({name: images[labels == name] for name in np.unique(labels)}))

    return file_source([file], lambda: read().class_names, read)


def _named(by_label: Mapping[Any, np.ndarray]) -> dict[str, Sequence[np.ndarray]]:
    """Name the classes: CIFAR-100's names where the labels are its ids of one official split."""
    ids = [int(label) for label in by_label if isinstance(label, np.integer)]
    if len(ids) == len(by_label) and all(0 <= label < len(FINE_LABELS) for label in ids):
        names = [FINE_LABELS[label] for label in ids]
        if any(set(names) == official for official in CLASSES.values()):
            return {name: [*images] for name, images in zip(names, by_label.values(), strict=True)}
    return {str(label): [*images] for label, images in by_label.items()}


def _archive(folder: Path) -> Found | None:
    for base in (folder / ARCHIVE, folder):
        files = [base / name for name in ("train", "test", "meta")]
        if all(file.is_file() for file in files):
            splits = {split: _archive_source(base, files, split) for split in SPLITS}
            return Found("cifar100", base, splits, OFFICIAL)
    return None


def _archive_source(base: Path, files: list[Path], split: str) -> SplitSource:
    def read() -> Listing:
        names = read_pickle(base / "meta").get("fine_label_names")
        if not isinstance(names, list) or not CLASSES[split] <= set(names):
            raise UserError(f"{base / 'meta'} does not have the fine class names of CIFAR-100.")
        parts = [
            _arrays(base / part, read_pickle(base / part), "data", "fine_labels")
            for part in ("train", "test")
        ]
        images = np.concatenate([part for part, _ in parts])
        labels = np.concatenate([part for _, part in parts])
        return listing_of({name: [*images[labels == names.index(name)]] for name in CLASSES[split]})

    return file_source(files, lambda: sorted(CLASSES[split]), read)


def _arrays(
    file: Path, content: dict[str, Any], images_key: str, labels_key: str
) -> tuple[np.ndarray, np.ndarray]:
    return labelled_arrays(file, content, (images_key, labels_key), "a CIFAR pickle", 32)


def _download(data_dir: Path) -> None:
    """Download CIFAR-100 into `data_dir/cifar-100-python`; a failure leaves nothing behind."""
    from torchvision.datasets import CIFAR100

    final = data_dir / ARCHIVE
    if final.exists():
        raise UserError(
            f"{final} is incomplete: it needs the files train, test and meta. Delete it."
        )
    logger.warning("No CIFAR-FS in %s: downloading CIFAR-100 (169 MB) into it", data_dir)
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{ARCHIVE}.") as temporary,
            _impatient(DOWNLOAD_PATIENCE),
            warnings.catch_warnings(),
        ):
            # tarfile's deprecation of unfiltered extraction is torchvision's to handle.
            warnings.simplefilter("ignore", DeprecationWarning)
            CIFAR100(temporary, download=True)
            os.rename(Path(temporary) / ARCHIVE, final)
    except BaseException:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


@contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """Give up on sockets that are silent for `seconds`: torchvision would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _short(error: Exception) -> str:
    """One line on why a download failed."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:200] or type(error).__name__

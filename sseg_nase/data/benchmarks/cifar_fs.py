"""CIFAR-FS: the classes of CIFAR-100 as Bertinetto et al. split them (arXiv:1805.08136)."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks.layouts import (
    Found,
    Official,
    SplitSource,
    folders_source,
    listing_of,
    split_folders,
)
from sseg_nase.data.benchmarks.official import find_known, not_found
from sseg_nase.data.benchmarks.pickles import read_pickle
from sseg_nase.data.store import Listing, locked
from sseg_nase.errors import UserError

logger = logging.getLogger("sseg_nase")

FOLDER_NAMES = ("cifar_fs", "cifar-fs", "cifarfs", "cifar100")
ARCHIVE = "cifar-100-python"
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


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
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
            accepted=LAYOUTS,
        )

    if found := on_disk():
        return found
    try:
        with locked(cache_dir / "cifar100-download"):
            # Another process may have downloaded it while this one waited.
            if (found := on_disk()) is None:
                _download(data_dir)
                found = on_disk()
    except (OSError, RuntimeError, HTTPException) as error:  # URLError is an OSError
        tried = f"Downloading CIFAR-100 into that folder was tried and failed: {_short(error)}."
        raise not_found(dataset, data_dir, LAYOUTS, tried) from error
    if found is None:
        raise not_found(dataset, data_dir, LAYOUTS, "The downloaded archive is incomplete.")
    return found


def _folders(folder: Path) -> Found | None:
    splits = split_folders(folder)
    return Found("folders", folder, splits, OFFICIAL) if splits else None


def _bertinetto(folder: Path) -> Found | None:
    data, lists = folder / "data", folder / "splits" / "bertinetto"
    splits = {}
    for split in SPLITS:
        file = lists / f"{split}.txt"
        if data.is_dir() and file.is_file():
            splits[split] = _listed_classes(data, file)
    return Found("bertinetto", folder, splits, OFFICIAL) if splits else None


def _listed_classes(data: Path, file: Path) -> SplitSource:
    names = file.read_text(encoding="utf-8").split()
    folders = {name: data / name for name in names}
    source = folders_source(folders, [file, *folders.values()])

    def read() -> Listing:
        for name, path in folders.items():
            if not path.is_dir():
                raise UserError(f"{file} lists the class {name}, but there is no folder {path}.")
        return source.read()

    return SplitSource(source.files, source.classes, read)


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

    return SplitSource([file], lambda: read().class_names, read)


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

    return SplitSource(files, lambda: sorted(CLASSES[split]), read)


def _arrays(
    file: Path, content: dict[str, Any], images_key: str, labels_key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 32, 32, 3]` and labels `[n]` of a CIFAR pickle; UserError when not."""
    images = content.get(images_key)
    try:
        labels = np.asarray(content.get(labels_key))
    except ValueError:  # lists of unequal lengths
        labels = np.empty(0)
    if isinstance(images, np.ndarray) and images.ndim == 2 and images.shape[1] == 3 * 32 * 32:
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != 3
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iuSU"
    ):
        raise UserError(
            f"{file} is not a CIFAR pickle: expected '{images_key}' with uint8 images "
            f"[n, 32, 32, 3] (or [n, 3072]) and '{labels_key}' with n labels."
        )
    return images, labels


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

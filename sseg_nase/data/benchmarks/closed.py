"""Closed sets: benchmarks of classification, whose test has the classes of the training.

They are read in the layouts that torchvision's loaders leave on disk, or as PNG (or other images)
in `{train,test}/<class>/`. Nothing is downloaded. Where there is no val split, a share of the
training images of every class is held out for it, sampled by a seed.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from sseg_nase.config.groups.dataset import UNLABELED, Closed, Emnist, HeldOut
from sseg_nase.data.benchmarks.dealing import held_out
from sseg_nase.data.benchmarks.formats import packed_or_not, read_idx, read_stl10, read_svhn
from sseg_nase.data.benchmarks.layouts import (
    NAMELESS,
    Detector,
    Found,
    Images,
    SplitSource,
    file_source,
    folder_layout,
    images_source,
    listing_of,
)
from sseg_nase.data.benchmarks.lists import listed_images, read_names
from sseg_nase.data.benchmarks.locating import find_known, not_found
from sseg_nase.data.benchmarks.pickles import labelled_arrays, read_pickle
from sseg_nase.data.benchmarks.walk import Seen, class_folders, class_images
from sseg_nase.data.store import Listing
from sseg_nase.errors import UserError, shown

Labelled = tuple[np.ndarray, np.ndarray]  # images [n, ...] and classes int64 [n] from 0 on
DIGITS = tuple(string.digits)
FASHION = (
    *("T-shirt_top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle_boot"),
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
# Of letters whose two forms look alike EMNIST keeps one class, called by the capital.
MERGED = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")
EMNIST: Mapping[str, tuple[Sequence[str], Mapping[str, int]]] = {
    "balanced": (MERGED, {"train": 112_800, "test": 18_800}),
    "bymerge": (MERGED, {"train": 697_932, "test": 116_323}),
    "byclass": (
        (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
        {"train": 697_932, "test": 116_323},
    ),
    "digits": (DIGITS, {"train": 240_000, "test": 40_000}),
    "letters": (string.ascii_lowercase, {"train": 124_800, "test": 20_800}),
    "mnist": (DIGITS, {"train": 60_000, "test": 10_000}),
}


@dataclass(frozen=True)
class ClosedSet:
    """A benchmark: what it is called, where it lies, and how many images its splits have.

    `folders`: names of its folder; `layouts`: torchvision's, in words; `detect` knows them;
    `download`: how torchvision gets it into a folder ROOT.
    """

    title: str
    folders: Sequence[str]
    counts: Mapping[str, int]
    layouts: str
    detect: Detector
    download: str


def find(dataset: Closed, data_dir: Path, cache_dir: Path) -> Found:
    """The closed set `dataset.name` on disk; raises UserError with the layouts looked for.

    Its train and val are what `dataset.validation` and `dataset.split_seed` make of the training
    images, where there is no val split.
    """
    known = SETS[dataset.name](dataset)
    layouts = f"{known.layouts}; {known.folders[0]}/{{train,test}}/<class>/*.png"
    found = find_known(
        dataset,
        data_dir,
        names=known.folders,
        detectors=(_class_folders, known.detect),
        accepted=layouts,
    )
    if found is None:
        more = (
            f"Nothing is downloaded in a run: torchvision.datasets.{known.download} does it, with "
            f"ROOT a folder {known.folders[0]} in there."
        )
        raise not_found(dataset, data_dir, layouts, known.folders, more)
    splits = {name: _counted(source, name, known) for name, source in found.splits.items()}
    if "val" in splits or "train" not in splits or not isinstance(dataset, HeldOut):
        return replace(found, splits=splits, closed=True)
    deal = partial(held_out, splits["train"], dataset.validation, dataset.split_seed)
    dealt = {"train": deal(held=False), "val": deal(held=True)}
    options = {"validation": dataset.validation, "split_seed": dataset.split_seed}
    return replace(found, splits={**splits, **dealt}, options=options, closed=True)


def _class_folders(folder: Path) -> Found | None:
    found = folder_layout(folder)
    return found if found is not None and {"train", "test"} & set(found.splits) else None


def _counted(source: SplitSource, split: str, known: ClosedSet) -> SplitSource:
    """`source`, which says where it has another number of images than the published split."""

    def read() -> Listing:
        listing = source.read()
        count, whole = len(listing.items), known.counts.get(split)
        if whole is None or count == whole:
            return listing
        said = f"{split} has {count:,} of the {whole:,} images of {known.title}: a sample, whose "
        said += f"accuracies are not those of {known.title}."
        if count > whole:
            said = f"{split} has {count:,} images, {known.title} has {whole:,}."
        return replace(listing, notes={"sample": count < whole, "notices": [said]})

    return replace(source, read=read)


def _arrays(
    files: Sequence[Path], names: Callable[[], Sequence[str]], read: Callable[[], Labelled]
) -> SplitSource:
    """A split of arrays in `files`; classes without an image are none of it."""

    def listing() -> Listing:
        known, (images, labels) = names(), read()
        if len(wrong := labels[(labels < 0) | (labels >= len(known))]):
            raise UserError(
                f"{shown(files[0])}: there is a label {wrong[0]}, and classes are 0 to "
                f"{len(known) - 1}."
            )
        there = {name: images[labels == number] for number, name in enumerate(known)}
        return listing_of({name: [*each] for name, each in there.items() if len(each)})

    return file_source(files, lambda: sorted(names()), listing)


# -- CIFAR ---------------------------------------------------------------------------------------


def _cifar(
    folder: Path, archive: str, parts: Mapping[str, Sequence[str]], key: str
) -> Found | None:
    """CIFAR's python archive, unpacked. `key`: `label` or `fine_label`."""
    meta = "batches.meta" if key == "label" else "meta"
    for base in (folder / archive, folder):
        splits = {}
        for split, names in parts.items():
            files = [base / name for name in (*names, meta)]
            if all(file.is_file() for file in files):
                splits[split] = _cifar_split(files, key)
        if splits:
            return Found(archive, base, splits)
    return None


def _cifar_split(files: Sequence[Path], key: str) -> SplitSource:
    *parts, meta = files

    @cache
    def names() -> Sequence[str]:
        found = read_pickle(meta).get(f"{key}_names")
        if not isinstance(found, list) or not all(isinstance(n, str | bytes) for n in found):
            raise UserError(f"{shown(meta)} does not have the names of the classes ({key}_names).")
        return [name if isinstance(name, str) else name.decode("latin1") for name in found]

    def read() -> Labelled:
        keys = ("data", f"{key}s")
        read = [labelled_arrays(f, read_pickle(f), keys, "a CIFAR pickle", 32) for f in parts]
        images, labels = zip(*read, strict=True)
        return np.concatenate(images), np.concatenate(labels).astype(np.int64)

    return _arrays(files, names, read)


def _cifar10(folder: Path) -> Found | None:
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    parts = {"train": batches, "test": ["test_batch"]}
    return _cifar(folder, "cifar-10-batches-py", parts, "label")


def _cifar100(folder: Path) -> Found | None:
    parts = {"train": ["train"], "test": ["test"]}
    return _cifar(folder, "cifar-100-python", parts, "fine_label")


# -- MNIST and its kin ---------------------------------------------------------------------------


def _idx(
    folder: Path,
    name: str,
    names: Sequence[str],
    files: Mapping[str, tuple[str, str]],
    read: Callable[[Path, Path], Labelled],
) -> Found | None:
    """torchvision's `<name>/raw/`; `files`: of images and labels, by split."""
    for base in (folder / name / "raw", folder / "raw", folder):
        splits = {}
        for split, pair in files.items():
            images, labels = (packed_or_not(base / file) for file in pair)
            if images is not None and labels is not None:
                splits[split] = _arrays(
                    [images, labels], lambda: names, partial(_paired, read, images, labels)
                )
        if splits:
            return Found("idx", base, splits)
    return None


def _paired(read: Callable[[Path, Path], Labelled], images: Path, labels: Path) -> Labelled:
    pictures, truth = read(images, labels)
    if len(pictures) != len(truth):
        raise UserError(
            f"{shown(images)} has {len(pictures):,} images, and {labels.name} {len(truth):,} "
            "labels."
        )
    return pictures, truth


def _plain_idx(images: Path, labels: Path, first: int = 0) -> Labelled:
    """`first`: the number of the first class."""
    return read_idx(images, 3), read_idx(labels, 1).astype(np.int64) - first


def _of_qmnist(images: Path, labels: Path) -> Labelled:
    """The first of eight columns of labels is the digit."""
    return read_idx(images, 3), read_idx(labels, 2)[:, 0].astype(np.int64)


def _of_emnist(images: Path, labels: Path, first: int) -> Labelled:
    """Its images lie on their side, mirrored."""
    pictures, truth = _plain_idx(images, labels, first)
    return pictures.transpose(0, 2, 1), truth


def _mnist(folder: Path, name: str, names: Sequence[str]) -> Found | None:
    files = {
        split: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        for split, part in (("train", "train"), ("test", "t10k"))
    }
    return _idx(folder, name, names, files, _plain_idx)


def _qmnist(folder: Path) -> Found | None:
    files = {
        split: (f"qmnist-{split}-images-idx3-ubyte", f"qmnist-{split}-labels-idx2-int")
        for split in ("train", "test")
    }
    return _idx(folder, "QMNIST", DIGITS, files, _of_qmnist)


def _emnist(folder: Path, variant: str) -> Found | None:
    files = {
        split: tuple(
            f"emnist-{variant}-{split}-{what}-ubyte" for what in ("images-idx3", "labels-idx1")
        )
        for split in ("train", "test")
    }
    first = 1 if variant == "letters" else 0
    read = partial(_of_emnist, first=first)
    return _idx(folder, "EMNIST", EMNIST[variant][0], files, read)  # type: ignore[arg-type]


# -- others --------------------------------------------------------------------------------------


def _svhn(folder: Path) -> Found | None:
    files = {split: folder / f"{split}_32x32.mat" for split in ("train", "test")}
    splits = {
        split: _arrays([file], lambda: DIGITS, partial(read_svhn, file))
        for split, file in files.items()
        if file.is_file()
    }
    return Found("mat", folder, splits) if splits else None


def _stl10(folder: Path) -> Found | None:
    for base in (folder / "stl10_binary", folder):
        listed, splits = base / "class_names.txt", {}
        for split in ("train", "test"):
            images, labels = base / f"{split}_X.bin", base / f"{split}_y.bin"
            if images.is_file() and labels.is_file() and listed.is_file():
                splits[split] = _arrays(
                    [images, labels, listed],
                    lambda listed=listed: [name for _, name in read_names(listed)],  # type: ignore[misc]
                    partial(read_stl10, images, labels),
                )
        if (further := base / "unlabeled_X.bin").is_file():
            read = partial(read_stl10, further)
            splits[UNLABELED] = _arrays([further], lambda: [NAMELESS], read)
        if splits:
            return Found("stl10_binary", base, splits)
    return None


def _dtd(folder: Path) -> Found | None:
    """The first of its ten splits, as torchvision takes it."""
    for base in (folder / "dtd", folder):
        lists = {split: base / "labels" / f"{split}1.txt" for split in ("train", "val", "test")}
        if (base / "images").is_dir() and any(file.is_file() for file in lists.values()):
            splits = {s: _listed(base / "images", f) for s, f in lists.items() if f.is_file()}
            return Found("dtd", base, splits)
    return None


def _listed(base: Path, file: Path) -> SplitSource:
    """Lines `<class>/<file>`."""

    @cache
    def by_class() -> Mapping[str, list[tuple[int, str]]]:
        found: dict[str, list[tuple[int, str]]] = {}
        for line, name in read_names(file):
            found.setdefault(name.partition("/")[0], []).append((line, name))
        return found

    def images() -> Images:
        read = {name: listed_images(file, base, lines) for name, lines in by_class().items()}
        notices = [notice for _, said in read.values() for notice in said]
        return Images({name: seen for name, (seen, _) in read.items()}, notices)

    return images_source(lambda: sorted(by_class()), images)


def _gtsrb(folder: Path) -> Found | None:
    for base in (folder / "gtsrb", folder):
        training, testing = base / "GTSRB" / "Training", base / "GTSRB" / "Final_Test" / "Images"
        table, splits = base / "GT-final_test.csv", {}
        if training.is_dir():
            splits["train"] = _signs(training)
        if testing.is_dir() and table.is_file():
            splits["test"] = _signs_of(testing, table)
        if splits:
            return Found("gtsrb", base, splits)
    return None


def _signs(folder: Path) -> SplitSource:
    """Class folders, with a table beside the images that says what they are of."""
    folders = cache(lambda: class_folders(folder)[0])

    def images() -> Images:
        return Images({name: class_images(path, folder)[0] for name, path in folders().items()})

    return images_source(lambda: sorted(folders()), images)


def _signs_of(folder: Path, table: Path) -> SplitSource:
    @cache
    def by_class() -> Mapping[str, list[tuple[int, str]]]:
        (_, header), *rows = read_names(table) or [(1, "")]
        columns = header.split(";")
        if not {"Filename", "ClassId"} <= set(columns):
            raise UserError(f"{shown(table)} has no columns Filename and ClassId.")
        file, label = columns.index("Filename"), columns.index("ClassId")
        found: dict[str, list[tuple[int, str]]] = {}
        for line, row in rows:
            cells = row.split(";")
            if len(cells) != len(columns) or not cells[label].isdecimal():
                raise UserError(f"Line {line} of {shown(table)} is no row of its table: {row}")
            found.setdefault(f"{int(cells[label]):05d}", []).append((line, cells[file]))
        return found

    def images() -> Images:
        classes: dict[str, Sequence[Seen]] = {}
        notices: list[str] = []
        for name, lines in by_class().items():
            classes[name], said = listed_images(table, folder, lines)
            notices += said
        return Images(classes, notices)

    return images_source(lambda: sorted(by_class()), images)


# -- all of them ---------------------------------------------------------------------------------


def _one_of_mnist(
    title: str, name: str, names: Sequence[str], folders: Sequence[str]
) -> Callable[[Closed], ClosedSet]:
    known = ClosedSet(
        title,
        (*folders, name.lower()),
        {"train": 60_000, "test": 10_000},
        f"{name}/raw/{{train,t10k}}-images-idx3-ubyte with -labels-idx1-ubyte (or .gz)",
        lambda folder: _mnist(folder, name, names),
        f"{name}(ROOT, download=True)",
    )
    return lambda dataset: known


def _of_variant(dataset: Closed) -> ClosedSet:
    assert isinstance(dataset, Emnist)
    variant = dataset.variant
    return ClosedSet(
        f"EMNIST {variant}",
        ("emnist",),
        EMNIST[variant][1],
        f"EMNIST/raw/emnist-{variant}-{{train,test}}-images-idx3-ubyte with -labels-idx1-ubyte (or "
        ".gz)",
        partial(_emnist, variant=variant),
        f"EMNIST(ROOT, '{variant}', download=True)",
    )


def _fixed(known: ClosedSet) -> Callable[[Closed], ClosedSet]:
    return lambda dataset: known


SETS: Mapping[str, Callable[[Closed], ClosedSet]] = {
    "cifar10": _fixed(
        ClosedSet(
            "CIFAR-10",
            ("cifar10", "cifar-10", "cifar-10-batches-py"),
            {"train": 50_000, "test": 10_000},
            "cifar-10-batches-py/{data_batch_1 … 5,test_batch,batches.meta}",
            _cifar10,
            "CIFAR10(ROOT, download=True)",
        )
    ),
    "cifar100": _fixed(
        ClosedSet(
            "CIFAR-100",
            ("cifar100", "cifar-100", "cifar-100-python"),
            {"train": 50_000, "test": 10_000},
            "cifar-100-python/{train,test,meta}",
            _cifar100,
            "CIFAR100(ROOT, download=True)",
        )
    ),
    "fashion_mnist": _one_of_mnist(
        "Fashion-MNIST", "FashionMNIST", FASHION, ("fashion_mnist", "fashion-mnist")
    ),
    "mnist": _one_of_mnist("MNIST", "MNIST", DIGITS, ()),
    "kmnist": _one_of_mnist("KMNIST", "KMNIST", KUZUSHIJI, ()),
    "qmnist": _fixed(
        ClosedSet(
            "QMNIST",
            ("qmnist",),
            {"train": 60_000, "test": 60_000},
            "QMNIST/raw/qmnist-{train,test}-images-idx3-ubyte with -labels-idx2-int (or .gz)",
            _qmnist,
            "QMNIST(ROOT, what, download=True), what train and test,",
        )
    ),
    "emnist": _of_variant,
    "svhn": _fixed(
        ClosedSet(
            "SVHN",
            ("svhn",),
            {"train": 73_257, "test": 26_032},
            "svhn/{train,test}_32x32.mat",
            _svhn,
            "SVHN(ROOT, split, download=True), split train and test,",
        )
    ),
    "stl10": _fixed(
        ClosedSet(
            "STL-10",
            ("stl10", "stl-10", "stl10_binary"),
            {"train": 5_000, "test": 8_000, UNLABELED: 100_000},
            "stl10_binary/{train,test}_{X,y}.bin with class_names.txt (and unlabeled_X.bin)",
            _stl10,
            "STL10(ROOT, download=True)",
        )
    ),
    "dtd": _fixed(
        ClosedSet(
            "DTD",
            ("dtd",),
            {"train": 1_880, "val": 1_880, "test": 1_880},
            "dtd/dtd/images/<class>/*.jpg with dtd/dtd/labels/{train,val,test}1.txt",
            _dtd,
            "DTD(ROOT, download=True)",
        )
    ),
    "gtsrb": _fixed(
        ClosedSet(
            "GTSRB",
            ("gtsrb",),
            {"train": 26_640, "test": 12_630},
            "gtsrb/GTSRB/Training/<class>/*.ppm, gtsrb/GTSRB/Final_Test/Images/*.ppm with "
            "gtsrb/GT-final_test.csv",
            _gtsrb,
            "GTSRB(ROOT, split, download=True), split train and test,",
        )
    ),
}

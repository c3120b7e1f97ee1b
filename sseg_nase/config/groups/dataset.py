"""`dataset`: the images. Read in `sseg_nase.data.benchmarks`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, register

SPLITS = ("train", "val", "test")
UNLABELED = "unlabeled"  # a further one, of images without labels
VARIANTS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")  # of EMNIST
READERS = "sseg_nase.data.benchmarks"
FRACTIONS = "three numbers, for train, val and test"


@group("dataset")
@dataclass(frozen=True)
class DatasetConfig(Option):
    """What all data sets have. `split_fractions` None: as fits the number of classes.

    `reader`: MODULE:NAME of the function that reads it, imported when images are wanted.
    """

    image_size: Annotated[int, option(least=8, most=512)]
    channels: Annotated[int, option(choices=(1, 3))]
    split_by: Annotated[str, option(choices=("folder", "classes"))]
    split_fractions: Annotated[Optional[list[float]], option(least=0, most=1, text=FRACTIONS)]
    split_seed: int
    background: Annotated[list[int], option(least=0, most=255)]
    duplicates: Annotated[str, option(choices=("drop", "keep", "refuse"))]
    overlap: Annotated[str, option(choices=("refuse", "keep"))]
    reader: ClassVar[str]

    @property
    def natural(self) -> str:
        """The split whose images the level NATURAL has, without their labels."""
        return "train"

    def wrong(self) -> Iterator[str]:
        """Colours are three numbers, and shares are three that have a sum."""
        if len(self.background) != 3:
            yield (
                f"dataset.background={self.background}: three numbers from 0 to 255 are needed, "
                "red, green and blue, such as [255,255,255]."
            )
        fractions = self.split_fractions
        if fractions is not None and (len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6):
            yield (
                f"dataset.split_fractions={fractions}: three numbers with the sum 1 are needed, "
                "for train, val and test."
            )


@dataclass(frozen=True)
class InMemory(DatasetConfig):
    """Data sets without files: `reader` gives the `ImageStore` of (dataset, split)."""

    split_fractions: Annotated[list[float], option(least=0, most=1, text=FRACTIONS)]
    splits: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class OnDisk(DatasetConfig):
    """Data sets of image files: `reader` gives what it `Found` of (dataset, data_dir, cache_dir).

    `root` None: it is looked for below `paths.data_dir`.
    """

    root: Annotated[Optional[str], option(path="the folder, or CSV file, of the images")]
    value_range: Optional[list[float]]

    def wrong(self) -> Iterator[str]:
        """Black is below white."""
        yield from super().wrong()
        values = self.value_range
        if values is not None and not (len(values) == 2 and values[0] < values[1]):
            yield (
                f"dataset.value_range={values}: two numbers are needed, [low,high], the values "
                "that are black and white, such as [0,4095]."
            )


@dataclass(frozen=True)
class Benchmark(OnDisk):
    """Published data sets."""

    split_fractions: Annotated[list[float], option(least=0, most=1, text=FRACTIONS)]


@dataclass(frozen=True)
class Drawings(OnDisk):
    """Line drawings. `invert`: dark and light are exchanged."""

    invert: bool


@register("dataset", "cifar_fs")
@dataclass(frozen=True)
class CifarFS(Benchmark):
    """CIFAR-FS (Bertinetto et al. 2019)."""

    reader = f"{READERS}.cifar_fs:find"


@register("dataset", "minimagenet")
@dataclass(frozen=True)
class MiniImageNet(Benchmark):
    """miniImageNet (Vinyals et al. 2016, split of Ravi and Larochelle 2017)."""

    reader = f"{READERS}.minimagenet:find"


@register("dataset", "omniglot")
@dataclass(frozen=True)
class Omniglot(Benchmark, Drawings):
    """Omniglot (Lake et al. 2015). `rotations`: each turn of a character is a class."""

    split_by: Annotated[str, option(choices=("alphabets", "classes", "vinyals"))]
    rotations: bool
    reader = f"{READERS}.omniglot:find"


@register("dataset", "dtd")
@dataclass(frozen=True)
class Closed(Benchmark):
    """Closed sets: benchmarks of classification, whose val and test have the classes of train."""

    once_null = False
    reader = f"{READERS}.closed:find"


@register("dataset", "cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "qmnist")
@register("dataset", "svhn", "gtsrb")
@dataclass(frozen=True)
class HeldOut(Closed):
    """Of which a share of the images of train, `validation`, is val."""

    validation: Annotated[float, option(above=0, most=0.5)]


@register("dataset", "stl10")
@dataclass(frozen=True)
class Stl10(HeldOut):
    """STL-10 (Coates et al. 2011). `unlabeled`: its 100,000 further images are NATURAL's."""

    unlabeled: bool

    @property
    def natural(self) -> str:
        """Those without labels, where they are asked for."""
        return UNLABELED if self.unlabeled else super().natural


@register("dataset", "emnist")
@dataclass(frozen=True)
class Emnist(HeldOut):
    """EMNIST (Cohen et al. 2017), in its variants."""

    variant: Annotated[str, option(choices=VARIANTS)]


@register("dataset", "digits")
@dataclass(frozen=True)
class Digits(InMemory):
    """scikit-learn's handwritten digits."""

    reader = f"{READERS}.digits:read"
    splits = ("train", "val")


@dataclass(frozen=True)
class OwnImages(OnDisk):
    """Images of the user's own.

    `split_by` images: those of every class are dealt into train, val and test, which then have the
    same classes: a closed set. `sizes`: whether they may be of several, which are then brought to
    `image_size`; auto: not in a closed set.
    """

    sizes: Annotated[str, option(choices=("auto", "one", "any"))]

    root: Annotated[
        str,
        option(
            path="the folder of the images",
            question="which images? Add dataset.root=PATH, a folder with one sub-folder per class.",
        ),
    ]


@register("dataset", "folder")
@dataclass(frozen=True)
class Folder(OwnImages):
    """Class sub-folders."""

    split_by: Annotated[str, option(choices=("auto", "folder", "classes", "images"))]
    reader = f"{READERS}.folder:find"


@register("dataset", "sketch")
@dataclass(frozen=True)
class Sketch(Folder, Drawings):
    """Line drawings in class sub-folders."""

    reader = f"{READERS}.sketch:find"


@register("dataset", "csv")
@dataclass(frozen=True)
class Listed(OwnImages):
    """Images that a CSV file lists, in the columns of these names."""

    once_null = False  # columns were always called so
    root: Annotated[
        str,
        option(
            path="the CSV file of the images",
            question="which images? Add dataset.root=PATH, a CSV file.",
        ),
    ]
    split_by: Annotated[str, option(choices=("folder", "classes", "images"))]
    path_column: Annotated[str, option(text="the name of a column")]
    label_column: Annotated[str, option(text="the name of a column")]
    reader = f"{READERS}.csv_file:find"


def one_size(dataset: DatasetConfig) -> bool:
    """Whether images of several sizes are refused."""
    if not isinstance(dataset, OwnImages):
        return False
    return dataset.sizes == "one" or (dataset.sizes == "auto" and dataset.split_by == "images")


def is_closed(dataset: DatasetConfig) -> bool:
    """Whether val and test have the classes of train."""
    own = isinstance(dataset, OwnImages) and dataset.split_by == "images"
    return own or isinstance(dataset, Closed)

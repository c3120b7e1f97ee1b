"""Closed sets in their official formats, and what is said where they are not there or damaged."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torchvision
from PIL import Image

from sseg_nase.config.compose import dataset_choice
from sseg_nase.config.groups.dataset import Closed, DatasetConfig
from sseg_nase.config.options import names_with
from sseg_nase.data.benchmarks import available_splits, load_split
from sseg_nase.data.benchmarks.closed import SETS
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from tests.support import closed_files as made


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageStore]:
    def load_one(name: str, split: str, **changed: object) -> ImageStore:
        return load_split(
            chosen(name, **changed),
            split,
            data_dir=tmp_path / "data",
            cache_dir=tmp_path / "cache",
            workers=0,
        )

    return load_one


def chosen(name: str, **changed: object) -> DatasetConfig:
    known: Any = dataset_choice(name)
    given = {"validation": 0.25, **changed} if name != "dtd" else changed
    return cast(DatasetConfig, dataclasses.replace(known, **given))


IMAGES, LABELS = (f"MNIST/raw/train-{s}-ubyte" for s in ("images-idx3", "labels-idx1"))
NOTHING = pickle.dumps({})
# Who makes it, with the classes that it then has.
MAKERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "cifar10": (made.cifar10, 10),
    "cifar100": (made.cifar100, 5),
    "mnist": (made.mnist, 10),
    "fashion_mnist": (lambda folder: made.mnist(folder, "FashionMNIST"), 10),
    "kmnist": (lambda folder: made.mnist(folder, "KMNIST", packed=True), 10),
    "qmnist": (made.qmnist, 10),
    "emnist": (lambda folder: made.emnist(folder, "balanced", 47), 47),
    "svhn": (made.svhn, 10),
    "stl10": (made.stl10, 10),
    "dtd": (made.dtd, 3),
    "gtsrb": (made.gtsrb, 3),
}


@pytest.mark.parametrize("name", names_with(Closed))
def test_every_set_is_read_in_its_official_format(
    name: str, tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    make, classes = MAKERS[name]
    make(tmp_path / "data" / name)
    splits = {split: load(name, split) for split in ("train", "val", "test")}
    for store in splits.values():
        assert len(store.class_names) == classes
        assert store.class_names == splits["train"].class_names
        assert store.image_size == dataset_choice(name).image_size
        assert store.counts().min() >= 1
    # What was made is as bright as its class is high: no label has moved.
    if name not in ("dtd", "gtsrb"):
        numbers = {n: names_of(name).index(n) for n in splits["test"].class_names}
        for store in splits.values():
            means = store.images[:, 4:, 4:].reshape(len(store), -1).mean(axis=1)
            truth = np.array([numbers[store.class_names[label]] for label in store.labels])
            assert np.array_equal(np.round((means - 11.5) / 20), truth % 11)
    test = splits["test"].manifest
    assert test["sample"] is True
    assert re.search(r"test has \d+ of the [\d,]+ images of .*: a sample", test["notices"][0])


def names_of(name: str) -> list[str]:
    """The classes by their numbers in the file."""
    if name in ("cifar10", "stl10"):
        return [*made.CIFAR10]
    if name == "cifar100":
        return [f"fine{n}" for n in range(5)]
    if name == "emnist":
        return [*torchvision.datasets.EMNIST.classes_split_dict["balanced"]]
    if name in ("fashion_mnist", "kmnist"):
        classes = {
            "fashion_mnist": torchvision.datasets.FashionMNIST.classes,
            "kmnist": torchvision.datasets.KMNIST.classes,
        }[name]
        return [each.replace("/", "_").replace(" ", "_") for each in classes]
    return [str(n) for n in range(10)]


def test_mnist_is_what_torchvision_reads(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = made.mnist(tmp_path / "data" / "mnist")
    theirs = torchvision.datasets.MNIST(root, train=False)
    ours = load("mnist", "test")
    for label in range(10):
        expected = theirs.data[theirs.targets == label].numpy()
        assert np.array_equal(ours.images[ours.class_indices[label]][..., 0], expected)


@pytest.mark.parametrize(
    ("variant", "classes", "first"), [("letters", 26, 1), ("byclass", 62, 0), ("mnist", 10, 0)]
)
def test_emnist_is_set_upright_and_has_the_classes_of_its_variant(
    variant: str, classes: int, first: int, tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    made.emnist(tmp_path / "data", variant, classes, first)
    store = load("emnist", "test", variant=variant)
    theirs = torchvision.datasets.EMNIST.classes_split_dict[variant]
    assert set(store.class_names) == set(theirs) - {"N/A"}
    assert (store.images[:, :, 0] == 255).all()  # what was the first row is the first column
    assert not (store.images[:, 0, 5:] == 255).any()


def test_stl10_has_its_rows_as_rows(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    made.stl10(tmp_path / "data")
    store = load("stl10", "test")
    assert (store.images[:, 0] == 250).all()
    assert not (store.images[:, 5:, 0] == 250).any()


def test_stl10_has_images_without_labels(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    base = made.stl10(tmp_path / "data") / "stl10_binary"
    images = made.pictures(np.arange(7), 96, 3, 9)
    images[:, 0] = 250
    with pytest.raises(UserError, match=r"dataset=stl10 has no unlabeled split"):
        load("stl10", "unlabeled")
    file = base / "unlabeled_X.bin"
    file.write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    store = load("stl10", "unlabeled")
    assert np.array_equal(store.images, images)
    assert store.class_names == ("",)
    assert "unlabeled has 7 of the 100,000 images of STL-10" in store.manifest["notices"][0]
    # They are in no other split, and beside the labelled ones only where they are asked for.
    assert {len(load("stl10", split)) for split in ("train", "val")} == {20, 10}
    assert chosen("stl10").natural == "train"
    assert chosen("stl10", unlabeled=True).natural == "unlabeled"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"unlabeled_X\.bin is cut off or damaged"):
        load("stl10", "unlabeled")


def keys(store: ImageStore) -> set[bytes]:
    return {image.tobytes() for image in store.images}


def test_val_is_drawn_from_train_by_the_seed(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    made.cifar10(tmp_path / "data")
    train, val = load("cifar10", "train"), load("cifar10", "val")
    assert train.counts().tolist() == [8] * 10  # a quarter of 10, rounded to even
    assert val.counts().tolist() == [2] * 10
    assert len(keys(train) | keys(val)) == 100
    other = load("cifar10", "val", split_seed=1)
    assert keys(other) != keys(val)
    assert keys(load("cifar10", "val", split_seed=0)) == keys(val)
    assert load("cifar10", "val", validation=0.5).counts().tolist() == [5] * 10
    # Test has the seed of nothing.
    assert keys(load("cifar10", "test")) == keys(load("cifar10", "test", split_seed=1))


def test_class_folders_are_taken_too(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    base = tmp_path / "data" / "svhn"
    for split, each in (("train", 4), ("test", 2)):
        for label in range(3):
            for number in range(each):
                made.image(base / split / str(label) / f"{number}.png", 10 * label + number)
    assert load("svhn", "train").counts().tolist() == [3, 3, 3]
    assert load("svhn", "val").counts().tolist() == [1, 1, 1]
    made.image(base / "val" / "0" / "9.png", 99)
    assert load("svhn", "val").counts().tolist() == [1]
    assert load("svhn", "train").counts().tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", names_with(Closed))
def test_what_is_nowhere_is_one_message_with_the_layouts(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as missing:
        available_splits(chosen(name), data_dir=tmp_path / "data", cache_dir=tmp_path)
    known = SETS[name](dataset_choice(name))
    for part in (f"dataset={name} was not found", known.layouts, "{train,test}/<class>/*.png"):
        assert part in str(missing.value)
    assert "Nothing is downloaded" in str(missing.value)
    called = known.download.partition("(")[0]
    assert hasattr(torchvision.datasets, called)


def test_a_root_without_a_layout_is_refused_with_the_layouts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    dataset = chosen("cifar10", root=str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"holds none of the layouts: cifar-10-batches-py"):
        available_splits(dataset, data_dir=tmp_path, cache_dir=tmp_path)


def test_images_in_train_and_test_are_kept_and_said(
    tmp_path: Path, load: Callable[..., ImageStore], caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "data" / "svhn"
    for split in ("train", "test"):
        for label in range(2):
            for number in range(3):
                value = 10 * label + number + (50 if split == "test" and number else 0)
                made.image(base / split / str(label) / f"{number}.png", value)
    load("svhn", "train")
    with caplog.at_level(logging.WARNING):
        load("svhn", "val")
        load("svhn", "test")
    assert "images of test that are also in" in caplog.text
    with pytest.raises(UserError, match=r"dataset\.overlap=keep"):
        load("svhn", "train", overlap="refuse")


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("mnist", IMAGES, made.idx(np.zeros((3, 2, 2), np.uint8)), "3 images, and train-labels"),
        ("mnist", IMAGES, made.idx(np.zeros((40, 9), np.uint8)), "2 dimensions, and 3 are"),
        ("mnist", IMAGES, made.idx(np.zeros((40, 9, 9), np.uint8))[:-5], "cut off or damaged"),
        ("mnist", IMAGES, b"PK", "no IDX file"),
        ("mnist", LABELS, made.idx(np.full(40, 11, np.uint8)), "there is a label 11"),
        ("svhn", "train_32x32.mat", b"no matlab", "cannot be read"),
        ("stl10", "stl10_binary/train_X.bin", b"12345", "5 bytes are not 27,648 for each of the"),
        ("stl10", "stl10_binary/train_y.bin", bytes([0] * 30), "there is a label -1"),
        ("cifar10", "cifar-10-batches-py/data_batch_1", b"cut", "cannot be read"),
        ("cifar10", "cifar-10-batches-py/batches.meta", NOTHING, "does not have the names of"),
        ("gtsrb", "gtsrb/GT-final_test.csv", b"a;b\n1;2\n", "no columns Filename and ClassId"),
        ("gtsrb", "gtsrb/GT-final_test.csv", b"Filename;ClassId\n1.ppm\n", "Line 2 of"),
        ("dtd", "dtd/labels/test1.txt", b"banded/none.png\n", "none.png"),
    ],
)
def test_what_is_damaged_is_named(
    name: str,
    file: str,
    content: bytes,
    said: str,
    tmp_path: Path,
    load: Callable[..., ImageStore],
) -> None:
    base = MAKERS[name][0](tmp_path / "data" / name)
    (base / file).write_bytes(content)
    split = "test" if name in ("gtsrb", "dtd") else "train"
    with pytest.raises(UserError, match=re.escape(said)):
        load(name, split)


def test_one_image_of_a_class_cannot_be_held_out(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    made.cifar10(tmp_path / "data", train=1)
    with pytest.raises(UserError, match="has one image to train on"):
        load("cifar10", "train")


@pytest.mark.realdata
def test_the_samples_of_real_images_are_read(tmp_path: Path) -> None:
    root = Path(os.environ.get("SSEG_NASE_DATA") or "none")
    if not ((root / "cifar10").is_dir() and (root / "fashion_mnist").is_dir()):
        pytest.skip(f"SSEG_NASE_DATA={root} has no cifar10 and no fashion_mnist")
    for name, count in (("cifar10", 10_800), ("fashion_mnist", 10_800)):
        store = load_split(
            dataset_choice(name), "train", data_dir=root, cache_dir=tmp_path, workers=2
        )
        assert (len(store), len(store.class_names)) == (count, 10)
        assert Image.fromarray(store.images[0].squeeze()).size == (store.image_size,) * 2

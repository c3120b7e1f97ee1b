from __future__ import annotations

import dataclasses
import http.client
import itertools
import logging
import os
import pickle
import shutil
import socket
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from sseg_nase.config.groups.dataset import SPLITS, DatasetConfig, OwnImages
from sseg_nase.config.options import fields_of, options_of
from sseg_nase.data import benchmarks
from sseg_nase.data.benchmarks import available_splits, cifar_fs, load_split
from sseg_nase.data.benchmarks.layouts import split_classes
from sseg_nase.data.benchmarks.locating import packed
from sseg_nase.data.benchmarks.omniglot import find as find_omniglot
from sseg_nase.data.episodes import sample_episodes
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError

PER_CLASS = 3
ALWAYS: dict[str, dict[str, Any]] = {
    "omniglot": {"split_by": "alphabets", "rotations": False, "invert": False},
    "sketch": {"channels": 1, "invert": False},
}
TINY = {"train": ["ant", "bee", "cat"], "val": ["dog"], "test": ["elk", "fox"]}


def config(name: str, **changed: Any) -> DatasetConfig:
    """`dataset=name` as it is by default, but small."""
    kind: Any = options_of(DatasetConfig)[name]
    usual: dict[str, Any] = {
        "name": name,
        "image_size": 8,
        "channels": 3,
        "root": None,
        "split_by": "folder",
        "split_fractions": [0.5, 0.25, 0.25],
        "split_seed": 0,
        "background": [255, 255, 255],
        "value_range": None,
        "duplicates": "drop" if issubclass(kind, OwnImages) else "keep",
        "overlap": "refuse",
        "path_column": "path",
        "label_column": "label",
        "sizes": "auto",
    }
    keys = {key for key, *_ in fields_of(kind)}
    given = {**usual, **ALWAYS.get(name, {}), **changed}
    return kind(**{key: value for key, value in given.items() if key in keys})


def pixels(name: str, index: int, size: int = 8) -> np.ndarray:
    """The one picture that class `name` has at `index`."""
    seed = [*name.encode(), index]
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def class_folder(folder: Path, name: str | None = None, count: int = PER_CLASS) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(pixels(name or folder.name, index)).save(folder / f"{index}.png")


def split_tree(base: Path, classes: Mapping[str, Iterable[str]] = TINY) -> Path:
    for split, names in classes.items():
        for name in names:
            class_folder(base / split / name)
    return base


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageStore]:
    def load_one(dataset: DatasetConfig, split: str, workers: int = 0) -> ImageStore:
        return load_split(
            dataset,
            split,
            data_dir=tmp_path / "data",
            cache_dir=tmp_path / "cache",
            workers=workers,
        )

    return load_one


def check(store: ImageStore, names: Iterable[str], count: int = PER_CLASS) -> None:
    """The store has classes `names`, in order, with `count` of their own pictures each."""
    names = tuple(sorted(names))
    assert store.class_names == names
    assert store.counts().tolist() == [count] * len(names)
    for label, name in enumerate(names):
        for index, place in enumerate(store.class_indices[label]):
            assert np.array_equal(store.images[place], pixels(name, index)), (name, index)
    store.verify()


# Builders of every layout: each writes TINY below `data` and gives the expected layout's name.


def cifar_folders(data: Path, folder: str = "cifar_fs") -> str:
    split_tree(data / folder)
    return "folders"


def cifar_bertinetto(data: Path) -> str:
    lists = data / "cifar_fs" / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for split, names in TINY.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            class_folder(data / "cifar_fs" / "data" / name)
    return "bertinetto"


def mini_lists(data: Path, lists: str = "minimagenet") -> str:
    images = data / "minimagenet" / "images"
    images.mkdir(parents=True)
    (data / lists).mkdir(exist_ok=True)
    for split, names in TINY.items():
        rows = ["filename,label"]
        for name in names:
            for index in range(PER_CLASS):
                Image.fromarray(pixels(name, index)).save(images / f"{name}{index}.png")
                rows.append(f"{name}{index}.png,{name}")
        (data / lists / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return "csv"


def mini_pickles(data: Path, folder: str = "mini-imagenet") -> str:
    (data / folder).mkdir(parents=True, exist_ok=True)
    for split, names in TINY.items():
        images = np.stack([pixels(name, index) for index in range(PER_CLASS) for name in names])
        indices = {
            name: list(range(start, len(images), len(names))) for start, name in enumerate(names)
        }
        path = data / folder / f"mini-imagenet-cache-{split}.pkl"
        path.write_bytes(pickle.dumps({"image_data": images, "class_dict": indices}))
    return "pickle"


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("cifar_fs", cifar_folders),
        ("cifar_fs", lambda data: cifar_folders(data, "CIFAR-FS")),
        ("cifar_fs", lambda data: cifar_folders(data, "cifar-fs")),
        ("cifar_fs", cifar_bertinetto),
        ("minimagenet", lambda data: cifar_folders(data, "minimagenet")),
        ("minimagenet", lambda data: cifar_folders(data, "mini_imagenet")),
        ("minimagenet", lambda data: cifar_folders(data, "mini-imagenet")),
        ("minimagenet", lambda data: cifar_folders(data, "miniImageNet")),
        ("minimagenet", lambda data: cifar_folders(data, "minimagenet_sample")),
        ("minimagenet", mini_lists),
        ("minimagenet", lambda data: mini_lists(data, "minimagenet_split")),
        ("minimagenet", mini_pickles),
        ("minimagenet", lambda data: mini_pickles(data, ".")),
    ],
)
def test_every_layout_gives_the_same_store(
    tmp_path: Path, load: Callable[..., ImageStore], name: str, build: Callable[[Path], str]
) -> None:
    layout = build(tmp_path / "data")
    for split, names in TINY.items():
        store = load(config(name), split)
        check(store, names)
        assert store.manifest["layout"] == layout
        assert store.manifest["split"] == split
        assert store.manifest["sample"] is True
        assert str(tmp_path / "data") in store.manifest["source"]
    assert available_splits(
        config(name), data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"
    ) == tuple(SPLITS)


@pytest.mark.parametrize("folder", [".", "miniImageNet"])
def test_mini_imagenet_as_category_pickles(
    tmp_path: Path, load: Callable[..., ImageStore], folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data" / folder).mkdir(parents=True)
    labels = {"train_phase_train": [0, 1, 2], "train_phase_val": [0, 1, 2], "val": [64, 65]}
    for part, chosen in labels.items():
        content = {
            "data": np.stack([pixels(str(label), index) for index in range(3) for label in chosen]),
            "labels": chosen * 3,
        }
        path = tmp_path / "data" / folder / f"miniImageNet_category_split_{part}.pickle"
        path.write_bytes(pickle.dumps(content, 2))
    check(load(config("minimagenet"), "train"), ["0", "1", "2"])
    check(load(config("minimagenet"), "val"), ["64", "65"])
    assert "miniImageNet_category_split_train_phase_val.pickle is not read." in caplog.text
    with pytest.raises(UserError, match="no test split"):
        load(config("minimagenet"), "test")
    path.write_bytes(pickle.dumps({"data": content["data"], "labels": [2]}))
    with pytest.raises(UserError, match=r"_val\.pickle is not a Mini-ImageNet pickle: .*'labels'"):
        load(config("minimagenet"), "val")


@pytest.mark.parametrize("inside", [".", "minimagenet"])
def test_root_is_the_data_set_or_the_folder_around_it(
    tmp_path: Path, load: Callable[..., ImageStore], inside: str
) -> None:
    split_tree(tmp_path / "elsewhere" / inside)
    check(load(config("minimagenet", root=str(tmp_path / "elsewhere")), "val"), TINY["val"])


def test_a_folder_of_its_name_goes_before_loose_files(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    mini_pickles(tmp_path / "data", ".")
    assert load(config("minimagenet"), "train").manifest["layout"] == "pickle"
    cifar_folders(tmp_path / "data", "mini_imagenet")
    assert load(config("minimagenet"), "train").manifest["layout"] == "folders"


def test_class_folders_of_something_else_are_no_benchmark(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    split_tree(tmp_path / "data")
    with pytest.raises(UserError, match="dataset=minimagenet was not found"):
        load(config("minimagenet"), "train")


def test_lists_beside_the_images_go_before_those_further_away(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    mini_lists(tmp_path / "data")
    folder = next((tmp_path / "data").glob("*/images")).parent
    expected = load(config("minimagenet"), "train").class_names
    further = folder.parent / "minimagenet_split"
    further.mkdir()
    for split in SPLITS:
        (further / f"{split}.csv").write_text("filename,label\ngone.png,other\n")
    (folder / "minimagenet_split").mkdir()
    assert load(config("minimagenet"), "train").class_names == expected


def test_the_complete_data_set_goes_before_a_sample(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    split_tree(tmp_path / "data" / "minimagenet_sample", {"train": ["ant"]})
    mini_pickles(tmp_path / "data", ".")
    assert load(config("minimagenet"), "train").manifest["layout"] == "pickle"


# CIFAR: pickles and the official archive have pictures of 32 pixels.


def cifar_picture(name: str, index: int) -> np.ndarray:
    return pixels(name, index, 32)


def cifar_pickles(data: Path, labels: Mapping[str, Iterable[Any]]) -> None:
    data.mkdir(parents=True, exist_ok=True)
    for split, chosen in labels.items():
        pairs = [(label, index) for index in range(PER_CLASS) for label in chosen]
        content = {
            "data": np.stack([cifar_picture(str(label), index) for label, index in pairs]),
            "labels": [label for label, _ in pairs],
        }
        (data / f"CIFAR_FS_{split}.pickle").write_bytes(pickle.dumps(content, 2))


def test_cifar_fs_pickles(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    labels = {"train": [3, 11, 2], "val": [40]}
    cifar_pickles(tmp_path / "data", labels)
    store = load(config("cifar_fs", image_size=32), "train")
    assert store.class_names == ("11", "2", "3")
    for name, indices in zip(store.class_names, store.class_indices, strict=True):
        for index, place in enumerate(indices):
            assert np.array_equal(store.images[place], cifar_picture(name, index))


def test_cifar_fs_pickles_with_cifar_100s_label_ids_get_the_names(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    ids = [cifar_fs.FINE_LABELS.index(name) for name in cifar_fs.CLASSES["val"]]
    cifar_pickles(tmp_path / "data" / "cifar_fs", {"val": ids})
    store = load(config("cifar_fs", image_size=32), "val")
    assert store.class_names == tuple(sorted(cifar_fs.CLASSES["val"]))
    shark = store.class_indices[store.class_names.index("shark")][0]
    label = cifar_fs.FINE_LABELS.index("shark")
    assert np.array_equal(store.images[shark], cifar_picture(str(label), 0))


def test_ids_of_some_classes_of_a_split_may_be_anything(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    ids = [cifar_fs.FINE_LABELS.index(name) for name in ("apple", "bear", "bed")]
    for chosen in (ids[:2], ids):
        cifar_pickles(tmp_path / "data" / "cifar_fs", {"train": chosen})
        store = load(config("cifar_fs", image_size=32), "train")
        assert store.class_names == tuple(sorted(map(str, chosen)))


def test_numeric_labels_overlap_unless_each_split_counts_from_zero(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    cifar_pickles(tmp_path / "data", {"train": range(4), "val": range(2)})
    assert len(load(config("cifar_fs"), "val").class_names) == 2
    cifar_pickles(tmp_path / "data", {"train": range(4), "val": [3, 4]})
    for split in ("train", "val"):
        with pytest.raises(UserError, match=r"share 1 classes: 3\."):
            load(config("cifar_fs"), split)


def cifar_archive(folder: Path) -> Path:
    """`cifar-100-python/` as torchvision leaves it: every class twice in train, once in test."""
    folder.mkdir(parents=True)
    names = list(cifar_fs.FINE_LABELS)
    for part, indices in (("train", [0, 1]), ("test", [2])):
        pictures = [cifar_picture(name, index) for index in indices for name in names]
        content = {
            "data": np.stack(pictures).transpose(0, 3, 1, 2).reshape(len(pictures), -1),
            "fine_labels": [*range(100)] * len(indices),
        }
        (folder / part).write_bytes(pickle.dumps(content, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    return folder


def check_archive(store: ImageStore, split: str) -> None:
    assert store.class_names == tuple(sorted(cifar_fs.CLASSES[split]))
    assert store.counts().tolist() == [PER_CLASS] * len(store.class_names)
    for name, indices in zip(store.class_names, store.class_indices, strict=True):
        for index, place in enumerate(indices):
            assert np.array_equal(store.images[place], cifar_picture(name, index))


@pytest.mark.parametrize("where", ["data/cifar-100-python", "data/cifar_fs/cifar-100-python"])
def test_the_official_archive_is_split_by_bertinettos_classes(
    tmp_path: Path, load: Callable[..., ImageStore], where: str
) -> None:
    cifar_archive(tmp_path / where)
    for split in SPLITS:
        store = load(config("cifar_fs", image_size=32), split)
        check_archive(store, split)
        assert store.manifest["sample"] is False
        assert any("3 images per class" in notice for notice in store.manifest["notices"])


def test_root_may_be_the_archive(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = cifar_archive(tmp_path / "somewhere" / "cifar-100-python")
    check_archive(load(config("cifar_fs", image_size=32, root=str(root)), "test"), "test")


def test_bertinettos_split() -> None:
    assert {split: len(names) for split, names in cifar_fs.CLASSES.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    assert len(cifar_fs.FINE_LABELS) == 100
    assert cifar_fs.FINE_LABELS[:3] == ("apple", "aquarium_fish", "baby")
    assert cifar_fs.FINE_LABELS[99] == "worm"


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half", 10),
        RuntimeError("File not found or corrupted."),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
def test_offline_says_what_was_looked_for_and_leaves_nothing(
    tmp_path: Path,
    load: Callable[..., ImageStore],
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    patience = []

    def fail(*_: Any, **__: Any) -> None:
        patience.append(socket.getdefaulttimeout())
        raise failure

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(UserError) as caught:
        load(config("cifar_fs"), "train")
    message = str(caught.value)
    reason = str(getattr(failure, "reason", failure))
    for part in (
        str(tmp_path / "data"),
        "does not exist",
        "cifar_fs/{train,val,test}/<class>/*.png",
        "splits/bertinetto",
        "CIFAR_FS_{train,val,test}.pickle",
        "cifar-100-python/",
        f"Downloading CIFAR-100 into that folder was tried and failed: {reason}",
        "paths.data_dir",
        "SSEG_NASE_DATA",
        "dataset.root",
    ):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()
    assert patience == [cifar_fs.DOWNLOAD_PATIENCE]
    assert socket.getdefaulttimeout() is None


def test_what_another_process_has_downloaded_meanwhile_is_taken(
    tmp_path: Path, load: Callable[..., ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def waited(path: Path) -> Iterator[None]:
        cifar_archive(tmp_path / "data" / "cifar-100-python")
        yield

    def download(*_: Any) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(cifar_fs, "locked", waited)
    monkeypatch.setattr(cifar_fs, "_download", download)
    check_archive(load(config("cifar_fs", image_size=32), "val"), "val")


def test_a_download_is_kept_and_split(
    tmp_path: Path, load: Callable[..., ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(root: str, download: bool) -> None:
        calls.append(download)
        cifar_archive(Path(root) / "cifar-100-python")
        (Path(root) / "cifar-100-python.tar.gz").write_bytes(b"packed")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", download)
    for split in SPLITS:
        check_archive(load(config("cifar_fs", image_size=32), split), split)
    assert calls == [True]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-100-python"]


def test_an_incomplete_archive_is_reported_and_not_deleted(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    archive = cifar_archive(tmp_path / "data" / "cifar-100-python")
    (archive / "meta").unlink()
    with pytest.raises(UserError, match="is incomplete"):
        load(config("cifar_fs"), "train")
    assert (archive / "train").exists()


@pytest.mark.parametrize("name", ["cifar_fs", "minimagenet", "omniglot"])
def test_an_explicit_root_without_the_data_is_refused(
    tmp_path: Path, load: Callable[..., ImageStore], name: str
) -> None:
    with pytest.raises(UserError, match=r"dataset\.root=.*gone does not exist"):
        load(config(name, root=str(tmp_path / "gone")), "train")
    with pytest.raises(UserError, match=r"dataset\.root=.* holds none of the layouts"):
        load(config(name, root=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("name", "layout"), [("minimagenet", "mini-imagenet-cache"), ("omniglot", "images_background")]
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_data_set_says_what_was_looked_for_where(
    tmp_path: Path, load: Callable[..., ImageStore], name: str, layout: str, exists: bool
) -> None:
    if exists:
        (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=layout) as caught:
        load(config(name), "train")
    assert str(tmp_path / "data") in str(caught.value)
    assert "SSEG_NASE_DATA" in str(caught.value)
    assert ("does not exist" in str(caught.value)) is not exists


def test_a_missing_split_is_reported_only_when_it_is_asked_for(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    split_tree(tmp_path / "data" / "cifar_fs", {"train": ["ant"], "val": ["dog"]})
    check(load(config("cifar_fs"), "train"), ["ant"])
    with pytest.raises(UserError, match=r"no test split in .*cifar_fs.*only train and val"):
        load(config("cifar_fs"), "test")
    with pytest.raises(UserError, match=r"split=tset is not one of.*Did you mean 'test'"):
        load(config("cifar_fs"), "tset")


# Omniglot


def omniglot(data: Path, evaluation: bool = True) -> dict[str, list[str]]:
    classes = {}
    parts = {"images_background": 12, "images_evaluation": 2 if evaluation else 0}
    for part, alphabets in parts.items():
        for number in range(alphabets):
            alphabet = f"{part[7:11]}{number:02d}"
            classes[alphabet] = [f"{alphabet}/character{i:02d}" for i in (1, 2)]
            for name in classes[alphabet]:
                class_folder(data / "omniglot" / part / name, name)
    return classes


def test_omniglot_is_split_by_alphabets(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    classes = omniglot(tmp_path / "data")
    stores = {
        split: load(config("omniglot", split_fractions=[5 / 6, 1 / 6, 0]), split)
        for split in SPLITS
    }
    alphabets = {}
    for split, store in stores.items():
        alphabets[split] = {name.split("/")[0] for name in store.class_names}
        check(store, [name for alphabet in alphabets[split] for name in classes[alphabet]])
    assert {split: len(names) for split, names in alphabets.items()} == {
        "train": 10,
        "val": 2,
        "test": 2,
    }
    assert alphabets["test"] == {"eval00", "eval01"}
    assert not alphabets["train"] & alphabets["val"]
    seeds = {
        load(
            config("omniglot", split_seed=seed, split_fractions=[5 / 6, 1 / 6, 0]), "val"
        ).class_names
        for seed in range(4)
    }
    assert len(seeds) > 1
    half = load(config("omniglot", split_fractions=[0.5, 0.5, 0]), "train")
    assert len({name.split("/")[0] for name in half.class_names}) == 6


@pytest.mark.parametrize("part", ["images_background", "images_evaluation"])
def test_an_archive_of_omniglot_unpacked_into_its_own_name_is_said(
    tmp_path: Path, load: Callable[..., ImageStore], part: str
) -> None:
    omniglot(tmp_path / "data")
    base = tmp_path / "data/omniglot" / part
    alphabets = list(base.iterdir())
    (base / part).mkdir()
    for alphabet in alphabets:
        alphabet.rename(base / part / alphabet.name)
    with pytest.raises(UserError, match=f"{part} has a folder {part} in it.*move the alphabets"):
        load(config("omniglot", split_fractions=[0.5, 0.5, 0]), "train")


def test_omniglot_without_the_evaluation_alphabets(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    omniglot(tmp_path / "data", evaluation=False)
    assert (
        len(load(config("omniglot", split_fractions=[5 / 6, 1 / 6, 0]), "val")) == 2 * 2 * PER_CLASS
    )
    with pytest.raises(UserError, match="no test split"):
        load(config("omniglot", split_fractions=[5 / 6, 1 / 6, 0]), "test")


def test_what_lies_beside_characters_is_counted(
    tmp_path: Path, load: Callable[..., ImageStore], caplog: pytest.LogCaptureFixture
) -> None:
    alphabets = tmp_path / "data" / "omniglot" / "images_background"
    for number in range(2):
        class_folder(alphabets / f"A{number}" / "character01")
        (alphabets / f"A{number}" / "notes.txt").touch()
    (alphabets / "readme.md").touch()
    load(config("omniglot", channels=1), "train")
    assert "images_background: 2 files are not taken (.md 1, .txt 1)." in caplog.text


def test_alphabets_are_dealt_by_the_shares_of_train_and_val(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / "data" / "omniglot" / "images_background" / f"A{number}" / "character01"
        folder.mkdir(parents=True)
    for shares, expected in (([0.6, 0.2, 0.2], (6, 2)), ([0.25, 0.25, 0.5], (4, 4))):
        dataset = config("omniglot", split_fractions=shares)
        found = find_omniglot(dataset, tmp_path / "data", tmp_path / "cache")
        assert tuple(len(found.splits[split].classes()) for split in ("train", "val")) == expected
        assert "test" not in found.splits


@pytest.mark.parametrize("split_by", ["alphabets", "classes"])
def test_omniglots_rotations_are_classes_of_one_split(
    tmp_path: Path, load: Callable[..., ImageStore], split_by: str
) -> None:
    omniglot(tmp_path / "data")
    options = {"split_fractions": [0.7, 0.3, 0], "split_by": split_by}
    for split in SPLITS:
        plain = load(config("omniglot", **options), split)
        turned = load(config("omniglot", rotations=True, **options), split)
        assert turned.class_names == tuple(
            f"{name}/rot{degrees:03d}"
            for name in plain.class_names
            for degrees in range(0, 360, 90)
        )
        assert turned.counts().tolist() == [PER_CLASS] * (4 * len(plain.class_names))
        for label, name in enumerate(plain.class_names):
            for index, quarter in itertools.product(range(PER_CLASS), range(4)):
                place = turned.class_indices[4 * label + quarter][index]
                expected = Image.fromarray(pixels(name, index)).rotate(90 * quarter)
                assert np.array_equal(turned.images[place], np.asarray(expected))
        turned.verify()


def test_omniglot_is_split_by_characters(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    classes = omniglot(tmp_path / "data")
    options = {"split_fractions": [0.75, 0.25, 0], "split_by": "classes"}
    stores = {split: load(config("omniglot", **options), split) for split in SPLITS}
    for store in stores.values():
        check(store, store.class_names)
    assert {split: len(store.class_names) for split, store in stores.items()} == {
        "train": 18,
        "val": 6,
        "test": 4,
    }
    names = [name for store in stores.values() for name in store.class_names]
    assert sorted(names) == sorted(name for found in classes.values() for name in found)


def vinyals(folder: Path, lines: Mapping[str, Iterable[str]]) -> None:
    folder.mkdir(parents=True)
    for split, listed in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(listed) + "\n")


@pytest.mark.parametrize("place", ["vinyals", "splits/vinyals"])
def test_omniglot_by_vinyals_lists(
    tmp_path: Path, load: Callable[..., ImageStore], place: str
) -> None:
    omniglot(tmp_path / "data")
    turns = ("/rot000", "/rot090", "/rot180", "/rot270")
    lists = {
        "train": ["back00/character01", "eval01/character02", "back01/character01"],
        "val": ["back00/character02"],
    }
    written = {split: [n + turn for n in names for turn in turns] for split, names in lists.items()}
    vinyals(tmp_path / "data" / "omniglot" / place, written)
    for split, names in lists.items():
        check(load(config("omniglot", split_by="vinyals"), split), names)
        turned = load(config("omniglot", split_by="vinyals", rotations=True), split)
        assert turned.class_names == tuple(sorted(n + turn for n in names for turn in turns))
    with pytest.raises(UserError, match="no test split"):
        load(config("omniglot", split_by="vinyals"), "test")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, r"no lists train\.txt.*vinyals.*split_by=alphabets"),
        (["back00/character01", "back00"], r"Line 2 of .*train\.txt is 'back00'"),
        (["back00/character01/rot000/x"], r"Line 1 of .*train\.txt"),
        ([""], r"train\.txt names no characters"),
        (
            ["back00/character01", "back00/character07", "Greek/character01"],
            r"2 characters .*: Greek/character01, back00/character07\. Vinyals' split needs both",
        ),
    ],
)
def test_mistakes_in_vinyals_lists_are_named(
    tmp_path: Path, load: Callable[..., ImageStore], lines: list[str] | None, said: str
) -> None:
    omniglot(tmp_path / "data")
    if lines is not None:
        vinyals(tmp_path / "data" / "omniglot" / "vinyals", {"train": lines})
    with pytest.raises(UserError, match=said):
        load(config("omniglot", split_by="vinyals"), "train")


# Drawings


def stroke(size: int = 105, thick: int = 2) -> np.ndarray:
    """A thin cross in black on white, uint8 `[size, size]`."""
    image = np.full((size, size), 255, np.uint8)
    image[size // 3 : size // 3 + thick] = 0
    image[:, size // 2 : size // 2 + thick] = 0
    return image


def drawn_as(grey: np.ndarray, form: str) -> Image.Image:
    image = Image.fromarray(grey)
    if form == "palette, transparent":
        paletted = image.point(lambda value: 7 if value else 9).convert("P")
        paletted.putpalette([200, 0, 100] * 8 + [0] * 6)  # 7 is no colour of paper, 9 is black
        paletted.info["transparency"] = 7
        return paletted
    if form in ("RGBA", "LA"):  # ink on nothing: what is transparent is black underneath
        clear = Image.new(form, image.size, 0)
        clear.putalpha(Image.fromarray(255 - grey))
        return clear
    return image.convert(form)


def area_means(grey: np.ndarray, size: int) -> np.ndarray:
    """Every pixel cut into `size` × `size` pieces, and these put together in another order."""
    side = len(grey)
    pieces = np.kron(grey.astype(np.float64), np.ones((size, size)))
    return pieces.reshape(size, side, size, side).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        *(("1", "png"), ("L", "png"), ("L", "bmp"), ("P", "png"), ("RGB", "bmp"), ("RGBA", "png")),
        *(("LA", "png"), ("palette, transparent", "png"), ("I", "png")),
    ],
)
@pytest.mark.parametrize("invert", [False, True])
def test_drawings_of_every_make_become_the_same_small_one(
    tmp_path: Path, load: Callable[..., ImageStore], form: str, suffix: str, invert: bool
) -> None:
    folder = tmp_path / "mine" / "train" / "cross"
    folder.mkdir(parents=True)
    grey = stroke()
    image = Image.fromarray(grey.astype(np.uint16) * 257) if form == "I" else drawn_as(grey, form)
    image.save(folder / f"0.{suffix}", **({"transparency": 7} if "palette" in form else {}))
    mine = config("sketch", root=str(tmp_path / "mine"), image_size=28, invert=invert)
    store = load(mine, "train")
    assert store.images.shape == (1, 28, 28, 1)
    expected = area_means(255 - grey if invert else grey, 28)
    assert np.abs(store.images[0, :, :, 0] - expected).max() <= 0.51
    ink = store.images[0, :, :, 0] if invert else 255 - store.images[0, :, :, 0]
    # Of two pixels in 105 more than half of a pixel of 28 is left, somewhere along each stroke.
    assert (ink.max(axis=1) > 60).all()
    assert (ink.max(axis=0) > 60).all()


def test_a_jpeg_and_a_coloured_drawing(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    folder = tmp_path / "mine" / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(stroke(64)).save(folder / "0.jpg", quality=95)
    colours = pixels("a", 0, 64)
    Image.fromarray(colours).save(folder / "1.png")
    store = load(config("sketch", root=str(tmp_path / "mine"), image_size=32, channels=3), "train")
    assert np.abs(store.images[0, :, :, 1] - area_means(stroke(64), 32)).mean() < 8
    for channel in range(3):
        expected = area_means(colours[:, :, channel], 32)
        assert np.abs(store.images[1, :, :, channel] - expected).max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(40, 20), (12, 40)])
def test_nothing_of_a_long_drawing_is_cut_off(
    tmp_path: Path, load: Callable[..., ImageStore], height: int, width: int
) -> None:
    folder = tmp_path / "mine" / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("L", (width, height), 0).save(folder / "0.png")
    (image,) = load(config("sketch", root=str(tmp_path / "mine"), image_size=20), "train").images
    inked = (image[:, :, 0] == 0).sum(axis=0)
    assert (inked.max(), (inked > 0).sum()) == (height // 2, width // 2)
    assert (image == 0).sum() == height * width // 4
    assert image[0, 0, 0] == 255


def test_a_small_drawing_is_enlarged(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    folder = tmp_path / "mine" / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(stroke(9, 3)).save(folder / "0.png")
    (image,) = load(config("sketch", root=str(tmp_path / "mine"), image_size=28), "train").images
    resized = Image.fromarray(stroke(9, 3)).resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(image[:, :, 0], np.asarray(resized))


def test_drawings_are_split_as_other_folders(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    by_folder = split_tree(tmp_path / "folders")
    for split, names in TINY.items():
        check(load(config("sketch", root=str(by_folder), channels=3), split), names)
    for index in range(9):
        class_folder(tmp_path / "classes" / f"class{index}")
    mine = config("sketch", root=str(tmp_path / "classes"), channels=3, split_by="classes")
    names = [load(mine, split).class_names for split in SPLITS]
    assert sorted(itertools.chain(*names)) == [f"class{index}" for index in range(9)]


def test_a_broken_drawing_is_named(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = split_tree(tmp_path / "mine")
    (root / "train" / "bee" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bee/1\.png cannot be read"):
        load(config("sketch", root=str(root)), "train")


# Images without labels


@pytest.mark.parametrize("name", ["folder", "sketch"])
def test_a_train_folder_of_images_is_one_nameless_class(
    tmp_path: Path,
    load: Callable[..., ImageStore],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    root = tmp_path / "mine"
    class_folder(root / "train", "any", count=5)
    (root / "train" / ".thumbnails").mkdir()
    class_folder(root / "val" / "dog")
    mine = config(name, root=str(root), channels=3)
    for _ in range(2):  # read, and from the cache by another command
        benchmarks._said.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sseg_nase"):
            store = load(mine, "train")
        assert "train has 5 images and no class folders" in caplog.text
    assert store.class_names == ("",)
    assert store.labels.tolist() == [0] * 5
    assert np.array_equal(store.images[3], pixels("any", 3))
    check(load(mine, "val"), ["dog"])
    with pytest.raises(UserError, match=r"split 'train' of dataset .* has only 1 class"):
        sample_episodes(
            store.class_indices,
            dataset=name,
            split="train",
            ways=2,
            shots=1,
            queries=1,
            episodes=1,
            seed=0,
        )


def test_only_the_train_split_may_be_without_classes(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    for split in ("train", "val"):
        class_folder(tmp_path / "mine" / split, "any")
    mine = config("folder", root=str(tmp_path / "mine"))
    assert len(load(mine, "train")) == PER_CLASS  # whatever the others are
    with pytest.raises(UserError, match=r"no class folders in .*val"):
        load(mine, "val")
    with pytest.raises(UserError, match=r"no class folders in .*train"):
        load(config("folder", root=str(tmp_path / "mine" / "train"), split_by="classes"), "train")


# Digits


def test_digits_are_embedded(load: Callable[..., ImageStore]) -> None:
    train, val = (load(config("digits", image_size=20), split) for split in ("train", "val"))
    assert train.class_names == tuple("01234")
    assert val.class_names == tuple("56789")
    assert train.images.shape == (901, 20, 20, 3)
    assert len(train) + len(val) == 1797
    assert train.images.min() == 0
    assert train.images.max() == 255
    assert np.array_equal(train.images[..., 0], train.images[..., 2])
    with pytest.raises(UserError, match="no test split"):
        load(config("digits"), "test")


def test_digits_are_the_scans(load: Callable[..., ImageStore]) -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    store = load(config("digits", image_size=8), "val")
    for label, digit in enumerate(range(5, 10)):
        expected = np.round(scans.images[scans.target == digit] / 16 * 255)
        assert np.array_equal(store.images[store.labels == label][..., 1], expected)


# Folder


def test_folder_split_by_folder(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = split_tree(tmp_path / "mine")
    for split, names in TINY.items():
        check(load(config("folder", root=str(root)), split, workers=2), names)


def test_folder_split_by_classes(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    names = [f"class{i}" for i in range(9)]
    for name in names:
        class_folder(tmp_path / "mine" / name)
    mine = config("folder", root=str(tmp_path / "mine"), split_by="classes")
    stores = [load(mine, split) for split in SPLITS]
    for store in stores:
        check(store, store.class_names)
    assert sorted(name for store in stores for name in store.class_names) == names
    train = {
        load(dataclasses.replace(mine, split_seed=seed), "train").class_names for seed in range(4)
    }
    assert len(train) > 1
    without = dataclasses.replace(mine, split_fractions=[0.5, 0.5, 0])
    with pytest.raises(UserError, match="no test split"):
        load(without, "test")


def test_folder_says_which_way_of_splitting_fits(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    root = str(split_tree(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"Set dataset\.split_by=folder"):
        load(config("folder", root=root, split_by="classes"), "train")
    os.rename(f"{root}/train", f"{root}/Training")
    with pytest.raises(UserError, match=r"Set dataset\.split_by=folder"):
        load(config("folder", root=root, split_by="classes"), "train")
    os.rename(f"{root}/Training", f"{root}/train")
    with pytest.raises(UserError, match=r"Set dataset\.split_by=classes"):
        load(config("folder", root=f"{root}/train"), "train")


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_a_root_is_required(tmp_path: Path, load: Callable[..., ImageStore], name: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.root=.*gone does not exist"):
        load(config(name, root=str(tmp_path / "gone")), "train")
    (tmp_path / "file").write_text("")
    wrong = tmp_path / "file" if name == "folder" else tmp_path
    with pytest.raises(UserError, match=r"is not a (folder|file)"):
        load(config(name, root=str(wrong)), "train")


@pytest.mark.parametrize("classes", range(3, 40))
@pytest.mark.parametrize("fractions", [[0.64, 0.16, 0.2], [0.98, 0.01, 0.01], [1 / 3] * 3])
def test_split_classes_deals_every_class_once_by_the_fractions(
    classes: int, fractions: list[float]
) -> None:
    names = [f"c{i}" for i in range(classes)]
    dealt = split_classes(names, fractions, seed=1)
    assert sorted(name for split in dealt.values() for name in split) == sorted(names)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert len(dealt[split]) >= 1
        # At most two classes go to make up the minimum of the other splits.
        assert abs(len(dealt[split]) - fraction * classes) <= 2
    assert dealt == split_classes(reversed(names), fractions, seed=1)


def test_split_classes_of_cifar_100_are_64_16_20() -> None:
    dealt = split_classes(cifar_fs.FINE_LABELS, [0.64, 0.16, 0.2], seed=5)
    assert [len(dealt[split]) for split in SPLITS] == [64, 16, 20]


@pytest.mark.parametrize("fractions", [[0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 0], [], [2, -1, 0]])
def test_split_fractions_must_be_three_that_sum_to_one(fractions: list[float]) -> None:
    with pytest.raises(UserError, match=r"dataset\.split_fractions=.*sum to 1"):
        split_classes(["a", "b", "c", "d"], fractions, seed=0)


def test_too_few_classes_to_split() -> None:
    with pytest.raises(UserError, match="2 classes cannot be split into train, val, test"):
        split_classes(["a", "b"], [0.6, 0.2, 0.2], seed=0)


# CSV


def csv_file(folder: Path, split_column: bool) -> Path:
    rows = ["path,label,split" if split_column else "path,label"]
    for split, names in TINY.items():
        for name in names:
            class_folder(folder / "pictures" / name)
            for index in range(PER_CLASS):
                path = Path("pictures", name, f"{index}.png")
                if index == 1:
                    path = folder / path  # absolute paths are accepted too
                rows.append(f"{path},{name}" + f",{split}" * split_column)
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def test_csv_with_a_split_column(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = csv_file(tmp_path, split_column=True)
    for split, names in TINY.items():
        check(load(config("csv", root=str(root)), split), names)


def test_csv_without_a_split_column(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = csv_file(tmp_path, split_column=False)
    stores = [load(config("csv", root=str(root)), split) for split in SPLITS]
    for store in stores:
        check(store, store.class_names)
    found = sorted(name for store in stores for name in store.class_names)
    assert found == sorted(name for names in TINY.values() for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,a\n", r"no column path: it is 'file,label'"),
        ("", "no column path, label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "Line 2 of .* lacks a value for path or label"),
        ("path,label\na.png\n", "Line 2"),
        ("path,label,split\na.png,a,tst\n", r"'tst', expected one of.*Did you mean 'test'"),
        ("path,label,split\na.png,a\n", "Line 2 of .* has 2 cells, its header has 3"),
        ("path,label,split\na.png,a,\n", "'', expected one of"),
        ("path,label,split\ngone.png,a,train\n", r"gone\.png does not exist"),
        ("path,label,split\na.png,a,train\nb.png,a,val\n", "share 1 classes: a"),
        ("path,label\na.png,a\n", "1 classes cannot be split"),
    ],
)
def test_csv_mistakes_are_named(
    tmp_path: Path, load: Callable[..., ImageStore], text: str, message: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels(name, 0)).save(tmp_path / name)
    with pytest.raises(UserError, match=message):
        load(config("csv", root=str(tmp_path / "list.csv")), "train")


def test_a_binary_file_is_no_csv(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read"):
        load(config("csv", root=str(tmp_path / "list.csv")), "train")


# What is wrong with images and classes, whatever the layout


def test_an_empty_class_folder_is_named(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = split_tree(tmp_path / "mine")
    (root / "train" / "void").mkdir()
    (root / "train" / "void" / "Thumbs.db").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/void has no images"):
        load(config("folder", root=str(root)), "train")
    check(load(config("folder", root=str(root)), "val"), TINY["val"])
    shutil.rmtree(root / "val" / "dog")
    with pytest.raises(UserError, match=r"no class folders in .*val"):
        load(config("folder", root=str(root)), "val")


def test_a_truncated_image_is_named_and_nothing_is_cached(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    root = split_tree(tmp_path / "mine")
    victim = root / "train" / "bee" / "1.png"
    victim.write_bytes(victim.read_bytes()[:80])
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"bee/1\.png cannot be read.*delete it or download"):
            load(config("folder", root=str(root)), "train", workers=workers)
    assert not [path for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir()]


def test_common_classes_of_two_splits_are_named(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    split_tree(
        tmp_path / "data" / "cifar_fs", {"train": ["ant", "bee"], "val": ["dog"], "test": ["bee"]}
    )
    for split, other in (("train", "test"), ("test", "train")):
        with pytest.raises(UserError, match=f"splits {split} and {other} .* share 1 classes: bee"):
            load(config("cifar_fs"), split)
    check(load(config("cifar_fs"), "val"), ["dog"])


def test_lists_with_wrong_entries_are_named(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    cifar_bertinetto(tmp_path / "data")
    mini_lists(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "cifar_fs" / "data" / "bee")
    with pytest.raises(UserError, match=r"train\.txt lists the class bee"):
        load(config("cifar_fs"), "train")
    (tmp_path / "data" / "minimagenet" / "images" / "dog1.png").unlink()
    with pytest.raises(UserError, match=r"1 images that .*val\.csv lists .*dog1\.png"):
        load(config("minimagenet"), "val")


@pytest.mark.parametrize(
    "content",
    [
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8)},
        {"image_data": np.zeros((2, 8, 8, 3), np.float32), "class_dict": {"a": [0, 1]}},
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8), "class_dict": {"a": [0, 2]}},
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8), "class_dict": {"a": [-1]}},
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8), "class_dict": {"a": ["x"]}},
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8), "class_dict": {"a": []}},
    ],
)
def test_a_pickle_of_another_make_is_refused(
    tmp_path: Path, load: Callable[..., ImageStore], content: dict[str, Any]
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError):
        load(config("minimagenet"), "train")


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((2, 32, 32, 3), np.uint8)},
        {"data": np.zeros((2, 32, 32, 3), np.uint8), "labels": [1, 2, 3]},
        {"data": np.zeros((2, 32, 32, 3)), "labels": [1, 2]},
        {"data": "pictures", "labels": [1, 2]},
        {"data": np.zeros((2, 32, 32, 3), np.uint8), "labels": [1, [2]]},
    ],
)
def test_a_cifar_pickle_of_another_make_is_refused(
    tmp_path: Path, load: Callable[..., ImageStore], content: dict[str, Any]
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "CIFAR_FS_train.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="is not a CIFAR pickle"):
        load(config("cifar_fs"), "train")


def test_a_malicious_data_set_runs_nothing(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'was_here'}",)

    (tmp_path / "data").mkdir()
    for name in ("mini-imagenet-cache-train.pkl", "CIFAR_FS_train.pickle"):
        (tmp_path / "data" / name).write_bytes(pickle.dumps({"data": Evil()}))
    for dataset in ("minimagenet", "cifar_fs"):
        with pytest.raises(UserError, match=r"system.*nothing in the file was run"):
            load(config(dataset), "train")
    assert not (tmp_path / "was_here").exists()


def test_a_data_set_of_other_counts_is_noticed(
    tmp_path: Path, load: Callable[..., ImageStore], caplog: pytest.LogCaptureFixture
) -> None:
    split_tree(tmp_path / "data" / "cifar_fs")
    for _ in range(2):  # read, and from the cache by another command
        benchmarks._said.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sseg_nase"):
            load(config("cifar_fs"), "val")
        assert "val has 1 of the 16 classes of CIFAR-FS: a sample" in caplog.text
        assert "val has 3 images per class, CIFAR-FS has 600" in caplog.text
        assert "classes that are not of CIFAR-FS: dog" in caplog.text


# The cache


def stores(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir())


def test_a_store_is_reused_until_its_source_changes(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    root = split_tree(tmp_path / "mine")
    mine = config("folder", root=str(root))
    load(mine, "train")
    before = stores(tmp_path)
    made = (tmp_path / "cache" / "stores" / before[0]).stat().st_mtime_ns
    load(mine, "train")
    assert stores(tmp_path) == before
    assert (tmp_path / "cache" / "stores" / before[0]).stat().st_mtime_ns == made
    class_folder(root / "train" / "gnu")
    check(load(mine, "train"), [*TINY["train"], "gnu"])
    assert len(stores(tmp_path)) == 1
    assert stores(tmp_path) != before


def test_a_change_of_the_same_size_is_seen(tmp_path: Path, load: Callable[..., ImageStore]) -> None:
    root = split_tree(tmp_path / "mine")
    mine = config("folder", root=str(root))
    load(mine, "val")
    later = time.time_ns() + 10**9
    os.utime(root / "val" / "dog" / "0.png", ns=(later, later))
    before = stores(tmp_path)
    load(mine, "val")
    assert stores(tmp_path) != before


def test_sizes_splits_and_sources_have_stores_of_their_own(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    roots = [str(split_tree(tmp_path / name)) for name in ("one", "two")]
    for root in roots:
        for size in (8, 12):
            for split in SPLITS:
                store = load(config("folder", root=root, image_size=size), split)
                assert store.images.shape[1:] == (size, size, 3)
    assert len(stores(tmp_path)) == 12


@pytest.mark.realdata
def test_the_real_cifar_fs(tmp_path: Path) -> None:
    data = os.environ.get("SSEG_NASE_DATA")
    if not data:
        pytest.skip("SSEG_NASE_DATA is not set")
    if not (Path(data) / "cifar_fs" / "val").is_dir():
        pytest.skip(f"SSEG_NASE_DATA={data} has no cifar_fs/val")
    store = load_split(
        config("cifar_fs", image_size=32),
        "val",
        data_dir=Path(data),
        cache_dir=tmp_path,
        workers=2,
    )
    assert store.class_names == tuple(sorted(cifar_fs.CLASSES["val"]))
    assert store.counts().tolist() == [600] * 16
    assert store.manifest["notices"] == []
    assert store.manifest["sample"] is False
    first = sorted((Path(data) / "cifar_fs" / "val" / "beaver").iterdir())[0]
    assert np.array_equal(store.images[0], np.asarray(Image.open(first).convert("RGB")))
    store.verify()


def test_archives_of_other_things_are_not_to_be_unpacked(tmp_path: Path) -> None:
    for name in ("holidays.zip", "cifar-100.txt", "CIFAR-100-python.tar.gz"):
        (tmp_path / name).touch()
    assert packed(tmp_path, ["cifar-100"]) == tmp_path / "CIFAR-100-python.tar.gz"
    assert packed(tmp_path, ["omniglot"]) is None
    assert packed(tmp_path / "gone", ["cifar-100"]) is None


def test_a_class_that_a_list_names_twice_is_said(
    tmp_path: Path, load: Callable[..., ImageStore]
) -> None:
    cifar_bertinetto(tmp_path / "data")
    [file] = (tmp_path / "data").rglob("splits/bertinetto/train.txt")
    names = file.read_text().split()
    file.write_text("\n".join([*names, names[0]]))
    with pytest.raises(UserError, match=rf"Lines 1 and {len(names) + 1} of .* are both {names[0]}"):
        load(config("cifar_fs"), "train")

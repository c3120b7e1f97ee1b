"""A store is read again when anything changed that decides on its images, and only then."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.config.compose import load as load_config
from sseg_nase.config.groups.dataset import SPLITS, DatasetConfig, OnDisk
from sseg_nase.data.benchmarks import NOT_IN_KEY, _stem
from sseg_nase.data.benchmarks.layouts import Found
from sseg_nase.data.benchmarks.walk import of_file
from sseg_nase.errors import UserError
from tests.support.own_images import SIDE, content, freeze, load, own, picture, save, tree

NAMES = [f"c{number}" for number in range(6)]
ROOT = Path("own")


def swap(one: str, other: str) -> None:
    os.rename(one, "aside")
    os.rename(other, one)
    os.rename("aside", other)


def rewrite(path: str, before: bytes, after: bytes) -> None:
    """Replace text within a file, whose inode stays."""
    text = Path(path).read_bytes()
    assert before in text
    assert len(before) == len(after)
    Path(path).write_bytes(text.replace(before, after))


# Each writes a data set, then changes it in a way that keeps number, sizes and times of its files.
Case = Iterator[DatasetConfig]


def moved() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    os.rename("own/train/c0/0.bmp", "own/train/c1/9.bmp")


def renamed_class() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    os.rename("own/train/c1", "own/train/c1b")  # whose place among the classes is the same


def swapped_classes() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    swap("own/train/c0", "own/train/c1")


def swapped_files() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    swap("own/train/c0/0.bmp", "own/train/c1/0.bmp")


def copied_over() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    tree("other/train", NAMES, seed=1)
    freeze("other")
    shutil.rmtree(ROOT)
    os.rename("other", ROOT)


def overwritten() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("folder", ROOT)
    save("own/train/c2/1.bmp", 7)


def link_to_another_file() -> Case:
    tree(ROOT / "train", NAMES)
    for number in (0, 1):
        save(f"own/{number}.bmp", 8, number)
    os.symlink("../../0.bmp", "own/train/c0/link.bmp")
    yield own("folder", ROOT)
    os.unlink("own/train/c0/link.bmp")
    os.symlink("../../1.bmp", "own/train/c0/link.bmp")


def link_to_another_folder() -> Case:
    tree(ROOT / "train", NAMES)
    tree("kept", ["one", "two"])
    os.symlink("../../kept/one", "own/train/link")
    yield own("folder", ROOT)
    os.unlink("own/train/link")
    os.symlink("../../kept/two", "own/train/link")


def drawings() -> Case:
    tree(ROOT / "train", NAMES)
    yield own("sketch", ROOT)
    swap("own/train/c0", "own/train/c1")


def omniglot() -> Case:
    tree(ROOT / "images_background", [f"alphabet{a}/c{c}" for a in range(4) for c in range(2)])
    yield own("omniglot", ROOT, image_size=SIDE)
    for number in range(4):
        base = f"own/images_background/alphabet{number}"
        swap(f"{base}/c0", f"{base}/c1")


def relabelled() -> Case:
    tree(ROOT, NAMES)
    rows = "".join(f"c{i}/{j}.bmp,c{i},train\n" for i in range(6) for j in range(3))
    Path("own/l.csv").write_text(f"path,label,split\n{rows}")
    yield own("csv", ROOT / "l.csv")
    rewrite("own/l.csv", b"c0/1.bmp,c0", b"c0/1.bmp,c1")


def renamed_label() -> Case:
    tree(ROOT, NAMES)
    Path("own/l.csv").write_text("path,label,split\nc0/0.bmp,a,train\nc1/0.bmp,b,train\n")
    yield own("csv", ROOT / "l.csv")
    rewrite("own/l.csv", b",b,", b",c,")


def other_rows() -> Case:
    tree(ROOT, NAMES)
    Path("own/l.csv").write_text("path,label,split\nc0/0.bmp,a,train\nc1/0.bmp,b,train\n")
    yield own("csv", ROOT / "l.csv")
    rewrite("own/l.csv", b"c1/0.bmp", b"c1/1.bmp")


def listed_classes() -> Case:
    tree(ROOT / "data", NAMES)
    (ROOT / "splits/bertinetto").mkdir(parents=True)
    Path("own/splits/bertinetto/train.txt").write_text("c0\nc1\n")
    yield own("cifar_fs", ROOT)
    rewrite("own/splits/bertinetto/train.txt", b"c1", b"c3")


def listed_images() -> Case:
    for number in range(4):
        save(f"own/images/{number}.bmp", number)
    Path("own/train.csv").write_text("filename,label\n0.bmp,a\n1.bmp,b\n")
    yield own("minimagenet", ROOT)
    rewrite("own/train.csv", b"1.bmp", b"3.bmp")


def other_pickle() -> Case:
    def write(seed: int) -> None:
        images = np.stack([picture(seed, index) for index in range(4)])
        value = {"image_data": images, "class_dict": {"a": [0, 1], "b": [2, 3]}}
        Path("own/mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(value))

    ROOT.mkdir()
    write(0)
    yield own("minimagenet", ROOT)
    write(1)
    freeze(ROOT)


@pytest.mark.parametrize(
    "case",
    [
        moved,
        renamed_class,
        swapped_classes,
        swapped_files,
        copied_over,
        overwritten,
        link_to_another_file,
        link_to_another_folder,
        drawings,
        omniglot,
        relabelled,
        renamed_label,
        other_rows,
        listed_classes,
        listed_images,
        other_pickle,
    ],
)
def test_a_change_that_keeps_number_sizes_and_times_is_seen(case: Callable[[], Case]) -> None:
    change = case()
    dataset = next(change)
    freeze(ROOT)
    before = content(load(dataset))
    assert content(load(dataset)) == before
    assert len([*Path("cache/stores").glob("[!.]*")]) == 1
    with pytest.raises(StopIteration):
        next(change)
    after = content(load(dataset))
    assert after == content(load(dataset, cached="another cache"))
    assert after != before
    # What the source was before is not kept.
    assert len([*Path("cache/stores").glob("[!.]*")]) == 1


def test_dealt_splits_never_overlap_through_what_is_cached() -> None:
    names = [f"c{number}" for number in range(12)]
    tree(ROOT, names)
    mine = own("folder", ROOT, split_by="classes")
    for round_ in range(4):
        freeze(ROOT)
        stores = {split: content(load(mine, split)) for split in SPLITS}
        found = sorted(name for classes in stores.values() for name in classes)
        assert found == sorted(names)
        every = [
            image for classes in stores.values() for listed in classes.values() for image in listed
        ]
        assert len(set(every)) == len(every) == 3 * len(names)
        for old in names[round_::4]:
            os.rename(ROOT / old, ROOT / f"{old}-{round_}")
        names = sorted(os.listdir(ROOT))


def test_every_setting_of_a_data_set_has_stores_of_its_own() -> None:
    found = Found("folders", Path("anywhere"), {})
    dataset = own("csv", "anywhere")
    plain = _stem(dataset, found, "train")
    same = [
        one.name
        for one in dataclasses.fields(dataset)
        if _stem(dataclasses.replace(dataset, **{one.name: "another"}), found, "train") == plain
    ]
    # What these decide is in the layout, the source, its files and Found.options.
    # dataset.overlap is about two stores.
    assert sorted(same) == sorted({*NOT_IN_KEY} - {"unlabeled"})  # that is STL-10's
    further = {"path_column", "label_column", "sizes"}  # sizes: in the source, where it decides
    assert set(same) <= {"root", "split_by", "split_fractions", "split_seed", "overlap", *further}
    others: list[dict[str, Any]] = [
        {"layout": "classes"},
        {"path": Path("elsewhere")},
        {"options": {"split_seed": 1}},
    ]
    for other in others:
        assert _stem(dataset, dataclasses.replace(found, **other), "train") != plain
    assert _stem(dataset, found, "val") != plain


def test_all_that_identifies_a_file_is_in_its_stamp() -> None:
    save("a.bmp", 0)
    seen = of_file("a.bmp")
    assert seen.stamp() == of_file(Path("a.bmp").absolute()).stamp()
    changed = {
        name: seen._replace(**{name: "x" if isinstance(value, str) else value + 1}).stamp()
        for name, value in seen._asdict().items()
    }
    # A disk that is mounted again is another device, and a row may move in its list.
    same = {name for name, stamp in changed.items() if stamp == seen.stamp()}
    assert same == {"path", "device", "line"}


def test_the_same_folder_by_another_path_is_the_same_store() -> None:
    tree(ROOT / "train", NAMES)
    for root in (ROOT, ROOT.absolute(), Path("own/../own")):
        load(own("folder", root))
    made = [path.stat().st_ino for path in Path("cache/stores").glob("[!.]*")]
    assert len(made) == 1


def test_what_is_left_out_is_said_as_it_is_now(caplog: pytest.LogCaptureFixture) -> None:
    tree(ROOT / "train", NAMES)
    load(own("folder", ROOT))
    assert "not taken" not in caplog.text
    Path("own/train/c0/photo.heic").touch()
    Path("own/train/c0/notes.txt").touch()
    load(own("folder", ROOT))
    assert "train/c0: 2 files are not taken (.heic 1, .txt 1)." in caplog.text


def test_a_file_removed_while_it_is_looked_at_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree(ROOT / "train", NAMES)
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("c3"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^own/train/c3 cannot be read: Permission denied\."):
        load(own("folder", ROOT))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("cifar_fs", "cifar_fs-train-84-b7b41770f61d"),
        ("omniglot", "omniglot-train-28-grey-55f1fd4cad56"),
        ("sketch", "sketch-train-64-grey-af9c9ccf153e"),
    ],
)
def test_stores_have_the_names_that_they_had_before_data_sets_had_keys_of_their_own(
    name: str, known: str
) -> None:
    root = ["dataset.root=x"] if name == "sketch" else []
    dataset = load_config([f"dataset={name}", *root]).dataset
    assert isinstance(dataset, OnDisk)
    assert _stem(dataset, Found("folders", Path("/nowhere"), {}), "train") == known

"""Classes that nothing deals into splits: how many go where, and two of them image by image."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.data.benchmarks import available_splits, how_dealt
from sseg_nase.data.benchmarks.dealing import class_counts
from sseg_nase.data.store import ImageStore
from tests.support.own_images import content, load, own, picture, save, tree


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (3, (1, 2, 0)),
        (5, (3, 2, 0)),
        (6, (2, 2, 2)),  # the first with a test split
        (11, (7, 2, 2)),
        (12, (6, 3, 3)),
        (19, (11, 4, 4)),
        (20, (10, 5, 5)),  # five ways
        (27, (17, 5, 5)),
        (28, (18, 5, 5)),  # the usual shares would leave four to val
        (29, (18, 5, 6)),
        (100, (64, 16, 20)),
    ],
)
def test_how_many_classes_go_where(classes: int, expected: tuple[int, int, int]) -> None:
    assert class_counts(classes) == expected


def dealt(root: Path | str, **changed: Any) -> Any:
    return own("folder", root, split_fractions=None, **changed)


def splits(root: Path | str) -> tuple[str, ...]:
    return available_splits(dealt(root), data_dir=Path("data"), cache_dir=Path("cache"))


def said(root: Path | str, **changed: Any) -> str | None:
    dataset = own("folder", root, **{"split_fractions": None, **changed})
    return how_dealt(dataset, data_dir=Path("data"), cache_dir=Path("cache"))


def files(store: ImageStore) -> set[str]:
    return {store.name_of(index) for index in range(len(store))}


def test_what_was_dealt_is_said_and_what_lies_in_splits_is_not() -> None:
    tree("own", [f"c{number}" for number in range(7)])
    assert splits("own") == ("train", "val", "test")
    assert said("own") == "7 classes are dealt: train 3, val 2, test 2"
    assert said("own", split_fractions=[0.5, 0.25, 0.25]) is None
    tree("few", ["a", "b", "c"])
    assert splits("few") == ("train", "val")
    assert said("few") == "3 classes are dealt: train 1, val 2"
    tree("ready/train", ["a", "b"])
    tree("ready/val", ["c", "d"], seed=1)
    assert said("ready") is None
    assert load(dealt("ready")).class_names == ("a", "b")


def test_one_class_is_not_divided() -> None:
    tree("own", ["a"], count=5)
    assert splits("own") == ("train",)
    assert len(load(dealt("own"))) == 5


def test_two_classes_are_divided_image_by_image() -> None:
    tree("own", ["a", "b"], count=7)
    assert splits("own") == ("train", "val")
    found = said("own")
    assert found is not None
    assert found.startswith("the 2 classes are too few to hold one out")
    train, val = load(dealt("own")), load(dealt("own"), "val")
    assert train.class_names == val.class_names == ("a", "b")
    assert (train.counts().tolist(), val.counts().tolist()) == ([3, 3], [4, 4])
    assert not files(train) & files(val)
    assert len(files(train) | files(val)) == 14


def test_the_halves_depend_on_the_seed_and_on_the_names_alone() -> None:
    tree("own", ["a", "b"], count=9)
    first = files(load(dealt("own")))
    # Not on the order of the names, which would part what was taken in a row.
    assert first != {f"{name}/{number}.bmp" for name in "ab" for number in (1, 3, 5, 7)}
    other = files(load(dealt("own", split_seed=1)))
    assert other != first  # the store of the other seed is not taken for it
    assert len(other) == len(first)
    shutil.copytree("own", "moved/own")
    assert files(load(dealt("moved/own"))) == first
    save("own/a/zz.bmp", 99)
    os.remove("own/b/8.bmp")
    again = files(load(dealt("own")))
    assert again != first
    shutil.rmtree("own")
    tree("own", ["a", "b"], count=9)
    assert files(load(dealt("own"))) == first


def test_a_list_of_two_classes_is_divided_alike_wherever_it_lies() -> None:
    found = []
    for place in ("one", "deeper/two"):
        tree(place, ["a", "b"], count=6)
        lines = [f"{c}/{number}.bmp,{c}" for c in "ab" for number in range(6)]
        Path(place, "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
        dataset = own("csv", f"{place}/list.csv", split_fractions=None)
        train, val = load(dataset), load(dataset, "val")
        assert not set(content(train)["a"]) & set(content(val)["a"])
        found.append(content(train))
    assert found[0] == found[1]
    assert picture(0, 0, 0).tobytes() in [*content(train)["a"], *content(val)["a"]]

"""What the readers share: splits by name, classes that are dealt, files that are listed."""

from __future__ import annotations

import itertools
import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sseg_nase.config.groups.dataset import SPLITS
from sseg_nase.data.benchmarks import walk
from sseg_nase.data.benchmarks.layouts import (
    NAMELESS,
    Found,
    Official,
    enumerated,
    file_source,
    first_found,
    folder_layout,
    in_folders,
    listing_of,
    named_folders,
    required_root,
    split_classes,
    splits_among,
    without_labels,
)
from sseg_nase.errors import UserError
from tests.support.own_images import save, tree

OFFICIAL = Official(
    "Known", {"train": 3, "val": 2}, 600, {"train": frozenset({"a", "b", "c"}), "val": frozenset()}
)


@pytest.mark.parametrize(
    ("names", "counts", "said"),
    [
        ("abc", [600, 600, 600], []),
        ("ab", [600, 600], ["train has 2 of the 3 classes of Known: a sample"]),
        ("abcd", [600] * 4, ["train has 4 classes, Known has 3", "not of Known: d"]),
        ("abc", [599, 600, 601], ["train has 599 to 601 images per class, Known has 600"]),
        ("abc", [20, 20, 20], ["train has 20 images per class, Known has 600"]),
        ("abd", [600, 600, 600], ["train has classes that are not of Known: d"]),
    ],
)
def test_how_a_split_differs_from_the_published_one(
    names: str, counts: list[int], said: list[str]
) -> None:
    found = OFFICIAL.notices("train", list(names), np.array(counts))
    assert len(found) == len(said)
    for one, part in zip(found, said, strict=True):
        assert part in one


def test_a_long_list_of_names_is_cut() -> None:
    assert enumerated(list("abcde")) == "a, b, c, d, e"
    assert enumerated(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_a_root_may_begin_with_the_home_folder_and_must_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    assert required_root("~/photos", "photos") == tmp_path / "photos"
    with pytest.raises(UserError, match="does not exist"):
        required_root("~/gone", "photos")
    for name in ("photos.zip", "photos.TAR.GZ"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="is an archive: unpack it"):
            required_root(str(tmp_path / name), "photos")


def test_folders_are_looked_for_in_the_order_of_the_names_in_any_case() -> None:
    for name in ("Beta", "alpha", "gamma"):
        Path(name).mkdir()
    Path("delta").touch()
    found = named_folders(Path(), ["gamma", "BETA", "delta", "alpha"])
    assert [path.name for path in found] == ["gamma", "Beta", "alpha"]
    assert named_folders(Path("nowhere"), ["alpha"]) == []


def test_the_first_place_goes_before_the_first_detector() -> None:
    def only(name: str, layout: str):  # type: ignore[no-untyped-def]
        return lambda folder: Found(layout, folder, {}) if folder.name == name else None

    one, other = only("b", "one"), only("a", "other")
    found = first_found([(Path("a"), [one, other]), (Path("b"), [one, other])])
    assert found is not None
    assert (found.path, found.layout) == (Path("a"), "other")
    assert first_found([(Path("c"), [one, other])]) is None


def test_labels_are_by_the_sorted_names() -> None:
    listing = listing_of({"b": [Path("1"), Path("2")], "a": [Path("3")]})
    assert listing.class_names == ("a", "b")
    assert listing.items == [(Path("3"), 0), (Path("1"), 1), (Path("2"), 1)]


# -- splits on disk --------------------------------------------------------------------------------


def test_splits_come_in_their_own_order_and_other_names_are_said() -> None:
    folders = {name: f"own/{name}" for name in ("Test", " train ", "others", "valid")}
    found, notices = splits_among(folders)
    assert list(found.items()) == [
        ("train", "own/ train "),
        ("val", "own/valid"),
        ("test", "own/Test"),
    ]
    assert [one.split(" is taken")[0] for one in notices] == [
        "the folder Test",
        "the folder  train ",
        "the folder valid",
    ]
    with pytest.raises(UserError, match="own/Test and testing are both a test split"):
        splits_among({**folders, "testing": "own/testing"})
    assert splits_among({"train": "own/train"})[1] == []


def test_a_benchmark_in_folders_of_other_names_says_so() -> None:
    tree("own/Train", ["a", "b"])
    found = folder_layout(Path("own"))
    assert found is not None
    assert list(found.splits) == ["train"]
    assert found.notices == ["the folder Train is taken as the train split."]
    assert folder_layout(Path("own/Train")) is None
    assert folder_layout(Path("gone")) is None


def test_what_lies_beside_and_in_class_folders_is_left_out_and_counted() -> None:
    tree("own/train", ["a", "b"])
    for name in ("own/train/notes.txt", "own/train/a/list.csv", "own/train/b/list.csv"):
        Path(name).touch()
    found = folder_layout(Path("own"))
    assert found is not None
    [said] = found.splits["train"].notices()
    assert said == "train and 2 more: 3 files are not taken (.csv 2, .txt 1)."


def test_images_without_class_folders_are_one_nameless_class() -> None:
    for number in range(3):
        save(f"own/{number}.bmp", number)
    Path("own/list.csv").touch()
    source = without_labels("own")
    assert source is not None
    assert list(source.classes()) == [NAMELESS]
    assert len(source.read().items) == 3
    first, second = source.notices()
    assert first.startswith("own has 3 images and no class folders")
    assert second == "own: 1 file is not taken (.csv 1)."
    Path("own/a").mkdir()
    assert without_labels("own") is None
    Path("empty").mkdir()
    assert without_labels("empty") is None


def stamps(*names: str) -> list[str]:
    return list(in_folders({name: f"own/{name}" for name in names}, "own").stamp())


def test_a_stamp_has_every_file_under_its_class() -> None:
    tree("own", ["a", "b"], count=2)
    before = stamps("a", "b")
    assert len(before) == 6
    assert stamps("a", "b") == before
    assert stamps("b", "a") == before
    os.rename("own/b", "own/c")
    renamed = stamps("a", "c")
    assert renamed[:4] == [*before[:3], "class c"]
    os.rename("own/a/1.bmp", "own/c/1-of-a.bmp")
    assert len(stamps("a", "c")) == 6
    assert stamps("a", "c") != renamed


def test_a_stamp_of_packed_images_has_every_file() -> None:
    files = [save(f"{number}.bmp", number) for number in range(3)]
    found = []
    for replaced in (None, *files):
        if replaced is not None:
            shutil.copy(files[0], "new")
            os.replace("new", replaced)
        source = file_source(files, tuple, lambda: listing_of({}))
        found.append(tuple(source.stamp()))
        assert tuple(source.stamp()) == found[-1]
    assert {len(lines) for lines in found} == {3}
    assert len(set(found)) == 4


def test_one_file_twice_is_taken_where_it_is_no_link() -> None:
    tree("own", ["b"], count=2)
    os.symlink("1.bmp", "own/b/0-again.bmp")  # its name stands before that of its target
    source = in_folders({"b": "own/b"}, "own")
    assert [path.name for path, _ in source.read().items] == ["0.bmp", "1.bmp"]
    [said] = source.notices()
    assert said == "1 images are not taken (the same file twice), among them own/b/0-again.bmp."
    Path("own/a").mkdir()
    os.symlink("../b/1.bmp", "own/a/link.bmp")
    both = in_folders({"a": "own/a", "b": "own/b"}, "own")
    with pytest.raises(UserError) as refused:
        both.read()
    assert "own/b/1.bmp and own/a/link.bmp are the same file" in str(refused.value)


def test_one_file_twice_is_taken_where_no_folder_above_it_is_a_link(tmp_path: Path) -> None:
    tree("disk/own", ["b"], count=1)
    os.symlink("disk", "linked")  # the one around all of them is no reason to prefer any
    os.symlink("b", "disk/own/a")
    os.symlink("b/0.bmp", "disk/own/0.bmp")
    (tmp_path / "linked/own/c").mkdir()
    os.symlink("../a/0.bmp", "disk/own/c/0.bmp")
    paths = [f"linked/own/{name}0.bmp" for name in ("", "a/", "b/", "c/")]
    pairs = list(walk.same_files([walk.of_file(path) for path in paths]))
    assert [(str(one), str(again)) for one, again in pairs] == [
        (paths[2], path) for path in paths if path != paths[2]
    ]


def test_hidden_files_and_what_systems_leave_are_neither_images_nor_classes() -> None:
    tree("own", ["a"], count=1)
    for name in (".git", "__MACOSX", "@eaDir"):
        Path("own/a", name).mkdir()
    assert walk.has("own/a") == (True, False)
    os.rename("own/a/0.bmp", "own/a/.0.bmp")
    assert walk.has("own/a") == (False, False)
    Path("own/a/b").mkdir()
    save("own/a/1.bmp", 1)
    assert walk.has("own/a") == (True, True)


def test_links_to_the_folder_itself_and_to_those_around_it_are_no_classes() -> None:
    tree("own", ["a"])
    os.symlink(".", "own/itself")
    os.symlink("..", "own/around")
    os.symlink("a", "own/same-as-a")
    folders, left_out = walk.class_folders("own")
    assert list(folders) == ["a", "same-as-a"]
    assert left_out == {walk.LOOP: 2}


def test_photos_of_phones_are_told_by_every_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".heic", ".heif", ".hif"):
        [said] = walk.left_out_notice({"own": Counter({suffix: 1})})
        assert said.endswith("pip install pillow-heif")
    [said] = walk.left_out_notice({"own": Counter({".txt": 1})})
    assert "heif" not in said


def test_what_a_list_names_is_a_file_or_is_missing() -> None:
    file = save("own/0.bmp", 0)
    Path("own/a").mkdir()
    os.mkfifo("own/pipe.png")
    found = walk.listed(str(file), "0.bmp", Path("list.csv"), 4)
    assert found is not None
    assert (found.name, found.line) == ("0.bmp", 4)
    for missing in ("own/1.bmp", "own/0.bmp/x.png"):
        assert walk.listed(missing, "x", Path("list.csv"), 4) is None
    for name, said in (("own/a", "is a folder"), ("own/pipe.png", "is not a regular file")):
        with pytest.raises(UserError, match=rf"Line 4 of list\.csv: {name} {said}"):
            walk.listed(name, "x", Path("list.csv"), 4)


# -- classes that are dealt ------------------------------------------------------------------------


def test_every_class_is_dealt_once_by_the_shares() -> None:
    names = [f"class {number}" for number in range(20)]
    for shares, expected in (
        ([0.5, 0.25, 0.25], [10, 5, 5]),
        ([0.64, 0.16, 0.2], [13, 3, 4]),
        ([0.98, 0.01, 0.01], [18, 1, 1]),
        ([0.5, 0.5, 0.0], [10, 10]),
        ([0.0, 0.0, 1.0], [20]),
    ):
        dealt = split_classes(names, shares, 0)
        used = [split for split, share in zip(SPLITS, shares, strict=True) if share]
        assert list(dealt) == used
        assert [len(dealt[split]) for split in used] == expected
        assert sorted(itertools.chain(*dealt.values())) == sorted(names)
        assert all(list(found) == sorted(found) for found in dealt.values())


def test_the_deal_depends_on_the_seed_and_on_the_names_alone() -> None:
    names = ["Zoë", "über", *(f"c{number}" for number in range(10))]
    shares = [0.5, 0.25, 0.25]
    dealt = split_classes(names, shares, 0)
    assert split_classes(reversed([*names, *names]), shares, 0) == dealt
    assert split_classes(names, shares, 1) != dealt
    # macOS writes names in another Unicode form.
    mac = split_classes([unicodedata.normalize("NFD", name) for name in names], shares, 0)
    assert {
        split: sorted(unicodedata.normalize("NFC", name) for name in found)
        for split, found in mac.items()
    } == dealt


@pytest.mark.parametrize(
    ("names", "shares", "said"),
    [
        ("abc", [0.5, 0.5], "three numbers"),
        ("abc", [0.5, 0.5, 0.1], "sum to 1"),
        ("abc", [1.5, -0.25, -0.25], "from 0 to 1"),
        ("ab", [0.5, 0.25, 0.25], "2 classes cannot be split into train, val, test"),
        ("aA", [0.5, 0.5, 0.0], "'A' and 'a' look like one"),
    ],
)
def test_what_cannot_be_dealt_is_refused(names: str, shares: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_classes(names, shares, 0)

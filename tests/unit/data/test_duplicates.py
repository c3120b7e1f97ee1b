"""The same image twice: in a class, under two labels, in two splits."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.config.groups.dataset import Closed, DatasetConfig, OwnImages
from sseg_nase.config.options import names_with
from sseg_nase.data import benchmarks
from sseg_nase.data.benchmarks import cifar_fs, load_split
from sseg_nase.data.benchmarks.layouts import Official
from sseg_nase.data.duplicates import (
    ONE_COLOUR,
    examine,
    hashes_of,
    of_one_colour,
    shared_images,
)
from sseg_nase.data.episodes import sample_episodes
from sseg_nase.data.store import ImageStore, Listing, build_store
from sseg_nase.errors import UserError

SIZE = 8


def picture(*seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two splits with two classes of three images, all of them different."""
    for s, split in enumerate(("train", "val")):
        for c in range(2):
            for i in range(3):
                put(tmp_path / "own" / split / f"{split}-{c}" / f"{i}.png", picture(s, c, i))
    return tmp_path / "own"


@cache
def default(name: str) -> DatasetConfig:
    return load(
        [f"dataset={name}", *(["dataset.root=here"] if name in names_with(OwnImages) else [])]
    ).dataset


def read(root: Path, split: str = "train", name: str = "folder", **changed: Any) -> ImageStore:
    changed = {"root": str(root), "image_size": SIZE, "split_by": "folder", **changed}
    folder = root if root.is_dir() else root.parent
    return load_split(
        dataclasses.replace(default(name), **changed),
        split,
        data_dir=folder,
        cache_dir=folder.parent / "cache",
        workers=2,
    )


def reconciled(store: ImageStore, listed: int) -> None:
    """Counts add up, and what is left has no equal images in it."""
    assert store.manifest["listed"] == listed == len(store) + store.manifest["left_out"]
    assert store.counts().sum() == len(store) == len(store.hashes)
    assert len({image.tobytes() for image in store.images}) == len(store)
    store.verify()


def test_images_of_own_folders_are_all_different_and_nothing_is_said(own: Path) -> None:
    store = read(own)
    reconciled(store, 6)
    assert store.manifest["notices"] == []
    assert [store.name_of(i) for i in (0, 5)] == ["train/train-0/0.png", "train/train-1/2.png"]
    assert len(np.unique(store.hashes)) == 6


def test_a_copy_in_its_class_is_left_out_whatever_its_name_and_format(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(own / "train" / "train-0" / "copy.bmp", picture(0, 0, 1))
    put(own / "train" / "train-0" / "copy.tif", picture(0, 0, 1))
    put(own / "train" / "train-1" / "z.png", picture(0, 1, 0))
    with caplog.at_level(logging.WARNING, "sseg_nase"):
        store = read(own)
    reconciled(store, 9)
    assert store.counts().tolist() == [3, 3]
    assert [store.name_of(i) for i in range(6)].count("train/train-0/1.png") == 1
    assert store.manifest["copies"] == store.manifest["left_out"] == 3
    said = "3 of 9 images, such as train/train-"
    assert any(said in record.getMessage() for record in caplog.records)
    caplog.clear()
    benchmarks._said.clear()
    with caplog.at_level(logging.WARNING, "sseg_nase"):
        read(own)  # from the cache, by another command
    assert any(said in record.getMessage() for record in caplog.records)


def test_all_copies_are_kept_or_refused_where_that_is_asked_for(own: Path) -> None:
    put(own / "train" / "train-0" / "copy.png", picture(0, 0, 1))
    store = read(own, "train", duplicates="keep")
    assert store.counts().tolist() == [4, 3]
    [said] = store.manifest["notices"]
    assert "1 of 7 images, such as train/train-0/copy.png of train/train-0/1.png" in said
    with pytest.raises(UserError, match=r"copy\.png of .*1\.png.*dataset\.duplicates=refuse"):
        read(own, "train", duplicates="refuse")
    assert read(own).counts().tolist() == [3, 3]  # the kept store is another one


def test_an_image_under_two_labels_is_used_under_none(own: Path) -> None:
    put(own / "train" / "train-1" / "wrong.png", picture(0, 0, 1))
    put(own / "train" / "train-1" / "wrong too.png", picture(0, 0, 1))
    store = read(own)
    reconciled(store, 8)
    assert store.counts().tolist() == [2, 3]
    found = " ".join(store.manifest["notices"])
    assert "train/train-0/1.png (train-0) and train/train-1/wrong too.png (train-1)" in found
    assert "All 3 copies are left out" in found
    assert store.manifest["in_several_classes"] == 1
    shutil.rmtree(own.parent / "cache")
    (own / "train" / "train-1" / "wrong too.png").unlink()
    with pytest.raises(UserError, match=r"different labels.*\(train-0\) and .*\(train-1\)"):
        read(own, "train", duplicates="refuse")
    kept = read(own, "train", duplicates="keep")
    assert kept.counts().tolist() == [3, 4]
    assert "All 2 are kept" in " ".join(kept.manifest["notices"])


@pytest.mark.parametrize("emptied", [1, 2])
def test_no_class_is_left_without_images(emptied: int, own: Path) -> None:
    if emptied == 1:
        put(own / "train" / "train-1" / "own.png", picture(0, 1, 3))
    for i in range(3):
        put(own / "train" / "train-1" / f"{i}.png", picture(0, 0, i))
    put(own / "train" / "train-1" / "copy.png", picture(0, 0, 2))
    store = read(own)
    assert store.counts().tolist() == [3, 5 - emptied]
    assert store.manifest["left_out"] == 1
    said = " ".join(store.manifest["notices"])
    assert "3 images are in several classes" in said
    assert "They are kept, since train-0 would have no image left" in said


def test_support_and_queries_never_share_an_image(tmp_path: Path) -> None:
    """Ten images a class, each listed three times."""
    rows = ["path,label"]
    for c in range(5):
        for i in range(10):
            for copy in range(3):
                put(tmp_path / "own" / f"{c}-{i}-{copy}.png", picture(c, i))
                rows.append(f"{c}-{i}-{copy}.png,class {c},train")
    (tmp_path / "own" / "list.csv").write_text("\n".join(["path,label,split", *rows[1:]]))
    root = tmp_path / "own" / "list.csv"
    store = read(root, name="csv")
    reconciled(store, 150)
    assert store.counts().tolist() == [10] * 5
    episodes = sample_episodes(
        store.class_indices,
        class_names=store.class_names,
        dataset="csv",
        split="train",
        ways=5,
        shots=5,
        queries=5,
        episodes=50,
        seed=0,
    )
    for support, query in zip(episodes.support, episodes.query, strict=True):
        shown = {store.images[int(i)].tobytes() for i in np.ravel(support)}
        assert not any(store.images[int(i)].tobytes() in shown for i in np.ravel(query))


def test_a_file_that_is_listed_twice_is_one_image(own: Path) -> None:
    names = [f"train/train-{c}/{i}.png,{c},train" for c in range(2) for i in range(3)]
    root = own / "list.csv"
    root.write_text("\n".join(["path,label,split", *names, names[1]]))
    store = read(root, name="csv")
    assert store.counts().tolist() == [3, 3]
    assert store.name_of(1) == "train/train-0/1.png"


@pytest.mark.parametrize("first", ["train", "val"])
def test_an_image_in_two_splits_is_refused_whichever_is_read_first(own: Path, first: str) -> None:
    put(own / "val" / "val-1" / "leak.bmp", picture(0, 0, 1))
    second = {"train": "val", "val": "train"}[first]
    read(own, first)
    said = (
        r"also in (train|val): 1, such as .*(train-0/1\.png \(train\)|leak\.bmp \(val\)) = .*"
        r"remove them from one of the splits, or set dataset\.overlap=keep"
    )
    for split in (second, first):
        with pytest.raises(UserError, match=said):
            read(own, split)
    (own / "val" / "val-1" / "leak.bmp").unlink()
    # The store of val is old now; it says nothing about what val is today.
    assert len(read(own, "train")) == 6
    assert len(read(own, "val")) == 6


def test_an_image_in_two_splits_can_be_kept_with_a_notice(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(own / "val" / "val-1" / "leak.bmp", picture(0, 0, 1))
    read(own, "train", overlap="keep")
    with caplog.at_level(logging.WARNING, "sseg_nase"):
        assert len(read(own, "val", overlap="keep")) == 7
    [said] = [record.getMessage() for record in caplog.records]
    assert "images of val that are also in train: 1," in said
    assert "val/val-1/leak.bmp (val) = train/train-0/1.png (train)" in said
    read(own, "val", overlap="keep")  # as each stage of a run does
    assert len(caplog.records) == 1
    put(own / "val" / "val-1" / "leak, too.bmp", picture(0, 0, 2))
    with caplog.at_level(logging.WARNING, "sseg_nase"):
        read(own, "val", overlap="keep")
    assert "images of val that are also in train: 2," in caplog.records[1].getMessage()


def test_classes_dealt_into_splits_are_compared_too(tmp_path: Path) -> None:
    for c in range(6):
        put(tmp_path / "own" / f"c{c}" / "same.png", picture(9))
        for i in range(3):
            put(tmp_path / "own" / f"c{c}" / f"{i}.png", picture(c, i))
    dealt = {"split_by": "classes", "split_fractions": [0.1, 0.1, 0.8]}
    root = tmp_path / "own"
    assert len(read(root, "train", **dealt)) == 4
    said = r"of val that are also in train: 1, .*same\.png.* dealt .*remove one image of each such"
    with pytest.raises(UserError, match=said):
        read(root, "val", **dealt)
    test = read(root, "test", **dealt)  # where it stood under four labels, it is left out
    reconciled(test, 16)
    assert len(test) == 12


def test_blank_pages_in_two_splits_are_no_overlap(own: Path) -> None:
    for split in ("train", "val"):
        put(own / split / f"{split}-0" / "blank.png", np.full((SIZE, SIZE, 3), 255, np.uint8))
    assert len(read(own)) == 7
    assert len(read(own, "val")) == 7


def benchmark(tmp_path: Path) -> Callable[[str], ImageStore]:
    for s, split in enumerate(("train", "val")):
        for i in range(3):
            put(tmp_path / "cifar_fs" / split / f"class {s}" / f"{i}.png", picture(s, i))
    put(tmp_path / "cifar_fs" / "train" / "class 0" / "3.png", picture(0, 1))
    put(tmp_path / "cifar_fs" / "val" / "class 1" / "3.png", picture(0, 2))
    dataset = dataclasses.replace(default("cifar_fs"), image_size=SIZE)

    def read_one(split: str) -> ImageStore:
        return load_split(
            dataset, split, data_dir=tmp_path, cache_dir=tmp_path / "cache", workers=0
        )

    return read_one


def test_a_benchmark_with_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    read_one = benchmark(tmp_path)
    store = read_one("train")
    assert store.counts().tolist() == [4]  # as it was published
    assert any("1 of 4 images" in notice for notice in store.manifest["notices"])
    with pytest.raises(UserError, match="images of val that are also in train: 1, such as"):
        read_one("val")


def test_a_complete_benchmark_is_taken_as_it_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CIFAR-FS itself has eight images in train that are in val, too."""
    whole = Official(title="CIFAR-FS", classes={"train": 1, "val": 1}, images_per_class=4)
    monkeypatch.setattr(cifar_fs, "OFFICIAL", whole)
    read_one = benchmark(tmp_path)
    read_one("train")
    with caplog.at_level(logging.WARNING, "sseg_nase"):
        read_one("val")
    said = "train/class 0/2.png (train). They are kept, as CIFAR-FS was published."
    assert any(said in record.getMessage() for record in caplog.records)
    (tmp_path / "cifar_fs" / "train" / "class 0" / "0.png").unlink()
    for split in ("train", "val"):  # one of them is not complete any more
        with pytest.raises(UserError, match="that are also in"):
            read_one(split)


@pytest.mark.parametrize("name", names_with(DatasetConfig))
def test_own_images_are_cleaned_and_benchmarks_are_not(name: str) -> None:
    dataset = default(name)
    assert dataset.duplicates == ("drop" if name in names_with(OwnImages) else "keep")
    assert dataset.overlap == ("keep" if name in names_with(Closed) else "refuse")


def test_images_without_files_are_named_by_class_and_number(tmp_path: Path) -> None:
    images = [picture(0), picture(1), picture(0), picture(2)]
    listing = Listing(("a", "b"), [(image, int(i > 1)) for i, image in enumerate(images)])
    store = build_store(tmp_path / "s", lambda: listing, SIZE, workers=0, duplicates="drop")
    assert "image 1 of class a (a) and image 1 of class b (b)" in store.manifest["notices"][0]
    assert store.labels.tolist() == [0, 1]
    assert store.name_of(1) == "image 1 of class b"
    assert np.array_equal(store.images, np.stack([images[1], images[3]]))
    assert pickle.loads(pickle.dumps(store)).name_of(0) == "image 1 of class a"


def test_a_store_of_an_earlier_version_is_built_again(own: Path) -> None:
    stores = own.parent / "cache" / "stores"
    old = build_store(stores / "plain", lambda: listing_of(own), SIZE, workers=0)
    [current] = [read(own).folder]
    assert old.folder is not None
    assert current is not None
    elsewhere = stores / "folder-train-16-0123456789ab-0123456789ab"
    shutil.copytree(current, elsewhere)
    for folder in (old.folder, current, elsewhere):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
        (folder / "hashes.npy").unlink()
        (folder / "files.json").unlink()
    assert len(build_store(old.folder, lambda: listing_of(own), SIZE, workers=0)) == 1
    store = read(own)
    assert store.folder == current
    reconciled(store, 6)
    assert not elsewhere.exists()  # nobody opens it any more


def test_an_old_store_of_another_source_stays(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "mine" / "own")
    other, mine = read(tmp_path / "mine" / "own").folder, read(own).folder
    assert other is not None
    assert mine is not None
    kept = shutil.copytree(other, mine.with_name(other.name))
    for folder in (kept, mine):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    assert read(own).folder == mine
    assert kept.exists()


def listing_of(own: Path) -> Listing:
    return Listing(("a",), [(own / "train" / "train-0" / "0.png", 0)])


def test_a_store_without_its_hashes_is_damaged(own: Path) -> None:
    folder = read(own).folder
    assert folder is not None
    np.save(folder / "hashes.npy", np.zeros(5, np.uint64))
    with pytest.raises(UserError, match="Delete this folder"):
        read(own)


def test_examples_are_a_copy_with_its_original_and_one_image_a_class() -> None:
    hashes = np.array([5, 5, 5, 5, 7], np.uint64)
    labels = np.array([0, 1, 1, 0, 1])
    found = examine(hashes, labels, "ab", "keep", lambda index: f"#{index}")
    copies, mixed = found.notices
    assert "2 of 5 images, such as #3 of #0." in copies
    assert "1 images are in several classes, such as #0 (a) and #1 (b)." in mixed
    found = examine(hashes[1:], np.array([0, 1, 1, 1]), "ab", "keep", lambda index: f"#{index}")
    assert "such as #2 of #1." in found.notices[0]  # not of #0, which is of another class


def test_equal_hashes_of_other_pixels_are_no_common_images() -> None:
    one, other = (
        ImageStore.from_arrays(np.stack([picture(seed), picture(9)]), np.zeros(2, int), ["a"])
        for seed in (1, 2)
    )
    assert shared_images(one, other)[0] == 1
    one.__dict__["hashes"] = other.__dict__["hashes"] = np.array([3, 4], np.uint64)
    assert shared_images(one, other) == (1, [("image 2 of class a", "image 2 of class a")])


def test_what_stays_keeps_its_own_name(own: Path) -> None:
    put(own / "train" / "train-0" / "0-copy.png", picture(0, 0, 0))
    store = read(own)
    for index in range(len(store)):
        with Image.open(own / store.name_of(index)) as image:
            assert np.array_equal(np.asarray(image), store.images[index])


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_random_copies_equal_a_slow_count(policy: str) -> None:
    rng, emptied = np.random.default_rng(1), 0
    for _ in range(200):
        n = int(rng.integers(1, 30))
        content, labels = rng.integers(0, 12, n), rng.integers(0, 3, n)
        block = np.stack([picture(int(value)) for value in content])
        found = examine(hashes_of(block), labels, "abc", policy, str)
        first, single = [], []
        for i in range(n):
            alike = [j for j in range(n) if content[j] == content[i]]
            first.append(not any(labels[j] == labels[i] for j in alike if j < i))
            single.append(len({int(labels[j]) for j in alike}) == 1)
        expected = [a and b for a, b in zip(first, single, strict=True)]
        if set(labels[expected].tolist()) < set(labels.tolist()):
            expected = first
            emptied += 1
        assert found.kept.tolist() == ([True] * n if policy == "keep" else expected)
        assert found.copies == n - len({*zip(content.tolist(), labels.tolist(), strict=True)})
        pairs = {(int(value), int(label)) for value, label in zip(content, labels, strict=True)}
        mixed = [v for v in range(12) if len({label for value, label in pairs if value == v}) > 1]
        assert found.two_labels == len(mixed)
        assert len(found.notices) == bool(found.copies) + bool(mixed)
    assert 20 < emptied < 180


def test_one_colour_is_seen_and_not_compared(tmp_path: Path) -> None:
    block = np.stack([picture(0), np.full((SIZE, SIZE, 3), 7, np.uint8), picture(1)])
    block[2] = 9
    block[2, 3, 3, 1] = 8  # one value of one pixel
    assert of_one_colour(block).tolist() == [False, True, False]
    listing = Listing(("a",), [(image, 0) for image in block])
    store = build_store(tmp_path / "s", lambda: listing, SIZE, workers=0)
    assert (store.hashes == ONE_COLOUR).tolist() == [False, True, False]
    memory = ImageStore.from_arrays(store.images, store.labels, ["a"])
    assert np.array_equal(memory.hashes, store.hashes)

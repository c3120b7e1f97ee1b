"""Images of one's own as a closed set: the same classes in every split, in words where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError

MIXED = ["dataset.split_by=images", "evaluation=knn", "dataset.image_size=8"]
CLOSED = [*MIXED, "dataset.sizes=any"]


def picture(path: Path, number: int, size: tuple[int, int] = (9, 9), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of ten, of three sizes, grey and RGB."""
    for number in range(20):
        size = ((9, 9), (12, 8), (30, 20))[number % 3]
        where = tmp_path / "photos" / ("cat", "dog")[number // 10] / f"{number}.png"
        picture(where, number, size, "L" if number % 4 == 0 else "RGB")
    return tmp_path / "photos"


def listed(photos: Path, text: str) -> Path:
    file = photos / "list.csv"
    file.write_text(text, encoding="utf-8")
    return file


def rows(photos: Path) -> str:
    return "".join(
        f"{path.resolve()},{path.parent.name}\n" for path in sorted(photos.glob("*/*.png"))
    )


def opened(root: Path, split: str, *more: str, kind: str = "folder") -> ImageStore:
    config = load([f"dataset={kind}", f"dataset.root={root}", *CLOSED, *more])
    places = {"data_dir": root.parent, "cache_dir": root.parent / "cache"}
    return load_split(config.dataset, split, workers=0, **places)


def dealt(root: Path, *more: str, kind: str = "folder") -> dict[str, ImageStore]:
    return {split: opened(root, split, *more, kind=kind) for split in ("train", "val", "test")}


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_of_every_class_are_dealt(photos: Path, kind: str) -> None:
    root = photos if kind == "folder" else listed(photos, "image,class\n" + rows(photos))
    named = ["dataset.path_column=image", "dataset.label_column=class"] if kind == "csv" else []
    found = dealt(root, *named, kind=kind)
    assert {name: [*each.counts()] for name, each in found.items()} == {
        "train": [6, 6],
        "val": [2, 2],
        "test": [2, 2],
    }
    hashes = [value for each in found.values() for value in each.hashes.tolist()]
    assert len(set(hashes)) == 20
    assert all(each.class_names == ("cat", "dog") for each in found.values())
    other = opened(root, "test", "dataset.split_seed=1", *named, kind=kind)
    assert set(other.hashes.tolist()) != set(found["test"].hashes.tolist())
    fewer = opened(root, "test", "dataset.split_fractions=[0.3,0.2,0.5]", *named, kind=kind)
    assert [*fewer.counts()] == [5, 5]


def test_splits_that_are_there_stay_and_val_comes_from_train(photos: Path) -> None:
    text = "path,label,split\n" + "".join(
        f"{line},{'test' if at % 5 == 0 else 'train'}\n"
        for at, line in enumerate(rows(photos).splitlines())
    )
    found = dealt(listed(photos, text), kind="csv")
    assert [[*found[name].counts()] for name in ("train", "val", "test")] == [
        [7, 7],
        [1, 1],
        [2, 2],
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,what\nCAT,cat\n", r"path.*label"),
        ("path,label\nCAT,thing\nDOG,thing\n", r"all images are of one class, thing"),
        ("path,label\nCAT,a\nDOG,b\n", r"The class a has one image"),
        ("path,label\nALLbroken.png,dog\n", r"broken.png"),
    ],
)
def test_what_cannot_be_a_closed_set_is_said_in_one_message(
    photos: Path, text: str, said: str
) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG no image")
    files = {name: str(next((photos / name.lower()).iterdir())) for name in ("CAT", "DOG")}
    files["ALL"] = rows(photos)
    for name, path in files.items():
        text = text.replace(name, path)
    with pytest.raises(UserError, match=said):
        dealt(listed(photos, text), kind="csv")


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_of_three_sizes_are_refused_in_one_message(photos: Path, kind: str) -> None:
    root = photos if kind == "folder" else listed(photos, "path,label\n" + rows(photos))
    resized = opened(root, "train", kind=kind)  # what was read so is no way around it
    assert "original_size" not in resized.manifest
    with pytest.raises(UserError) as refused:
        opened(root, "train", "dataset.sizes=auto", kind=kind)
    said = str(refused.value)
    assert said.startswith("The images have 3 sizes: ")
    for size in ("9 × 9 (", "12 × 8 (", "30 × 20 ("):
        assert size in said
    assert "such as " in said
    assert "dataset.sizes=any" in said
    assert "\n" not in said
    for _, file in zip(range(20), sorted(photos.glob("*/*.png")), strict=True):
        with Image.open(file) as image:
            whole = image.resize((40, 30))
        whole.save(file)
    found = opened(root, "train", "dataset.sizes=auto", kind=kind)
    assert found.manifest["original_size"] == [40, 30]


def test_splits_have_images_of_one_size_too(tmp_path: Path) -> None:
    for number in range(12):
        split = "test" if number % 3 == 2 else "train"
        size = (12, 8) if split == "test" else (9, 9)
        label = ("cat", "dog")[number % 2]
        picture(tmp_path / "photos" / split / label / f"{number}.png", number, size)
    root = tmp_path / "photos"
    opened(root, "train", "dataset.sizes=auto")
    with pytest.raises(UserError, match=r"test have 12 × 8 pixels and those of train 9 × 9.*any"):
        opened(root, "test", "dataset.sizes=auto")
    assert len(opened(root, "test")) == 4


def test_sets_of_new_classes_have_images_of_any_size(photos: Path) -> None:
    given = ["dataset=folder", f"dataset.root={photos}", "dataset.image_size=8"]
    places = {"data_dir": photos, "cache_dir": photos.parent / "cache"}
    store = load_split(load(given).dataset, "train", workers=0, **places)
    assert len(store) == 10
    with pytest.raises(UserError, match="The images have 3 sizes"):
        load_split(load([*given, "dataset.sizes=one"]).dataset, "train", workers=0, **places)


def test_columns_are_named_once_each() -> None:
    with pytest.raises(UserError, match="one column cannot be both"):
        opened(Path(__file__), "train", "dataset.label_column=path", kind="csv")


def test_it_is_evaluated_as_a_closed_set() -> None:
    given = ["dataset=folder", "dataset.root=photos", "dataset.split_by=images"]
    config = load([*given, "finetune=classifier", "evaluation=classification"])
    assert config.dataset.split_by == "images"
    with pytest.raises(UserError, match="are the same in train, val and test"):
        load(given)
    with pytest.raises(UserError, match=r"of images of your own dataset.split_by=images"):
        load(["dataset=folder", "dataset.root=photos", "evaluation=knn"])

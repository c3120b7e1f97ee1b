"""What the program writes among the images of a data set is never taken for some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.data.store import ImageStore
from sseg_nase.files import OWN, make_own
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.stages import images_of

HERE = ["dataset=folder", "dataset.root=.", "dataset.split_by=classes", "dataset.image_size=16"]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), hash(str(path)) % 256, np.uint8)).save(path)


@pytest.fixture
def photos() -> None:
    for name in "abcdef":
        for number in range(3):
            picture(Path(name, f"{number}{name}.png"))


def read(*overrides: str) -> ImageStore:
    config = load([*HERE, "dataset.duplicates=keep", "dataset.overlap=keep", *overrides])
    return images_of(config, config.dataset, "train")


@pytest.mark.parametrize("where", ["runs", "a/runs", "."])
def test_runs_and_stores_among_the_images_are_not_read(photos: None, where: str) -> None:
    own = [f"paths.output_dir={where}", "paths.cache_dir=cache", "tracking=jsonl"]
    first = read(*own)
    place = RunDirectory.create(load([*HERE, *own]), [])
    picture(place.path / "preview_BASIC.png")
    picture(place.path / "report" / "figures" / "accuracy.png")
    place.release()
    make_own(Path("photos-report"))
    picture(Path("photos-report", "figures.png"))
    Path("mlruns", "1").mkdir(parents=True)
    again = read(*own)
    assert again.class_names == first.class_names
    assert again.folder == first.folder  # the same files, so the same store
    assert not any("sub-folders" in notice for notice in again.manifest["notices"])


def test_a_folder_that_holds_something_is_the_users(photos: None) -> None:
    place = RunDirectory.create(load([*HERE, "paths.output_dir=a"]), [])
    place.release()
    assert not Path("a", OWN).exists()
    assert Path("a", "sseg_nase", OWN).exists()
    assert set(read().class_names) <= set("abcdef")
    assert "a" in {name for split in ("train", "val", "test") for name in _names(split)}


def _names(split: str) -> tuple[str, ...]:
    config = load([*HERE, "dataset.duplicates=keep", "dataset.overlap=keep"])
    return tuple(images_of(config, config.dataset, split).class_names)

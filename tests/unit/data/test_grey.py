"""Grey images: read, kept, drawn and made into views with one channel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.config.groups.curriculum import LEVELS
from sseg_nase.config.schema import DatasetConfig
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.grey import of_channels
from sseg_nase.data.pixels import load_image
from sseg_nase.data.placement import HeldImages
from sseg_nase.data.store import ImageStore, Listing, build_store
from sseg_nase.data.views import batched, draw_parameters, make_views
from sseg_nase.data.views.parameters import GREY
from sseg_nase.stages.setup import images_of

SIZE = 8
CPU = torch.device("cpu")
VIEWS = load().views


def pictures(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def as_pillow(pixels: np.ndarray) -> np.ndarray:
    """Colour images `[n, S, S, 3]` → `[n, S, S, 1]`."""
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[
        ..., None
    ]


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def folder_dataset(root: Path, channels: int) -> DatasetConfig:
    for name in ("a", "b"):
        for index, image in enumerate(pictures(3, seed=ord(name))):
            path = root / "train" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.fromarray(image).save(path)
    return replace(
        load(["dataset=folder", f"dataset.root='{root}'"]).dataset,
        image_size=SIZE,
        channels=channels,
    )


def test_luminance_is_pillows() -> None:
    pixels = pictures(20, 16)
    assert np.array_equal(of_channels(planes(pixels), 1), planes(as_pillow(pixels)))
    assert torch.equal(of_channels(planes(pixels), 3), planes(pixels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_of_every_mode_are_read_with_one_channel(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (SIZE, SIZE), dtype=np.uint16))
    else:
        image = Image.fromarray(pictures(1)[0]).convert(mode)
    image.save(tmp_path / "image.png")
    grey = load_image(tmp_path / "image.png", SIZE, 1)
    assert grey.shape == (SIZE, SIZE, 1)
    colour = load_image(tmp_path / "image.png", SIZE)
    assert np.array_equal(grey, as_pillow(colour[None])[0])
    assert load_image(tmp_path / "image.png", 5, 1).shape == (5, 5, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_of_one_channel(tmp_path: Path, workers: int) -> None:
    pixels = pictures(6)
    made = Listing(("a", "b"), [(image, i // 3) for i, image in enumerate(pixels)])
    store = build_store(tmp_path / "s", lambda: made, SIZE, workers=workers, channels=1)
    assert (store.channels, store.manifest["channels"]) == (1, 1)
    assert np.array_equal(store.images, as_pillow(pixels))
    store.verify()
    assert torch.equal(store.batch([4, 1]), planes(as_pillow(pixels))[[4, 1]])
    assert torch.equal(HeldImages(store, CPU).images, planes(as_pillow(pixels)))


def test_stores_of_one_and_of_three_channels_stand_side_by_side(tmp_path: Path) -> None:
    stores = {}
    for channels in (3, 1, 3, 1):
        dataset = folder_dataset(tmp_path / "images", channels)
        cache = tmp_path / "cache"
        stores[channels] = load_split(
            dataset, "train", data_dir=tmp_path, cache_dir=cache, workers=0
        )
    assert stores[3].folder != stores[1].folder
    assert len(list((tmp_path / "cache" / "stores").glob("folder-*"))) == 2
    assert np.array_equal(stores[1].images, as_pillow(np.asarray(stores[3].images)))


def test_a_store_of_before_there_were_channels_is_opened(tmp_path: Path) -> None:
    made = Listing(("a",), [(image, 0) for image in pictures(3)])
    folder = tmp_path / "s"
    build_store(folder, lambda: made, SIZE, workers=0)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["channels"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert ImageStore.open(folder).channels == 3


def test_digits_with_one_channel(tmp_path: Path) -> None:
    grey, colour = (
        load_split(
            replace(load().dataset, channels=channels),
            "val",
            data_dir=tmp_path,
            cache_dir=tmp_path,
            workers=0,
        )
        for channels in (1, 3)
    )
    assert np.array_equal(np.repeat(grey.images, 3, axis=3), colour.images)


@pytest.mark.parametrize("drawn_bytes", [0, 40 * SIZE**2, 10**6])
def test_the_feed_gives_the_luminance_of_what_is_drawn(drawn_bytes: int) -> None:
    pixels = pictures(20)
    labels = np.zeros(20, dtype=np.int64)

    def feed(channels: int) -> CurriculumFeed:
        own = pixels if channels == 3 else as_pillow(pixels)
        curriculum = replace(
            load(["curriculum=mixed"]).curriculum,
            levels=list(LEVELS),
            images={level: 20 for level in LEVELS if level != "NATURAL"},
        )
        return CurriculumFeed(
            curriculum,
            natural=ImageStore.from_arrays(own, labels, ["a"]),
            image_size=SIZE,
            channels=channels,
            batch_size=10,
            images_per_epoch=60,
            epochs=2,
            seed=4,
            device=CPU,
            drawn_bytes=drawn_bytes,
        )

    grey, colour = feed(1), feed(3)
    assert torch.equal(grey.probe(), of_channels(colour.probe(), 1))
    for _ in range(2):  # the second time from what was kept
        for ours, theirs in zip(grey.epoch(0), colour.epoch(0), strict=True):
            assert torch.equal(ours.images, of_channels(theirs.images, 1))


def test_views_of_one_channel_are_those_of_its_three() -> None:
    grey = planes(as_pillow(pictures(12, 16)))
    made = make_views(grey, VIEWS, image_size=16, seed=3)
    assert made.shape == (2, 12, 1, 16, 16)
    assert made.is_contiguous()
    expected = make_views(grey.repeat(1, 3, 1, 1), VIEWS, image_size=16, seed=3)
    # The weights of grey sum to 0.9999, so that the channels part by that much at most.
    assert sum(GREY) == pytest.approx(1, abs=2e-4)
    for channel in range(3):
        torch.testing.assert_close(made[:, :, 0], expected[:, :, channel], rtol=0, atol=2e-3)
    parameters = draw_parameters(24, VIEWS, height=16, width=16, seed=3)
    on_gpus = batched.apply_views(grey.repeat(1, 3, 1, 1), parameters, 16)
    torch.testing.assert_close(made[:, :, 0], on_gpus[:, :, 0], rtol=0, atol=2e-3)


def test_further_data_sets_are_read_with_the_channels_and_the_size_of_the_run() -> None:
    config = load(["dataset=digits", "dataset.channels=1", "dataset.image_size=16"])
    store = images_of(config, replace(config.dataset, channels=3, image_size=32), "val")
    assert (store.channels, store.image_size) == (1, 16)

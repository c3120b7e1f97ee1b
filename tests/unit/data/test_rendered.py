from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.data import rendered
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.rendered import ABSENT, RenderedImages

SIZE = 8
IMAGE_BYTES = 3 * SIZE**2
CPU = torch.device("cpu")


def pool(sizes: dict[str, int], images: int) -> RenderedImages:
    room = images * IMAGE_BYTES
    return RenderedImages(sizes, most_bytes=room, image_size=SIZE, seed=5, device=CPU)


def read(images: RenderedImages, level: str, indices: torch.Tensor) -> torch.Tensor:
    out = torch.empty((len(indices), 3, SIZE, SIZE), dtype=torch.uint8)
    images.read(level, indices, out)
    return out


def held(images: RenderedImages) -> dict[str, int]:
    return {level: int((place != ABSENT).sum()) for level, place in images._place.items()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call drew."""
    numbers = list[int]()

    def counted(level: str, indices: torch.Tensor, **options: Any) -> torch.Tensor:
        numbers.append(len(indices))
        return render(level, indices, **options)

    monkeypatch.setattr(rendered, "render", counted)
    return numbers


@pytest.mark.parametrize("seed", range(12))
def test_images_are_those_that_are_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {level: int(rng.integers(1, 40)) for level in SYNTHETIC_LEVELS}
    images = pool(sizes, int(rng.integers(0, sum(sizes.values()) + 5)))
    room = len(images.kept)
    for _ in range(40):
        if rng.random() < 0.3:
            images.favour({level: float(rng.random() < 0.6) * rng.random() for level in sizes})
        level = str(rng.choice(SYNTHETIC_LEVELS))
        # With repetition, as in a batch that is larger than its pool.
        indices = torch.from_numpy(rng.integers(0, sizes[level], int(rng.integers(1, 30))))
        expected = render(level, indices, seed=5, image_size=SIZE)
        assert torch.equal(read(images, level, indices), expected)
        places = torch.cat(list(images._place.values()))
        used = torch.cat([places[places != ABSENT], images._free])
        assert torch.equal(used.sort().values, torch.arange(room)), "a place lost or given twice"


def test_an_image_is_drawn_once(drawn: list[int]) -> None:
    images = pool({"BASIC": 30}, 30)
    images.favour({"BASIC": 1.0})
    read(images, "BASIC", torch.arange(10))
    read(images, "BASIC", torch.arange(5, 20).flip(0))
    read(images, "BASIC", torch.tensor([25, 3, 25, 25]))
    assert drawn == [10, 10, 1]
    read(images, "BASIC", torch.arange(20))
    assert drawn == [10, 10, 1]


def test_nothing_is_kept_without_room(drawn: list[int]) -> None:
    images = pool({"BASIC": 30}, 0)
    for _ in range(2):
        images.favour({"BASIC": 1.0})
        read(images, "BASIC", torch.arange(10))
    assert drawn == [10, 10]
    assert images.kept.numel() == 0


@pytest.mark.parametrize("room", [0, 1, 17, 60, 10_000])
def test_the_bound_holds(room: int) -> None:
    images = pool({"BASIC": 20, "OBJECT": 40}, room)
    assert images.kept.nbytes <= room * IMAGE_BYTES
    images.favour({"BASIC": 0.5, "OBJECT": 0.5})
    for level, size in (("OBJECT", 40), ("BASIC", 20)):
        read(images, level, torch.arange(size))
    assert sum(held(images).values()) == min(room, 60)


def test_what_is_asked_for_most_often_is_kept() -> None:
    images = pool({"BASIC": 20, "TEXTURE": 20, "OBJECT": 40}, 50)

    def after(weights: dict[str, float]) -> dict[str, int]:
        images.favour(weights)
        for level in weights:
            read(images, level, torch.arange(len(images._place[level])))
        return held(images)

    assert after({"BASIC": 1.0}) == {"BASIC": 20, "TEXTURE": 0, "OBJECT": 0}
    assert after({"BASIC": 0.2, "TEXTURE": 0.8}) == {"BASIC": 20, "TEXTURE": 20, "OBJECT": 0}
    # Each TEXTURE and BASIC image is now asked for less often than each OBJECT image.
    weights = {"BASIC": 0.15, "TEXTURE": 0.05, "OBJECT": 0.8}
    assert after(weights) == {"BASIC": 10, "TEXTURE": 0, "OBJECT": 40}
    # More OBJECT images are asked for, but each of them less often.
    assert after({"BASIC": 0.45, "OBJECT": 0.55}) == {"BASIC": 20, "TEXTURE": 0, "OBJECT": 30}


def test_the_same_weights_throw_nothing_away(drawn: list[int]) -> None:
    images = pool({"BASIC": 10, "OBJECT": 10}, 10)
    for _ in range(3):
        images.favour({"BASIC": 0.4, "OBJECT": 0.6})
        read(images, "OBJECT", torch.arange(10))
    assert drawn == [10]

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.data import random
from sseg_nase.data.curriculum import batched, cpu, drawing
from sseg_nase.data.curriculum.scenes import STYLES, scenes
from sseg_nase.data.curriculum.shapes import SHAPES

Painter = Callable[[str, torch.Tensor, int], torch.Tensor]


def by_native(level: str, indices: torch.Tensor, size: int) -> torch.Tensor:
    return cpu.paint(scenes(level, indices, seed=3), size)


def by_batched(level: str, indices: torch.Tensor, size: int) -> torch.Tensor:
    return batched.paint(scenes(level, indices, seed=3), STYLES[level], size)


@pytest.fixture(params=[by_native, by_batched])
def painter(request: pytest.FixtureRequest) -> Painter:
    """Both ways pictures are painted: in compiled code and by batched tensor operations."""
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Let a test set torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("key", [0, 12345, 2**63 - 1])
def test_compiled_numbers_are_those_of_tensor_operations(key: int) -> None:
    indices = torch.tensor([0, 1, 2, 1_000_000, 2**62, -1, -(2**63)])
    drawn = drawing.uniform(key, indices, 210)
    assert torch.equal(drawn, random.uniform(key, indices, 210))
    assert torch.equal(drawn[::3], drawing.uniform(key, indices[::3], 210))
    assert drawing.uniform(key, indices[:0], 5).shape == (0, 5)


@pytest.mark.parametrize("size", [8, 16, 33, 84])
@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
def test_both_painters_paint_the_same_picture(level: str, size: int) -> None:
    # Random indices: the first ones alone do not reach every shape at every angle.
    indices = torch.randint(0, 1_000_000, (128,), generator=torch.Generator().manual_seed(size))
    painted, expected = by_native(level, indices, size), by_batched(level, indices, size)
    assert painted.dtype == expected.dtype == torch.uint8
    difference = (painted.int() - expected.int()).abs()
    assert int(difference.max()) <= 1
    # Two float32 sums on either side of a whole number.
    assert float((difference > 0).float().mean()) < 2e-4


@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
def test_threads_do_not_change_the_picture(level: str, threads: None) -> None:
    painted = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        painted.append(by_native(level, torch.arange(50), 32))
    assert torch.equal(painted[0], painted[1])
    assert torch.equal(painted[0], painted[2])


def test_batched_pictures_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_batched("OBJECT", torch.arange(20), 32)
    monkeypatch.setattr(batched, "_CHUNK", 3 * 5 * 32**2)
    assert torch.equal(whole, by_batched("OBJECT", torch.arange(20), 32))


@pytest.mark.parametrize("size", [8, 16])
def test_nothing_is_painted_away_from_a_shape(painter: Painter, size: int) -> None:
    indices = torch.arange(200)
    scene = scenes("BASIC", indices, seed=3)
    images = painter("BASIC", indices, size)
    grid = (torch.arange(size) + 0.5) / size
    x, y = grid - scene.centre[:, 0, :1], grid - scene.centre[:, 0, 1:]
    away = (x[:, None] ** 2 + y[:, :, None] ** 2).sqrt() > scene.radius[..., None] + 1.5 / size
    assert away.flatten(1).any(1).all()
    background = (scene.base * 256).to(torch.uint8)[..., None, None].expand_as(images)
    away = away[:, None].expand_as(images)
    assert torch.equal(images[away], background[away])


def test_the_largest_pictures_stay_within_the_atlas(
    painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty_atlas(resolution: int, device: torch.device) -> torch.Tensor:
        count = len(SHAPES) * resolution**2
        assert count > 1 << 24, "float32 counts these cells"
        cells = torch.full((count + 2,), 1e3)
        cells[count:] = -1  # what lies behind would be painted
        return cells[:count]

    monkeypatch.setattr(cpu, "shape_atlas", empty_atlas)
    monkeypatch.setattr(batched, "shape_atlas", empty_atlas)
    indices = torch.arange(40)
    scene = scenes("BASIC", indices, seed=3)
    assert (scene.kind == len(SHAPES) - 1).any()
    images = painter("BASIC", indices, 512)
    assert torch.equal(images.amax((2, 3)), (scene.base * 256).to(torch.uint8))
    assert torch.equal(images.amin((2, 3)), (scene.base * 256).to(torch.uint8))

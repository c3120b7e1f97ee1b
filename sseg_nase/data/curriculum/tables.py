"""What painters look up instead of working it out for every picture."""

from __future__ import annotations

from functools import lru_cache

import torch

from sseg_nase.data.curriculum.scenes import Scene
from sseg_nase.data.curriculum.shapes import SHAPES
from sseg_nase.data.random import derive, uniform

_EXTENT = 1.2  # the atlas covers [-extent, extent]²; a shape lies in the unit circle
_FAR = 1e3  # the distance of what is not on the atlas: finite, for `fastmath`


def atlas_resolution(size: int) -> int:
    """Cells of a shape's map on a side, for images of `size` pixels."""
    # Three cells a pixel keep the nearest cell's distance within a sixth of a pixel.
    return 3 * max(size, 16)


@lru_cache(maxsize=8)
def shape_atlas(resolution: int, device: torch.device) -> torch.Tensor:
    """Signed distances of all shapes, flat float32 [shapes · resolution²], in unit radii.

    The outermost cells stand for all that is farther out, where no shape reaches.
    """
    cells = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    cells = (2 * cells - 1) * _EXTENT
    points = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1)
    atlas = torch.stack([distance(points) for distance in SHAPES.values()])
    atlas[:, [0, -1], :] = atlas[:, :, [0, -1]] = _FAR
    return atlas.to(torch.float32).flatten().to(device)


def atlas_turns(scene: Scene, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, K] of the shapes' angles, in cells of the atlas per image side."""
    scale = 0.5 * atlas_resolution(size) / (_EXTENT * scene.radius)
    return scene.angle.cos() * scale, scene.angle.sin() * scale


@lru_cache(maxsize=8)
def noise_tile(size: int, device: torch.device) -> torch.Tensor:
    """White noise in [-1, 1), float32 [2 · size, 2 · size]; images read random windows of it."""
    rows = torch.arange(2 * size, dtype=torch.int64)
    return (2 * uniform(derive(0, "noise"), rows, 2 * size) - 1).to(device)


def pixel_centres(size: int, device: torch.device) -> torch.Tensor:
    """Where the pixels lie on an axis, float32 [size] in (0, 1)."""
    return (torch.arange(size, device=device) + 0.5) / size

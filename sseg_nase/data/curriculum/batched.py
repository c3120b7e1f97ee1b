"""Pictures painted with few, large tensor operations on many at once: for GPUs.

One matrix product per image mixes all layers into colours.
"""

from __future__ import annotations

import math

import torch

from sseg_nase.data.curriculum.scenes import LevelStyle, Scene
from sseg_nase.data.curriculum.tables import (
    atlas_resolution,
    atlas_turns,
    noise_tile,
    pixel_centres,
    shape_atlas,
)

_TAU = 2 * math.pi
_CHUNK = 1 << 25  # floats of one temporary: enough to fill a GPU with work


def paint(scene: Scene, style: LevelStyle, size: int) -> torch.Tensor:
    """Paint the pictures of `scene`, drawn in `style`, on its device: uint8 [B, 3, S, S]."""
    B = len(scene.base)
    images = torch.empty((B, 3, size, size), dtype=torch.uint8, device=scene.base.device)
    step = max(1, _CHUNK // (size**2 * max(1, style.shapes)))
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, B, step):
            rows = slice(start, start + step)
            images[rows] = _paint(scene[rows], style, size)
    return images


def _cover(scene: Scene, grid: torch.Tensor) -> torch.Tensor:
    """Share of each pixel that each shape covers, [B, K, S, S] in [0, 1]."""
    size = len(grid)
    resolution = atlas_resolution(size)
    atlas = shape_atlas(resolution, grid.device)
    half = 0.5 * resolution
    cos, sin = atlas_turns(scene, size)
    x = grid - scene.centre[..., :1]
    y = grid - scene.centre[..., 1:]
    column = (x * cos[..., None])[..., None, :] + (y * sin[..., None] + half)[..., None]
    row = (x * -sin[..., None])[..., None, :] + (y * cos[..., None] + half)[..., None]
    column.clamp_(0, resolution - 1)
    row.clamp_(0, resolution - 1).floor_().mul_(resolution).add_(column)
    row.add_(scene.kind[..., None, None] * resolution**2)
    # Over 2^24 cells are more than float32 counts: the last one may be rounded up.
    cells = row.flatten().to(torch.int32).clamp_(max=len(atlas) - 1)
    distance = atlas.index_select(0, cells).view(row.shape)
    distance.mul_(-size * scene.radius[..., None, None]).add_(0.5).clamp_(0, 1)
    return distance.mul_(scene.visible[..., None, None])


def _texture(scene: Scene, grid: torch.Tensor, backgrounds: int) -> torch.Tensor:
    """Textures in [-1, 1], [B, R + K, S, S]."""
    # sin(x + y) = sin x cos y + cos x sin y: each grating is a product of rank two.
    B, T = scene.texture_angle.shape[:2]
    origin = torch.cat([grid.new_full((B, backgrounds, 2), 0.5), scene.centre], dim=1)
    own_turn = torch.cat([grid.new_zeros(B, backgrounds), scene.angle], dim=1)
    turn = scene.texture_angle + own_turn[..., None]
    across = _TAU * scene.texture_frequency * turn.cos()
    down = _TAU * scene.texture_frequency * turn.sin()
    x = across[..., None] * (grid - origin[..., :1])[:, :, None] + scene.texture_phase[..., None]
    y = down[..., None] * (grid - origin[..., 1:])[:, :, None]
    amplitude = scene.texture_amplitude[..., None]
    left = torch.cat([y.cos(), y.sin()], dim=2).flatten(0, 1).transpose(1, 2)
    right = torch.cat([amplitude * x.sin(), amplitude * x.cos()], dim=2).flatten(0, 1)
    return torch.bmm(left, right).clamp_(-1, 1).view(B, T, len(grid), len(grid))


def _rings(scene: Scene, grid: torch.Tensor) -> torch.Tensor:
    """Radial waves in [-1, 1], [B, S, S]."""
    frequency, phase, cx, cy = (column[:, None, None] for column in scene.rings[:, 3:].unbind(1))
    radius = ((grid - cx) ** 2 + (grid[:, None] - cy) ** 2).sqrt_()
    return radius.mul_(_TAU * frequency).add_(phase).sin_()


def _noise(scene: Scene, size: int) -> torch.Tensor:
    """Windows of the noise tile, [B, S, S] in [-1, 1)."""
    windows = noise_tile(size, scene.noise.device).unfold(0, size, 1).unfold(1, size, 1)
    left, top = (scene.noise[:, 3:] * size).long().unbind(1)
    return windows[top, left]


def _paint(scene: Scene, style: LevelStyle, size: int) -> torch.Tensor:
    """As `paint`, in one go."""
    B, R, K = len(scene.base), style.backgrounds, style.shapes
    grid = pixel_centres(size, scene.base.device)
    colours = [scene.colour, scene.texture_colour[:, R:], scene.base[:, None]]
    colours += [scene.texture_colour[:, :R], scene.rings[:, None, :3], scene.noise[:, None, :3]]
    # Each colour has a plane of weights; the image is the sum of their products.
    mix = torch.cat(colours, dim=1).mul_(256)
    planes = torch.empty(B, mix.shape[1], size, size, device=grid.device)
    lengths = [colour.shape[1] for colour in colours]
    shapes, coats, free, backs, rings, noise = planes.split(lengths, dim=1)

    free.fill_(1)  # the share of each pixel that the shapes drawn so far, front first, leave free
    if K:
        cover = _cover(scene, grid)
        for k in reversed(range(K)):
            torch.mul(cover[:, k], free[:, 0], out=shapes[:, k])
            free[:, 0].sub_(shapes[:, k])
    if style.shade:
        slope = scene.shade / scene.radius[..., None]
        lit = 1 + slope[..., None] * (grid - scene.centre[..., None])
        shapes.mul_(lit[:, :, 0, None, :]).mul_(lit[:, :, 1, :, None])
    if max(style.swing) > 0 or R:
        texture = _texture(scene, grid, R)
        torch.mul(texture[:, R:], shapes, out=coats)
        torch.mul(texture[:, :R], free, out=backs)
    else:
        coats.zero_()
    if max(style.rings_swing) > 0:
        torch.mul(_rings(scene, grid)[:, None], free, out=rings)
    else:
        rings.zero_()
    if max(style.noise) > 0:
        noise.copy_(_noise(scene, size)[:, None])
    else:
        noise.zero_()
    # 256 equal bins and truncation: one operation less than rounding, without a bias.
    image = torch.bmm(mix.transpose(1, 2), planes.flatten(2))
    return image.clamp_(0, 255).to(torch.uint8).view(B, 3, size, size)

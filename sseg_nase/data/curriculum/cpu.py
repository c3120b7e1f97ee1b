"""Pictures painted in compiled code, one after the other: for CPUs.

Layer is painted over layer, back to front, and a shape only where it is; the picture stays in the
processor's cache until it is finished. Blocks of pictures go to as many threads as torch may use.
The first use on a machine compiles for some seconds; the code is kept on disk.
"""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import fields
from functools import partial

import numpy as np
import torch

from sseg_nase.data.curriculum.scenes import Scene
from sseg_nase.data.curriculum.tables import (
    atlas_resolution,
    atlas_turns,
    noise_tile,
    pixel_centres,
    shape_atlas,
)
from sseg_nase.hardware.compiled import compiled, in_blocks

_NAMES = [field.name for field in fields(Scene)]
_Numbers = namedtuple("_Numbers", _NAMES)  # type: ignore[misc]
_f = np.float32  # a plain number would turn what it meets into float64
_CPU = torch.device("cpu")
_TURNS = _f(0.5 / math.pi)  # in a radian
_QUARTER = _f(0.25)  # of a turn
# Taylor coefficients of sin(2πx) = x · (a + b x² + c x⁴ + ...): float32 is exhausted with six.
_A, _B, _C, _D, _E, _F = (
    _f((-1) ** k * (2 * math.pi) ** (2 * k + 1) / math.factorial(2 * k + 1)) for k in range(6)
)


def paint(scene: Scene, size: int) -> torch.Tensor:
    """Paint the pictures of `scene`: uint8 [B, 3, S, S]."""
    images = torch.empty((len(scene.base), 3, size, size), dtype=torch.uint8)
    resolution = atlas_resolution(size)
    arguments = (
        _Numbers(*(getattr(scene, name).contiguous().numpy() for name in _NAMES)),
        *(turn.numpy() for turn in atlas_turns(scene, size)),
        shape_atlas(resolution, _CPU).numpy(),
        _f(resolution),
        noise_tile(size, _CPU).numpy(),
        pixel_centres(size, _CPU).numpy(),
        images.numpy(),
    )
    in_blocks(partial(_paint, *arguments), len(images))
    return images


@compiled(fastmath=True)
def _paint(scene, cos, sin, atlas, resolution, tile, grid, images, start, stop):  # type: ignore[no-untyped-def]
    """Paint the pictures from `start` to before `stop`."""
    S, K = len(grid), scene.kind.shape[1]
    R = scene.texture_angle.shape[1] - K
    planes = np.empty((3, S, S), np.float32)
    waves = np.empty((2, 4, S), np.float32)
    lines, cells = np.empty((4, S), np.float32), np.empty(S, np.int32)
    for n in range(start, stop):
        _fill(planes, scene.base[n])
        for t in range(R):
            _set_waves(scene, n, t, _f(0), _f(0.5), _f(0.5), grid, waves)
            _add_texture(planes, waves, scene.texture_colour[n, t], lines[0])
        if scene.rings[n, 0] + scene.rings[n, 1] + scene.rings[n, 2] > 0:
            _add_rings(planes, scene.rings[n], grid, lines[0])
        for k in range(K):
            if scene.visible[n, k] != 0:
                x, y = scene.centre[n, k, 0], scene.centre[n, k, 1]
                _set_waves(scene, n, R + k, scene.angle[n, k], x, y, grid, waves)
                place = x, y, scene.radius[n, k], cos[n, k], sin[n, k], scene.kind[n, k]
                look = scene.colour[n, k], scene.texture_colour[n, R + k], scene.shade[n, k]
                _add_shape(planes, place, look, atlas, resolution, grid, waves, lines, cells)
        _write(planes, scene.noise[n], tile, images[n])


@compiled(fastmath=True)
def _fill(planes, colour):  # type: ignore[no-untyped-def]
    """Paint the background [3, S, S]."""
    for channel in range(3):
        for i in range(planes.shape[1]):
            for j in range(planes.shape[2]):
                planes[channel, i, j] = colour[channel]


@compiled(fastmath=True)
def _sine(turns):  # type: ignore[no-untyped-def]
    """sin(2π · turns), as cos(2π d) = sin(2π (1/4 - d)), d the distance from the nearest peak."""
    away = turns - _QUARTER
    x = _QUARTER - abs(away - np.floor(away + _f(0.5)))
    square = x * x
    return x * (_A + square * (_B + square * (_C + square * (_D + square * (_E + square * _F)))))


@compiled(fastmath=True)
def _set_waves(scene, n, t, angle, x, y, grid, waves):  # type: ignore[no-untyped-def]
    """Set what texture `t` of picture `n` is made of, turned by `angle` about (x, y).

    sin(x + y) = sin x cos y + cos x sin y: each grating is a product of rank two. `waves`
    [2, 4, S] are the factors of columns and of rows.
    """
    for g in range(2):
        turn = angle + scene.texture_angle[n, t, g]
        frequency = scene.texture_frequency[n, t, g]
        amplitude = scene.texture_amplitude[n, t, g]
        phase = scene.texture_phase[n, t, g] * _TURNS
        across, down = frequency * _f(math.cos(turn)), frequency * _f(math.sin(turn))
        for i in range(len(grid)):
            column = across * (grid[i] - x) + phase
            waves[0, g, i] = amplitude * _sine(column)
            waves[0, 2 + g, i] = amplitude * _sine(column + _QUARTER)
        for i in range(len(grid)):
            row = down * (grid[i] - y)
            waves[1, g, i] = _sine(row + _QUARTER)
            waves[1, 2 + g, i] = _sine(row)


@compiled(fastmath=True)
def _set_texture(waves, i, left, line):  # type: ignore[no-untyped-def]
    """Set `line` to row `i` of the texture from column `left` on, in [-1, 1]."""
    right = left + len(line)
    a, b, c, d = waves[1, 0, i], waves[1, 1, i], waves[1, 2, i], waves[1, 3, i]
    p, q = waves[0, 0, left:right], waves[0, 1, left:right]
    r, s = waves[0, 2, left:right], waves[0, 3, left:right]
    for j in range(len(line)):
        line[j] = min(max(a * p[j] + b * q[j] + c * r[j] + d * s[j], _f(-1)), _f(1))


@compiled(fastmath=True)
def _add_texture(planes, waves, colour, line):  # type: ignore[no-untyped-def]
    """Add `colour` times the texture everywhere."""
    for i in range(len(line)):
        _set_texture(waves, i, 0, line)
        _add_line(planes, i, line, colour)


@compiled(fastmath=True)
def _add_rings(planes, rings, grid, line):  # type: ignore[no-untyped-def]
    """Add the radial waves everywhere."""
    frequency, phase = rings[3], rings[4] * _TURNS
    for i in range(len(line)):
        y = grid[i] - rings[6]
        for j in range(len(line)):
            x = grid[j] - rings[5]
            line[j] = _sine(frequency * np.sqrt(x * x + y * y) + phase)
        _add_line(planes, i, line, rings)


@compiled(fastmath=True)
def _add_line(planes, i, line, colour):  # type: ignore[no-untyped-def]
    """Add `colour` times `line` to row `i`."""
    for channel in range(3):
        for j in range(len(line)):
            planes[channel, i, j] += colour[channel] * line[j]


@compiled(fastmath=True)
def _add_shape(planes, place, look, atlas, resolution, grid, waves, lines, cells):  # type: ignore[no-untyped-def]
    """Paint a shape over what is there; `lines` and `cells` are room to work."""
    centre_x, centre_y, radius, cos, sin, kind = place
    colour, swing, shade = look
    S, side = len(grid), _f(len(grid))
    reach = radius + _f(1.5) / side  # the soft edge and the size of a cell go beyond the radius
    left, right = max(int((centre_x - reach) * side), 0), min(int((centre_x + reach) * side) + 1, S)
    top, bottom = max(int((centre_y - reach) * side), 0), min(int((centre_y + reach) * side) + 1, S)
    width = right - left
    x, light = lines[0, :width], lines[1, :width]
    cover, texture = lines[2, :width], lines[3, :width]
    slope_x, slope_y = shade[0] / radius, shade[1] / radius
    for j in range(width):
        x[j] = grid[left + j] - centre_x
        light[j] = _f(1) + slope_x * x[j]
    for i in range(top, bottom):
        y = grid[i] - centre_y
        _set_cells(x, y, cos, sin, kind, resolution, cells)
        for j in range(width):
            distance = atlas[np.uint32(cells[j])] * radius * side
            cover[j] = min(max(_f(0.5) - distance, _f(0)), _f(1))
        _set_texture(waves, i, left, texture)
        lit = _f(1) + slope_y * y
        for channel in range(3):
            line = planes[channel, i, left:right]
            _cover_line(line, cover, texture, light, lit * colour[channel], lit * swing[channel])


@compiled
def _set_cells(x, y, cos, sin, kind, resolution, cells):  # type: ignore[no-untyped-def]
    """Set the cells of the atlas that row `y` of a shape reads.

    Every operation is that of `batched`, in the same order and without `fastmath`: rounded
    otherwise, an edge would move by a cell. A shape's surroundings never reach the last cell, which
    is where float32 may round beyond the atlas.
    """
    half, rim, first = _f(0.5) * resolution, resolution - _f(1), kind * (resolution * resolution)
    from_column, from_row = y * sin + half, y * cos + half
    for j in range(len(x)):
        column = min(max(x[j] * cos + from_column, _f(0)), rim)
        row = min(max(x[j] * -sin + from_row, _f(0)), rim)
        cells[j] = np.int32(np.floor(row) * resolution + column + first)


@compiled(fastmath=True)
def _cover_line(line, cover, texture, light, colour, swing):  # type: ignore[no-untyped-def]
    """Paint one row of a shape over one channel of a row of pixels."""
    for j in range(len(line)):
        line[j] += cover[j] * ((colour + swing * texture[j]) * light[j] - line[j])


@compiled(fastmath=True)
def _write(planes, noise, tile, image):  # type: ignore[no-untyped-def]
    """Add the noise, and turn [3, S, S] in [0, 1] into bytes: 256 equal bins."""
    S = planes.shape[1]
    left, top = int(noise[3] * _f(S)), int(noise[4] * _f(S))
    for i in range(S):
        grains = tile[top + i, left : left + S]
        for channel in range(3):
            for j in range(S):
                value = _f(256) * (planes[channel, i, j] + noise[channel] * grains[j])
                image[channel, i, j] = np.uint8(np.int32(min(max(value, _f(0)), _f(255))))

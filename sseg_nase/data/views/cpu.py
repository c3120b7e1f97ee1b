"""Views in compiled code, one after the other: for CPUs.

A view that is finished before the next begins never leaves the processor's cache, and costs no call
per operation; that is several times as fast as tensor operations on a batch. Blocks of images go to
as many threads as torch may use. The first use on a machine compiles for some seconds; the code is
kept on disk.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from sseg_nase.data.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    GREY,
    SATURATION,
    ViewParameters,
    blur_kernel_size,
)
from sseg_nase.hardware.compiled import compiled, in_blocks

_RED, _GREEN, _BLUE = np.array(GREY, dtype=np.float32)
_f = np.float32  # a plain number would turn what it meets into float64


def apply_views(images: torch.Tensor, p: ViewParameters, size: int) -> torch.Tensor:
    """As `sseg_nase.data.views.apply_views`, on the CPU."""
    B = len(images)
    out = torch.empty(len(p.top) // B, B, size, size, 3)
    arguments = (
        images.contiguous().numpy(),
        torch.stack((p.top, p.left, p.height, p.width), dim=1).numpy(),
        p.flip.contiguous().numpy(),
        p.order.contiguous().numpy(),
        torch.stack((p.brightness, p.contrast, p.saturation, p.hue), dim=1).numpy(),
        p.grey.contiguous().numpy(),
        p.sigma.contiguous().numpy(),
        blur_kernel_size(size) // 2,
        p.strokes
        and (
            p.strokes.moved.numpy(),
            p.places(size).numpy(),
            torch.stack((p.strokes.radius, p.strokes.paper), dim=1).numpy(),
            p.strokes.erased_boxes(size).numpy(),
        ),
        out.numpy(),
    )
    in_blocks(partial(_make, *arguments), B)
    return out.permute(0, 1, 4, 2, 3)


@compiled(fastmath=True)
def _make(images, box, flip, order, jitter, grey, sigma, reach, strokes, out, start, stop):  # type: ignore[no-untyped-def]
    """Make all views of the images from `start` to before `stop`.

    With and without `strokes` this is compiled to two functions: views of photographs do not ask.
    """
    V, B, S = out.shape[:3]
    view = np.empty((3, S, S), np.float32)
    planes = view.reshape(3, S * S)
    lines = np.empty((S + 2 * reach) * (S + 2 * reach), np.float32)
    columns = np.empty_like(lines)
    if strokes is not None:
        moved, places, ink, erased = strokes
    for image in range(start, stop):
        for number in range(V):
            n = number * B + image
            if strokes is None:
                _crop(images[image], box[n], flip[n], view)
            else:
                radius, paper = ink[n]
                if moved[n]:
                    _move(images[image], places[n], paper, view)
                else:
                    _crop(images[image], box[n], flip[n], view)
                if radius != 0:
                    _thicken(view, radius, paper, lines)
            for operation in order[n]:
                factor = jitter[n, operation]
                if operation == BRIGHTNESS:
                    if factor != 1:
                        _blend(planes, factor, _f(0), _f(0))
                elif operation == CONTRAST:
                    if factor != 1:
                        _blend(planes, factor, _f(1) - factor, _f(0))
                elif operation == SATURATION:
                    if factor != 1:
                        _blend(planes, factor, _f(0), _f(1) - factor)
                elif factor != 0:
                    _shift_hue(planes, factor)
            if grey[n]:
                _blend(planes, _f(0), _f(0), _f(1))
            if sigma[n] > 0:
                _blur(view, sigma[n], reach, lines, columns)
            if strokes is not None:
                top, left, height, width = erased[n]
                view[:, top : top + height, left : left + width] = paper
            _write(planes, out[number, image].reshape(S * S, 3))


@compiled(fastmath=True)
def _crop(image, box, flip, view):  # type: ignore[no-untyped-def]
    """Crop, flip and resize bilinearly: uint8 [3, H, W] -> [3, S, S] in [0, 1]."""
    _, H, W = image.shape
    S = view.shape[1]
    top, left, height, width = box
    before, after = np.empty(S, np.int64), np.empty(S, np.int64)
    share, row = np.empty(S, np.float32), np.empty(W, np.float32)
    for j in range(S):
        x = left + (_f(j) + _f(0.5)) / _f(S) * width - _f(0.5)
        x = max(min(x, left + width - _f(1)), left)
        place = S - 1 - j if flip else j
        before[place] = int(x)
        after[place] = min(int(x) + 1, W - 1)
        share[place] = x - _f(int(x))
    for i in range(S):
        y = top + (_f(i) + _f(0.5)) / _f(S) * height - _f(0.5)
        y = max(min(y, top + height - _f(1)), top)
        above = int(y)
        below = min(above + 1, H - 1)
        lower = (y - _f(above)) * _f(1 / 255)
        upper = _f(1 / 255) - lower
        for channel in range(3):
            for j in range(W):
                row[j] = _f(image[channel, above, j]) * upper + _f(image[channel, below, j]) * lower
            for j in range(S):
                x = row[before[j]]
                view[channel, i, j] = x + (row[after[j]] - x) * share[j]


@compiled(fastmath=True)
def _move(image, places, paper, view):  # type: ignore[no-untyped-def]
    """Sample bilinearly at `places` · (j, i, 1), with paper beside the image: as `_crop`."""
    _, H, W = image.shape
    S = view.shape[1]
    for i in range(S):
        for j in range(S):
            x = places[0, 0] * _f(j) + places[0, 1] * _f(i) + places[0, 2]
            y = places[1, 0] * _f(j) + places[1, 1] * _f(i) + places[1, 2]
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            right, lower = x - _f(x0), y - _f(y0)
            for channel in range(3):
                view[channel, i, j] = paper
            for row in range(2):
                if not 0 <= y0 + row < H:
                    continue
                weight = lower if row else _f(1) - lower
                for column in range(2):
                    if not 0 <= x0 + column < W:
                        continue
                    share = weight * (right if column else _f(1) - right)
                    for channel in range(3):
                        value = _f(image[channel, y0 + row, x0 + column]) * _f(1 / 255)
                        view[channel, i, j] += share * (value - paper)


@compiled(fastmath=True)
def _thicken(view, radius, paper, room):  # type: ignore[no-untyped-def]
    """Let strokes of [3, S, S] grow or shrink by `radius`, as in `batched`; `room` [>= S²]."""
    S = view.shape[1]
    sign = _f(-1) if (radius > 0) == (paper == 1) else _f(1)
    wide = room[: S * S].reshape(S, S)
    left = abs(radius)
    while left > 0:
        share = min(left, _f(1))
        for channel in range(3):
            plane = view[channel]
            for i in range(S):  # the largest of three in a row, then of three of these in a column
                for j in range(S):
                    before, after = plane[i, max(j - 1, 0)], plane[i, min(j + 1, S - 1)]
                    wide[i, j] = max(max(sign * before, sign * plane[i, j]), sign * after)
            for i in range(S):
                above, below = wide[max(i - 1, 0)], wide[min(i + 1, S - 1)]
                for j in range(S):
                    most = sign * max(max(above[j], wide[i, j]), below[j])
                    plane[i, j] += share * (most - plane[i, j])
        left -= _f(1)


@compiled(fastmath=True)
def _blend(planes, own, of_mean, of_grey):  # type: ignore[no-untyped-def]
    """Mix [3, n] with its mean grey and its grey: x' = clamp(own · x + ..., 0, 1)."""
    red, green, blue = planes[0], planes[1], planes[2]
    n = len(red)
    constant = _f(0)
    if of_mean != 0:
        for i in range(n):
            constant += _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]
        constant *= of_mean / _f(n)
    for i in range(n):
        grey = _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]
        other = constant + of_grey * grey
        red[i] = min(max(own * red[i] + other, _f(0)), _f(1))
        green[i] = min(max(own * green[i] + other, _f(0)), _f(1))
        blue[i] = min(max(own * blue[i] + other, _f(0)), _f(1))


@compiled(fastmath=True)
def _shift_hue(planes, turns):  # type: ignore[no-untyped-def]
    """Turn the hue of [3, n] in HSV space by `turns`; value and saturation stay."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        sixth = _f(1) / max(_f(6) * chroma, _f(1e-12))
        hue = _f(4 / 6) + (r - g) * sixth
        hue = _f(2 / 6) + (b - r) * sixth if g == value else hue
        hue = (g - b) * sixth if r == value else hue
        hue += turns
        red[i] = value - chroma * _lack(hue - _f(3 / 6))
        green[i] = value - chroma * _lack(hue - _f(5 / 6))
        blue[i] = value - chroma * _lack(hue - _f(1 / 6))


@compiled(fastmath=True)
def _lack(away):  # type: ignore[no-untyped-def]
    """Return what a channel lacks of the value, in chromas: clamp(2 - 6 d, 0, 1).

    `away` from the opposite hue, d in whole turns the shorter way.
    """
    distance = abs(away - np.floor(away + _f(0.5)))
    return min(max(_f(2) - _f(6) * distance, _f(0)), _f(1))


@compiled(fastmath=True)
def _blur(view, sigma, reach, lines, columns):  # type: ignore[no-untyped-def]
    """Blur [3, S, S] by a Gaussian of `sigma` pixels, reflected at the border.

    `lines` and `columns` [(S + 2 reach)²] are room to work in. Both passes run over flat memory,
    rim included: long loops over neighbours are what the processor is fastest at.
    """
    S = view.shape[1]
    wide = S + 2 * reach
    weights = np.empty(reach + 1, np.float32)
    total = _f(0)
    for k in range(reach + 1):
        weights[k] = math.exp(_f(-0.5) * (_f(k) / sigma) ** 2)
        total += weights[k] if k == 0 else _f(2) * weights[k]
    weights /= total
    for channel in range(3):
        for i in range(wide):
            inner = abs(i - reach)
            source = view[channel, inner if inner < S else 2 * S - 2 - inner]
            for j in range(S):
                lines[i * wide + reach + j] = source[j]
            for j in range(reach):
                lines[i * wide + reach - 1 - j] = source[1 + j]
                lines[i * wide + reach + S + j] = source[S - 2 - j]
        _convolve(lines, columns, weights, reach * wide, S * wide, wide)
        _convolve(columns, lines, weights, reach * wide + reach, S * wide - 2 * reach, 1)
        for i in range(S):
            start = (i + reach) * wide + reach
            for j in range(S):
                view[channel, i, j] = lines[start + j]


@compiled(fastmath=True)
def _convolve(x, y, weights, first, count, stride):  # type: ignore[no-untyped-def]
    """y[n] = w₀ · x[n] + Σₖ wₖ · (x[n - k · stride] + x[n + k · stride]), n from `first` on."""
    centre, result = x[first : first + count], y[first : first + count]
    for n in range(count):
        result[n] = weights[0] * centre[n]
    for k in range(1, len(weights)):
        weight, away = weights[k], k * stride
        left = x[first - away : first - away + count]
        right = x[first + away : first + away + count]
        for n in range(count):
            result[n] += weight * (left[n] + right[n])


@compiled(fastmath=True)
def _write(planes, out):  # type: ignore[no-untyped-def]
    """Planes [3, n] in [0, 1] -> pixels [n, 3] in [-1, 1]."""
    for i in range(len(out)):
        for channel in range(3):
            out[i, channel] = _f(2) * planes[channel, i] - _f(1)

"""Views of photographs in three launches on a GPU, in Triton: what `batched` does in nearly 200.

One program makes a whole view: it samples the image, changes the colours in registers, and writes
what is left. Only the mean grey, for the contrast, is known no earlier than all of a view is: where
there is contrast, the way up to it is gone twice. A blur looks at its neighbours, and so is a
launch for rows and one for columns. There are no atomic sums: the same views, bit for bit.
"""

# Triton reads the annotations of kernels, and knows no others than its own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sseg_nase.data.prefetch import sent_together
from sseg_nase.data.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    SATURATION,
    ViewParameters,
    blur_kernel_size,
)

BLOCK = 1024  # pixels at a time
FIGURES = 16  # of a view, see `_figures`
# Sums and products are rounded one by one, as torch's operators round them. No registers spill.
OPTIONS: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": False}

_BRIGHTNESS, _CONTRAST = tl.constexpr(BRIGHTNESS), tl.constexpr(CONTRAST)
_SATURATION, _HUE = tl.constexpr(SATURATION), tl.constexpr(HUE)
_RED, _GREEN, _BLUE = (tl.constexpr(share) for share in GREY)
_FIGURES = tl.constexpr(FIGURES)


def apply_views(images: Tensor, p: ViewParameters, size: int) -> Tensor:
    """As `sseg_nase.data.views.apply_views`, of views without strokes."""
    assert p.strokes is None
    B, _, H, W = images.shape
    N = len(p.top)
    out = torch.empty(N // B, B, size, size, 3, device=images.device)
    blurred = (p.sigma > 0).nonzero()[:, 0]
    plan = sent_together({"figures": _figures(p), "blurred": blurred}, images.device)
    given = (images, *images.stride(), plan["figures"], out)
    with _on(images.device):
        _views[(N,)](*given, B, H, W, size, **OPTIONS)
        if len(blurred):
            between = torch.empty(len(blurred), size, size, 3, device=images.device)
            grid = (len(blurred), -(-(size**2) // BLOCK))
            same = (plan["blurred"], plan["figures"], size, blur_kernel_size(size) // 2)
            _blurred[grid](out, between, *same, AXIS=0, **OPTIONS)
            _blurred[grid](between, out, *same, AXIS=1, **OPTIONS)
    return out.permute(0, 1, 4, 2, 3)


def _on(device: torch.device) -> Any:
    """Launches go to the device that is the present one."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def _figures(p: ViewParameters) -> Tensor:
    """What is done to each of N views, float32 [N, FIGURES]."""
    columns = (
        p.top, p.left, p.height, p.width, p.flip, p.brightness, p.contrast, p.saturation, p.hue,
        p.grey, p.sigma, *p.order.T,
    )  # fmt: skip
    figures = torch.zeros(len(p.top), FIGURES)
    figures[:, : len(columns)] = torch.stack([column.float() for column in columns], dim=1)
    return figures


@triton.jit
def _views(
    images, by_image, by_channel, by_row, by_column, figures, out, B, H, W, S, BLOCK: tl.constexpr
):
    """View `program_id` of its image: crop, flip, colours, grey; in [-1, 1]."""
    view = tl.program_id(0)
    own = figures + view * _FIGURES
    image = images + (view % B).to(tl.int64) * by_image
    contrast = tl.load(own + 6)
    # The place of the contrast among the four operations of colour.
    until = 4
    for turn in tl.static_range(4):
        if tl.load(own + 11 + turn) == _CONTRAST:
            until = turn
    mean = 0.0
    if contrast != 1:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, S * S, BLOCK):
            place = start + tl.arange(0, BLOCK)
            red, green, blue = _sampled(image, by_channel, by_row, by_column, own, place, H, W, S)
            red, green, blue = _coloured(red, green, blue, own, mean, until)
            total += tl.where(place < S * S, _grey(red, green, blue), 0.0)
        mean = tl.sum(total, 0) / (S * S)
    for start in range(0, S * S, BLOCK):
        place = start + tl.arange(0, BLOCK)
        red, green, blue = _sampled(image, by_channel, by_row, by_column, own, place, H, W, S)
        red, green, blue = _coloured(red, green, blue, own, mean, 4)
        if tl.load(own + 9) != 0:
            red = _grey(red, green, blue)
            green = red
            blue = red
        there = out + view.to(tl.int64) * (S * S * 3) + place * 3
        inside = place < S * S
        tl.store(there, 2 * red - 1, inside)
        tl.store(there + 1, 2 * green - 1, inside)
        tl.store(there + 2, 2 * blue - 1, inside)


@triton.jit
def _sampled(image, by_channel, by_row, by_column, own, place, H, W, S):
    """The three colours at pixels `place` of a view, bilinearly, in [0, 1]."""
    column = place % S
    column = tl.where(tl.load(own + 4) != 0, S - 1 - column, column)
    y, up, down = _position(place // S, tl.load(own), tl.load(own + 2), H, S)
    x, left, right = _position(column, tl.load(own + 1), tl.load(own + 3), W, S)
    inside = place < S * S
    a = image + up * by_row + left * by_column
    b = image + up * by_row + right * by_column
    c = image + down * by_row + left * by_column
    d = image + down * by_row + right * by_column
    red = _mixed(a, b, c, d, x, y, inside)
    green = _mixed(a + by_channel, b + by_channel, c + by_channel, d + by_channel, x, y, inside)
    twice = 2 * by_channel
    blue = _mixed(a + twice, b + twice, c + twice, d + twice, x, y, inside)
    return red, green, blue


@triton.jit
def _position(step, start, length, side, S):
    """Where sample `step` of S lies on an axis: the share of the next pixel, this one, the next."""
    at = start + (step.to(tl.float32) + 0.5) / S * length - 0.5
    at = tl.maximum(tl.minimum(at, start + length - 1), start)
    first = at.to(tl.int32)  # it is never negative
    return at - first.to(tl.float32), first, tl.minimum(first + 1, side - 1)


@triton.jit
def _mixed(a, b, c, d, x, y, inside):
    """Four pixels, by the shares of the right and of the lower ones."""
    above = (
        tl.load(a, inside, 0).to(tl.float32) * (1 - x) + tl.load(b, inside, 0).to(tl.float32) * x
    )
    below = (
        tl.load(c, inside, 0).to(tl.float32) * (1 - x) + tl.load(d, inside, 0).to(tl.float32) * x
    )
    return (above * (1 - y) + below * y) / 255


@triton.jit
def _grey(red, green, blue):
    return red * _RED + green * _GREEN + blue * _BLUE


@triton.jit
def _coloured(red, green, blue, own, mean, until):
    """The first `until` of a view's operations of colour, in its order."""
    for turn in tl.static_range(4):
        operation = tl.load(own + 11 + turn)
        if turn < until:
            if operation == _HUE:
                turns = tl.load(own + 8)
                if turns != 0:
                    red, green, blue = _turned(red, green, blue, turns)
            else:
                share = tl.load(own + 5)
                other = tl.zeros_like(red)
                if operation == _CONTRAST:
                    share = tl.load(own + 6)
                    other += mean
                if operation == _SATURATION:
                    share = tl.load(own + 7)
                    other = _grey(red, green, blue)
                red = _clamped(share * red + (1 - share) * other)
                green = _clamped(share * green + (1 - share) * other)
                blue = _clamped(share * blue + (1 - share) * other)
    return red, green, blue


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _turned(red, green, blue, turns):
    """Hue turned in HSV space: see `batched._shift_hue`."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    sixth = 1 / tl.maximum(6 * chroma, 1e-12)
    hue = tl.where(value == green, 2 / 6 + (blue - red) * sixth, 4 / 6 + (red - green) * sixth)
    hue = tl.where(value == red, (green - blue) * sixth, hue) + turns
    return (
        _channel(value, chroma, hue - 3 / 6),
        _channel(value, chroma, hue - 5 / 6),
        _channel(value, chroma, hue - 1 / 6),
    )


@triton.jit
def _channel(value, chroma, away):
    """Of a hue so far `away` from the opposite one."""
    away = tl.abs(away - tl.floor(away + 0.5))
    return value - chroma * _clamped(2 - 6 * away)


@triton.jit
def _blurred(source, target, rows, figures, S, reach, AXIS: tl.constexpr, BLOCK: tl.constexpr):
    """Views `rows` along one axis: columns to a buffer of the blurred alone (0), or rows back."""
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < S * S
    number = tl.program_id(0).to(tl.int64)
    view = tl.load(rows + number).to(tl.int64)
    sigma = tl.load(figures + view * _FIGURES + 10)
    if AXIS == 0:
        read, write = source + view * (S * S * 3), target + number * (S * S * 3)
        along, start, step = place // S, (place % S) * 3, S * 3
    else:
        read, write = source + number * (S * S * 3), target + view * (S * S * 3)
        along, start, step = place % S, (place // S) * S * 3, 3
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    whole = 0.0
    for tap in range(-reach, reach + 1):
        share = tap / sigma
        weight = tl.exp(-0.5 * share * share)
        whole += weight
        at = tl.abs(along + tap)  # reflected at both borders
        at = tl.where(at < S, at, 2 * S - 2 - at)
        there = read + start + at * step
        red += weight * tl.load(there, inside, 0.0)
        green += weight * tl.load(there + 1, inside, 0.0)
        blue += weight * tl.load(there + 2, inside, 0.0)
    tl.store(write + place * 3, red / whole, inside)
    tl.store(write + place * 3 + 1, green / whole, inside)
    tl.store(write + place * 3 + 2, blue / whole, inside)

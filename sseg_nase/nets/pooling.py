"""2×2 max-pooling for training on a CPU, where torch's took two fifths of a step.

Torch keeps an int64 per output and all of the input for the backward pass; here a byte per output
says which of its four inputs it was, and nothing else is kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sseg_nase.hardware.compiled import compiled, in_blocks

# The bits of a floating-point number as an integer: NumPy has no bfloat16.
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def max_pool2x2(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)`: `[B, C, H, W]` → `[B, C, H // 2, W // 2]`, with the same results.

    Of equal inputs the first in reading order gets the gradient. On a CPU the output is
    channels-last in memory.
    """
    if x.device.type != "cpu" or x.dtype not in _BITS or torch.compiler.is_compiling():
        return F.max_pool2d(x, 2)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _forward(x)[0]
    pooled: Tensor = _MaxPool.apply(x)
    return pooled


def _forward(x: Tensor, tracked: bool = False) -> tuple[Tensor, Tensor | None]:
    """The pooled `x`, and, where it is `tracked`, which input each output was."""
    pixels = _pixels(x)
    B, H, W, C = pixels.shape
    out = _empty(x, B, H // 2, W // 2, C)
    which = torch.empty(B, H // 2, W // 2, C, dtype=torch.uint8) if tracked else None
    infinity = torch.tensor(torch.inf, dtype=x.dtype).view(pixels.dtype).item()
    arrays = (_pixels(out).numpy(), None if which is None else which.numpy())
    in_blocks(partial(_pool, pixels.numpy(), infinity, *arrays), B)
    return out, which


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out, which = _forward(x, tracked=True)
        ctx.save_for_backward(which)
        ctx.shape = [x.shape[axis] for axis in (0, 2, 3, 1)]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        unpooled: Tensor = _Unpool.apply(gradient, which, ctx.shape)
        return unpooled


class _Unpool(torch.autograd.Function):
    """The gradient of `_MaxPool`. It is linear, so its own gradient picks what it has spread."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, which: Tensor, shape: list[int]) -> Tensor:
        ctx.save_for_backward(which)
        out = _empty(gradient, *shape)
        arrays = (_pixels(gradient).numpy(), which.numpy(), _pixels(out).numpy())
        in_blocks(partial(_unpool, *arrays), len(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (which,) = ctx.saved_tensors
        B, H, W, C = which.shape
        out = _empty(gradient, B, H, W, C)
        arrays = (_pixels(gradient).numpy(), which.numpy(), _pixels(out).numpy())
        in_blocks(partial(_pick, *arrays), B)
        return out, None, None


def _empty(like: Tensor, B: int, H: int, W: int, C: int) -> Tensor:
    """Room for `[B, C, H, W]` numbers of the dtype of `like`, channels-last."""
    return torch.empty(B, C, H, W, dtype=like.dtype, memory_format=torch.channels_last)


def _pixels(x: Tensor) -> Tensor:
    """`[B, C, H, W]` → its bits as integers `[B, H, W, C]`; shared where `x` is channels-last."""
    return x.detach().permute(0, 2, 3, 1).contiguous().view(_BITS[x.dtype])


# The long loops run over whole rows, neighbours in memory: as vectors, however few channels.


@compiled
def _pool(x, infinity, out, which, start, stop):  # type: ignore[no-untyped-def]
    """Pool the images from `start` to before `stop`; `which`: 0 to 3 in reading order, or None."""
    _, H, W, C = x.shape
    upper, lower = np.empty(W * C, x.dtype), np.empty(W * C, x.dtype)
    # Of a pixel and the next, of which every other pair is of use.
    best, place = np.empty((W - 1) * C, x.dtype), np.empty((W - 1) * C, np.uint8)
    for b in range(start, stop):
        for i in range(H // 2):
            _to_order(x[b, 2 * i].reshape(W * C), infinity, upper)
            _to_order(x[b, 2 * i + 1].reshape(W * C), infinity, lower)
            if which is None:
                _highest(upper, upper[C:], lower, lower[C:], best)
            else:
                _highest_and_place(upper, upper[C:], lower, lower[C:], best, place)
                _every_other(place, which[b, i].reshape(W // 2 * C), C)
            _every_other(best, out[b, i].reshape(W // 2 * C), C)
            _from_order(out[b, i].reshape(W // 2 * C))


@compiled
def _highest(a, b, c, d, best):  # type: ignore[no-untyped-def]
    for n in range(len(best)):
        best[n] = max(max(a[n], b[n]), max(c[n], d[n]))


@compiled
def _highest_and_place(a, b, c, d, best, place):  # type: ignore[no-untyped-def]
    for n in range(len(best)):
        second, fourth = b[n] > a[n], d[n] > c[n]
        upper, lower = b[n] if second else a[n], d[n] if fourth else c[n]
        below = lower > upper
        best[n] = lower if below else upper
        place[n] = (3 if fourth else 2) if below else (1 if second else 0)


@compiled
def _every_other(pixels, half, channels):  # type: ignore[no-untyped-def]
    for j in range(len(half) // channels):
        for c in range(channels):
            half[j * channels + c] = pixels[2 * j * channels + c]


@compiled
def _twice(half, pixels, channels):  # type: ignore[no-untyped-def]
    for j in range(len(half) // channels):
        for c in range(channels):
            pixels[2 * j * channels + c] = half[j * channels + c]
            pixels[(2 * j + 1) * channels + c] = half[j * channels + c]


@compiled
def _to_order(bits, infinity, order):  # type: ignore[no-untyped-def]
    """Integers in the order of the numbers that `bits` stand for: -0 equals 0, NaN comes last."""
    largest = np.iinfo(bits.dtype).max
    for n in range(len(bits)):
        size = bits[n] & largest
        signed = -size if bits[n] < 0 else size
        order[n] = largest if size > infinity else signed


@compiled
def _from_order(order):  # type: ignore[no-untyped-def]
    """The way back, in place."""
    lowest = np.iinfo(order.dtype).min
    for n in range(len(order)):
        order[n] = -order[n] | lowest if order[n] < 0 else order[n]


@compiled
def _unpool(gradient, which, out, start, stop):  # type: ignore[no-untyped-def]
    """Give each input of the images from `start` to before `stop` the gradient that is its own."""
    _, H, W, C = out.shape
    spread, place = np.zeros(W * C, out.dtype), np.empty(W * C, np.uint8)
    own = np.empty(W * C, np.uint8)  # 0 and 1: where in the upper row of its window a pixel is
    for n in range(W * C):
        own[n] = n // C % 2
    for b in range(start, stop):
        out[b, H // 2 * 2 :] = 0
        for i in range(H // 2):
            _twice(gradient[b, i].reshape(W // 2 * C), spread, C)
            _twice(which[b, i].reshape(W // 2 * C), place, C)
            _where(place, own, 0, spread, out[b, 2 * i].reshape(W * C))
            _where(place, own, 2, spread, out[b, 2 * i + 1].reshape(W * C))


@compiled
def _where(place, own, row, values, out):  # type: ignore[no-untyped-def]
    for n in range(len(out)):
        out[n] = values[n] if place[n] == own[n] + row else 0


@compiled
def _pick(values, which, out, start, stop):  # type: ignore[no-untyped-def]
    """Of every window of the images from `start` to before `stop` the value at its place."""
    _, H, W, C = out.shape
    rows, place = np.empty(2 * W * C, values.dtype), np.empty(2 * W * C, np.uint8)
    for b in range(start, stop):
        for i in range(H):
            _twice(which[b, i].reshape(W * C), place, C)
            upper = values[b, 2 * i].reshape(values.shape[2] * C)
            lower = values[b, 2 * i + 1].reshape(values.shape[2] * C)
            _either(place, upper, lower, rows)
            _one_of_pair(which[b, i].reshape(W * C), rows, out[b, i].reshape(W * C), C)


@compiled
def _either(place, upper, lower, rows):  # type: ignore[no-untyped-def]
    for n in range(len(rows)):
        rows[n] = lower[n] if place[n] > 1 else upper[n]


@compiled
def _one_of_pair(place, pixels, out, channels):  # type: ignore[no-untyped-def]
    for j in range(len(out) // channels):
        for c in range(channels):
            n = j * channels + c
            left, right = pixels[n + j * channels], pixels[n + (j + 1) * channels]
            out[n] = right if place[n] % 2 else left

"""Batch normalisation whose gradient has a gradient of two passes over memory.

Torch differentiates the backward pass of a batch norm through some forty operations on whole
feature maps, which took three quarters of a second-order step on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sseg_nase.hardware.compiled import compiled, in_blocks

# As what NumPy is told of numbers in memory: it has no bfloat16.
_MEMORY = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.int16,
}
_CHUNK = 1 << 15  # numbers that one thread takes at a time
_VECTOR = 512  # numbers per row at least, of several pixels: a loop costs something to begin


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Context manager: `nn.BatchNorm2d`s of `module` are `batch_norm`s, the same in less time."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.__dict__["forward"] = partial(batch_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`norm(x)` of `[B, C, H, W]`, its running statistics included.

    What is not written here (another device or dtype, running statistics that normalise, a norm
    without weights) is left to torch.
    """
    here = (
        norm.training
        and norm.affine
        and x.device.type == "cpu"
        and x.dtype in _MEMORY
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
    )
    if not here:
        return nn.BatchNorm2d.forward(norm, x)
    tracking: tuple[Any, ...] = (None, None, 0.0)
    if norm.track_running_stats:
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / norm.num_batches_tracked.item()
        tracking = (norm.running_mean, norm.running_var, momentum or 0.0)
    normalised: Tensor = _Norm.apply(x, norm.weight, norm.bias, norm.eps, *tracking)
    return normalised


class _Norm(torch.autograd.Function):
    """y = γ r (x − μ) + β with μ and r = 1 / √(σ² + ε) of `x`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        out, mean, scale = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _NormBackward.apply(gradient, *ctx.saved_tensors, ctx.eps)
        return *gradients, None, None, None, None


class _NormBackward(torch.autograd.Function):
    """With g the gradient of y, x̂ = r (x − μ), ⟨·⟩ the mean and Σ the sum over a channel's pixels.

    ∂x = γ r (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ∂γ = Σ g x̂, ∂β = Σ g.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, scale, True, eps, [True, True, True]
        )
        ctx.save_for_backward(g, x, weight, mean, scale, of_weight, of_bias)
        return of_x, of_weight, of_bias

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v: Tensor, for_weight: Tensor, for_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Of L = Σ v ∂x + v' ∂γ + v″ ∂β, with v, v' and v″ the gradients of the three.

        L = γ r (Σ v g − n ⟨v⟩ ⟨g⟩ − n ⟨v x̂⟩ ⟨g x̂⟩) + v' Σ g x̂ + v″ Σ g, in which x̂ and r depend on
        x: ∂r/∂x = −r² x̂ / n, and a gradient h of x̂ is one of x by r (h − ⟨h⟩ − x̂ ⟨h x̂⟩).
        """
        g, x, *of_channels = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        of_channels = [one.double() for one in (*of_channels, for_weight, for_bias)]
        weight, mean, scale, of_gx, of_g, for_weight, for_bias = of_channels
        of_v, of_vx, of_vg = _sums(v, x, g)
        of_vx = scale * (of_vx - mean * of_v)
        slope = weight * scale
        rest = of_vg - of_v * of_g / n - of_vx * of_gx / n
        # h = p v + q g
        p, q = -slope * of_gx / n, for_weight - slope * of_vx / n
        h, hx = (p * of_v + q * of_g) / n, (p * of_vx + q * of_gx) / n
        by_g = (slope, scale * q, for_bias - slope * of_v / n)
        by_x = (scale * p, scale * q, -scale * scale * (hx + slope * rest / n), -scale * h)
        of_g, of_x = _combined(v, x, g, (*by_g, *by_x, mean))
        return of_g, of_x, (scale * rest).to(ctx.saved_tensors[2].dtype), None, None, None


def _sums(v: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Σ v, Σ v x and Σ v g of every channel, float64 `[3, C]`; alike for any number of threads."""
    channels = x.shape[1]
    width, size = _layout(channels)
    maps = [_flat(one) for one in (v, x, g)]
    chunks = -(-len(maps[0]) // size)
    found = torch.zeros(chunks, 3, width, dtype=torch.float64)
    in_blocks(partial(_add_up, *maps, size, found.numpy()), chunks)
    return found.sum(dim=0).view(3, -1, channels).sum(dim=1)


def _combined(v: Tensor, x: Tensor, g: Tensor, factors: tuple[Tensor, ...]) -> list[Tensor]:
    """Two maps of `v`, `x` and `g`, as `_combine` has it; `factors`: `[C]` each."""
    width, size = _layout(x.shape[1])
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    every = torch.stack(factors).to(dtype).repeat(1, width // x.shape[1])
    out = [torch.empty_like(one, memory_format=torch.channels_last) for one in (g, x)]
    maps = [_flat(one) for one in (v, x, g, *out)]
    in_blocks(partial(_combine, *maps, every.numpy(), size), -(-len(maps[0]) // size))
    return out


def _layout(channels: int) -> tuple[int, int]:
    """How many numbers, whole pixels, make up a row and a chunk."""
    width = channels * -(-_VECTOR // channels)
    return width, width * max(1, _CHUNK // width)


def _flat(x: Tensor) -> np.ndarray:
    """`[B, C, H, W]` → its numbers pixel by pixel; shared where `x` is channels-last."""
    pixels = x.detach().permute(0, 2, 3, 1).contiguous().view(-1)
    return pixels.view(_MEMORY[x.dtype]).numpy()


def _number(bits):  # type: ignore[no-untyped-def]
    """What stands in memory: a bfloat16 is the upper half of a float32."""


@overload(_number)
def _from_memory(bits):  # type: ignore[no-untyped-def]
    if isinstance(bits, numba.types.Integer):
        return lambda bits: np.int32(bits << 16).view(np.float32)
    return lambda bits: bits


def _write(row, out):  # type: ignore[no-untyped-def]
    """Copy `row`, rounded to the nearest (of two, the even) that `out` can hold."""


@overload(_write)
def _to_memory(row, out):  # type: ignore[no-untyped-def]
    def plain(row, out):  # type: ignore[no-untyped-def]
        out[:] = row[: len(out)]

    def rounded(row, out):  # type: ignore[no-untyped-def]
        # In integers alone: with a comparison of numbers in it the loop would not become vectors.
        bits = row.view(np.int32)
        for n in range(len(out)):
            nearest = bits[n] + 0x7FFF + ((bits[n] >> 16) & 1)
            # The bits of what is not a number could carry over into infinity.
            kept = nearest if (bits[n] & 0x7FFFFFFF) <= 0x7F800000 else bits[n] | 0x400000
            out[n] = np.int16(kept >> 16)

    return rounded if isinstance(out.dtype, numba.types.Integer) else plain


@compiled
def _add_up(v, x, g, size, sums, start, stop):  # type: ignore[no-untyped-def]
    """Σ v, Σ v x and Σ v g in every chunk from `start` to before `stop`."""
    width = sums.shape[2]
    for chunk in range(start, stop):
        one, two, three = sums[chunk, 0], sums[chunk, 1], sums[chunk, 2]
        for first in range(chunk * size, min((chunk + 1) * size, len(x)), width):
            row = slice(first, first + width)
            vs, xs, gs = v[row], x[row], g[row]
            for n in range(len(xs)):
                value = np.float64(_number(vs[n]))
                one[n] += value
                two[n] += value * np.float64(_number(xs[n]))
                three[n] += value * np.float64(_number(gs[n]))


@compiled
def _combine(v, x, g, by_g, by_x, factors, size, start, stop):  # type: ignore[no-untyped-def]
    """a v + b (x − μ) + c and d v + e g + f (x − μ) + h in the chunks."""
    a, b, c, mean = factors[0], factors[1], factors[2], factors[7]
    d, e, f, h = factors[3], factors[4], factors[5], factors[6]
    width = factors.shape[1]
    away, result = np.empty_like(mean), np.empty_like(mean)
    # Short loops: of too many arrays, which might overlap, a loop would not become vectors.
    for first in range(start * size, min(stop * size, len(x)), width):
        row = slice(first, first + width)
        vs, xs, gs = v[row], x[row], g[row]
        for n in range(len(xs)):
            away[n] = _number(xs[n]) - mean[n]
        for n in range(len(xs)):
            result[n] = a[n] * _number(vs[n]) + b[n] * away[n] + c[n]
        _write(result, by_g[row])
        for n in range(len(xs)):
            result[n] = d[n] * _number(vs[n]) + e[n] * _number(gs[n]) + f[n] * away[n] + h[n]
        _write(result, by_x[row])

"""Batch normalisation whose gradient has a gradient of few passes over memory.

Torch differentiates the backward pass of a batch norm through some forty operations on whole
feature maps, which took three quarters of a second-order step on a CPU. Here forward, backward and
the backward of the backward are each one pass for the sums over the batch and one for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sseg_nase.hardware.native import compiled, in_blocks

# How numbers in memory are told to NumPy, which has no bfloat16, and what is computed with them.
_MEMORY = {torch.float32: None, torch.float64: None, torch.bfloat16: torch.int16}
_CHUNK = 1 << 15  # numbers that one thread sums up before another may take the next
_VECTOR = 64  # numbers per row at least: few channels are summed up several pixels at a time


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Inside, the BN of `module` in training mode computes as here: the same in less time."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.__dict__["forward"] = partial(batch_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`norm(x)` of `[B, C, H, W]`, running statistics included; sums are float64.

    The output is channels-last in memory. Whatever is not here (another device or dtype, running
    statistics that normalise, no weights) is left to torch.
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
    mean, variance = _statistics(x)
    if norm.track_running_stats:
        _track(norm, mean, variance, x.numel() // x.shape[1])
    normalised: Tensor = _Norm.apply(x, norm.weight, norm.bias, mean, (variance + norm.eps).rsqrt())
    return normalised


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of every channel, float64 `[C]`."""
    count = x.numel() // x.shape[1]
    first, second = _sums(_sum_powers, 2, x)
    mean = first / count
    return mean, (second / count - mean.square()).clamp_min_(0)


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / norm.num_batches_tracked.item()
    unbiased = variance * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.lerp_(new.to(running.dtype), momentum or 0.0)


class _Norm(torch.autograd.Function):
    """y = γ r (x − μ) + β; μ and r = 1 / √(σ² + ε) are those of `x`, which its gradient knows."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        (out,) = _combined(_normalise, 1, (weight * scale, bias, mean), x)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        return *_NormBackward.apply(gradient, x, weight, mean, scale), None, None


class _NormBackward(torch.autograd.Function):
    """With g the gradient of y, x̂ = r (x − μ), ⟨·⟩ the mean and Σ the sum over a channel's pixels.

    ∂x = γ r (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ∂γ = Σ g x̂, ∂β = Σ g.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        of_g, of_gx = _sums(_sum_products, 2, g, x)
        of_gx = scale * (of_gx - mean * of_g)
        ctx.save_for_backward(g, x, weight, mean, scale, of_g, of_gx)
        slope = weight * scale
        factors = (slope, -slope * scale * of_gx / count, -slope * of_g / count, mean)
        (out,) = _combined(_differentiate, 1, factors, x, g)
        return out, of_gx.to(weight.dtype), of_g.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v: Tensor, of_weight: Tensor, of_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Of L = Σ v ∂x + v' ∂γ + v″ ∂β, with v, v' and v″ the gradients of the three.

        L = γ r (Σ v g − n ⟨v⟩ ⟨g⟩ − n ⟨v x̂⟩ ⟨g x̂⟩) + v' Σ g x̂ + v″ Σ g, in which x̂ and r depend on
        x: ∂r/∂x = −r² x̂ / n, and a gradient h of x̂ is one of x by r (h − ⟨h⟩ − x̂ ⟨h x̂⟩).
        """
        g, x, weight, mean, scale, of_g, of_gx = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        of_v, of_vx, of_vg = _sums(_sum_three, 3, v, x, g)
        of_vx = scale * (of_vx - mean * of_v)
        slope = weight * scale
        rest = of_vg - of_v * of_g / n - of_vx * of_gx / n
        # h = −γ r / n · (v Σ g x̂ + g Σ v x̂) + v' g, so that h = p v + q g with
        p, q = -slope * of_gx / n, of_weight - slope * of_vx / n
        h, hx = (p * of_v + q * of_g) / n, (p * of_vx + q * of_gx) / n
        for_g = (slope, scale * (of_weight - slope * of_vx / n), of_bias - slope * of_v / n)
        for_x = (scale * p, scale * q, -scale * scale * (hx + slope * rest / n), -scale * h)
        by_g, by_x = _combined(_differentiate_twice, 2, (*for_g, *for_x, mean), x, v, g)
        return by_g, by_x, (scale * rest).to(weight.dtype), None, None


# -- passes over memory -------------------------------------------------------------------------


def _sums(work: Callable[..., None], sums: int, *maps: Tensor) -> Tensor:
    """What `work` adds up of `[B, C, H, W]`, float64 `[sums, C]`; for any number of threads."""
    channels = maps[0].shape[1]
    width, size = _layout(channels)
    flat = [_flat(one).numpy() for one in maps]
    chunks = -(-len(flat[0]) // size)
    found = torch.zeros(chunks, sums, width, dtype=torch.float64)
    in_blocks(partial(work, *flat, size, found.numpy()), chunks)
    return found.sum(dim=0).view(sums, -1, channels).sum(dim=1)


def _combined(
    work: Callable[..., None], results: int, factors: tuple[Tensor, ...], *maps: Tensor
) -> tuple[Tensor, ...]:
    """New maps, like the first of `maps`, of those and the `[C]` numbers in every one's channels.
    """
    x = maps[0]
    width, size = _layout(x.shape[1])
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    every = torch.stack([one.to(dtype) for one in factors]).repeat(1, width // x.shape[1])
    out = [torch.empty_like(x, memory_format=torch.channels_last) for _ in range(results)]
    flat = [_flat(one).numpy() for one in (*maps, *out)]
    in_blocks(partial(work, *flat, every.numpy(), size), -(-len(flat[0]) // size))
    return tuple(out)


def _layout(channels: int) -> tuple[int, int]:
    """How many numbers, whole pixels, make up a row and a chunk."""
    width = channels * -(-_VECTOR // channels)
    return width, width * max(1, _CHUNK // width)


def _flat(x: Tensor) -> Tensor:
    """`[B, C, H, W]` → its numbers pixel by pixel; shared where `x` is channels-last."""
    pixels = x.detach().permute(0, 2, 3, 1).contiguous().view(-1)
    memory = _MEMORY[x.dtype]
    return pixels if memory is None else pixels.view(memory)


def _number(bits):  # type: ignore[no-untyped-def]
    """The number in memory: of bfloat16, 16 bits that are the upper half of a float32."""


@overload(_number, inline="always")
def _of_memory(bits):  # type: ignore[no-untyped-def]
    if isinstance(bits, numba.types.Integer):
        return lambda bits: np.int32(bits << 16).view(np.float32)
    return lambda bits: bits


def _put(out, n, number):  # type: ignore[no-untyped-def]
    """Write `number`, rounded to the nearest (even) of the dtype of `out`."""


@overload(_put, inline="always")
def _to_memory(out, n, number):  # type: ignore[no-untyped-def]
    if not isinstance(out.dtype, numba.types.Integer):

        def plain(out, n, number):  # type: ignore[no-untyped-def]
            out[n] = number

        return plain

    def rounded(out, n, number):  # type: ignore[no-untyped-def]
        bits = np.float32(number).view(np.int32)
        up = np.int32(bits + np.int32(0x7FFF + ((bits >> 16) & 1)))
        kept = up if number == number else np.int32(bits | 0x400000)  # no number stays no number
        out[n] = np.int16(kept >> 16)

    return rounded


@compiled
def _sum_powers(x, size, sums, start, stop):  # type: ignore[no-untyped-def]
    """Σ x and Σ x² in the chunks from `start` to before `stop`."""
    width = sums.shape[2]
    for chunk in range(start, stop):
        one, two = sums[chunk, 0], sums[chunk, 1]
        for first in range(chunk * size, min((chunk + 1) * size, len(x)), width):
            row = x[first : first + width]
            for n in range(len(row)):
                value = np.float64(_number(row[n]))
                one[n] += value
                two[n] += value * value


@compiled
def _sum_products(g, x, size, sums, start, stop):  # type: ignore[no-untyped-def]
    """Σ g and Σ g x."""
    width = sums.shape[2]
    for chunk in range(start, stop):
        one, two = sums[chunk, 0], sums[chunk, 1]
        for first in range(chunk * size, min((chunk + 1) * size, len(x)), width):
            xs, gs = x[first : first + width], g[first : first + width]
            for n in range(len(xs)):
                value = np.float64(_number(gs[n]))
                one[n] += value
                two[n] += value * np.float64(_number(xs[n]))


@compiled
def _sum_three(v, x, g, size, sums, start, stop):  # type: ignore[no-untyped-def]
    """Σ v, Σ v x and Σ v g."""
    width = sums.shape[2]
    for chunk in range(start, stop):
        one, two, three = sums[chunk, 0], sums[chunk, 1], sums[chunk, 2]
        for first in range(chunk * size, min((chunk + 1) * size, len(x)), width):
            row = slice(first, first + width)
            xs, vs, gs = x[row], v[row], g[row]
            for n in range(len(xs)):
                value = np.float64(_number(vs[n]))
                one[n] += value
                two[n] += value * np.float64(_number(xs[n]))
                three[n] += value * np.float64(_number(gs[n]))


@compiled
def _normalise(x, out, factors, size, start, stop):  # type: ignore[no-untyped-def]
    """a (x − μ) + b in the chunks from `start` to before `stop`."""
    a, b, mean = factors[0], factors[1], factors[2]
    width = factors.shape[1]
    for first in range(start * size, min(stop * size, len(x)), width):
        xs, result = x[first : first + width], out[first : first + width]
        for n in range(len(xs)):
            _put(result, n, a[n] * (_number(xs[n]) - mean[n]) + b[n])


@compiled
def _differentiate(x, g, out, factors, size, start, stop):  # type: ignore[no-untyped-def]
    """a g + b (x − μ) + c."""
    a, b, c, mean = factors[0], factors[1], factors[2], factors[3]
    width = factors.shape[1]
    for first in range(start * size, min(stop * size, len(x)), width):
        row = slice(first, first + width)
        xs, gs, result = x[row], g[row], out[row]
        for n in range(len(xs)):
            _put(result, n, a[n] * _number(gs[n]) + b[n] * (_number(xs[n]) - mean[n]) + c[n])


@compiled
def _differentiate_twice(x, v, g, by_g, by_x, factors, size, start, stop):  # type: ignore[no-untyped-def]
    """a v + b (x − μ) + c and d v + e g + f (x − μ) + h."""
    a, b, c = factors[0], factors[1], factors[2]
    d, e, f, h = factors[3], factors[4], factors[5], factors[6]
    mean = factors[7]
    width = factors.shape[1]
    for first in range(start * size, min(stop * size, len(x)), width):
        row = slice(first, first + width)
        xs, vs, gs = x[row], v[row], g[row]
        one, two = by_g[row], by_x[row]
        for n in range(len(xs)):
            away, value = _number(xs[n]) - mean[n], _number(vs[n])
            _put(one, n, a[n] * value + b[n] * away + c[n])
            _put(two, n, d[n] * value + e[n] * _number(gs[n]) + f[n] * away + h[n])

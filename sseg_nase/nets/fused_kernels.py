"""Kernels of `sseg_nase.nets.fused`: batch norm, activation and pooling over maps in memory.

They are written with vectors of neighbouring channels, because a loop over the channels of one
pixel is too short to become vectors by itself.

Maps are the numbers of `[B, H, W, C]` in a row; one that is not there is empty. Channels are taken
in blocks of as many as `lanes` has. The last block begins early where they do not divide C: a few
channels are then computed twice, and sums have `slots` of their own for every block. `factors`
holds C numbers each of μ, a and b of the forward pass, u = a (x − μ) + b, and of A, S and D of the
backward pass, ∂x = A g + S (x − μ) + D.

An activation `act` is a kind and a number: `SLOPE` and its slope where its input is not positive, 0
for ReLU, 1 for none; the other kinds have no number. With pooling its slope is all of it.
"""

from __future__ import annotations

import math

import numpy as np

from sseg_nase.hardware.compiled import compiled
from sseg_nase.hardware.vectors import (
    bits,
    doubled,
    filled,
    multiply_add,
    number,
    prefetch,
    rounding,
    store,
    where,
    wide,
)

PARTS = 32  # whose sums are put together in float64, one after the other


# Kinds of activations.
SLOPE, RELU6, HARD_SWISH, SILU = range(4)


# -- parts of kernels ------------------------------------------------------------------------------


@compiled
def _activated(u, act, lanes):  # type: ignore[no-untyped-def]
    """The activation of `u`."""
    kind, slope = act
    zero = filled(u, lanes, 0.0)
    if kind == RELU6:
        six = filled(u, lanes, 6.0)
        return where(_above(u, zero), where(u > six, six, u), zero)
    if kind == HARD_SWISH:
        return u * _hard_sigmoid(u, lanes)
    if kind == SILU:
        return u * _sigmoid(u, lanes)
    return _sloped(u, _above(u, zero), slope, lanes)


@compiled
def _passed(g, u, act, lanes):  # type: ignore[no-untyped-def]
    """The gradient of `u` from that of its activation, `g`."""
    kind, slope = act
    zero = filled(u, lanes, 0.0)
    if kind == RELU6:
        return where((u > zero) & (filled(u, lanes, 6.0) > u), g, zero)
    if kind == HARD_SWISH:
        inside = (u > filled(u, lanes, -3.0)) & (filled(u, lanes, 3.0) > u)
        rising = u * filled(u, lanes, 1 / 3) + filled(u, lanes, 0.5)
        return where(inside, g * rising, where(u > zero, g, zero))
    if kind == SILU:
        share, one = _sigmoid(u, lanes), filled(u, lanes, 1.0)
        return g * (share * (one + u * (one - share)))
    return _sloped(g, u > zero, slope, lanes)


@compiled
def _sloped(g, positive, slope, lanes):  # type: ignore[no-untyped-def]
    """`g` where `positive`, else slope · g."""
    zero, factor = filled(g, lanes, 0.0), filled(g, lanes, slope)
    return where(positive, g, where(factor != zero, g * factor, zero))


@compiled
def _hard_sigmoid(u, lanes):  # type: ignore[no-untyped-def]
    """u / 6 + 1 / 2, of what lies between 0 and 1."""
    zero, one = filled(u, lanes, 0.0), filled(u, lanes, 1.0)
    line = u * filled(u, lanes, 1 / 6) + filled(u, lanes, 0.5)
    return where(line > one, one, where(line > zero, line, zero))


@compiled
def _sigmoid(u, lanes):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−u)), of float32; 0 where exp(−u) is more than a float32."""
    one, least = filled(u, lanes, 1.0), filled(u, lanes, -_LARGEST)
    found = one / (one + _exponential(filled(u, lanes, 0.0) - u, lanes))
    return where(u > least, found, filled(u, lanes, 0.0))


_LARGEST = 88.0  # whose exponential is a float32
_LOG2_UPPER, _LOG2_REST = 0.693359375, -2.12194440e-4  # log 2; products of the first are exact
# Of (exp(r) − 1 − r) / r² where |r| ≤ log(2) / 2: Cephes' expf.
_SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)


@compiled
def _exponential(x, lanes):  # type: ignore[no-untyped-def]
    """exp(x) = 2ⁿ exp(r), x = n log 2 + r, of float32; beyond ±`_LARGEST` what it is there."""
    most, least = filled(x, lanes, _LARGEST), filled(x, lanes, -_LARGEST)
    x = where(x > most, most, where(x > least, x, least))
    shifted = x * filled(x, lanes, 1.44269504) + rounding(x)  # n, in its last bits
    n = shifted - rounding(x)
    r = x - n * filled(x, lanes, _LOG2_UPPER) - n * filled(x, lanes, _LOG2_REST)
    series = filled(x, lanes, _SERIES[0])
    for k in range(1, len(_SERIES)):
        series = multiply_add(series, r, filled(x, lanes, _SERIES[k]))
    return doubled(multiply_add(series * r, r, r + filled(x, lanes, 1.0)), shifted)


@compiled
def _above(one, other):  # type: ignore[no-untyped-def]
    """Where `one` is greater or not a number: what is none stays none."""
    return (one > other) | (one != one)


@compiled
def _add(sums, at, more, lanes):  # type: ignore[no-untyped-def]
    store(sums, at, bits(sums, at, lanes) + wide(more))


# -- statistics ------------------------------------------------------------------------------------


@compiled
def moments(x, C, pixels, lanes, found, start, stop):  # type: ignore[no-untyped-def]
    """Means and sums of squared deviations of the chunks from `start` to before `stop`.

    `found` `[chunks, 2, slots]`, zeros. A chunk is `PARTS` times `pixels`; each of these parts is
    read twice, the second time from the cache, and they are put together as in Chan et al. 1979.
    """
    K = len(lanes)
    blocks = -(-C // K)
    P = len(x) // C
    for part in range(start * PARTS, min(stop * PARTS, -(-P // pixels))):
        n = min(pixels, P - part * pixels)
        before = part % PARTS * pixels
        share = n / (before + n)
        for block in range(blocks):
            first = part * pixels * C + min(block * K, C - K)
            mean = _mean(x, first, C, n, lanes)
            rest, squares = _deviations(x, first, C, n, lanes, mean)
            to_mean = (part // PARTS * 2 * blocks + block) * K
            to_squares = to_mean + blocks * K
            old = bits(found, to_mean, lanes)
            rest = rest * filled(rest, lanes, 1 / n)
            away = wide(mean) + rest - old
            squares = squares - rest * rest * filled(rest, lanes, float(n))
            squares = squares + away * away * filled(away, lanes, before * share)
            store(found, to_mean, old + away * filled(away, lanes, share))
            store(found, to_squares, bits(found, to_squares, lanes) + squares)


@compiled
def _mean(x, at, C, n, lanes):  # type: ignore[no-untyped-def]
    """Of `n` pixels, up to rounding. Several sums do not wait for each other."""
    a = filled(number(bits(x, at, lanes)), lanes, 0.0)
    b, c, d = a, a, a
    for _ in range(n // 4):
        a += number(bits(x, at, lanes))
        b += number(bits(x, at + C, lanes))
        c += number(bits(x, at + 2 * C, lanes))
        d += number(bits(x, at + 3 * C, lanes))
        at += 4 * C
    for _ in range(n % 4):
        a += number(bits(x, at, lanes))
        at += C
    return ((a + b) + (c + d)) * filled(a, lanes, 1 / n)


@compiled
def _deviations(x, at, C, n, lanes, mean):  # type: ignore[no-untyped-def]
    """Σ (x − mean) and Σ (x − mean)² of `n` pixels."""
    a = filled(mean, lanes, 0.0)
    b, aa, bb = a, a, a
    for _ in range(n // 2):
        prefetch(x, at + n * C)
        prefetch(x, at + n * C + C)
        one, two = _away(x, at, lanes, mean), _away(x, at + C, lanes, mean)
        a += one
        b += two
        aa += one * one
        bb += two * two
        at += 2 * C
    if n % 2:
        one = _away(x, at, lanes, mean)
        a += one
        aa += one * one
    return wide(a + b), wide(aa + bb)


@compiled
def _away(x, at, lanes, mean):  # type: ignore[no-untyped-def]
    return number(bits(x, at, lanes)) - mean


# -- numbers of channels ---------------------------------------------------------------------------
#
# `exact` `[4, C]` holds μ, what rounding leaves of μ in `factors`, r and a.


@compiled
def put_together(found, slots, n, chunk, mean, var):  # type: ignore[no-untyped-def]
    """Mean and variance of `n` pixels, `[C]` each, of what `moments` has `found` in every chunk."""
    for c in range(len(slots)):
        mean[c], var[c] = 0.0, 0.0
        for k in range(len(found)):
            mean[c] += min(n - k * chunk, chunk) / n * found[k, 0, slots[c]]
        for k in range(len(found)):
            away = found[k, 0, slots[c]] - mean[c]
            var[c] += found[k, 1, slots[c]] / n + min(n - k * chunk, chunk) / n * away * away


@compiled
def track(running, new, share, factor):  # type: ignore[no-untyped-def]
    """Move `running` by `share` of the way to `factor` times `new`."""
    for c in range(len(running)):
        running[c] = (1 - share) * running[c] + share * (new[c] * factor)


@compiled
def plan(mean, var, weight, bias, eps, exact, factors):  # type: ignore[no-untyped-def]
    """Write `exact` and `factors` of the forward pass; `weight` and `bias` may be empty."""
    C = len(mean)
    for c in range(C):
        factors[c] = mean[c]
        rest = mean[c] - np.float64(factors[c])
        scale = 1 / math.sqrt(var[c] + eps)
        gain = scale * weight[c] if len(weight) else scale
        exact[0, c], exact[1, c], exact[2, c], exact[3, c] = mean[c], rest, scale, gain
        factors[C + c] = gain
        factors[2 * C + c] = (bias[c] if len(bias) else 0.0) - rest * gain


@compiled
def total(sums, slots, n, batch, exact, of_weight, of_bias, factors):  # type: ignore[no-untyped-def]
    """Gradients of γ and β from the `sums` of `add_up`, and `factors` of the backward pass."""
    C = len(slots)
    for c in range(C):
        by_1, by_x = 0.0, 0.0
        for k in range(len(sums)):
            by_1 += sums[k, 0, slots[c]]
            by_x += sums[k, 1, slots[c]]
        rest, scale, gain = exact[1, c], exact[2, c], exact[3, c]
        by_x = (by_x - rest * by_1) * scale
        of_weight[c], of_bias[c] = by_x, by_1
        away = -gain * scale * by_x / n if batch else 0.0
        always = -gain * by_1 / n - away * rest if batch else 0.0
        factors[3 * C + c], factors[4 * C + c], factors[5 * C + c] = gain, away, always


# -- without pooling -------------------------------------------------------------------------------


@compiled
def apply(  # type: ignore[no-untyped-def]
    x, shortcut, C, pixels, lanes, act, factors, out, start, stop
):
    """The activation of u = a (x − μ) + b + shortcut of the chunks of `pixels`."""
    K = len(lanes)
    for chunk in range(start, stop):
        for block in range(-(-C // K)):
            channel = min(block * K, C - K)
            mean, a = bits(factors, channel, lanes), bits(factors, C + channel, lanes)
            b = bits(factors, 2 * C + channel, lanes)
            at = chunk * pixels * C + channel
            while at < min((chunk + 1) * pixels * C, len(x)):
                prefetch(x, at + pixels * C)
                prefetch(out, at + pixels * C)
                u = _away(x, at, lanes, mean) * a + b
                if len(shortcut):
                    prefetch(shortcut, at + pixels * C)
                    u += number(bits(shortcut, at, lanes))
                store(out, at, _activated(u, act, lanes))
                at += C


@compiled
def add_up(  # type: ignore[no-untyped-def]
    x, shortcut, g, C, pixels, lanes, act, factors, sums, start, stop
):
    """Σ g' and Σ g' (x − μ) of `PARTS` chunks each, `[…, 2, slots]`, zeros; g' = ∂u of `apply`."""
    K = len(lanes)
    blocks = -(-C // K)
    for chunk in range(start * PARTS, min(stop * PARTS, -(-len(x) // (C * pixels)))):
        for block in range(blocks):
            channel = min(block * K, C - K)
            mean, a = bits(factors, channel, lanes), bits(factors, C + channel, lanes)
            b = bits(factors, 2 * C + channel, lanes)
            zero = filled(mean, lanes, 0.0)
            total, by_x = zero, zero
            at = chunk * pixels * C + channel
            while at < min((chunk + 1) * pixels * C, len(x)):
                prefetch(x, at + pixels * C)
                prefetch(g, at + pixels * C)
                away = _away(x, at, lanes, mean)
                u = away * a + b
                if len(shortcut):
                    prefetch(shortcut, at + pixels * C)
                    u += number(bits(shortcut, at, lanes))
                passed = _passed(number(bits(g, at, lanes)), u, act, lanes)
                total += passed
                by_x += passed * away
                at += C
            _add(sums, (chunk // PARTS * 2 * blocks + block) * K, total, lanes)
            _add(sums, ((chunk // PARTS * 2 + 1) * blocks + block) * K, by_x, lanes)


@compiled
def gradients(  # type: ignore[no-untyped-def]
    x, shortcut, g, C, pixels, lanes, act, factors, of_x, of_shortcut, start, stop
):
    """A g' + S (x − μ) + D and g' of the chunks."""
    K = len(lanes)
    for chunk in range(start, stop):
        for block in range(-(-C // K)):
            channel = min(block * K, C - K)
            mean, a = bits(factors, channel, lanes), bits(factors, C + channel, lanes)
            b, by_g = bits(factors, 2 * C + channel, lanes), bits(factors, 3 * C + channel, lanes)
            by_x, by_1 = (
                bits(factors, 4 * C + channel, lanes),
                bits(factors, 5 * C + channel, lanes),
            )
            at = chunk * pixels * C + channel
            while at < min((chunk + 1) * pixels * C, len(x)):
                prefetch(x, at + pixels * C)
                prefetch(g, at + pixels * C)
                prefetch(of_x, at + pixels * C)
                away = _away(x, at, lanes, mean)
                u = away * a + b
                if len(shortcut):
                    prefetch(shortcut, at + pixels * C)
                    u += number(bits(shortcut, at, lanes))
                passed = _passed(number(bits(g, at, lanes)), u, act, lanes)
                store(of_x, at, passed * by_g + (away * by_x + by_1))
                if len(of_shortcut):
                    store(of_shortcut, at, passed)
                at += C


# -- with pooling ----------------------------------------------------------------------------------
#
# `which` `[B, H // 2, W // 2, C]`: the place in its window of every output, 0 to 3 in reading
# order, and 4 more where the activation's input there was not positive. A row of windows is short:
# the next one is asked for early, because the processor does not foresee where it begins.


@compiled
def apply_pooled(  # type: ignore[no-untyped-def]
    x, shortcut, H, W, C, lanes, act, factors, out, which, start, stop
):
    """2×2 max-pooling of what `apply` gives of the images from `start` to before `stop`.

    An activation keeps the order of numbers, and comes after it.
    """
    K = len(lanes)
    h, w = H // 2, W // 2
    for row in range(start * h, stop * h):
        for block in range(-(-C // K)):
            channel = min(block * K, C - K)
            mean, a = bits(factors, channel, lanes), bits(factors, C + channel, lanes)
            b = bits(factors, 2 * C + channel, lanes)
            at = _upper(row, h, H, W) * C + channel
            to = row * w * C + channel
            for _ in range(w):
                _ask_for_next(x, at, W, C)
                first = _away(x, at, lanes, mean) * a + b
                second = _away(x, at + C, lanes, mean) * a + b
                third = _away(x, at + W * C, lanes, mean) * a + b
                fourth = _away(x, at + W * C + C, lanes, mean) * a + b
                if len(shortcut):
                    _ask_for_next(shortcut, at, W, C)
                    first += number(bits(shortcut, at, lanes))
                    second += number(bits(shortcut, at + C, lanes))
                    third += number(bits(shortcut, at + W * C, lanes))
                    fourth += number(bits(shortcut, at + W * C + C, lanes))
                right, below_right = _above(second, first), _above(fourth, third)
                upper, lower = where(right, second, first), where(below_right, fourth, third)
                below = _above(lower, upper)
                u = where(below, lower, upper)
                store(out, to, _activated(u, act, lanes))
                if len(which):
                    in_upper = where(right, filled(which, lanes, 1), filled(which, lanes, 0))
                    in_lower = where(below_right, filled(which, lanes, 3), filled(which, lanes, 2))
                    place = where(below, in_lower, in_upper)
                    positive = u > filled(u, lanes, 0.0)
                    store(which, to, where(positive, place, place | filled(which, lanes, 4)))
                at += 2 * C
                to += C


@compiled
def add_up_pooled(  # type: ignore[no-untyped-def]
    x, g, which, H, W, C, lanes, act, factors, images, sums, start, stop
):
    """As `add_up`, of `images` each."""
    K = len(lanes)
    blocks = -(-C // K)
    h, w = H // 2, W // 2
    for row in range(start * images * h, min(stop * images * h, len(x) // (H * W * C) * h)):
        for block in range(blocks):
            channel = min(block * K, C - K)
            mean = bits(factors, channel, lanes)
            total = filled(mean, lanes, 0.0)
            by_x = total
            at = _upper(row, h, H, W) * C + channel
            to = row * w * C + channel
            for _ in range(w):
                _ask_for_next(x, at, W, C)
                prefetch(g, to + w * C)
                prefetch(which, to + w * C)
                place = bits(which, to, lanes)
                passed = _of_window(g, place, to, act, lanes)
                place = place & filled(place, lanes, 3)
                best = bits(x, at, lanes)
                best = where(place == filled(place, lanes, 1), bits(x, at + C, lanes), best)
                best = where(place == filled(place, lanes, 2), bits(x, at + W * C, lanes), best)
                best = where(place == filled(place, lanes, 3), bits(x, at + W * C + C, lanes), best)
                total += passed
                by_x += passed * (number(best) - mean)
                at += 2 * C
                to += C
            group = row // (images * h)
            _add(sums, (group * 2 * blocks + block) * K, total, lanes)
            _add(sums, ((group * 2 + 1) * blocks + block) * K, by_x, lanes)


@compiled
def gradients_pooled(  # type: ignore[no-untyped-def]
    x, g, which, H, W, C, lanes, act, factors, of_x, of_shortcut, start, stop
):
    """As `gradients`, of the images from `start` to before `stop`."""
    K = len(lanes)
    h, w = H // 2, W // 2
    for row in range(start * h, stop * h):
        for block in range(-(-C // K)):
            channel = min(block * K, C - K)
            mean, by_g = bits(factors, channel, lanes), bits(factors, 3 * C + channel, lanes)
            by_x, by_1 = (
                bits(factors, 4 * C + channel, lanes),
                bits(factors, 5 * C + channel, lanes),
            )
            zero = filled(mean, lanes, 0.0)
            at = _upper(row, h, H, W) * C + channel
            to = row * w * C + channel
            for _ in range(w):
                _ask_for_next(x, at, W, C)
                _ask_for_next(of_x, at, W, C)
                prefetch(g, to + w * C)
                prefetch(which, to + w * C)
                place = bits(which, to, lanes)
                passed = _of_window(g, place, to, act, lanes)
                place = place & filled(place, lanes, 3)
                for below in range(2):
                    for right in range(2):
                        here = at + (below * W + right) * C
                        own = place == filled(place, lanes, 2 * below + right)
                        given = where(own, passed, zero)
                        rest = _away(x, here, lanes, mean) * by_x + by_1
                        store(of_x, here, given * by_g + rest)
                        if len(of_shortcut):
                            store(of_shortcut, here, given)
                at += 2 * C
                to += C
    for line in range(start * H, stop * H):
        # What an odd side leaves over is in no window.
        for pixel in range(2 * w if line % H < 2 * h else 0, W):
            for block in range(-(-C // K)):
                channel = min(block * K, C - K)
                mean = bits(factors, channel, lanes)
                by_x = bits(factors, 4 * C + channel, lanes)
                by_1 = bits(factors, 5 * C + channel, lanes)
                at = (line * W + pixel) * C + channel
                store(of_x, at, _away(x, at, lanes, mean) * by_x + by_1)
                if len(of_shortcut):
                    store(of_shortcut, at, filled(mean, lanes, 0.0))


@compiled
def _of_window(g, place, at, act, lanes):  # type: ignore[no-untyped-def]
    """The gradient of a window's greatest input."""
    positive = filled(place, lanes, 4) > place
    return _sloped(number(bits(g, at, lanes)), positive, act[1], lanes)


@compiled
def _upper(row, h, H, W):  # type: ignore[no-untyped-def]
    """The pixel where row `row` of all windows begins."""
    return (row // h * H + row % h * 2) * W


@compiled
def _ask_for_next(x, at, W, C):  # type: ignore[no-untyped-def]
    """What lies two lines below the window at `at`."""
    for pixel in range(2):
        prefetch(x, at + (2 * W + pixel) * C)
        prefetch(x, at + (3 * W + pixel) * C)

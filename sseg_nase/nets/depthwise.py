"""Depthwise convolutions, trained on a CPU in a fraction of torch's time.

oneDNN, by which torch convolves there, finds the gradient of their weights slowly: small maps,
5×5 kernels and dilated ones took ten times as long as the forward pass, and were a third of a
training step of a MobileNetV3. Here one pass over both maps for every weight gives it; the forward
pass and the gradient of the input are torch's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.hardware.compiled import compiled, in_blocks
from sseg_nase.hardware.vectors import bits, filled, multiply_add, store
from sseg_nase.nets.fused import computed_here, flat, lanes_of

_PART = 2048  # numbers that are summed before sums become float64
_USUAL = ((3, 3), (1, 1), (1, 1), (1, 1))  # sides, stride, padding and dilation
_NEAR = 256  # pixels of a few channels, in the nearest cache for all weights

Pair = tuple[int, int]


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of every channel by itself; torch's wherever the kernel here does not fit.

    It fits channels-last float32 in a CPU's memory, without a bias and padded by zeros. The sums do
    not depend on the number of threads. The gradient can itself be differentiated.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C, H', W']`."""
        if not self._fits(input):
            return super().forward(input)
        out: Tensor = _Depthwise.apply(input, self.weight, self.stride, self.padding, self.dilation)
        return out

    def _fits(self, x: Tensor) -> bool:
        return (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            and computed_here(x)
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and self.bias is None
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel has one filter of its own, of more than one weight."""
    alone = conv.groups == conv.in_channels == conv.out_channels > 1
    return alone and conv.kernel_size != (1, 1)


class _Depthwise(torch.autograd.Function):
    """∂w[c, i, j] = Σ g[n, c, p, q] x[n, c, s p + d i − b, s q + d j − b], where x has that pixel:
    stride s, dilation d and b zeros before.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, dilation
        return torch.conv2d(x, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.settings
        of_x, of_weight = (_asked_for(node) for node, _ in ctx.next_functions[:2])

        def of_torch(*asked: bool) -> Any:
            return torch.ops.aten.convolution_backward(
                g, x, weight, None, stride, padding, dilation, False, [0, 0], len(weight), asked
            )[:2]

        if torch.is_grad_enabled():  # by operations that have gradients themselves
            return *of_torch(of_x, of_weight, False), None, None, None
        found: list[Tensor | None] = [None] * 5
        if of_x and dilation != (1, 1) and stride == (1, 1):
            found[0] = _turned_round(g, weight, padding, dilation)
        elif of_x:
            found[0] = of_torch(True, False, False)[0]
        if of_weight:
            found[1] = weight_gradient(x, g, weight.shape[2:], stride, padding, dilation)
        return tuple(found)


def _turned_round(g: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Tensor:
    """∂x of a convolution without a stride: one of `g` with the weights in reverse order.

    torch's forward pass of a dilated one takes a fraction of the time of its gradient of the input.
    """
    reach = [d * (side - 1) for d, side in zip(dilation, weight.shape[2:], strict=True)]
    around = [whole - before for whole, before in zip(reach, padding, strict=True)]
    inner = [max(0, one) for one in around]
    turned = torch.conv2d(g, weight.flip((2, 3)), None, 1, inner, dilation, len(weight))
    down, right = (max(0, -one) for one in around)  # zeros beyond what weights reach from a pixel
    return turned[:, :, down : turned.shape[2] - down, right : turned.shape[3] - right]


def _asked_for(node: Any) -> bool:
    """Whether the pass that is running goes on to `node`, as to torch's own operators: a step of
    gates differentiates no weights. (`needs_input_grad` says what could be asked for.)
    """
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf, whose gradient is returned
        return True


def weight_gradient(
    x: Tensor, g: Tensor, sides: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """∂w `[C, 1, *sides]` of float32 `[B, C, H, W]` and the gradient `[B, C, P, Q]` of its map."""
    B, C, *size = x.shape
    pixels = g.shape[2] * g.shape[3]
    lanes, slots = lanes_of(C)
    images = max(1, _PART // pixels)
    taps = sides[0] * sides[1]
    found = np.zeros((-(-B // images), taps, len(lanes) * -(-C // len(lanes))), np.float32)
    numbers, near = (flat(x), flat(g)), max(1, _NEAR // pixels)
    how = tuple(sides), stride, padding, dilation
    if how == _USUAL:
        add_up = partial(_add_up_threes, *numbers, *size)
    else:
        add_up = partial(_add_up, *numbers, tuple(size), tuple(g.shape[2:]), *how)
    in_blocks(partial(add_up, B, C, lanes, images, near, found.reshape(-1)), len(found))
    sums = found.sum(0, dtype=np.float64)[:, slots].T
    return torch.from_numpy(sums.astype(np.float32)).view(C, 1, *sides)


@compiled
def _add_up(  # type: ignore[no-untyped-def]
    x, g, size, to, sides, stride, padding, dilation, B, C, lanes, images, near, found, start, stop
):
    """Sums of the parts from `start` to before `stop`, of as many `images` each.

    `found` `[parts, weights, slots]`, zeros. `near` images at a time stay in the cache.
    """
    (H, W), (P, Q), K = size, to, len(lanes)
    blocks, step = -(-C // K), stride[1] * C
    for part in range(start, stop):
        last = min((part + 1) * images, B)
        for first in range(part * images, last, near):
            for block in range(blocks):
                channel = min(block * K, C - K)
                for i in range(sides[0]):
                    top = i * dilation[0] - padding[0]
                    p_from, p_to = _inside(top, stride[0], H, P)
                    for j in range(sides[1]):
                        left = j * dilation[1] - padding[1]
                        q_from, q_to = _inside(left, stride[1], W, Q)
                        a = filled(x, lanes, 0.0)
                        b, c, d = a, a, a  # sums that do not wait for each other
                        for n in range(first, min(first + near, last)):
                            for p in range(p_from, p_to):
                                row = (n * H + p * stride[0] + top) * W + left
                                at = (row + q_from * stride[1]) * C + channel
                                on = ((n * P + p) * Q + q_from) * C + channel
                                for _ in range((q_to - q_from) // 4):
                                    a = _plus(a, x, at, g, on, lanes)
                                    b = _plus(b, x, at + step, g, on + C, lanes)
                                    c = _plus(c, x, at + 2 * step, g, on + 2 * C, lanes)
                                    d = _plus(d, x, at + 3 * step, g, on + 3 * C, lanes)
                                    at += 4 * step
                                    on += 4 * C
                                for _ in range((q_to - q_from) % 4):
                                    a = _plus(a, x, at, g, on, lanes)
                                    at += step
                                    on += C
                        slot = ((part * sides[0] + i) * sides[1] + j) * blocks + block
                        total = bits(found, slot * K, lanes) + ((a + b) + (c + d))
                        store(found, slot * K, total)


@compiled
def _inside(offset, stride, size, count):  # type: ignore[no-untyped-def]
    """Those of `count` places whose pixel, `stride` · place + `offset`, the map of `size` has."""
    first = max(0, -(offset // stride))
    return first, max(first, min(count, (size - 1 - offset) // stride + 1))


@compiled
def _plus(sums, x, at, g, on, lanes):  # type: ignore[no-untyped-def]
    return multiply_add(bits(x, at, lanes), bits(g, on, lanes), sums)


@compiled
def _add_up_threes(  # type: ignore[no-untyped-def]
    x, g, H, W, B, C, lanes, images, near, found, start, stop
):
    """As `_add_up` of the usual ones. A pixel is read once for the three weights of a row."""
    K = len(lanes)
    blocks = -(-C // K)
    for part in range(start, stop):
        last = min((part + 1) * images, B)
        for first in range(part * images, last, near):
            for block in range(blocks):
                channel = min(block * K, C - K)
                for i in range(3):
                    zero = filled(x, lanes, 0.0)
                    a, b, c = zero, zero, zero
                    for n in range(first, min(first + near, last)):
                        for p in range(max(0, 1 - i), min(H, H + 1 - i)):
                            at = (n * H + p + i - 1) * W * C + channel
                            on = (n * H + p) * W * C + channel
                            before, here = zero, bits(x, at, lanes)
                            for _ in range(W - 1):
                                at += C
                                after, of = bits(x, at, lanes), bits(g, on, lanes)
                                a = multiply_add(before, of, a)
                                b = multiply_add(here, of, b)
                                c = multiply_add(after, of, c)
                                before, here = here, after
                                on += C
                            of = bits(g, on, lanes)
                            a = multiply_add(before, of, a)
                            b = multiply_add(here, of, b)
                    slot = ((part * 3 + i) * 3 * blocks + block) * K
                    store(found, slot, bits(found, slot, lanes) + a)
                    slot += blocks * K
                    store(found, slot, bits(found, slot, lanes) + b)
                    slot += blocks * K
                    store(found, slot, bits(found, slot, lanes) + c)

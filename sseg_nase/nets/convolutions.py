"""Convolutions that are right, and fast, when a network is trained on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.nets.depthwise import DepthwiseConv2d, is_depthwise

AT_ONCE = 16  # channels


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution with a stride that reads no pixel it skips.

    oneDNN, by which torch convolves on processors with AVX2, writes behind its buffer in the
    backward pass of a channels-last one with fewer input channels than it takes at once (8 or 16):
    the gradient is wrong, or the process dies (uxlfoundation/oneDNN, issue 6035). The pixels that
    are skipped are therefore left out before it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', ⌈H / stride⌉, ⌈W / stride⌉]`."""
        few = self.in_channels // self.groups < AT_ONCE
        if not (few and torch.is_grad_enabled() and input.device.type == "cpu"):
            return super().forward(input)
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias, groups=self.groups)


def for_cpu(module: nn.Module) -> nn.Module:
    """The same module, its convolutions being those that are right and fast on a CPU.

    1×1 ones with a stride become `PointwiseConv2d`, depthwise ones `DepthwiseConv2d`.
    """
    for each in module.modules():
        if type(each) is not nn.Conv2d:
            continue
        if each.kernel_size == (1, 1) != each.stride and each.padding == (0, 0):
            each.__class__ = PointwiseConv2d
        elif is_depthwise(each):
            each.__class__ = DepthwiseConv2d
    return module

"""1×1 convolutions with a stride, trained on a CPU without writing past the end of memory.

oneDNN, by which torch convolves on processors with AVX2, writes behind its buffer in the backward
pass of a channels-last 1×1 convolution with a stride and fewer input channels than it takes at once
(8 or 16): the gradient is wrong, or the process dies (uxlfoundation/oneDNN, issue 6035). The pixels
that such a convolution skips are therefore left out before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = 16  # channels


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution with a stride that reads no pixel it skips."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', ⌈H / stride⌉, ⌈W / stride⌉]`."""
        few = self.in_channels // self.groups < AT_ONCE
        if not (few and torch.is_grad_enabled() and input.device.type == "cpu"):
            return super().forward(input)
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias, groups=self.groups)


def guarded(module: nn.Module) -> nn.Module:
    """The same module, its 1×1 convolutions with a stride being such."""
    for each in module.modules():
        strided = type(each) is nn.Conv2d and each.kernel_size == (1, 1) != each.stride
        if strided and each.padding == (0, 0):
            each.__class__ = PointwiseConv2d
    return module

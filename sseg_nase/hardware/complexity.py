"""Parameters and multiply-accumulates of a network; flops = 2 × macs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sseg_nase.hardware.measuring import blank_images, eval_mode


def count_params(module: nn.Module) -> int:
    """Return the number of trainable parameters; a shared one counts once."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def count_macs(module: nn.Module, resolution: int, in_channels: int = 3) -> int:
    """Return the multiply-accumulates of one image `[1, C, resolution, resolution]` in eval mode.

    Counted at the operators that run (convolutions and matrix products), so functional calls
    inside a `forward` count like layers; element-wise work, norms and pooling count nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton

    images = blank_images(module, resolution, in_channels=in_channels)
    counter = FlopCounterMode(display=False)
    with eval_mode(module), torch.no_grad(), _visible_attention(), counter:
        module(images)
    return counter.get_total_flops() // 2


@contextmanager
def _visible_attention() -> Iterator[None]:
    """Switch off the fused attention of eval mode: the counter would see nothing of it."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)

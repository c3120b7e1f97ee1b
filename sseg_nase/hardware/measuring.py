"""What counting and timing share: where a network lies, what goes in, and leaving no trace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` into eval mode, and each of its parts back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Return the device of `module`'s first parameter or buffer (CPU when it has none)."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def blank_images(
    module: nn.Module, resolution: int, batch: int = 1, in_channels: int = 3
) -> Tensor:
    """Black images `[B, C, H, W]` in the dtype and on the device of `module`."""
    weights = next(module.parameters(), None)
    dtype = torch.float32 if weights is None else weights.dtype
    shape = (batch, in_channels, resolution, resolution)
    return torch.zeros(shape, dtype=dtype, device=device_of(module))

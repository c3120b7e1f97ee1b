"""Grey images: one channel, the luminance of the colours."""

from __future__ import annotations

import torch

# Of red, green and blue in 65536ths, and the half that rounds: ITU-R BT.601 as Pillow has it.
_WEIGHTS, _HALF = (19595, 38470, 7471), 1 << 15


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Colour images uint8 `[B, 3, H, W]` → grey ones uint8 `[B, 1, H, W]`, as Pillow's mode L."""
    red, green, blue = (images[:, i : i + 1].to(torch.int32) * w for i, w in enumerate(_WEIGHTS))
    return ((red + green + blue + _HALF) >> 16).to(torch.uint8)


def of_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Colour images uint8 `[B, 3, H, W]` with 1 or 3 `channels`."""
    return images if channels == 3 else luminance(images)

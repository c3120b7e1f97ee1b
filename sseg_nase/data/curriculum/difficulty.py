"""How hard an image is: edges, colours and fine detail, each in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

EDGE_WEIGHT, COLOUR_WEIGHT, FREQUENCY_WEIGHT = 0.4, 0.3, 0.3
HIGH_FREQUENCY_RADIUS = 0.25  # cycles per pixel: half of the highest frequency along an axis
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_ROUNDING_ENERGY = 1e-12  # per pixel: what float32 leaves of a flat image, and less than any detail


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of B images; every tensor is float32 [B] in [0, 1]."""

    edge_density: torch.Tensor
    colour_variance: torch.Tensor
    high_frequency: torch.Tensor

    @property
    def score(self) -> torch.Tensor:
        """0.4 · edge density + 0.3 · colour variance + 0.3 · high-frequency energy."""
        return (
            EDGE_WEIGHT * self.edge_density
            + COLOUR_WEIGHT * self.colour_variance
            + FREQUENCY_WEIGHT * self.high_frequency
        )


def _edge_density(grey: torch.Tensor) -> torch.Tensor:
    """Mean Sobel magnitude over the inner pixels / 4; 4 is a straight black-white edge."""
    kernel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    slopes = F.conv2d(grey[:, None], torch.stack([kernel, kernel.T])[:, None])
    return (slopes.square().sum(dim=1).sqrt() / 4).mean(dim=(1, 2)).clamp(0, 1)


def _colour_variance(images: torch.Tensor) -> torch.Tensor:
    """Mean over channels of the variance over pixels, times 4; 1/4 is the largest variance."""
    return (4 * images.var(dim=(2, 3), correction=0).mean(dim=1)).clamp(0, 1)


def _high_frequency(grey: torch.Tensor) -> torch.Tensor:
    """Share of the spectral energy, without the mean, above HIGH_FREQUENCY_RADIUS."""
    height, width = grey.shape[1:]
    centred = grey - grey.mean(dim=(1, 2), keepdim=True)
    energy = torch.fft.fft2(centred, norm="ortho").abs().square()
    rows = torch.fft.fftfreq(height, device=grey.device)[:, None]
    columns = torch.fft.fftfreq(width, device=grey.device)
    high = rows**2 + columns**2 > HIGH_FREQUENCY_RADIUS**2
    total = energy.sum(dim=(1, 2))
    share = (energy * high).sum(dim=(1, 2)) / total.clamp(min=1e-12)
    return torch.where(total > _ROUNDING_ENERGY * height * width, share, 0).clamp(0, 1)


@torch.no_grad()
def difficulty(images: torch.Tensor) -> Difficulty:
    """Measure images [B, 3, H, W], uint8 in 0..255 or float in [0, 1]; H and W at least 3.

    Edge density is the mean Sobel magnitude of the grey image divided by 4, colour variance the
    mean per-channel variance times 4, high frequency the share of the grey image's spectral
    energy (mean removed) above 0.25 cycles per pixel; 0 for a flat image.
    """
    assert images.shape[1:2] == (3,), f"expected [B, 3, H, W], got {images.shape}"
    floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    with torch.autocast(images.device.type, enabled=False):
        grey = torch.einsum("bchw,c->bhw", floats, floats.new_tensor(_LUMA))
        return Difficulty(_edge_density(grey), _colour_variance(floats), _high_frequency(grey))

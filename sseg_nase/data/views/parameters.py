"""What is done to each view: drawn for a whole batch at once, and a function of the seed alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.random import derive

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_CROP_ATTEMPTS = 10  # as torchvision: then the largest central crop of an accepted ratio
_BLUR_SHARE = 0.1  # of the image side: SimCLR's kernel size


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of N views; tensors [N] on the CPU, boxes in pixels."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flip: torch.Tensor  # bool
    order: torch.Tensor  # int64 [N, 4], of BRIGHTNESS, CONTRAST, SATURATION and HUE
    brightness: torch.Tensor  # factor; 1 changes nothing
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor  # turns in [-0.5, 0.5]; 0 changes nothing
    grey: torch.Tensor  # bool
    sigma: torch.Tensor  # of the blur in pixels; 0 changes nothing

    def __getitem__(self, rows: torch.Tensor) -> ViewParameters:
        return ViewParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw_parameters(
    count: int, views: ViewsConfig, *, height: int, width: int, seed: int
) -> ViewParameters:
    """Draw the parameters of `count` independent views of images [height, width]."""
    generator = torch.Generator().manual_seed(derive(seed, "views"))
    top, left, h, w = _draw_boxes(count, views, height, width, generator)
    u = torch.rand(13, count, generator=generator)
    jittered = u[0] < views.jitter

    def factor(draw: torch.Tensor, reach: float) -> torch.Tensor:
        return torch.where(jittered, 1 + (2 * draw - 1) * reach, 1.0)

    low, high = views.blur_sigma
    return ViewParameters(
        top=top,
        left=left,
        height=h,
        width=w,
        flip=u[1] < views.flip,
        order=u[9:].argsort(dim=0).T,
        brightness=factor(u[2], views.brightness),
        contrast=factor(u[3], views.contrast),
        saturation=factor(u[4], views.saturation),
        hue=torch.where(jittered, (2 * u[5] - 1) * views.hue, 0.0),
        grey=u[6] < views.grey,
        sigma=torch.where(u[7] < views.blur, low + u[8] * (high - low), 0.0),
    )


def blur_kernel_size(image_size: int) -> int:
    """Odd number of taps of the blur: a tenth of the image side, at least 3."""
    return max(3, 2 * int(image_size * _BLUR_SHARE / 2) + 1)


def _draw_boxes(
    count: int, views: ViewsConfig, height: int, width: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Boxes as torchvision's RandomResizedCrop draws them: top, left, height, width."""
    drawn = torch.rand(2, count, _CROP_ATTEMPTS, generator=generator, dtype=torch.float64)
    low, high = views.crop_scale
    narrow, wide = views.crop_ratio
    area = height * width * (low + drawn[0] * (high - low))
    logs = torch.tensor([narrow, wide], dtype=torch.float64).log()
    ratio = (logs[0] + drawn[1] * (logs[1] - logs[0])).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    # The last column is what is left when no attempt fits: the central crop.
    share = width / height
    last_w = width if share <= wide else round(height * wide)
    last_h = height if share >= narrow else round(width / narrow)
    w, h = (F.pad(x, (0, 1), value=last) for x, last in ((w, last_w), (h, last_h)))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    place = torch.rand(2, count, generator=generator, dtype=torch.float64)
    fallen = first[:, 0] == _CROP_ATTEMPTS
    top = torch.where(fallen, (height - h) / 2, place[0] * (height - h + 1)).floor()
    left = torch.where(fallen, (width - w) / 2, place[1] * (width - w + 1)).floor()
    return tuple(x.to(torch.float32) for x in (top, left, h, w))

"""What is done to each view: sampled for a whole batch, and a function of the seed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.random import derive, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_CROP_ATTEMPTS = 10  # as torchvision: then the largest central crop of an accepted ratio
_BLUR_SHARE = 0.1  # of the image side: SimCLR's kernel size
_ERASE_RATIO = (0.3, 3.3)  # of height and width of what is erased: torchvision's
_PAPER = {"dark": 1.0, "light": 0.0}  # by the ink


@dataclass(frozen=True)
class Strokes:
    """What is done to each of N views of drawings; tensors [N] on the CPU."""

    angle: torch.Tensor  # degrees clockwise about the centre
    shift_x: torch.Tensor  # to the right, in sides of the view
    shift_y: torch.Tensor  # down, in sides of the view
    zoom: torch.Tensor  # about the centre; 1 changes nothing
    radius: torch.Tensor  # pixels that strokes grow by on all sides; below 0: shrink
    erased: torch.Tensor  # [N, 4]: top and left, shares of the room there is; height and width
    paper: torch.Tensor  # what is around the ink, 1 or 0: fills what is erased or out of the image

    def __getitem__(self, rows: torch.Tensor) -> Strokes:
        return Strokes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def moved(self) -> torch.Tensor:
        """Which views are rotated, shifted or zoomed, bool [N]."""
        return (self.angle != 0) | (self.shift_x != 0) | (self.shift_y != 0) | (self.zoom != 1)

    def erased_boxes(self, size: int) -> torch.Tensor:
        """Top, left, height and width of what is erased of views of `size`, int64 [N, 4]."""
        place, sides = self.erased[:, :2], self.erased[:, 2:]
        sides = (sides * size).round()
        return torch.cat(((place * (size - sides + 1)).floor(), sides), dim=1).long()


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
    strokes: Strokes | None  # of drawings; photographs have none and pay for none

    def __getitem__(self, rows: torch.Tensor) -> ViewParameters:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "strokes"}
        return ViewParameters(
            **{name: tensor[rows] for name, tensor in values.items()},
            strokes=self.strokes and self.strokes[rows],
        )

    def places(self, size: int) -> torch.Tensor:
        """Where in the image a moved view of `size` S is sampled: float32 matrices [N, 2, 3].

        Pixel (column, row) = matrix · (j, i, 1) for column j and row i of the view: the box is
        resized to the view, flipped, zoomed and rotated about its centre, then shifted.
        """
        assert self.strokes is not None
        turn = torch.deg2rad(self.strokes.angle.double())
        cos, sin = turn.cos() / self.strokes.zoom, turn.sin() / self.strokes.zoom
        rows = []
        # The centre of pixel (j, i) is j' = (j + 1/2) / S - 1/2 - shift from the view's centre.
        shifts = (self.strokes.shift_x, self.strokes.shift_y)
        x, y = (0.5 / size - 0.5 - shift.double() for shift in shifts)
        sign = torch.where(self.flip, -1.0, 1.0)
        for start, length, by_x, by_y in (
            (self.left, self.width * sign, cos, sin),
            (self.top, self.height, -sin, cos),
        ):
            middle = start + length.abs() / 2 - 0.5 + length * (by_x * x + by_y * y)
            rows.append(torch.stack((length * by_x / size, length * by_y / size, middle), dim=1))
        return torch.stack(rows, dim=1).float()


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
        strokes=_draw_strokes(count, views, seed) if views.strokes else None,
    )


def blur_kernel_size(image_size: int) -> int:
    """Odd number of taps of the blur: a tenth of the image side, at least 3."""
    return max(3, 2 * int(image_size * _BLUR_SHARE / 2) + 1)


def _draw_strokes(count: int, views: ViewsConfig, seed: int) -> Strokes:
    """What is done to drawings, by numbers of its own: the others stay what they are without."""
    u = uniform(derive(seed, "views", "strokes"), torch.arange(count), 10).T

    def between(draw: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + draw * (high - low)

    area = between(u[6], *views.erase_area)
    ratio = between(u[7], *map(math.log, _ERASE_RATIO)).exp()
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), dim=1).clamp(max=1)
    return Strokes(
        angle=between(u[0], -views.rotation, views.rotation),
        shift_x=between(u[1], -views.translation, views.translation),
        shift_y=between(u[2], -views.translation, views.translation),
        zoom=between(u[3], *views.zoom),
        radius=between(u[4], *views.thickness),
        erased=torch.cat((u[8:].T, sides * (u[5] < views.erase)[:, None]), dim=1),
        paper=torch.full((count,), _PAPER[views.ink]),
    )


def _draw_boxes(
    count: int, views: ViewsConfig, height: int, width: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Boxes as torchvision's RandomResizedCrop samples them: top, left, height, width."""
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

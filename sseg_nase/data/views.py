"""Two random views of every image of a batch, made on the batch's device in one pass.

The operations and their order are SimCLR's (Chen et al. 2020): random resized crop with flip,
colour jitter (brightness, contrast, saturation, hue), grey, blur. Each equals its counterpart in
`torchvision.transforms.functional` on floats, with parameters drawn per image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.random import derive

_CROP_ATTEMPTS = 10  # as torchvision: then the largest central crop of an accepted ratio
_GREY = (0.2989, 0.587, 0.114)
_BLUR_SHARE = 0.1  # of the image side: SimCLR's kernel size
_CHUNK_ELEMENTS = 1 << 19  # floats of one temporary on a CPU: measured, it fits the L2 cache


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 images to float32 in [-1, 1]: (x / 255 - 0.5) / 0.5. Any shape."""
    return images.to(torch.float32).mul_(2 / 255).sub_(1)


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of N views; tensors [N] on the CPU, boxes in pixels."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flip: torch.Tensor  # bool
    brightness: torch.Tensor  # factor; 1 changes nothing
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor  # turns in [-0.5, 0.5]; 0 changes nothing
    grey: torch.Tensor  # bool
    sigma: torch.Tensor  # of the blur in pixels; 0 changes nothing

    def __getitem__(self, rows: torch.Tensor) -> ViewParameters:
        return ViewParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


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


def draw_parameters(
    count: int, views: ViewsConfig, *, height: int, width: int, seed: int
) -> ViewParameters:
    """Draw the parameters of `count` independent views of images [height, width]."""
    generator = torch.Generator().manual_seed(derive(seed, "views"))
    top, left, h, w = _draw_boxes(count, views, height, width, generator)
    u = torch.rand(9, count, generator=generator)
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
        brightness=factor(u[2], views.brightness),
        contrast=factor(u[3], views.contrast),
        saturation=factor(u[4], views.saturation),
        hue=torch.where(jittered, (2 * u[5] - 1) * views.hue, 0.0),
        grey=u[6] < views.grey,
        sigma=torch.where(u[7] < views.blur, low + u[8] * (high - low), 0.0),
    )


def _crop(images: torch.Tensor, p: ViewParameters, size: int) -> torch.Tensor:
    """Crop, flip and resize bilinearly: [B, 3, H, W] -> [V, B, 3, S, S], V views an image."""
    B, _, H, W = images.shape
    V = len(p.top) // B

    def positions(start: torch.Tensor, length: torch.Tensor, side: int) -> torch.Tensor:
        """Where the S samples lie on an axis, [V · B, S] in [-1, 1]; never outside the box."""
        steps = (torch.arange(size) + 0.5) / size
        pixels = start[:, None] + steps * length[:, None] - 0.5
        pixels = torch.minimum(pixels, (start + length - 1)[:, None])
        return (2 * torch.maximum(pixels, start[:, None]) + 1) / side - 1

    x = positions(p.left, p.width, W)
    x = torch.where(p.flip[:, None], x.flip(1), x).to(images.device)
    y = positions(p.top, p.height, H).to(images.device)
    # The views of an image stand one under the other, so that no image is copied for a view.
    grid = torch.empty(B, V, size, size, 2, device=images.device)
    grid[..., 0] = x.view(V, B, 1, size).transpose(0, 1)
    grid[..., 1] = y.view(V, B, size, 1).transpose(0, 1)
    crops = F.grid_sample(
        images, grid.view(B, V * size, size, 2), padding_mode="border", align_corners=False
    )
    return crops.view(B, 3, V, size, size).permute(2, 0, 1, 3, 4)


def _to_grey(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, S, S] -> [N, 1, S, S], with torchvision's weights."""
    red, green, blue = _GREY
    grey = images[:, :1] * red
    return grey.add_(images[:, 1:2], alpha=green).add_(images[:, 2:], alpha=blue)


def _shift_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of [N, 3, S, S] in HSV space by `turns` [N]; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sixth = (6 * chroma).clamp_(min=1e-12).reciprocal_()
    hue = (red - green).mul_(sixth).add_(4 / 6)
    # As `where`, in float arithmetic: several times faster on a CPU.
    other = (blue - red).mul_(sixth).add_(2 / 6)
    hue.addcmul_(other.sub_(hue), green.clone().eq_(value))
    other = (green - blue).mul_(sixth)
    hue.addcmul_(other.sub_(hue), red.clone().eq_(value))
    hue.add_(turns[:, None, None])
    shifted = torch.empty_like(images)
    # Channel = V - C · clamp(2 - 6 d, 0, 1), d its distance in turns from the opposite hue.
    for channel, opposite in enumerate((3 / 6, 5 / 6, 1 / 6)):
        away = hue - opposite
        away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, away, value=-1, out=shifted[:, channel])
    return shifted


def blur_kernel_size(image_size: int) -> int:
    """Odd number of taps of the blur: a tenth of the image side, at least 3."""
    return max(3, 2 * int(image_size * _BLUR_SHARE / 2) + 1)


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur [N, 3, S, S] by Gaussians of `sigma` [N] pixels, reflected at the border."""
    size = images.shape[-1]
    reach = blur_kernel_size(size) // 2
    taps = torch.arange(-reach, reach + 1, device=images.device)
    weights = (-0.5 * (taps / sigma[:, None]) ** 2).exp()
    weights = (weights / weights.sum(dim=1, keepdim=True)).view(len(images), -1, 1, 1, 1)
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(images, pad, mode="reflect")
        images = padded.narrow(axis, 0, size) * weights[:, 0]
        for tap in range(1, 2 * reach + 1):
            images.addcmul_(padded.narrow(axis, tap, size), weights[:, tap])
    return images


def _recolour(x: torch.Tensor, p: ViewParameters) -> torch.Tensor:
    """Jitter, grey and blur float views [N, 3, S, S] in [0, 1], changing `x` itself."""

    def each(values: torch.Tensor) -> torch.Tensor:
        return values.to(x.device).view(-1, 1, 1, 1)

    if (p.brightness != 1).any():
        x.mul_(each(p.brightness)).clamp_(0, 1)
    if (p.contrast != 1).any():
        mean = x.mean(dim=(2, 3)) @ x.new_tensor(_GREY)
        x.mul_(each(p.contrast)).add_(each(1 - p.contrast) * mean.view(-1, 1, 1, 1)).clamp_(0, 1)
    if (p.saturation != 1).any():
        grey = _to_grey(x).mul_(each(1 - p.saturation))
        x.mul_(each(p.saturation)).add_(grey).clamp_(0, 1)
    for drawn, change in (
        (p.hue != 0, lambda rows, part: _shift_hue(part, p.hue[rows].to(x.device))),
        (p.grey, lambda rows, part: _to_grey(part).expand_as(part)),
        (p.sigma > 0, lambda rows, part: _blur(part, p.sigma[rows].to(x.device))),
    ):
        rows = drawn.nonzero()[:, 0]
        if len(rows):
            where = rows.to(x.device)
            x.index_copy_(0, where, change(rows, x.index_select(0, where)))
    return x


@torch.no_grad()
def apply_views(images: torch.Tensor, p: ViewParameters, *, image_size: int) -> torch.Tensor:
    """Make views of uint8 images [B, 3, H, W]: normalised float32 [V, B, 3, S, S].

    `p` holds V · B views: the first view of every image, then the second of every image, ...
    """
    B = len(images)
    V = len(p.top) // B
    out = torch.empty(V, B, 3, image_size, image_size, device=images.device)
    step = B
    if images.device.type == "cpu":
        step = max(1, _CHUNK_ELEMENTS // (V * 3 * image_size**2))
    order = torch.arange(V * B).view(V, B)
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, B, step):
            chunk = images[start : start + step]
            part = p[order[:, start : start + step].flatten()]
            crops = _crop(chunk.to(torch.float32).div_(255), part, image_size)
            views = _recolour(crops.flatten(0, 1), part)
            torch.mul(views.view(crops.shape), 2, out=out[:, start : start + step])
    return out.sub_(1)


def two_views(
    images: torch.Tensor,
    views: ViewsConfig,
    *,
    image_size: int,
    seed: int,
    first: int = 0,
    of: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two random views of each uint8 image [B, 3, H, W]: two float32 [B, 3, S, S].

    The output is normalised as by `normalize`. The same (images, views, seed) give the same
    views; each of the 2B draws its own parameters. Where `images` are only the rows `first`,
    `first` + 1, ... of a batch of `of` images, they get the views they have in the whole batch.
    """
    H, W = images.shape[2:]
    whole = len(images) if of is None else of
    parameters = draw_parameters(2 * whole, views, height=H, width=W, seed=seed)
    rows = torch.arange(2 * whole).view(2, whole)[:, first : first + len(images)]
    chosen = parameters[rows.flatten()]
    view1, view2 = apply_views(images, chosen, image_size=image_size).unbind(0)
    return view1, view2

"""Views as few, large tensor operations on all images at once: for GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sseg_nase.data.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    SATURATION,
    Strokes,
    ViewParameters,
    blur_kernel_size,
)


def apply_views(images: torch.Tensor, p: ViewParameters, size: int) -> torch.Tensor:
    """As `sseg_nase.data.views.apply_views`, on the images' device."""
    B = len(images)
    out = torch.empty(len(p.top) // B, B, size, size, 3, device=images.device)
    out = out.permute(0, 1, 4, 2, 3)
    with torch.autocast(images.device.type, enabled=False):
        crops = _crop(images.to(torch.float32).div_(255), p, size)
        views = crops.flatten(0, 1)
        if p.strokes is None:
            views = _recolour(views, p)
        else:
            views = _erase(_recolour(_thicken(views, p.strokes), p), p.strokes)
        return torch.mul(views.view(crops.shape), 2, out=out).sub_(1)


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
    if p.strokes is None or not (moved := p.strokes.moved).any():
        crops = F.grid_sample(
            images, grid.view(B, V * size, size, 2), padding_mode="border", align_corners=False
        )
        return crops.view(B, 3, V, size, size).permute(2, 0, 1, 3, 4)
    to_grid = torch.tensor([2 / W, 2 / H], device=images.device)
    which = moved.to(images.device).view(V, B, 1, 1, 1).transpose(0, 1)
    grid = torch.where(which, (_places(p, size, images.device, V) + 0.5) * to_grid - 1, grid)
    # Beside the image there is paper: zero, when that is subtracted before.
    paper = p.strokes.paper
    assert (paper.view(V, B) == paper[:B]).all(), "the views of an image have the same paper"
    paper = paper[:B].to(images.device)[:, None, None, None]
    crops = F.grid_sample(
        images - paper, grid.flatten(1, 2), padding_mode="zeros", align_corners=False
    )
    return (crops + paper).view(B, 3, V, size, size).permute(2, 0, 1, 3, 4)


def _places(p: ViewParameters, size: int, device: torch.device, views: int) -> torch.Tensor:
    """Pixels of the image that moved views are sampled at, (column, row): [B, V, S, S, 2]."""
    matrices = p.places(size).to(device).unflatten(0, (views, -1)).transpose(0, 1)
    of_column, of_row, middle = matrices[..., None, None, :, :].unbind(-1)
    steps = torch.arange(size, device=device, dtype=torch.float32)
    return of_column * steps[:, None] + of_row * steps[:, None, None] + middle


def _thicken(x: torch.Tensor, p: Strokes) -> torch.Tensor:
    """Let strokes of float views [N, 3, S, S] grow or shrink by `p.radius`, changing `x` itself.

    3×3 minima make dark ink grow, maxima light ink, the other ones let it shrink: once per whole
    pixel of the radius, then mixed in by what is left of it.
    """
    sign = torch.where((p.radius > 0) == (p.paper == 1), -1.0, 1.0)  # maxima of -x: minima
    left = p.radius.abs()
    while (left > 0).any():
        _change(x, left > 0, lambda part, rows, left=left: _morph(part, sign[rows], left[rows]))
        left = left - 1
    return x


def _morph(images: torch.Tensor, sign: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mix [N, 3, S, S] with its 3×3 maxima, or minima where `sign` [N] is -1, by `share` ≤ 1."""
    sign, share = (
        values.to(images.device, non_blocking=True)[:, None, None, None]
        for values in (sign, share.clamp(max=1))
    )
    return images + share * (sign * F.max_pool2d(sign * images, 3, 1, 1) - images)


def _erase(x: torch.Tensor, p: Strokes) -> torch.Tensor:
    """Fill the erased boxes of float views [N, 3, S, S] with paper, changing `x` itself."""
    size = x.shape[-1]
    boxes = p.erased_boxes(size)
    if not (boxes[:, 2:] > 0).all(dim=1).any():
        return x
    steps = torch.arange(size, device=x.device)
    top, left, height, width = boxes.to(x.device, non_blocking=True).T[..., None]
    rows = (steps >= top) & (steps < top + height)
    columns = (steps >= left) & (steps < left + width)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    paper = p.paper.to(x.device, non_blocking=True)[:, None, None, None]
    return x.copy_(torch.where(inside, paper, x))


def _recolour(x: torch.Tensor, p: ViewParameters) -> torch.Tensor:
    """Jitter, grey and blur float views [N, 3, S, S] in [0, 1], changing `x` itself."""
    for operation in p.order.T:  # the first of every view, then the second, ...
        x = _blend(x, p, operation)
        turns = torch.where(operation == HUE, p.hue, 0.0)
        _change(x, turns != 0, lambda part, rows, turns=turns: _shift_hue(part, turns[rows]))
    _change(x, p.grey, lambda part, rows: _to_grey(part).expand_as(part))
    _change(x, p.sigma > 0, lambda part, rows: _blur(part, p.sigma[rows]))
    return x


def _blend(x: torch.Tensor, p: ViewParameters, operation: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast or saturation, as `operation` [N] says: one formula for all three.

    x' = clamp(f · x + (1 - f) · other, 0, 1); the other is black, the mean grey or the grey.
    """

    def chosen(number: int, factor: torch.Tensor) -> torch.Tensor:
        return torch.where(operation == number, factor, 1.0)

    brightness = chosen(BRIGHTNESS, p.brightness)
    contrast, saturation = chosen(CONTRAST, p.contrast), chosen(SATURATION, p.saturation)
    coefficients = torch.stack((brightness * contrast * saturation, 1 - contrast, 1 - saturation))
    own, of_mean, of_grey = coefficients.to(x.device, non_blocking=True)[..., None, None, None]
    grey = _to_grey(x)
    other = of_grey * grey + of_mean * grey.mean(dim=(2, 3), keepdim=True)
    return x.mul_(own).add_(other).clamp_(0, 1)


def _change(x: torch.Tensor, which: torch.Tensor, change: Callable[..., torch.Tensor]) -> None:
    """Replace the views that `which` [N] says by `change(those views, their rows)`."""
    rows = which.nonzero()[:, 0]
    if len(rows):
        where = rows.to(x.device, non_blocking=True)
        x.index_copy_(0, where, change(x.index_select(0, where), rows))


def _to_grey(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, S, S] -> [N, 1, S, S], with torchvision's weights."""
    red, green, blue = GREY
    grey = images[:, :1] * red
    return grey.add_(images[:, 1:2], alpha=green).add_(images[:, 2:], alpha=blue)


def _shift_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of [N, 3, S, S] in HSV space by `turns` [N]; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sixth = (6 * chroma).clamp_(min=1e-12).reciprocal_()
    hue = torch.where(value == green, 2 / 6 + (blue - red) * sixth, 4 / 6 + (red - green) * sixth)
    hue = torch.where(value == red, (green - blue) * sixth, hue)
    hue += turns.to(images.device, non_blocking=True)[:, None, None]
    # Channel = V - C · clamp(2 - 6 d, 0, 1), d its distance in turns from the opposite hue.
    away = hue[:, None] - hue.new_tensor([3 / 6, 5 / 6, 1 / 6])[:, None, None]
    away = away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], away, value=-1)


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur [N, 3, S, S] by Gaussians of `sigma` [N] pixels, reflected at the border."""
    size = images.shape[-1]
    reach = blur_kernel_size(size) // 2
    taps = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (taps / sigma[:, None]) ** 2).exp()
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.device, non_blocking=True)
    weights = weights.view(len(images), -1, 1, 1, 1)
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(images, pad, mode="reflect")
        images = padded.narrow(axis, 0, size) * weights[:, 0]
        for tap in range(1, 2 * reach + 1):
            images.addcmul_(padded.narrow(axis, tap, size), weights[:, tap])
    return images

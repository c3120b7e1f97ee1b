"""Views as few, large tensor operations on all images at once: for GPUs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from sseg_nase.data.prefetch import sent_together
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

OPERATIONS = 4  # of colour: brightness, contrast, saturation and hue
Plan = dict[str, torch.Tensor]


def apply_views(images: torch.Tensor, p: ViewParameters, size: int) -> torch.Tensor:
    """As `sseg_nase.data.views.apply_views`, on the images' device."""
    B, _, H, W = images.shape
    out = torch.empty(len(p.top) // B, B, size, size, 3, device=images.device)
    out = out.permute(0, 1, 4, 2, 3)
    # All parameters go to the device at once: every copy would wait for the step before.
    plan = sent_together(_plan(p, B, (H, W), size), images.device)
    with torch.autocast(images.device.type, enabled=False):
        crops = _crop(images.to(torch.float32).div_(255), plan, size)
        views = crops.flatten(0, 1)
        _thicken(views, plan)
        _recolour(views, plan)
        _erase(views, plan)
        return torch.mul(views.view(crops.shape), 2, out=out).sub_(1)


# -- what is to be done, on the CPU ----------------------------------------------------------------


def _plan(p: ViewParameters, images: int, sides: tuple[int, int], size: int) -> Plan:
    """The tensors that the device needs for the views `p` of that many images, by name.

    What is done to no view has none. `…_rows` are the views that something is done to.
    """
    plan = _places(p, images, sides, size)
    if p.strokes is not None:
        plan |= _strokes_plan(p.strokes, size)
    for turn, operation in enumerate(p.order.T):  # the first of every view, then the second, ...
        plan[f"blend_{turn}"] = _blending(p, operation)
        turns = torch.where(operation == HUE, p.hue, 0.0)
        plan |= _of_some(f"hue_{turn}", turns != 0, turns)
        plan["opposites"] = torch.tensor([3 / 6, 5 / 6, 1 / 6])
    plan |= _of_some("grey", p.grey)
    return plan | _of_some("blur", p.sigma > 0, _gaussians(p.sigma, size))


def _of_some(name: str, which: torch.Tensor, *values: torch.Tensor) -> Plan:
    """The rows of the views that `which` [N] says, and of `values` [N, ...] theirs."""
    rows = which.nonzero()[:, 0]
    if not len(rows):
        return {}
    own = {f"{name}_{i}": each[rows] for i, each in enumerate(values)}
    return {f"{name}_rows": rows, **own}


def _places(p: ViewParameters, images: int, sides: tuple[int, int], size: int) -> Plan:
    """Where the images are sampled: `x` and `y`, and of moved views the `matrices`."""
    height, width = sides
    views = len(p.top) // images

    def positions(start: torch.Tensor, length: torch.Tensor, side: int) -> torch.Tensor:
        """Where the S samples lie on an axis, [V · B, S] in [-1, 1]; never outside the box."""
        steps = (torch.arange(size) + 0.5) / size
        pixels = start[:, None] + steps * length[:, None] - 0.5
        pixels = torch.minimum(pixels, (start + length - 1)[:, None])
        return (2 * torch.maximum(pixels, start[:, None]) + 1) / side - 1

    x = positions(p.left, p.width, width)
    x = torch.where(p.flip[:, None], x.flip(1), x)
    plan = {"x": x, "y": positions(p.top, p.height, height)}
    if p.strokes is None or not (moved := p.strokes.moved).any():
        return plan
    paper = p.strokes.paper
    assert (paper.view(views, images) == paper[:images]).all(), "the views of an image share paper"
    return {
        **plan,
        "moved": moved,
        "matrices": p.places(size),
        "to_grid": torch.tensor([2 / width, 2 / height]),
        "beside": paper[:images],
    }


def _strokes_plan(p: Strokes, size: int) -> Plan:
    """Strokes that grow or shrink, once per whole pixel of the radius, and boxes of paper."""
    plan: Plan = {}
    sign = torch.where((p.radius > 0) == (p.paper == 1), -1.0, 1.0)  # maxima of -x: minima
    left = p.radius.abs()
    for turn in range(math.ceil(left.max())):
        plan |= _of_some(f"strokes_{turn}", left > 0, sign, left.clamp(max=1))
        left = left - 1
    boxes = p.erased_boxes(size)
    if (boxes[:, 2:] > 0).all(dim=1).any():
        plan |= {"erased": boxes, "paper": p.paper}
    return plan


def _blending(p: ViewParameters, operation: torch.Tensor) -> torch.Tensor:
    """Shares of a view itself, of its mean grey and of its grey, [3, N]: see `_blend`."""

    def chosen(number: int, factor: torch.Tensor) -> torch.Tensor:
        return torch.where(operation == number, factor, 1.0)

    brightness = chosen(BRIGHTNESS, p.brightness)
    contrast, saturation = chosen(CONTRAST, p.contrast), chosen(SATURATION, p.saturation)
    return torch.stack((brightness * contrast * saturation, 1 - contrast, 1 - saturation))


def _gaussians(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """Weights of the taps of blurs by `sigma` [N], [N, T]; of no blur not numbers."""
    reach = blur_kernel_size(size) // 2
    taps = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (taps / sigma[:, None]) ** 2).exp()
    return weights / weights.sum(dim=1, keepdim=True)


# -- doing it, on the device -----------------------------------------------------------------------


def _crop(images: torch.Tensor, plan: Plan, size: int) -> torch.Tensor:
    """Crop, flip and resize bilinearly: [B, 3, H, W] -> [V, B, 3, S, S], V views an image."""
    B = len(images)
    V = len(plan["x"]) // B
    # The views of an image stand one under the other, so that no image is copied for a view.
    grid = torch.empty(B, V, size, size, 2, device=images.device)
    grid[..., 0] = plan["x"].view(V, B, 1, size).transpose(0, 1)
    grid[..., 1] = plan["y"].view(V, B, size, 1).transpose(0, 1)
    if "moved" not in plan:
        crops = F.grid_sample(
            images, grid.view(B, V * size, size, 2), padding_mode="border", align_corners=False
        )
        return crops.view(B, 3, V, size, size).permute(2, 0, 1, 3, 4)
    which = plan["moved"].view(V, B, 1, 1, 1).transpose(0, 1)
    grid = torch.where(which, (_pixels(plan, size, V) + 0.5) * plan["to_grid"] - 1, grid)
    # Beside the image there is paper: zero, when that is subtracted before.
    paper = plan["beside"][:, None, None, None]
    crops = F.grid_sample(
        images - paper, grid.flatten(1, 2), padding_mode="zeros", align_corners=False
    )
    return (crops + paper).view(B, 3, V, size, size).permute(2, 0, 1, 3, 4)


def _pixels(plan: Plan, size: int, views: int) -> torch.Tensor:
    """Pixels of the image that moved views are sampled at, (column, row): [B, V, S, S, 2]."""
    matrices = plan["matrices"].unflatten(0, (views, -1)).transpose(0, 1)
    of_column, of_row, middle = matrices[..., None, None, :, :].unbind(-1)
    steps = torch.arange(size, device=matrices.device, dtype=torch.float32)
    return of_column * steps[:, None] + of_row * steps[:, None, None] + middle


def _thicken(x: torch.Tensor, plan: Plan) -> None:
    """Let strokes of float views [N, 3, S, S] grow or shrink, changing `x` itself.

    3×3 minima make dark ink grow, maxima light ink, the other ones let it shrink: once per whole
    pixel of the radius, then mixed in by what is left of it.
    """
    for turn in itertools.count():
        if f"strokes_{turn}_rows" not in plan:
            return
        _change(x, plan, f"strokes_{turn}", _morph, values=2)


def _morph(images: torch.Tensor, sign: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mix [N, 3, S, S] with its 3×3 maxima, or minima where `sign` [N] is -1, by `share` ≤ 1."""
    sign, share = (values[:, None, None, None] for values in (sign, share))
    return images + share * (sign * F.max_pool2d(sign * images, 3, 1, 1) - images)


def _erase(x: torch.Tensor, plan: Plan) -> None:
    """Fill the erased boxes of float views [N, 3, S, S] with paper, changing `x` itself."""
    if "erased" not in plan:
        return
    steps = torch.arange(x.shape[-1], device=x.device)
    top, left, height, width = plan["erased"].T[..., None]
    rows = (steps >= top) & (steps < top + height)
    columns = (steps >= left) & (steps < left + width)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    x.copy_(torch.where(inside, plan["paper"][:, None, None, None], x))


def _recolour(x: torch.Tensor, plan: Plan) -> None:
    """Jitter, grey and blur float views [N, 3, S, S] in [0, 1], changing `x` itself."""
    for turn in range(OPERATIONS):
        _blend(x, plan[f"blend_{turn}"])
        _change(x, plan, f"hue_{turn}", partial(_shift_hue, plan["opposites"]), values=1)
    _change(x, plan, "grey", lambda part: _to_grey(part).expand_as(part))
    _change(x, plan, "blur", _blur, values=1)


def _blend(x: torch.Tensor, coefficients: torch.Tensor) -> None:
    """Brightness, contrast or saturation of each view: one formula for all three.

    x' = clamp(f · x + (1 - f) · other, 0, 1); the other is black, the mean grey or the grey.
    """
    own, of_mean, of_grey = coefficients[..., None, None, None]
    grey = _to_grey(x)
    other = of_grey * grey + of_mean * grey.mean(dim=(2, 3), keepdim=True)
    x.mul_(own).add_(other).clamp_(0, 1)


def _change(
    x: torch.Tensor, plan: Plan, name: str, change: Callable[..., torch.Tensor], values: int = 0
) -> None:
    """Replace the views that `plan` names by `change(those views, their values)`."""
    rows = plan.get(f"{name}_rows")
    if rows is not None:
        own = (plan[f"{name}_{i}"] for i in range(values))
        x.index_copy_(0, rows, change(x.index_select(0, rows), *own))


def _to_grey(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, S, S] -> [N, 1, S, S], with torchvision's weights."""
    red, green, blue = GREY
    grey = images[:, :1] * red
    return grey.add_(images[:, 1:2], alpha=green).add_(images[:, 2:], alpha=blue)


def _shift_hue(opposites: torch.Tensor, images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of [N, 3, S, S] in HSV space by `turns` [N]; value and saturation stay.

    `opposites` [3]: the hues opposite to red, green and blue.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sixth = (6 * chroma).clamp_(min=1e-12).reciprocal_()
    hue = torch.where(value == green, 2 / 6 + (blue - red) * sixth, 4 / 6 + (red - green) * sixth)
    hue = torch.where(value == red, (green - blue) * sixth, hue)
    hue += turns[:, None, None]
    # Channel = V - C · clamp(2 - 6 d, 0, 1), d its distance in turns from the opposite hue.
    away = hue[:, None] - opposites[:, None, None]
    away = away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], away, value=-1)


def _blur(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Blur [N, 3, S, S] by the taps' `weights` [N, T], reflected at the border."""
    size, reach = images.shape[-1], weights.shape[1] // 2
    weights = weights.view(len(images), -1, 1, 1, 1)
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(images, pad, mode="reflect")
        images = padded.narrow(axis, 0, size) * weights[:, 0]
        for tap in range(1, 2 * reach + 1):
            images.addcmul_(padded.narrow(axis, tap, size), weights[:, tap])
    return images

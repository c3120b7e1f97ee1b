"""What makes a classifier's batch harder: images mixed in pairs, and features left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sseg_nase.data.random import uniform

Centre = tuple[float, float]  # row and column, from 0 to 1


def blended(images: Tensor, partner: Tensor, share: float) -> Tensor:
    """mixup (Zhang et al. 2018): λ · x + (1 − λ) · x', λ the `share`, of images `[B, C, S, S]`.

    x' is image `partner` `[B]` of the batch.
    """
    return images.lerp(images[partner], 1 - share)


def pasted(images: Tensor, partner: Tensor, share: float, centre: Centre) -> tuple[Tensor, float]:
    """CutMix (Yun et al. 2019): images `[B, C, S, S]` with a rectangle of image `partner` `[B]`.

    Also the share of pixels that are an image's own, by which its targets are mixed: `share`, but
    for rectangles that end at the edge and for whole pixels.
    """
    top, bottom, left, right = rectangle(centre, share, images.shape[-1])
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / images.shape[-1] ** 2


def rectangle(centre: Centre, share: float, side: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right, in pixels, of what is pasted into images of `side` pixels.

    Its sides are √(1 − `share`) of the image's (Yun et al. 2019, eq. 2).
    """
    half = side * math.sqrt(1 - share) / 2
    top, bottom, left, right = (
        min(side, max(0, round(side * at + sign * half))) for at in centre for sign in (-1, 1)
    )
    return top, bottom, left, right


def thinned(features: Tensor, rate: float, seed: int) -> Tensor:
    """Dropout (Srivastava et al. 2014) of features `[B, D]`: a `rate` of them is 0, the rest grows
    by 1 / (1 − `rate`). Which ones follows from the seed, on every device alike."""
    rows = torch.arange(len(features), device=features.device)
    kept = uniform(seed, rows, features.shape[1]) >= rate
    return features * kept / (1 - rate)

"""Two SimCLR views of every image, with the ranges of `conf/views/simclr.yaml` on all sides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.suite.child import Work
from benchmarks.suite.setting import BATCH, device, drawn, loader, pictures, program
from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.views import make_views
from sseg_nase.hardware.profiles import cores

BATCHES = 6  # of ours in a round: a batch takes little time


def ours(size: int) -> Work:
    """Both views of a uint8 batch at once."""
    images, views = drawn(size).to(device()), program().views

    def work() -> float:
        for seed in range(BATCHES):
            make_views(images, views, image_size=size, seed=seed)
        return BATCHES * BATCH

    return work


def lightly(size: int) -> Work:
    """Lightly's transform in DataLoader workers, from pictures in memory to batches."""
    from lightly.transforms import SimCLRTransform

    batches = 5 * cores()
    # The strength and the smallest crop that lightly recommends for small images, and our own.
    transform = SimCLRTransform(input_size=size, cj_strength=0.5, min_scale=0.2)
    batched = loader(pictures(drawn(size)), transform, batches)

    def work() -> float:
        for _ in batched:
            pass
        return batches * BATCH

    return work


def kornia(size: int) -> Work:
    """Kornia's batched augmentations on the same uint8 batch, once per view."""
    from kornia import augmentation as K

    v = program().views
    half = torch.tensor([0.5] * 3)
    augment = nn.Sequential(
        K.RandomResizedCrop((size, size), _pair(v.crop_scale), _pair(v.crop_ratio)),
        K.RandomHorizontalFlip(v.flip),
        K.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue, p=v.jitter),
        K.RandomGrayscale(p=v.grey),
        K.RandomGaussianBlur(_kernel(size), _pair(v.blur_sigma), p=v.blur),
        K.Normalize(half, half),
    )
    images = drawn(size).to(device())

    @torch.no_grad()
    def work() -> float:
        for _ in range(2):
            augment(images.float() / 255)
        return BATCH

    return work


def torchvision(size: int) -> Work:
    """Torchvision's transforms, one picture at a time."""
    one, images = one_by_one(program().views, size), pictures(drawn(size))

    def work() -> float:
        torch.stack([one(image) for image in images for _ in range(2)])
        return BATCH

    return work


def one_by_one(v: ViewsConfig, size: int) -> Callable[[Image.Image], Tensor]:
    """Torchvision's transforms of one picture to a view in [-1, 1], float32 `[3, size, size]`."""
    from torchvision import transforms as T

    half = [0.5] * 3
    jitter = T.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue)
    blur = T.GaussianBlur(_kernel(size), _pair(v.blur_sigma))
    return T.Compose(
        [
            T.RandomResizedCrop(size, _pair(v.crop_scale), _pair(v.crop_ratio)),
            T.RandomHorizontalFlip(v.flip),
            T.RandomApply([jitter], v.jitter),
            T.RandomGrayscale(v.grey),
            T.RandomApply([blur], v.blur),
            T.ToTensor(),
            T.Normalize(half, half),
        ]
    )


def _pair(values: list[float]) -> tuple[float, float]:
    return values[0], values[1]


def _kernel(size: int) -> int:
    """SimCLR's kernel of a tenth of the side, odd."""
    return max(3, size // 10 | 1)

"""What sides share: the device, the program's config, images, and workers for peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from sseg_nase.config.compose import hardware_profiles, load
from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.render import render
from sseg_nase.hardware.profiles import cores, resolve
from sseg_nase.nets.evolvable import ConvBlock, EvolvableCNN

BATCH = 256


def device() -> torch.device:
    """Where ours and the peers that can compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def program(*overrides: str) -> Config:
    """The config of a run on this machine at batch 256."""
    whole = ("hardware.batch_size=256", "hardware.gradient_accumulation_steps=1")
    config = load([*whole, *overrides])
    hardware, _ = resolve(config.hardware, hardware_profiles())
    return dataclasses.replace(config, hardware=hardware)


def drawn(size: int, count: int = BATCH) -> Tensor:
    """Images of the curriculum's OBJECT level, uint8 `[count, 3, size, size]`."""
    return render("OBJECT", torch.arange(count), seed=0, image_size=size)


def pictures(images: Tensor) -> list[Image.Image]:
    """The images `[n, 3, S, S]` as PIL holds them."""
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]


class Transformed(Dataset[Any]):
    """Pictures in memory, each put through `transform` when it is asked for."""

    def __init__(self, pictures: list[Image.Image], transform: Callable[[Any], Any]) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures[index])


def loader(pictures: list[Image.Image], transform: Callable[[Any], Any], batches: int) -> Any:
    """A DataLoader as peers are used: a persistent worker per core, `batches` batches an epoch."""
    images = Transformed(pictures, transform)
    return DataLoader(
        images,
        batch_size=BATCH,
        sampler=RandomSampler(images, replacement=True, num_samples=batches * BATCH),
        num_workers=cores(),
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def overrule(thing: object, **methods: Callable[..., Any]) -> None:
    """Let `thing` do something else under these names."""
    vars(thing).update(methods)


def plain(backbone: EvolvableCNN) -> nn.Module:
    """The same layers with the same weights, as one would write them with torch."""
    layers: list[nn.Module] = []
    for block in backbone.blocks:
        assert isinstance(block, ConvBlock)
        layers += [block.conv, block.norm, nn.ReLU(), *[nn.MaxPool2d(2)] * block.pool]
    average = backbone.architecture.embedding == "average"
    return nn.Sequential(*layers, *[nn.AdaptiveAvgPool2d(1)] * average, nn.Flatten())

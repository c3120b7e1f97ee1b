"""The steps of a run for use by hand: images, and what a network is worth on them."""

from __future__ import annotations

from pathlib import Path

import torch

from sseg_nase.config.schema import Config
from sseg_nase.data.pixels import load_image
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.nets.backbone import Backbone
from sseg_nase.stages import evaluating
from sseg_nase.stages.classifying import tasks_of
from sseg_nase.stages.evaluating import Evaluation
from sseg_nase.stages.fitting import fitted
from sseg_nase.stages.setup import Reached, images_of


def open_dataset(config: Config, split: str = "val") -> ImageStore:
    """The images of a split (`train`, `val` or `test`) of `config`'s data set, at its image size.

    `open_dataset(load_config(["dataset=cifar_fs", "dataset.image_size=32"]), "train")`: read once
    into the cache, opened in milliseconds ever after. `store.batch(indices)` gives uint8
    `[B, C, S, S]`, `store.labels` int64 `[n]`, `store.class_names` the classes. Raises `UserError`
    for whatever is wrong with the data.
    """
    return images_of(config, config.dataset, split)


def open_image(path: Path | str, network: Backbone) -> torch.Tensor:
    """The image file at `path` as `network` takes it: uint8 `[C, S, S]`, read as a data set's are.

    `network(normalize(open_image(path, network)[None]))` embeds it. Raises `UserError` for what
    cannot be read.
    """
    taken = network.architecture
    pixels = load_image(Path(path).expanduser(), taken.resolution, taken.in_channels)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def evaluate(network: Backbone, config: Config) -> Evaluation:
    """Measure the accuracy of `network` as a run with `config` would, on few-shot episodes.

    `evaluation.*` says on which ones and how, or that it is a closed set. Computed where the
    network lies. `results["digits/val/5w1s"]` has accuracy and ci95 in percent and the number of
    episodes; `accuracies` the accuracy of every episode in percent, float64 `[episodes]`: two
    networks evaluated with the same `config` had the same episodes, so `paired_difference` compares
    them. Raises `UserError` where the network takes other images, and where the split is too small.
    """
    config, _ = fitted(config)
    architecture, dataset = network.architecture, config.dataset
    taken = (architecture.in_channels, architecture.resolution)
    given = (dataset.channels, dataset.image_size)
    if taken[0] != given[0] or (not architecture.any_resolution and taken != given):
        raise UserError(
            f"dataset.channels={given[0]} dataset.image_size={given[1]}: the network takes images "
            f"of {taken[0]} channels and {taken[1]} px. Set both keys to these."
        )
    reached = Reached(network, name="the network")
    return evaluating.evaluate(tasks_of(config), reached, next(network.parameters()).device)

"""A run with a small untrained network, and its exported files, made once for all tests."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.export.task import export
from sseg_nase.stages import images_of, seed_backbone
from sseg_nase.training import checkpoint

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "dataset=digits",
    "dataset.image_size=8",
    "backbone.channels=[4,6]",
    "evaluation.shots=[5]",
    "evaluation.episodes=600",
]


@cache
def config_of(*further: str) -> Config:
    return load([*TINY, *further])


def make_run(folder: Path, *further: str) -> Path:
    """A run's folder with config.yaml and checkpoints/last.pt."""
    config = config_of(*further)
    network = seed_backbone(config)
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.save(
        folder / "checkpoints" / "last.pt",
        {
            "architecture": network.architecture.to_dict(),
            "student": {f"backbone.{k}": v for k, v in network.state_dict().items()},
            "epoch": 0,
            "step": 0,
            "images_seen": {},
            "history": [],
        },
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    (folder / "status.json").write_text('{"status": "FINISHED", "tracker_run_id": "an id"}')
    return folder


def exported(run: Path, **further: Any) -> str:
    """Do `task=export checkpoint=RUN`; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert export(asked(run, **further), [], lambda text: None) == 0
    return printed.getvalue()


def asked(checkpoint: Path, **options: Any) -> Config:
    """The config of `task=export`, composed once for all tests, with these `export.` options."""
    config = config_of("task=export", "checkpoint=x")
    changed = dataclasses.replace(config.export, **options)
    return dataclasses.replace(config, checkpoint=str(checkpoint), export=changed)


def photos(folder: Path) -> Path:
    """Photos of digits in odd sizes: support/NAME/ with three of each of three, query/ with two."""
    store = images_of(config_of(), config_of().dataset, "val")
    rng = np.random.default_rng(0)
    for label in (0, 2, 4):
        name = store.class_names[label]
        for number, index in enumerate(store.class_indices[label][:5]):
            place = folder / "support" / f"digit {name}" if number < 3 else folder / "query"
            place.mkdir(parents=True, exist_ok=True)
            size = tuple(int(side) for side in rng.integers(20, 60, 2))
            image = Image.fromarray(store.images[index]).resize(size)
            image.save(place / f"{name}_{number}.png")
    return folder

"""What a run starts from: images, networks, checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sseg_nase.config.conf_files import usual_of
from sseg_nase.config.groups.backbone import Pretrained
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.config.sequence import finetune_of, plain
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.finetune.learner import EpisodeLearner, around
from sseg_nase.finite import not_finite, shortened
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.mutations.operator import Caps
from sseg_nase.ssl.methods import make_learner
from sseg_nase.training import checkpoint

SOURCES = ("synthetic", "real_unlabeled", "real_labeled")  # of the images a network has seen


def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
    """The images of `split`, at the size and with the channels that the run works with."""
    own = config.dataset
    return load_split(
        dataclasses.replace(dataset, image_size=own.image_size, channels=own.channels),
        split,
        data_dir=Path(config.paths.data_dir).expanduser(),
        cache_dir=Path(config.paths.cache_dir).expanduser(),
        workers=config.hardware.num_workers or 0,
    )


def seed_backbone(config: Config, tell: Callable[[str], None] = lambda note: None) -> Backbone:
    """The network that a run starts from: a function of config, seed and `backbone.weights`.

    `tell` is told what of the weights was loaded. Raises `UserError` where they do not fit.
    """
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    return _seed_backbone(config, generator, tell)


def seed_learner(config: Config) -> Learner:
    """`seed_backbone` with the heads of its self-supervised method."""
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    backbone = _seed_backbone(config, generator, lambda note: None)
    return make_learner(backbone, config.ssl, generator)


def _seed_backbone(
    config: Config, generator: torch.Generator, tell: Callable[[str], None]
) -> Backbone:
    architecture = configured(config.backbone, config.dataset.image_size)
    refuse_over_caps(config, architecture)
    backbone = build(architecture, generator=generator)
    if isinstance(config.backbone, Pretrained) and config.backbone.weights:
        from sseg_nase.nets.weights import load_weights  # here, because it loads torchvision

        tell(load_weights(backbone, config.backbone.weights))
    return backbone


def refuse_over_caps(config: Config, architecture: Description) -> None:
    """Raise `UserError` where what is to evolve starts over one of evolution's caps.

    Of a chain of blocks the config alone tells, before anything is built.
    """
    if not config.evolution.enabled:
        return
    caps = Caps.of(config.evolution)
    if (found := caps.exceeded(architecture)) is not None:
        limit, figure, _ = found
        raise UserError(
            f"evolution.{limit}={getattr(caps, limit)}: backbone={config.backbone.name} has "
            f"{figure} already; raise it, choose a smaller backbone, or add evolution=none."
        )


def check_sizes(key: str, schedule: Sequence[str] | None, architecture: Description) -> None:
    """Raise `UserError` where images of several sizes are meant for a network that takes one."""
    if schedule is not None and not architecture.any_resolution:
        raise UserError(
            f"{key}=[{','.join(schedule)}]: {architecture.name} takes images of "
            f"{architecture.resolution} px only; leave it out, or choose another network."
        )


@dataclass(frozen=True)
class Reached:
    """What training has come to.

    `step`: optimizer steps; `images_seen` by source; `history`: the mutations, as their records;
    `name`: what messages call the network; `skipped`: steps of each training here that were none,
    because gradients overflowed float16; `macs` spent on training, by the parts of the ledger, None
    where a checkpoint of an older version does not say; `tuned`: what every stage of fine-tuning
    here has come to; `epochs` of all trainings here.
    """

    network: Backbone | EpisodeLearner
    step: int = 0
    images_seen: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    history: Sequence[dict[str, Any]] = ()
    name: str = "the untrained seed network"
    skipped: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, int] | None = field(default_factory=dict)
    tuned: Sequence[dict[str, Any]] = ()
    epochs: int = 0

    @property
    def backbone(self) -> Backbone:
        """The network that gives embeddings."""
        network = self.network
        return network.backbone if isinstance(network, EpisodeLearner) else network


def stored(path: Path, config: Config) -> Reached:
    """What the checkpoint at `path`, or of the run in the folder `path`, holds.

    A fine-tuned head comes with its backbone. Raises `UserError` for what is no checkpoint, and
    where its network is not one for `config`.
    """
    path = checkpoint.file_of(path.expanduser())
    network: Backbone | EpisodeLearner = checkpoint.backbone_for(path, config)
    state = checkpoint.load(path)
    if "finetune" in state:
        assert isinstance(network, Backbone)
        # What an older version did not know yet is as it is now.
        usual = usual_of("finetune", state["options"]["name"])
        options = finetune_of({**usual, **plain(config.finetune), **state["options"]})
        network = around(network, options, state["classes"], torch.Generator())
        try:
            network.load_state_dict(state["student"])
        except RuntimeError as error:
            raise checkpoint.not_belonging(path, error) from error
    name = f"checkpoint={path}"
    if names := not_finite(state["student"]):
        raise UserError(
            f"{name} cannot be used on dataset={config.dataset.name}: not finite are "
            f"{shortened(names)}, so its training diverged. Give a checkpoint from before that, "
            "such as RUN/checkpoints/best.pt, or train again with a lower learning rate."
        )
    return Reached(
        network,
        state["step"],
        state["images_seen"],
        state["history"],
        name,
        macs=state.get("macs"),
    )

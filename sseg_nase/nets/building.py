"""From a description to its network, and from plain data to a description."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import fields_of, options_of
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.description import Description, Family
from sseg_nase.nets.own import registered_by

# A run of before there were other backbones says nothing of them.
_NOT_SAID_OF_OLD: Mapping[str, Any] = {
    "in_channels": 3,
    "blocks_per_stage": 1,
    **dict.fromkeys(("pooled_blocks", "weights", "imports")),
}


def build(description: Description, *, generator: torch.Generator | None = None) -> Backbone:
    """The network that `description` describes, with weights that `generator` draws."""
    network = description.network(generator)
    assert isinstance(network, Backbone), type(network)
    return network


def family_of(option: type[BackboneConfig]) -> Family:
    """What describes the networks of an option; its module is imported now, as it needs torch."""
    module, _, name = option.described_by.partition(":")
    found: Family = getattr(import_module(module), name)
    return found


def described(data: Mapping[str, Any]) -> Description:
    """The description that `to_dict` wrote; without a name it is that of a chain of ConvBlocks.

    Raises `UserError` for a network that is not known, `KeyError`, `TypeError` or `AssertionError`
    for what is no description.
    """
    if "name" not in data:
        return Architecture.from_dict(dict(data))
    name, known = data["name"], options_of(BackboneConfig)
    if name not in known:
        raise UserError(
            f"a network '{name}' is not known; known: {', '.join(known)}."
            f"{did_you_mean(str(name), list(known))}"
        )
    return family_of(known[name]).from_dict(data)


def configured(backbone: BackboneConfig, image_size: int) -> Description:
    """The untrained network of a run, as data: what every mutation of it starts from.

    Operations of the user's own are registered first. Raises `UserError`.
    """
    registered_by("backbone.imports", backbone.imports)
    return family_of(type(backbone)).configured(backbone, image_size)


def asked_for(config: Mapping[str, Any]) -> Description:
    """`configured` from the plain data of a run's config.yaml.

    Raises `KeyError`, `TypeError` or `AssertionError` for what is no config.
    """
    said = {key: value for key, value in config["backbone"].items() if value is not None}
    kind = options_of(BackboneConfig)[said["name"]]
    values = {**_NOT_SAID_OF_OLD, **said}
    backbone = kind(**{name: values[name] for name, *_ in fields_of(kind)})
    return configured(backbone, config["dataset"]["image_size"])

"""From a description to its network, and from plain data to a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sseg_nase.config.groups.backbone import (
    BackboneConfig,
    Chain,
    ResNet,
    ResNet12,
    Searched,
    ViT,
)
from sseg_nase.config.options import fields_of, names_with, options_of
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.description import Description
from sseg_nase.nets.fixed import (
    FIXED,
    LARGEST_SMALL_IMAGE,
    FixedArchitecture,
    ResNet12Architecture,
    ResNetArchitecture,
    ViTArchitecture,
)
from sseg_nase.nets.own import registered_by
from sseg_nase.nets.searched import SearchedArchitecture

# A run of before there were other backbones says nothing of them.
_NOT_SAID_OF_OLD: Mapping[str, Any] = {
    "in_channels": 3,
    "blocks_per_stage": 1,
    **dict.fromkeys(("pooled_blocks", "weights", "imports")),
}
# Networks that do not evolve, by the name in their description.
KNOWN: Mapping[str, type[FixedArchitecture]] = {
    **FIXED,
    **dict.fromkeys(names_with(Searched), SearchedArchitecture),
}


def build(description: Description, *, generator: torch.Generator | None = None) -> Backbone:
    """The network that `description` describes, with weights that `generator` draws."""
    return description.network(generator)


def described(data: Mapping[str, Any]) -> Description:
    """The description that `to_dict` wrote; without a name it is that of a chain of ConvBlocks.

    Raises `UserError` for a network that is not known, `KeyError`, `TypeError` or `AssertionError`
    for what is no description.
    """
    if "name" not in data:
        return Architecture.from_dict(dict(data))
    name = data["name"]
    if name not in KNOWN:
        raise UserError(
            f"a network '{name}' is not known; known: {', '.join(KNOWN)}."
            f"{did_you_mean(str(name), list(KNOWN))}"
        )
    return KNOWN[name].from_dict(data)


def configured(backbone: BackboneConfig, image_size: int) -> Description:
    """The untrained network of a run, as data: what every mutation of it starts from.

    Operations of the user's own are registered first. Raises `UserError`.
    """
    registered_by("backbone.imports", backbone.imports)
    return _CONFIGURED[type(backbone)](backbone, image_size)


def asked_for(config: Mapping[str, Any]) -> Description:
    """`configured` from the plain data of a run's config.yaml.

    Raises `KeyError`, `TypeError` or `AssertionError` for what is no config.
    """
    said = {key: value for key, value in config["backbone"].items() if value is not None}
    kind = options_of(BackboneConfig)[said["name"]]
    values = {**_NOT_SAID_OF_OLD, **said}
    backbone = kind(**{name: values[name] for name, *_ in fields_of(kind)})
    return configured(backbone, config["dataset"]["image_size"])


def _evolvable(backbone: Chain, image_size: int) -> Architecture:
    return Architecture.seed(
        backbone.channels,
        resolution=image_size,
        in_channels=backbone.in_channels,
        kernel_size=backbone.kernel_size,
        activation=backbone.activation,
        batch_norm=backbone.batch_norm,
        pooling=backbone.pooling,
        blocks_per_stage=backbone.blocks_per_stage,
        pooled_blocks=backbone.pooled_blocks,
        residual=backbone.residual,
        embedding=backbone.embedding,
    )


def _resnet12(backbone: ResNet12, image_size: int) -> ResNet12Architecture:
    widths = tuple(backbone.channels)
    return ResNet12Architecture(backbone.name, image_size, backbone.in_channels, widths)


def _resnet(backbone: ResNet, image_size: int) -> ResNetArchitecture:
    stem = backbone.stem
    if stem == "auto":
        small = image_size <= LARGEST_SMALL_IMAGE and not backbone.weights
        stem = "small" if small else "imagenet"
    inputs = "imagenet" if backbone.weights else "centred"
    return ResNetArchitecture(backbone.name, image_size, backbone.in_channels, stem, inputs)


def _vit(backbone: ViT, image_size: int) -> ViTArchitecture:
    inputs = "imagenet" if backbone.weights else "centred"
    patch = backbone.patch_size
    return ViTArchitecture(backbone.name, image_size, backbone.in_channels, patch, inputs)


def _searched(backbone: Searched, image_size: int) -> Description:
    """The network of a point of a search space; also a chain of ConvBlocks, from space=chain."""
    # Spaces are made of networks, so they stand beside this room and import it.
    from sseg_nase.spaces import named_space

    try:
        space = named_space(backbone.space, resolution=image_size, in_channels=backbone.in_channels)
        return space.describe(space.read(backbone.point))
    except UserError as error:
        said = f"backbone.space={backbone.space} backbone.point={backbone.point}"
        raise UserError(f"{said}: {error}") from None


# Of every option of `backbone`; one from outside is added to it.
_CONFIGURED: dict[type[BackboneConfig], Callable[[Any, int], Description]] = {
    Chain: _evolvable,
    ResNet12: _resnet12,
    ResNet: _resnet,
    ViT: _vit,
    Searched: _searched,
}

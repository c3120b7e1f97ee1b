"""A network that starts over a cap of evolution is refused before anything is built."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import BackboneConfig, Chain
from sseg_nase.config.options import names_with
from sseg_nase.config.schema import Config
from sseg_nase.config.validation import validate
from sseg_nase.errors import UserError
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.mutations.operator import Caps
from sseg_nase.stages.setup import refuse_over_caps

PRESETS = sorted(
    path.stem for path in (Path(__file__).parents[3] / "conf" / "backbone").glob("[!_]*.yaml")
)
LARGE = {
    "max_blocks": 100, "max_channels": 10_000, "max_params": 10**8, "max_flops": 10**12,
}  # fmt: skip


@cache
def preset(name: str) -> Config:
    """The run of this backbone, with caps that hold nothing back."""
    further = "backbone.patch_size=4" if name == "vit_small" else "seed=0"
    config = load([f"backbone={name}", further, "evolution=none", "sparsity=none"])
    evolution = dataclasses.replace(config.evolution, enabled=True, **LARGE)  # type: ignore[arg-type]
    return dataclasses.replace(config, evolution=evolution)


def capped(config: Config, key: str, cap: int) -> Config:
    evolution = dataclasses.replace(config.evolution, **{key: cap})  # type: ignore[arg-type]
    return dataclasses.replace(config, evolution=evolution)


def test_every_preset_and_every_cap_is_here() -> None:
    assert set(PRESETS) == set(names_with(BackboneConfig))
    held_to = {field.name for field in dataclasses.fields(Caps)} - {"resolution"}
    assert held_to == set(LARGE)
    assert {key for key in vars(preset("evolvable").evolution) if key.startswith("max_")} == {
        *held_to, "max_repeats",
    }  # fmt: skip


@pytest.mark.parametrize("key", LARGE)
@pytest.mark.parametrize("name", PRESETS)
def test_a_network_that_starts_over_a_cap_is_refused(name: str, key: str) -> None:
    """By the figures of the network that is built: at the cap where it may be reached, or under."""
    config = preset(name)
    if not config.backbone.evolves:
        with pytest.raises(UserError, match=f"backbone={name}: it does not evolve"):
            validate(config)
        return
    if name not in names_with(Chain):  # counted when the network is described, before it is built
        validate(capped(config, key, 1))
        described = configured(config.backbone, config.dataset.image_size)
        refuse_over_caps(config, described)
        with pytest.raises(UserError, match=rf"evolution\.{key}=1: backbone={name} has .* already"):
            refuse_over_caps(capped(config, key, 1), described)
        return
    for blocks_per_stage in (1, 3):
        backbone = dataclasses.replace(config.backbone, blocks_per_stage=blocks_per_stage)
        deep = dataclasses.replace(config, backbone=backbone)
        architecture = configured(backbone, config.dataset.image_size)
        first_allowed = {
            "max_blocks": len(architecture.blocks),
            "max_channels": max(architecture.channels),
            "max_params": 1 + sum(p.numel() for p in build(architecture).parameters()),
            "max_flops": 1 + 2 * architecture.macs(config.evolution.cap_resolution),
        }[key]
        validate(capped(deep, key, first_allowed))
        refused = re.escape(f"evolution.{key}={first_allowed - 1}: ")
        with pytest.raises(UserError, match=refused):
            validate(capped(deep, key, first_allowed - 1))
        caps = Caps.of(capped(deep, key, first_allowed).evolution)
        assert caps.violation(architecture) is None  # what starts is what may go on
        assert Caps.of(capped(deep, key, first_allowed - 1).evolution).violation(architecture)

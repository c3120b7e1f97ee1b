"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sseg_nase.errors import UserError
from sseg_nase.files import replacing
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN

SCHEMA = 1


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors and plain data) atomically."""
    with replacing(path) as temporary:
        torch.save({"schema": SCHEMA, **payload}, temporary)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU. Raises `UserError` for anything else."""
    if not path.is_file():
        raise UserError(
            f"checkpoint={path}: there is no such file. Checkpoints are at "
            "RUN/checkpoints/last.pt and RUN/checkpoints/best.pt."
        )
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint={path}: not a checkpoint of sseg-nase, or damaged "
            f"({type(error).__name__}). Checkpoints hold only tensors and plain data; anything "
            "else is refused."
        ) from error
    if not isinstance(payload, dict) or payload.get("schema") != SCHEMA:
        raise UserError(f"checkpoint={path}: not a checkpoint of this version of sseg-nase.")
    return payload


def backbone_of(path: Path) -> EvolvableCNN:
    """The backbone in a checkpoint, with the student's weights."""
    payload = load(path)
    try:
        backbone = EvolvableCNN(Architecture.from_dict(payload["architecture"]))
        backbone.load_state_dict(
            {
                name.removeprefix("backbone."): tensor
                for name, tensor in payload["student"].items()
                if name.startswith("backbone.")
            }
        )
    except (KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"checkpoint={path}: architecture and weights do not belong together ({error})."
        ) from error
    return backbone

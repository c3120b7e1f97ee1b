"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sseg_nase.config.groups.backbone import Chain
from sseg_nase.config.options import names_with
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.files import write_bytes
from sseg_nase.finite import not_finite, shortened
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, configured, described
from sseg_nase.training.divergence import check_saved

SCHEMA = 1
# What each checkpoint that training resumes from tells of its position.
PROGRESS = {"last": ("epoch", "step", "history"), "finetune_last": ("finetune", "step", "history")}
DEFAULT = names_with(Chain)[0]


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors and plain data) atomically.

    Raises `StorageError`, and `DivergenceError` where a tensor is not finite; the file is then
    left as it is.
    """
    check_saved(payload, path.name)
    content = io.BytesIO()  # torch says of a full disk only that it is at an unexpected position
    torch.save({"schema": SCHEMA, **payload}, content)
    write_bytes(path, content.getbuffer())


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


def resumable(path: Path) -> dict[str, Any]:
    """`load` of a run's `last` checkpoint, to train on from.

    Raises `UserError` where it is damaged or another file, and where it holds what is not finite,
    as older versions of sseg-nase wrote it.
    """
    run = path.parent.parent
    try:
        payload = load(path)
    except UserError as error:
        raise UserError(f"resume={run}: {error} {_instead_of(path, diverged=False)}") from error
    if missing := [key for key in PROGRESS[path.stem] if key not in payload]:
        raise UserError(
            f"resume={run}: {path.name} is not the checkpoint of that name, because it lacks "
            f"{', '.join(missing)}. {_instead_of(path, diverged=False)}"
        )
    if names := not_finite(payload):
        raise UserError(
            f"resume={run}: {path.name} cannot be trained on from, because not "
            f"finite are {shortened(names)}: training diverged before. "
            f"{_instead_of(path, diverged=True)}"
        )
    return payload


def unreadable(path: Path) -> str | None:
    """Return why no checkpoint can be read there; None where it can."""
    if not path.exists():
        return "is not there any more"
    try:
        load(path)
    except UserError:
        return "is damaged, cut off or of another version"
    return None


@contextmanager
def taken_up(path: str) -> Iterator[None]:
    """Context manager around what is restored from the run's checkpoint `path` (`last.pt`).

    Raises `UserError` where that is the checkpoint of another run, whose parts do not fit.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        why = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UserError(
            f"resume: checkpoints/{path} does not belong to this run: its parts are not those of "
            f"the run's networks ({why}). Bring back the run's own, or remove it to begin again."
        ) from error


def _instead_of(path: Path, *, diverged: bool) -> str:
    """What to do where the checkpoint at `path` cannot be trained on from."""
    best = path.with_name(path.name.replace("last", "best"))
    if path.stem == "last" and _usable(best):  # fine-tuning's holds the weights that were best
        lower = " with a lower optimizer.lr and resume_overrides=true" if diverged else ""
        return (
            f"{best.name} is {'finite' if diverged else 'whole'}: replace {path.name} with it "
            f"(cp {shlex.quote(str(best))} {shlex.quote(str(path))}), and resume{lower}; the epoch "
            "that it was saved in is repeated."
        )
    lower = ", and resume with a lower learning rate" if diverged else ""
    return f"Remove {path} to begin again{lower}."


def _usable(path: Path) -> bool:
    return unreadable(path) is None and not not_finite(load(path))


def backbone_of(path: Path) -> Backbone:
    """The backbone in a checkpoint, with the student's weights."""
    payload = load(path)
    try:
        backbone = build(described(payload["architecture"]))
        backbone.load_state_dict(
            {
                name.removeprefix("backbone."): tensor
                for name, tensor in payload["student"].items()
                if name.startswith("backbone.")
            }
        )
    except (UserError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise not_belonging(path, error) from error
    return backbone


def load_network(run_or_checkpoint: Path | str) -> Backbone:
    """The trained network of a run's folder, or of one checkpoint file, in eval mode on the CPU.

    Of a run it is the fine-tuned network where there is one, else the last one; name
    `RUN/checkpoints/best.pt` for the one with the lowest loss. `network(x)` embeds images `[B, C,
    S, S]`, normalised by `normalize`, as `[B, features]`. Raises `UserError` for what is no
    checkpoint of sseg-nase. No code from the file is run.
    """
    return backbone_of(file_of(Path(run_or_checkpoint).expanduser())).eval()


def file_of(path: Path) -> Path:
    """The checkpoint that stands for the run in the folder `path`; a file stands for itself."""
    if not path.is_dir():
        return path
    tuned, last = (path / "checkpoints" / f"{name}.pt" for name in ("finetune_best", "last"))
    return tuned if tuned.exists() else last


def not_belonging(path: Path, error: Exception) -> UserError:
    """What is said of weights that do not fit their network one by one."""
    return UserError(
        f"checkpoint={path}: architecture and weights do not belong together ({error})."
    )


def backbone_for(path: Path, config: Config) -> Backbone:
    """`backbone_of` the checkpoint for the images of `config`: described at their size.

    Raises `UserError` where it takes images of another size or of other channels, and where
    `config` asks for a backbone of another name.
    """
    backbone = backbone_of(path)
    architecture, dataset = backbone.architecture, config.dataset
    asked, size, trained_at = config.backbone.name, dataset.image_size, architecture.resolution
    # The default asks for nothing in particular; a chain of blocks may have been mutated since.
    chain = isinstance(config.backbone, Chain)
    kind = DEFAULT if chain else asked
    same = asked == DEFAULT or architecture.name == kind
    if config.backbone.exact:  # whatever kind of network its space is made of
        same = architecture == configured(config.backbone, trained_at)
    if same and chain and asked != DEFAULT:
        mutated = any(record["accepted"] for record in load(path)["history"])
        same = mutated or architecture.channels == configured(config.backbone, size).channels
    if not same:
        widths = "-".join(map(str, architecture.channels))
        raise UserError(
            f"backbone={asked}: checkpoint={path} holds another network, {architecture.name} with "
            f"channels {widths}. Leave backbone out, or give a checkpoint of that backbone."
        )
    if architecture.in_channels != dataset.channels:
        raise UserError(
            f"dataset.channels={dataset.channels}: the network in checkpoint={path} has "
            f"in_channels={architecture.in_channels}; set dataset.channels="
            f"{architecture.in_channels}, or give a network for such images."
        )
    if not architecture.any_resolution and trained_at != size:
        raise UserError(
            f"dataset.image_size={size}: the network in checkpoint={path} takes {trained_at} px "
            f"only; set dataset.image_size={trained_at}."
        )
    backbone.architecture = architecture.at(size)
    return backbone

"""Weights that others have trained, for torchvision's networks: all of them or none."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from sseg_nase.errors import UserError
from sseg_nase.finite import not_finite, shortened
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.vision import VisionBackbone

IMAGENET = "imagenet"
NAMED = 4  # names in a message
# Counters of BN that old files do not have, and that no forward pass reads.
_COUNTER = ".num_batches_tracked"


def load_weights(backbone: Backbone, weights: str) -> str:
    """Load `weights` (`imagenet`, or a file with a state dict); return what was done, to be told.

    Every tensor of the network must be in the file, and none beside them but the classifier's,
    which the network does not have. Raises `UserError`, and then nothing is loaded.
    """
    assert isinstance(backbone, VisionBackbone), type(backbone)
    key = f"backbone.weights={weights}"
    name = backbone.architecture.name
    path = _of_torchvision(name) if weights == IMAGENET else Path(weights).expanduser()
    given = _read(path, key)
    left_out = sorted(tensor for tensor in given if tensor.startswith(backbone.classifier))
    given = {tensor: value for tensor, value in given.items() if tensor not in left_out}
    own = backbone.body.state_dict()
    given, summed = _for_grey(given, own, backbone.stem)
    _check(given, own, f"{key}: {path.name} does not fit backbone={name}")
    if names := not_finite(given):
        raise UserError(
            f"{key}: {path.name} holds what is not finite ({shortened(names)}). Nothing was "
            "loaded; give weights of a training that did not diverge."
        )
    counters = {tensor: value for tensor, value in own.items() if tensor.endswith(_COUNTER)}
    backbone.body.load_state_dict({**counters, **given})
    dropped = f"; left out, as it is the classifier: {', '.join(left_out)}" if left_out else ""
    grey = f"; for grey images {backbone.stem} is summed over its three channels" if summed else ""
    return f"{key}: {len(given)} tensors of {path} loaded{dropped}{grey}"


def _for_grey(
    given: dict[str, Tensor], own: dict[str, Tensor], stem: str
) -> tuple[dict[str, Tensor], bool]:
    """With the first layer's weights summed over red, green and blue where the network takes grey.

    Such a layer gives for a grey image what the one in the file gives for the image in all three
    channels.
    """
    weights = given.get(stem)
    if weights is None or weights.ndim != 4 or weights.shape[1] != 3 or own[stem].shape[1] != 1:
        return given, False
    return {**given, stem: weights.sum(dim=1, keepdim=True)}, True


def _of_torchvision(name: str) -> Path:
    """torchvision's file in the cache of torch hub, where it is there."""
    known = get_model_weights(name).__members__["IMAGENET1K_V1"]
    file = PurePosixPath(urlparse(known.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise UserError(
            f"backbone.weights={IMAGENET}: there is no {path}, and nothing is downloaded in a run. "
            f"Download {known.url} to that folder (TORCH_HOME names another), or set "
            "backbone.weights=FILE."
        )
    return path


def _read(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"{key}: there is no such file. Give a state dict that torch.save wrote, or "
            f"backbone.weights={IMAGENET} for torchvision's in the cache of torch hub."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{key}: not a file of torch.save, or damaged ({type(error).__name__}). A state dict "
            "is needed: tensors by name and nothing else."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"{key}: this file is not a state dict, tensors by name and nothing else. Save "
            "`network.state_dict()` alone."
        )
    return state


def _check(given: dict[str, Tensor], own: dict[str, Tensor], said: str) -> None:
    missing = [name for name in own if name not in given and not name.endswith(_COUNTER)]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} is {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    if found:
        raise UserError(
            f"{said}: {'; '.join(found)}. Nothing was loaded. Choose the backbone, "
            "backbone.in_channels and backbone.stem or backbone.patch_size that the file was "
            "trained with."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

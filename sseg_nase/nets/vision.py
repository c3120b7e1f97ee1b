"""What torchvision's networks have in common here: their images, and layers of other widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.family import FamilyArchitecture

# Of ImageNet's colours, as torchvision's weights expect them; of grey the means of these.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUTS = ("centred", "imagenet")  # what the weights expect: see `VisionBackbone`


class VisionBackbone(Backbone):
    """A network `body` of torchvision, whose tensors have torchvision's names.

    `classifier`: the prefix of those that are left out; `stem`: the weights that read images.
    `inputs`: how the weights expect images, `centred` in [-1, 1] as all networks here get them, or
    `imagenet`: the network then first brings those to the mean and deviation of ImageNet's colours.
    """

    body: nn.Module
    classifier: str
    stem: str
    architecture: FamilyArchitecture

    def __init__(self, architecture: FamilyArchitecture, inputs: str) -> None:
        super().__init__()
        self.architecture, self.inputs = architecture, inputs
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        if architecture.in_channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        # From (x − 0.5) / 0.5 to (x − mean) / std. A function of `inputs`: not in the state dict.
        self.register_buffer("_scale", (0.5 / std)[:, None, None], persistent=False)
        self.register_buffer("_shift", ((0.5 - mean) / std)[:, None, None], persistent=False)

    def _resize(self, *, everything: bool = False) -> None:
        """Rebuild the layers whose channels are not torchvision's, initialised as it does.

        `everything`: all layers with named axes, where some are others than torchvision's.
        """
        axes, altered = self.architecture.axes, dict(self.architecture.altered)
        altered = dict(axes) if everything and altered else altered
        for name, wires in self.architecture.wires().items():
            path, _, part = name.rpartition(".")
            sizes = {
                dim: axes[axis.names[0]]
                for dim, axis in enumerate(wires.axes)
                if axis is not None and axis.names[0] in altered
            }
            if sizes and part == "weight" and (old := _found(self, path)) is not None:
                _put(self, path, _resized(old, sizes))

    def prepared(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] as the weights expect them."""
        if self.inputs == "centred":
            return x
        scale, shift = cast(Tensor, self._scale), cast(Tensor, self._shift)
        return x * scale.to(x.dtype) + shift.to(x.dtype)


def _found(network: nn.Module, path: str) -> nn.Module | None:
    """The module of that name; None where this network has none."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _put(network: nn.Module, path: str, new: nn.Module) -> None:
    room, _, name = path.rpartition(".")
    setattr(network.get_submodule(room), name, new)


def _resized(old: nn.Module, sizes: Mapping[int, int]) -> nn.Module:
    """A layer like `old`, with other sizes of its weight's dimensions."""
    if isinstance(old, nn.BatchNorm2d):
        return nn.BatchNorm2d(sizes[0])
    assert isinstance(old, nn.Conv2d | nn.Linear), old
    out, into = (sizes.get(dim, old.weight.shape[dim]) for dim in range(2))
    if isinstance(old, nn.Linear):
        linear = nn.Linear(into, out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(linear.bias, std=1e-6)
        return linear
    kernel, stride, padding = old.kernel_size[0], old.stride[0], old.padding[0]
    assert isinstance(padding, int), padding
    conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv

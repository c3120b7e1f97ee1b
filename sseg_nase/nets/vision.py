"""torchvision's networks without their classifiers. Only what builds one imports this module."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import resnet

from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.fixed import ResNetArchitecture, ViTArchitecture
from sseg_nase.nets.fused import norm_act_pool

# Of ImageNet's colours, as torchvision's weights expect them; of grey the means of these.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionBackbone(Backbone):
    """A network `body` of torchvision, whose tensors have torchvision's names.

    `classifier`: the prefix of those that are left out; `stem`: the weights that read images.
    """

    body: nn.Module
    classifier: str
    stem: str
    architecture: ResNetArchitecture | ViTArchitecture

    def __init__(self, architecture: ResNetArchitecture | ViTArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        if architecture.in_channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        # From (x − 0.5) / 0.5 to (x − mean) / std. A function of `inputs`: not in the state dict.
        self.register_buffer("_scale", (0.5 / std)[:, None, None], persistent=False)
        self.register_buffer("_shift", ((0.5 - mean) / std)[:, None, None], persistent=False)

    def _resize(self, *, everything: bool = False) -> None:
        """Make the layers anew whose channels are not torchvision's, initialised as it does.

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
        if self.architecture.inputs == "centred":
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


class BasicBlock(resnet.BasicBlock):
    """torchvision's, with its norms, shortcut and activations each in one go."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        y = norm_act_pool(self.bn1, self.conv1(x), activation="relu")
        shortcut = _shortcut(self, x)
        return norm_act_pool(self.bn2, self.conv2(y), shortcut=shortcut, activation="relu")


class Bottleneck(resnet.Bottleneck):
    """torchvision's, as `BasicBlock`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        y = norm_act_pool(self.bn1, self.conv1(x), activation="relu")
        y = norm_act_pool(self.bn2, self.conv2(y), activation="relu")
        shortcut = _shortcut(self, x)
        return norm_act_pool(self.bn3, self.conv3(y), shortcut=shortcut, activation="relu")


BLOCKS: Mapping[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: BasicBlock,
    resnet.Bottleneck: Bottleneck,
}


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    conv, norm = block.downsample
    return norm_act_pool(norm, conv(x))


class ResNet(VisionBackbone):
    """torchvision's ResNet up to the average over the last map."""

    classifier = "fc."
    stem = "conv1.weight"
    body: models.ResNet

    def __init__(
        self, architecture: ResNetArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(architecture)
        with drawing_from(generator):
            # Every layer of one that has been altered is made anew: there is no need to draw these.
            drawn = torch.device("meta") if architecture.altered else nullcontext()
            with drawn:
                self.body = models.get_model(architecture.name, weights=None)
            small = architecture.stem == "small"
            if small or architecture.in_channels != 3:
                side, stride = (3, 1) if small else (7, 2)
                self.body.conv1 = nn.Conv2d(
                    architecture.in_channels, 64, side, stride, padding=side // 2, bias=False
                )
                nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out")
            self._resize(everything=True)
        for part in self.body.modules():
            part.__class__ = BLOCKS.get(type(part), type(part))
        if small:
            self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()

    def stages(self) -> list[nn.Module]:
        """The four stages in order, the first one with the stem."""
        body = self.body
        first = nn.ModuleList((body.conv1, body.bn1, body.layer1))
        return [first, body.layer2, body.layer3, body.layer4]

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`."""
        body = self.body
        x = norm_act_pool(body.bn1, body.conv1(self.prepared(x)), activation="relu")
        x = body.maxpool(x)
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in stage:
                x = self.run(block, x)
        return x.mean(dim=(2, 3))


class VisionTransformer(VisionBackbone):
    """torchvision's VisionTransformer up to the class token."""

    classifier = "heads."
    stem = "conv_proj.weight"
    body: models.VisionTransformer

    def __init__(
        self, architecture: ViTArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(architecture)
        with drawing_from(generator):
            self.body = models.VisionTransformer(
                image_size=architecture.resolution,
                patch_size=architecture.patch_size,
                num_layers=architecture.layers,
                num_heads=architecture.heads,
                hidden_dim=architecture.hidden,
                mlp_dim=architecture.mlp,
            )
            if architecture.in_channels != 3:
                patch = architecture.patch_size
                conv = nn.Conv2d(architecture.in_channels, architecture.hidden, patch, patch)
                fan_in = architecture.in_channels * patch**2
                nn.init.trunc_normal_(conv.weight, std=fan_in**-0.5)
                nn.init.zeros_(cast(Tensor, conv.bias))
                self.body.conv_proj = conv
            self._resize()
        self.body.heads = nn.Identity()

    def stages(self) -> list[nn.Module]:
        """The blocks in order, the first one with what makes its tokens."""
        body = self.body
        tokens = nn.ParameterList((body.class_token, body.encoder.pos_embedding))
        first, *others = body.encoder.layers
        return [nn.ModuleList((body.conv_proj, tokens, first)), *others]

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, S, S]` as `[B, features]`."""
        body = self.body
        patches = body.conv_proj(self.prepared(x)).flatten(2).transpose(1, 2)
        x = torch.cat((body.class_token.expand(len(x), -1, -1), patches), dim=1)
        x = x + body.encoder.pos_embedding
        for block in body.encoder.layers:
            x = self.run(block, x)
        return body.encoder.ln(x)[:, 0]

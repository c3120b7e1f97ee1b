"""torchvision's VisionTransformer up to the class token; only what builds one imports this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchvision import models

from sseg_nase.nets.backbone import drawing_from
from sseg_nase.nets.families.vit import ViT
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.maps import Axis, Wires, module
from sseg_nase.nets.vision import INPUTS, VisionBackbone


@dataclass(frozen=True)
class ViTArchitecture(FamilyArchitecture):
    """ViT-S by torchvision's VisionTransformer; `inputs` as in `VisionBackbone`."""

    patch_size: int = 16
    inputs: str = "centred"
    hidden: int = 384
    layers: int = 12
    heads: int = 6
    mlp: int = 1536

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.resolution % self.patch_size == 0, (self.resolution, self.patch_size)
        assert self.inputs in INPUTS, self.inputs

    @classmethod
    def configured(cls, backbone: ViT, image_size: int) -> ViTArchitecture:
        """The untrained network of a run."""
        inputs = "imagenet" if backbone.weights else "centred"
        return cls(backbone.name, image_size, backbone.in_channels, backbone.patch_size, inputs)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return (self.hidden,) * self.layers

    @property
    def usual(self) -> dict[str, int]:
        """The hidden units of every block's MLP; what blocks add to has its width for good."""
        return {f"layers.{number}.mlp": self.mlp for number in range(self.layers)}

    def wires(self) -> dict[str, Wires]:
        """The first layer of an MLP makes its hidden units, the second one reads them."""
        wires: dict[str, Wires] = {}
        for number in range(self.layers):
            units, mlp = [f"layers.{number}.mlp"], f"body.encoder.layers.encoder_layer_{number}.mlp"
            wires |= module(f"{mlp}.0", units)
            wires[f"{mlp}.0.weight"] = Wires((Axis(tuple(units)), None))
            wires[f"{mlp}.3.weight"] = Wires((None, Axis(tuple(units), reads=True)))
        return wires

    @property
    def any_resolution(self) -> bool:
        """There is one position embedding per patch."""
        return False

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        return VisionTransformer(self, generator=generator)


class VisionTransformer(VisionBackbone):
    """torchvision's VisionTransformer up to the class token."""

    architecture: ViTArchitecture
    classifier = "heads."
    stem = "conv_proj.weight"
    body: models.VisionTransformer

    def __init__(
        self, architecture: ViTArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(architecture, architecture.inputs)
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
        x = torch.cat((body.class_token.expand(x.shape[0], -1, -1), patches), dim=1)
        x = x + body.encoder.pos_embedding
        for block in body.encoder.layers:
            x = self.run(block, x)
        return body.encoder.ln(x)[:, 0]

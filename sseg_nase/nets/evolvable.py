"""The backbone that grows: a chain of ConvBlocks built from an `Architecture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sseg_nase.nets.architecture import Architecture, pools
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.fused import LEAKY_SLOPE, norm_act_pool
from sseg_nase.nets.maps import READS_FEATURES, Axis, Wires
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.widen import widen

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=LEAKY_SLOPE),
    "gelu": F.gelu,
}


class ConvBlock(nn.Module):
    """Convolution, BN, activation, optional 2×2 max-pool: `[B, C, H, W]` → `[B, C', H', W']`.

    Plain: `pool(act(norm(conv(x))))`. Residual: `pool(shortcut(x) + norm(conv(act(x))))`: with
    γ = 0 in the norm (or zero weights without one) it is exactly `pool(shortcut(x))` for every
    activation, in train and eval mode, and still passes gradient to γ in every channel; an
    activation after the sum would leave zero-padded channels dead. The shortcut adds channel i to
    channel i as far as both exist, or, when mutations have moved channels, follows `routing`
    `[C', C]`, a fixed matrix that every mutation maps like a weight.
    """

    routing: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = True,
        pool: bool = True,
        residual: bool = False,
        routed: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not batch_norm
        )
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.activation = activation
        self.pool = pool
        self.residual = residual
        self.register_buffer("routing", torch.eye(out_channels, in_channels) if routed else None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        pool = self.pool and pools(min(x.shape[-2:]))
        if not self.residual:
            return norm_act_pool(
                self.norm,
                self.conv(x),
                activation=self.activation,
                negative_slope=LEAKY_SLOPE,
                pool=pool,
            )
        y = self.conv(ACTIVATIONS[self.activation](x))
        return norm_act_pool(self.norm, y, shortcut=self._shortcut(x, y.shape[1]), pool=pool)

    def _shortcut(self, x: Tensor, channels: int) -> Tensor:
        if self.routing is not None:
            return F.conv2d(x, self.routing.to(x.dtype)[:, :, None, None])
        more = channels - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, 0, more)) if more > 0 else x[:, :channels]


class EvolvableCNN(Backbone):
    """A chain of `ConvBlock`s that embeds images `[B, C, S, S]` as `[B, features]`.

    `architecture` describes it fully (JSON through `to_dict`); `generator` draws the weights, by
    default torch's own. Images are in [-1, 1], as `sseg_nase.data.views.normalize` gives them.
    Mutations are functions elsewhere (`sseg_nase.evolution.operators`); `grow` and `widen` here
    apply them to this network in place, for use by hand.
    """

    architecture: Architecture

    def __init__(self, architecture: Architecture, *, generator: torch.Generator | None = None):
        super().__init__()
        self.architecture = architecture
        self.blocks = nn.ModuleList(
            ConvBlock(
                wide_in,
                block.channels,
                kernel_size=architecture.kernel_size,
                activation=architecture.activation,
                batch_norm=architecture.batch_norm,
                pool=block.pool,
                residual=block.residual,
                routed=block.routed,
            )
            for wide_in, block in zip(architecture.widths, architecture.blocks, strict=False)
        )
        initialize(self, generator)

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`.

        `masks` holds one `[C]` tensor per block that multiplies the block's output channels.
        """
        for index, block in enumerate(self.blocks):
            x = self.run(block, x)
            if masks is not None:
                x = x * masks[index].to(x.dtype)[:, None, None]
        if self.architecture.embedding == "average":
            return x.mean(dim=(2, 3))
        return x.flatten(1)

    def masked(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """`forward` with `masks`."""
        masked: Tensor = self(x, masks=masks)
        return masked

    def shortcuts(self) -> dict[str, tuple[str | None, Tensor]]:
        """Of every residual block what its shortcut adds: the block before it, by its routing."""
        widths, found = self.architecture.widths, {}
        before: str | None = None
        for number, (name, block) in enumerate(
            zip(self.architecture.axes, self.blocks, strict=True)
        ):
            assert isinstance(block, ConvBlock)
            if block.residual:
                routing = block.routing
                if routing is None:
                    routing = torch.eye(widths[number + 1], widths[number])
                found[name] = (before, routing.detach())
            before = name
        return found

    def stages(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.blocks)

    def for_inference(self) -> EvolvableCNN:
        """A copy in eval mode that computes the same with every BN folded into its convolution."""
        folded = super().for_inference()
        for block in folded.blocks:
            assert isinstance(block, ConvBlock)
            if isinstance(block.norm, nn.BatchNorm2d):
                block.conv = fuse_conv_bn_eval(block.conv, block.norm)
                block.norm = nn.Identity()
        return folded.to(memory_format=torch.channels_last)  # fused weights are computed again

    def grow(self, out_channels: int | None = None, *, seed: int = 0) -> bool:
        """Add a block after the last, leaving the function unchanged. True when it was done."""
        self.become(grow(self.architecture, out_channels=out_channels, seed=seed))
        return True

    def widen(self, block_idx: int, *, ratio: float = 1.5, seed: int = 0) -> bool:
        """Widen one block by `ratio`, leaving the function unchanged. True when it was done."""
        self.become(widen(self.architecture, block_idx, ratio=ratio, seed=seed))
        return True


class ProjectionHead(nn.Module):
    """A projector or predictor: `layers` - 1 times Linear, BN, ReLU, then Linear.

    `[B, features]` → `[B, out]`; two layers are SimCLR's and BYOL's, three those of Barlow Twins.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 256,
        out: int = 128,
        *,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        assert layers > 1
        self.fc1 = nn.Linear(features, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        for number in range(2, layers):
            self.add_module(f"fc{number}", nn.Linear(hidden, hidden, bias=False))
            self.add_module(f"norm{number}", nn.BatchNorm1d(hidden))
        self.add_module(f"fc{layers}", nn.Linear(hidden, out))
        initialize(self, generator)

    @classmethod
    def shaped(
        cls, tensors: Mapping[str, Tensor], features: int | None, generator: torch.Generator | None
    ) -> ProjectionHead:
        """The head whose state dict has the shapes of `tensors`, but for `features` if given."""
        features = tensors["fc1.weight"].shape[1] if features is None else features
        layers = 1 + sum(name.startswith("norm") and name.endswith(".weight") for name in tensors)
        hidden, out = (len(tensors[f"fc{number}.weight"]) for number in (1, layers))
        return cls(features, hidden, out, layers=layers, generator=generator)

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """The first layer reads the embedding."""
        return {"fc1.weight": READS_FEATURES}

    def forward(self, x: Tensor) -> Tensor:
        """`[B, features]` → `[B, out]`."""
        *hidden, last = self.children()
        for linear, norm in zip(hidden[::2], hidden[1::2], strict=True):
            x = F.relu(norm(linear(x)))
        projected: Tensor = last(x)
        return projected


class PrototypeHead(nn.Module):
    """DINO's head (Caron et al. 2021): `[B, features]` → logits `[B, prototypes]`.

    Linear, GELU, Linear, GELU, Linear to a bottleneck of unit length; then a layer without bias
    whose every row is of unit length, too, which is weight normalisation with its scale held at 1.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, bottleneck)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        initialize(self, generator)

    @classmethod
    def shaped(
        cls, tensors: Mapping[str, Tensor], features: int | None, generator: torch.Generator | None
    ) -> PrototypeHead:
        """The head whose state dict has the shapes of `tensors`, but for `features` if given."""
        features = tensors["fc1.weight"].shape[1] if features is None else features
        names = ("fc1.weight", "fc3.weight", "prototypes.weight")
        return cls(features, *(len(tensors[name]) for name in names), generator=generator)

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """The first layer reads the embedding."""
        return {"fc1.weight": READS_FEATURES}

    def forward(self, x: Tensor) -> Tensor:
        """`[B, features]` → cosines `[B, prototypes]`."""
        x = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
        return F.linear(F.normalize(x, dim=1), F.normalize(self.prototypes.weight, dim=1))


def head_shaped(
    tensors: Mapping[str, Tensor],
    features: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A new head as `tensors`, a head's state dict, say, but for `features` where they are given.

    None has no tensors. Its other inputs and all outputs are those of `tensors`. Draws from
    `generator` alone. Raises `KeyError` for tensors of no head.
    """
    if not tensors:
        return nn.Identity()
    kind = PrototypeHead if "prototypes.weight" in tensors else ProjectionHead
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, too
        return kind.shaped(tensors, features, generator)


class Learner(nn.Module):
    """What is trained: a backbone and the heads of its method, mutated together.

    `head` projects the embeddings and `predictor` the projections; `nn.Identity` where the method
    has none. A method compares `project` of the embeddings.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module | None = None, predictor: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Identity() if head is None else head
        self.predictor = nn.Identity() if predictor is None else predictor

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads on the backbone, by name."""
        return {"head": self.head, "predictor": self.predictor}

    def project(self, features: Tensor) -> Tensor:
        """What the method compares, `[B, out]`, of embeddings `[B, features]`."""
        compared: Tensor = self.predictor(self.head(features))
        return compared

    def forward(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, features]` and projections `[B, out]` of images `[B, C, H, W]`.

        Batches of images of several sizes are embedded one after the other and projected together,
        in their order.
        """
        batches = [x] if isinstance(x, Tensor) else x
        embedded = [self.backbone(images) for images in batches]
        features = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        return features, self.project(features)


def initialize(module: nn.Module, generator: torch.Generator | None) -> None:
    """Kaiming-normal convolutions and linear layers, zero biases, unit norms (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

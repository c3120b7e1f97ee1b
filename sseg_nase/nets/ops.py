"""Operations that networks of a search are made of: one table, by name.

An operation is a function `(in_channels, out_channels, stride, **options) -> nn.Module` that maps
`[B, C, H, W]` to `[B, C', ⌈H / stride⌉, ⌈W / stride⌉]`. Its params and macs are counted on a copy
without weights. One of your own is one entry, from any file that is imported before it is used:

    @register("gated_3x3")
    def gated(inside, outside, stride): ...

Convolutions stand as ReLU, convolution, BN unless their docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.convolutions import for_cpu
from sseg_nase.nets.fused import norm_act_pool

Build = Callable[..., nn.Module]
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "none": nn.Identity,
}
_WITH_NORM: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hard_swish",
    nn.SiLU: "silu",
}  # beside LeakyReLU
LEAST_SQUEEZED = 4  # channels: a quarter of five would be one


@dataclass(frozen=True)
class Operation:
    """An entry of the table."""

    name: str
    build: Build


@dataclass(frozen=True)
class Cost:
    """What an operation takes: trainable parameters, multiply-accumulates, its map `[C, S, S]`."""

    params: int
    macs: int
    channels: int
    side: int


OPERATIONS: dict[str, Operation] = {}


def register(name: str, build: Build | None = None) -> Any:
    """Add an operation; without `build` it is a decorator. Raises `UserError` for a name in use."""
    if build is None:
        return partial(register, name)
    if name in OPERATIONS and not same_definition(OPERATIONS[name].build, build):
        raise UserError(f"Operation {name} is registered already. Choose another name.")
    OPERATIONS[name] = Operation(name, build)
    return build


def same_definition(one: object, other: object) -> bool:
    """Whether two functions or classes are one, or one that a notebook has defined once more."""
    names = [(getattr(f, "__module__", f), getattr(f, "__qualname__", f)) for f in (one, other)]
    return names[0] == names[1]


def operation(name: str) -> Operation:
    """Return an entry. Raises `UserError` with what there is."""
    if name not in OPERATIONS:
        raise UserError(
            f"There is no operation {name!r}.{did_you_mean(name, OPERATIONS)} Known are "
            f"{', '.join(OPERATIONS)}. One of your own is registered by importing its file: "
            "backbone.imports=FILE.py, of a search space.imports=FILE.py."
        )
    return OPERATIONS[name]


def check_operations(names: Iterable[str]) -> None:
    """Raise `UserError` for the first name that is no operation."""
    for name in names:
        operation(name)


def build_operation(
    name: str, inside: int, outside: int, stride: int = 1, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the module of an operation."""
    return for_cpu(operation(name).build(inside, outside, stride, **(options or {})))


def cost(
    name: str,
    inside: int,
    outside: int,
    stride: int,
    side: int,
    options: tuple[tuple[str, Any], ...] = (),
) -> Cost:
    """Return what an operation takes on a map `[inside, side, side]`, counted without weights."""
    return _counted(operation(name).build, inside, outside, stride, side, options)


@lru_cache(maxsize=16384)
def _counted(
    build: Build,
    inside: int,
    outside: int,
    stride: int,
    side: int,
    options: tuple[tuple[str, Any], ...],
) -> Cost:
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        module = build(inside, outside, stride, **dict(options)).eval()
        with counter:
            map_out = module(torch.empty(1, inside, side, side))
    params = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    return Cost(params, counter.get_total_flops() // 2, map_out.shape[1], map_out.shape[2])


# Parts.


class Zero(nn.Module):
    """Nothing: zeros of the output's shape, without a gradient to the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.outside, self.stride = outside, stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → zeros `[B, C', H', W']`."""
        high, wide = (-(-side // self.stride) for side in x.shape[-2:])
        return x.new_zeros(len(x), self.outside, high, wide)


class FactorizedReduce(nn.Module):
    """Half of the channels from even pixels, half from odd ones: ReLU, two 1×1, BN (DARTS)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        half = outside // 2
        self.even = nn.Conv2d(inside, outside - half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(inside, half, 1, stride=2, bias=False) if half else None
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', ⌈H / 2⌉, ⌈W / 2⌉]`."""
        x = F.relu(x)
        parts = [self.even(x)]
        if self.odd is not None:
            more = (x.shape[-1] % 2, x.shape[-2] % 2)
            parts.append(self.odd(F.pad(x, (0, 1 + more[0], 0, 1 + more[1]))[:, :, 1:, 1:]))
            parts[1] = parts[1][:, :, : parts[0].shape[2], : parts[0].shape[3]]
        return self.norm(torch.cat(parts, 1))


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say (Hu et al. 2018).

    They are squeezed to `squeezed` channels, by default `ratio` times as many, and at least 4.
    """

    def __init__(self, channels: int, ratio: float = 0.25, squeezed: int | None = None) -> None:
        super().__init__()
        squeezed = max(LEAST_SQUEEZED, round(channels * ratio)) if squeezed is None else squeezed
        self.down = nn.Conv2d(channels, squeezed, 1)
        self.up = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C, H, W]`."""
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Layers(nn.Sequential):
    """Modules one after the other: a BN with its activation in one go, see `norm_act_pool`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        return _in_turn(list(self), x)


class Residual(nn.Module):
    """`act(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: str = "none") -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        if isinstance(self.body, Layers) and not _watched(self.body):
            *before, last = self.body
            if isinstance(last, nn.BatchNorm2d):
                inside, shortcut = _in_turn(before, x), self.shortcut(x)
                fused = _fused(self.activation)
                y = norm_act_pool(last, inside, shortcut=shortcut, **(fused or {}))
                return self.activation(y) if fused is None else y
        return self.activation(self.body(x) + self.shortcut(x))

    def adds_input(self) -> bool:
        """Whether it is `body(x) + x`."""
        return type(self.shortcut) is nn.Identity and type(self.activation) is nn.Identity


class Shared:
    """A map that several operations read, whose ReLU is computed, and kept for gradients, once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @cached_property
    def rectified(self) -> Tensor:
        """`max(x, 0)`."""
        return F.relu(self.x)


def add_weighed(total: Tensor | None, weight: Tensor, op: nn.Module, read: Shared) -> Tensor:
    """`total + weight · op(x)`, `weight` a positive number; without `total` the latter alone.

    Where `op` ends with a BN, and an activation or none, its weight is a factor of the BN's γ and
    β: one operation, which keeps nothing for the gradient of the weight.
    """
    if isinstance(op, Residual) and not _watched(op) and op.adds_input():
        passed = weight * read.x
        return add_weighed(passed if total is None else total + passed, weight, op.body, read)
    if type(op) is Layers and not _watched(op):
        modules, x = list(op), read.x
        if type(modules[0]) is nn.ReLU and not _watched(modules[0]):
            modules, x = modules[1:], read.rectified
        if modules and isinstance(modules[-1], nn.BatchNorm2d):
            x = _in_turn(modules[:-1], x)
            return norm_act_pool(modules[-1], x, shortcut=total, scale=weight)
        fused = _fused(modules[-1]) if len(modules) > 1 else None
        if fused is not None and isinstance(modules[-2], nn.BatchNorm2d):
            y = norm_act_pool(modules[-2], _in_turn(modules[:-2], x), scale=weight, **fused)
        else:
            y = weight * _in_turn(modules, x)
    else:
        y = weight * op(read.x)
    return y if total is None else total + y


def _in_turn(modules: list[nn.Module], x: Tensor) -> Tensor:
    number = 0
    while number < len(modules):
        module, number = modules[number], number + 1
        after = modules[number] if number < len(modules) else None
        fused = None if after is None else _fused(after)
        if fused is None or not isinstance(module, nn.BatchNorm2d):
            x = module(x)  # a norm alone: torch's is as fast
        else:
            x, number = norm_act_pool(module, x, **fused), number + 1
    return x


def _fused(activation: nn.Module) -> dict[str, Any] | None:
    """What `norm_act_pool` calls an activation; None for one that stays a module of its own."""
    if _watched(activation):
        return None
    if type(activation) is nn.LeakyReLU:
        return {"activation": "leaky_relu", "negative_slope": activation.negative_slope}
    name = _WITH_NORM.get(type(activation))
    return None if name is None else {"activation": name}


def _watched(module: nn.Module) -> bool:
    """Whether somebody asks to be told what goes through it."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


class Dense(nn.Module):
    """The input beside what the body makes of it (DenseNet)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C + growth, H, W]`."""
        return torch.cat([x, self.body(x)], 1)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: two branches, concatenated and shuffled (Ma et al. 2018).

    `wide`: channels inside of the right one, instead of as many as it gives.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, wide: int | None = None) -> None:
        super().__init__()
        self.splits = stride == 1 and inside == outside and inside % 2 == 0
        left = inside // 2 if self.splits else outside // 2
        start = inside // 2 if self.splits else inside
        right = outside - left
        wide = right if wide is None else wide
        self.left = (
            nn.Identity()
            if self.splits
            else Layers(
                *_conv_norm(inside, inside, 3, stride, groups=inside),
                *_conv_norm(inside, left, 1),
                nn.ReLU(),
            )
        )
        self.right = Layers(
            *_conv_norm(start, wide, 1),
            nn.ReLU(),
            *_conv_norm(wide, wide, 3, stride, groups=wide),
            *_conv_norm(wide, right, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        one, other = x.chunk(2, 1) if self.splits else (x, x)
        joined = torch.cat([self.left(one), self.right(other)], 1)
        if joined.shape[1] % 2:
            return joined
        return joined.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Take(nn.Module):
    """Some of the channels, in `ranges` such as "0-12,24-30": what a split leads on."""

    def __init__(self, inside: int, outside: int, stride: int, *, ranges: str) -> None:
        super().__init__()
        self.ranges = ranges_of(ranges)
        assert sum(end - begin for begin, end in self.ranges) == outside, (ranges, outside)
        assert stride == 1, stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H, W]`."""
        return torch.cat([x[:, begin:end] for begin, end in self.ranges], 1)


def ranges_of(text: str) -> tuple[tuple[int, int], ...]:
    """Begin and end of every range in "0-12,24-30"."""
    pairs = (part.split("-") for part in text.split(","))
    return tuple((int(begin), int(end)) for begin, end in pairs)


class ToVector(nn.Module):
    """A map as one vector: `[B, C, H, W]` → `[B, C · H · W, 1, 1]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten."""
        return x.flatten(1)[:, :, None, None]


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels of a vector `[B, C, 1, 1]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, 1, 1]` → `[B, C, 1, 1]`."""
        return self.norm(x.flatten(1))[:, :, None, None]


def _conv_norm(
    inside: int,
    outside: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    norm: bool = True,
) -> list[nn.Module]:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2 * dilation, sides[1] // 2 * dilation)
    conv = nn.Conv2d(
        inside, outside, sides, stride, padding, dilation, groups=groups, bias=not norm
    )
    return [conv, nn.BatchNorm2d(outside)] if norm else [conv]


def _added(body: nn.Module, inside: int, outside: int, stride: int, residual: bool) -> nn.Module:
    """`body`, to whose output its input is added where that is asked for and the shape stays."""
    same = stride == 1 and inside == outside
    return Residual(body, nn.Identity()) if residual and same else body


# The table.


def relu_conv(inside: int, outside: int, stride: int, *, kernel: int) -> nn.Module:
    """ReLU, k × k convolution, BN: NAS-Bench-201's and ENAS's."""
    return Layers(nn.ReLU(), *_conv_norm(inside, outside, kernel, stride))


def skip(inside: int, outside: int, stride: int) -> nn.Module:
    """The input itself where the shape stays; else a 1×1 convolution or a factorized reduce."""
    if stride == 1:
        return nn.Identity() if inside == outside else relu_conv(inside, outside, 1, kernel=1)
    assert stride == 2, stride
    return FactorizedReduce(inside, outside)


def pooled(inside: int, outside: int, stride: int, *, kind: str) -> nn.Module:
    """3×3 pooling of real pixels only; before it a 1×1 convolution where channels change."""
    pool: nn.Module = (
        nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        if kind == "avg"
        else nn.MaxPool2d(3, stride, 1)
    )
    if inside == outside:
        return pool
    return Layers(relu_conv(inside, outside, 1, kernel=1), pool)


def separable(inside: int, outside: int, stride: int, *, kernel: int) -> nn.Module:
    """Twice ReLU, depthwise, pointwise, BN (DARTS)."""
    return Layers(
        nn.ReLU(),
        *_conv_norm(inside, inside, kernel, stride, groups=inside)[:1],
        *_conv_norm(inside, inside, 1),
        nn.ReLU(),
        *_conv_norm(inside, inside, kernel, groups=inside)[:1],
        *_conv_norm(inside, outside, 1),
    )


def dilated(inside: int, outside: int, stride: int, *, kernel: int) -> nn.Module:
    """ReLU, depthwise with dilation 2, pointwise, BN (DARTS)."""
    return Layers(
        nn.ReLU(),
        *_conv_norm(inside, inside, kernel, stride, groups=inside, dilation=2)[:1],
        *_conv_norm(inside, outside, 1),
    )


def factorized(inside: int, outside: int, stride: int, *, kernel: int) -> nn.Module:
    """ReLU, 1 × k, k × 1, BN (PNAS)."""
    return Layers(
        nn.ReLU(),
        *_conv_norm(inside, outside, (1, kernel), (1, stride))[:1],
        *_conv_norm(outside, outside, (kernel, 1), (stride, 1)),
    )


def inverted_residual(
    inside: int,
    outside: int,
    stride: int,
    *,
    expansion: float,
    kernel: int = 3,
    squeeze: float = 0.0,
    activation: str = "relu",
    wide: int | None = None,
    squeezed: int | None = None,
    residual: bool = True,
) -> nn.Module:
    """1×1 wider, depthwise, 1×1 linear, each with BN; the input is added where the shape stays.

    `wide`: channels in between, instead of `expansion` times those of the input. `squeeze`: they
    are weighed by means of so large a share of them, or of `squeezed`. Not `residual`: nothing is
    added, even where it could be.
    """
    grows = wide is not None or round(inside * expansion) != inside
    wide = max(1, round(inside * expansion)) if wide is None else wide
    act = ACTIVATIONS[activation]
    layers: list[nn.Module] = []
    if grows:
        layers += [*_conv_norm(inside, wide, 1), act()]
    layers += [*_conv_norm(wide, wide, kernel, stride, groups=wide), act()]
    if squeeze:
        layers.append(SqueezeExcite(wide, squeeze, squeezed))
    layers += _conv_norm(wide, outside, 1)
    return _added(Layers(*layers), inside, outside, stride, residual)


def depthwise_separable(
    inside: int,
    outside: int,
    stride: int,
    *,
    kernel: int = 3,
    activation: str = "relu",
    norm: bool = True,
    squeeze: bool = False,
    residual: bool = False,
) -> nn.Module:
    """Depthwise, BN, act, pointwise, BN, act (MobileNet); `squeeze` weighs its channels."""
    act = ACTIVATIONS[activation]
    layers = [
        *_conv_norm(inside, inside, kernel, stride, groups=inside, norm=norm),
        act(),
        *_conv_norm(inside, outside, 1, norm=norm),
        act(),
    ]
    if squeeze:
        layers.append(SqueezeExcite(outside))
    return _added(Layers(*layers), inside, outside, stride, residual)


def depthwise(inside: int, outside: int, stride: int, *, kernel: int = 3) -> nn.Module:
    """Depthwise convolution and BN, with no activation: between two others."""
    assert inside == outside, (inside, outside)
    return Layers(*_conv_norm(inside, inside, kernel, stride, groups=inside))


def squeeze_excite(inside: int, outside: int, stride: int) -> nn.Module:
    """Squeeze and excitation alone, after what changes the shape where that is needed."""
    return Layers(skip(inside, outside, stride), SqueezeExcite(outside))


def conv(
    inside: int,
    outside: int,
    stride: int,
    *,
    kernel: int = 3,
    activation: str = "relu",
    norm: bool = True,
    residual: bool = False,
    pieces: str | None = None,
) -> nn.Module:
    """Convolution, BN, act; `residual` adds the input where the shape stays.

    `pieces`: channels that go different ways later, such as "12,6,6": an axis each.
    """
    body = Layers(
        *_conv_norm(inside, outside, kernel, stride, norm=norm), ACTIVATIONS[activation]()
    )
    return _added(body, inside, outside, stride, residual)


def basic_block(
    inside: int,
    outside: int,
    stride: int,
    *,
    kernel: int = 3,
    activation: str = "relu",
    norm: bool = True,
    wide: int | None = None,
    project: bool = False,
) -> nn.Module:
    """ResNet's block of two convolutions (He et al. 2016), with `wide` channels between them.

    `project`: the shortcut is a convolution even where the shape stays.
    """
    wide = outside if wide is None else wide
    body = Layers(
        *_conv_norm(inside, wide, kernel, stride, norm=norm),
        ACTIVATIONS[activation](),
        *_conv_norm(wide, outside, kernel, norm=norm),
    )
    same = stride == 1 and inside == outside and not project
    shortcut = nn.Identity() if same else Layers(*_conv_norm(inside, outside, 1, stride, norm=norm))
    return Residual(body, shortcut, activation)


def reduction_block(inside: int, outside: int, stride: int) -> nn.Module:
    """NAS-Bench-201's block between stages: two ReLU-conv-BN beside average-pool and 1×1."""
    body = Layers(
        relu_conv(inside, outside, stride, kernel=3), relu_conv(outside, outside, 1, kernel=3)
    )
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    pointwise = nn.Conv2d(inside, outside, 1, bias=False)
    return Residual(body, Layers(pool, pointwise))


def dense_layer(
    inside: int,
    outside: int,
    stride: int,
    *,
    bottleneck: int = 4,
    activation: str = "relu",
    norm: bool = True,
    wide: int | None = None,
) -> nn.Module:
    """DenseNet-BC's layer: `outside − inside` channels are added (Huang et al. 2017).

    `wide`: channels in between, instead of `bottleneck` times as many.
    """
    growth = outside - inside
    assert growth > 0, (inside, outside)
    assert stride == 1, stride
    wide = bottleneck * growth if wide is None else wide
    act = ACTIVATIONS[activation]
    first = [nn.BatchNorm2d(inside)] if norm else []
    return Dense(
        Layers(
            *first,
            act(),
            *_conv_norm(inside, wide, 1, norm=norm),
            act(),
            *_conv_norm(wide, growth, 3, norm=False),
        )
    )


def transition(inside: int, outside: int, stride: int, *, norm: bool = True) -> nn.Module:
    """DenseNet's step between blocks: BN, ReLU, 1×1, average-pool."""
    first = [nn.BatchNorm2d(inside)] if norm else []
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    return Layers(*first, nn.ReLU(), nn.Conv2d(inside, outside, 1, bias=False), pool)


def dense_units(
    inside: int,
    outside: int,
    stride: int,
    *,
    activation: str = "relu",
    norm: bool = True,
    layer_norm: bool = False,
    residual: bool = False,
) -> nn.Module:
    """A fully connected layer of vectors `[B, C, 1, 1]`: linear, norm, act."""
    layers: list[nn.Module] = _conv_norm(inside, outside, 1, norm=norm and not layer_norm)
    if layer_norm:
        layers.append(ChannelNorm(outside))
    body = Layers(*layers, ACTIVATIONS[activation]())
    return _added(body, inside, outside, 1, residual)


def patches(inside: int, outside: int, stride: int) -> nn.Module:
    """Square patches of `stride` pixels as one pixel each: linear, as a ViT begins."""
    return nn.Conv2d(inside, outside, stride, stride)


class MLPBlock(nn.Module):
    """`x + W₂ act(W₁ norm(x))` of vectors `[B, C, 1, 1]`, with `wide` units inside."""

    def __init__(
        self, inside: int, outside: int, stride: int, *, wide: int, activation: str = "gelu"
    ) -> None:
        super().__init__()
        assert inside == outside, (inside, outside)
        self.norm = nn.LayerNorm(inside)
        self.fc1 = nn.Linear(inside, wide)
        self.activation = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(wide, inside)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, 1, 1]` → `[B, C, 1, 1]`."""
        y = self.fc2(self.activation(self.fc1(self.norm(x.flatten(1)))))
        return x + y[:, :, None, None]


class MixerBlock(nn.Module):
    """MLP-Mixer's layer on maps of `side` × `side` patches (Tolstikhin et al. 2021).

    An MLP over the places of every channel with `mixed` units, then one over the channels of every
    place with `wide`, each behind a layer norm and with its input added.
    """

    def __init__(
        self, inside: int, outside: int, stride: int, *, side: int, mixed: int, wide: int
    ) -> None:
        super().__init__()
        assert inside == outside, (inside, outside)
        self.norm1, self.norm2 = nn.LayerNorm(inside), nn.LayerNorm(inside)
        self.token_fc1 = nn.Linear(side**2, mixed)
        self.token_fc2 = nn.Linear(mixed, side**2)
        self.fc1 = nn.Linear(inside, wide)
        self.fc2 = nn.Linear(wide, inside)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, S, S]` → `[B, C, S, S]`."""
        tokens = x.flatten(2).transpose(1, 2)  # [B, S², C]
        y = self.norm1(tokens).transpose(1, 2)
        tokens = tokens + self.token_fc2(F.gelu(self.token_fc1(y))).transpose(1, 2)
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class TransformerBlock(nn.Module):
    """Attention over the places of a map, then an MLP over the channels (Dosovitskiy et al. 2021).

    Each behind a layer norm and with its input added; `wide` units in the MLP.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, heads: int, wide: int) -> None:
        super().__init__()
        assert inside == outside, (inside, outside)
        assert inside % heads == 0, (inside, heads)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(inside), nn.LayerNorm(inside)
        self.qkv = nn.Linear(inside, 3 * inside)
        self.out = nn.Linear(inside, inside)
        self.fc1 = nn.Linear(inside, wide)
        self.fc2 = nn.Linear(wide, inside)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, S, S]` → `[B, C, S, S]`."""
        tokens = x.flatten(2).transpose(1, 2)  # [B, S², C]
        tokens = tokens + self.out(self.attended(self.norm1(tokens)))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])

    def attended(self, tokens: Tensor) -> Tensor:
        """softmax(QKᵀ / √d) V of every head: `[B, T, C]` → `[B, T, C]`.

        In plain products, which are counted and exported like any other.
        """
        query, key, value = (
            self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)


class Places(nn.Module):
    """Sines and cosines of a place's row and column are added (Beyer et al. 2022)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        assert inside == outside, (inside, outside)
        assert inside % 4 == 0, inside
        self.frequencies = inside // 4

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C, H, W]`."""
        high, wide = x.shape[2:]
        steps = torch.arange(self.frequencies, device=x.device, dtype=torch.float32)
        omega = 10_000 ** -(steps / max(1, self.frequencies - 1))
        rows, columns = (
            torch.outer(omega, torch.arange(n, device=x.device, dtype=torch.float32))
            for n in (high, wide)
        )
        parts = [wave(rows)[:, :, None].expand(-1, -1, wide) for wave in (torch.sin, torch.cos)]
        parts += [wave(columns)[:, None].expand(-1, high, -1) for wave in (torch.sin, torch.cos)]
        return x + torch.cat(parts).to(x.dtype)


class PlaceNorm(nn.Module):
    """Layer normalisation of the channels at every place of a map `[B, C, S, S]`."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        assert inside == outside, (inside, outside)
        self.norm = nn.LayerNorm(inside)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, S, S]` → `[B, C, S, S]`."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def norm_relu(inside: int, outside: int, stride: int) -> nn.Module:
    """BN, ReLU: what ends NAS-Bench-201's network."""
    assert inside == outside, (inside, outside)
    assert stride == 1, stride
    return Layers(nn.BatchNorm2d(inside), nn.ReLU())


def _flatten(inside: int, outside: int, stride: int) -> nn.Module:
    return ToVector()


def _norm(inside: int, outside: int, stride: int) -> nn.Module:
    return nn.BatchNorm2d(outside)


register("none", Zero)
register("skip_connect", skip)
register("avg_pool_3x3", partial(pooled, kind="avg"))
register("max_pool_3x3", partial(pooled, kind="max"))
for _k in (1, 3, 5):
    register(f"nor_conv_{_k}x{_k}", partial(relu_conv, kernel=_k))
for _k in (3, 5, 7):
    register(f"sep_conv_{_k}x{_k}", partial(separable, kernel=_k))
    for _e in (3, 6):
        register(f"mb{_e}_{_k}", partial(inverted_residual, expansion=_e, kernel=_k))
for _k in (3, 5):
    register(f"dil_conv_{_k}x{_k}", partial(dilated, kernel=_k))
register("conv_1x7_7x1", partial(factorized, kernel=7))
register("ds_conv", depthwise_separable)
register("ds_conv_se", partial(depthwise_separable, squeeze=True))
register("irb_e3", partial(inverted_residual, expansion=3))
register("irb_e6", partial(inverted_residual, expansion=6))
register("se", squeeze_excite)
register("identity", skip)
register("zero", Zero)
# What stands between searched operations, and the blocks of known families.
register("conv", conv)
register("norm", _norm)
register("norm_relu", norm_relu)
register("reduction_block", reduction_block)
register("basic_block", basic_block)
register("inverted_residual", inverted_residual)
register("dense_layer", dense_layer)
register("transition", transition)
register("shuffle_unit", Shuffle)
register("take", Take)
register("depthwise", depthwise)
register("flatten", _flatten)
register("units", dense_units)
register("patches", patches)
register("mlp_block", MLPBlock)
register("mixer_block", MixerBlock)
register("place_norm", PlaceNorm)
register("transformer_block", TransformerBlock)
register("places", Places)
ONE_SIZE = frozenset({"flatten", "mixer_block"})  # their weights hold for one size of the map

NB201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
DARTS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
ENAS_MACRO = (
    "nor_conv_3x3",
    "nor_conv_5x5",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
)
PNAS = (
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "conv_1x7_7x1",
    "skip_connect",
    "avg_pool_3x3",
    "max_pool_3x3",
    "dil_conv_3x3",
)
MOBILE = tuple(f"mb{e}_{k}" for e in (3, 6) for k in (3, 5, 7))
TINY = ("ds_conv", "ds_conv_se", "irb_e3", "irb_e6", "se", "identity", "zero")

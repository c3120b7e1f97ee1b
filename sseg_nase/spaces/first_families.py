"""The families of searches of before `space=families` stood on registered backbones: edition 1.

They stay as they were, so that such a search, and a run of one of its points, is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sseg_nase.nets.plan import IMAGE, SMALLEST, Plan
from sseg_nase.spaces.choice import Choice, Integers, Options, Value
from sseg_nase.spaces.family import Family, Limits

ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu")


def _switch(name: str, limits: Limits) -> Choice:
    return Options(name, (0,) if limits.simple else (0, 1))


def _layers(limits: Limits, lists: Mapping[str, tuple[Any, ...]]) -> list[Choice]:
    """The number of layers, and each list once per layer."""
    found: list[Choice] = [Integers("layers", 2, limits.most)]
    for layer in range(limits.most):
        for name, values in lists.items():
            if limits.simple and name in ("activation", "skip"):
                values = values[:1]
            found.append(Options(f"{layer}.{name}", values))
    return found


def _convolutional(limits: Limits) -> tuple[Choice, ...]:
    lists = {"filters": limits.filters, "kernel": (3, 5, 7), "activation": ACTIVATIONS}
    return (*_layers(limits, {**lists, "skip": (0, 1)}), _switch("norm", limits))


def _plain(limits: Limits) -> tuple[Choice, ...]:
    """Blocks that have shortcuts by themselves."""
    lists = {"filters": limits.filters, "kernel": (3, 5, 7), "activation": ACTIVATIONS}
    return (*_layers(limits, lists), _switch("norm", limits))


def _separable(limits: Limits) -> tuple[Choice, ...]:
    return (*_convolutional(limits), Options("multiplier", (0.5, 0.75, 1.0, 1.25)))


def _halved(side: int, layer: int) -> int:
    """Every second layer halves the map, as long as it is large enough."""
    return 2 if layer % 2 and side // 2 >= SMALLEST else 1


def _cnn(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    _row(plan, own, side, "conv", residual=True)


def _resnet(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    _row(plan, own, side, "basic_block")


def _mobilenet(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    _row(plan, own, side, "ds_conv", residual=True, multiplier=float(own["multiplier"]))


def _row(
    plan: Plan,
    own: Mapping[str, Value],
    side: int,
    op: str,
    *,
    residual: bool = False,
    multiplier: float = 1.0,
) -> None:
    last, inside = IMAGE, 0
    for layer in range(int(own["layers"])):
        stride = _halved(side, layer)
        width = max(1, round(int(own[f"{layer}.filters"]) * multiplier))
        options: dict[str, Any] = {
            "kernel": own[f"{layer}.kernel"],
            "activation": own[f"{layer}.activation"],
            "norm": bool(own["norm"]),
        }
        if residual:  # only where the shape stays: anywhere else it changes nothing
            stays = stride == 1 and width == inside
            options["residual"] = stays and bool(own[f"{layer}.skip"])
        last, inside = plan.add(f"layer{layer}", op, last, width, stride, **options), width
        side //= stride


def _mlp_choices(limits: Limits) -> tuple[Choice, ...]:
    lists = {"units": limits.units, "activation": ACTIVATIONS}
    return (*_layers(limits, lists), _switch("norm", limits))


def _enhanced_choices(limits: Limits) -> tuple[Choice, ...]:
    lists = {"units": limits.units, "activation": (*ACTIVATIONS, "gelu")}
    switches = [_switch(name, limits) for name in ("layer_norm", "residual")]
    return (*_layers(limits, lists), *switches)


def _mlp(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    last, inside = plan.add("vector", "flatten", IMAGE, 1), 0
    for layer in range(int(own["layers"])):
        units = int(own[f"{layer}.units"])
        last = plan.add(
            f"layer{layer}",
            "units",
            last,
            units,
            activation=own[f"{layer}.activation"],
            norm=bool(own.get("norm", 0)),
            layer_norm=bool(own.get("layer_norm", 0)),
            residual=units == inside and bool(own.get("residual", 0)),
        )
        inside = units


DENSE_BLOCKS = {"2-2-2": (2, 2, 2), "3-3-3": (3, 3, 3), "4-4-4": (4, 4, 4), "6-6-6": (6, 6, 6)}
SHUFFLE_WIDTHS = {
    "24-48-96": (24, 48, 96),
    "48-96-192": (48, 96, 192),
    "116-232-464": (116, 232, 464),
}
SHUFFLE_BLOCKS = {"2-4-2": (2, 4, 2), "3-5-3": (3, 5, 3), "4-8-4": (4, 8, 4)}
EFFICIENT = ((16, 1, 1), (24, 2, 2), (40, 2, 2), (80, 3, 2))  # width, blocks, stride


def _densenet_choices(limits: Limits) -> tuple[Choice, ...]:
    return (
        Options("growth", (12, 24, 32, 48)),
        Options("blocks", tuple(DENSE_BLOCKS)),
        Options("compression", (0.5, 0.7, 0.8)),
        Options("bottleneck", (2, 4)),
        _switch("norm", limits),
    )


def _densenet(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    growth, norm = int(own["growth"]), bool(own["norm"])
    width = 2 * growth
    last = plan.add("stem", "conv", IMAGE, width, norm=norm)
    blocks = DENSE_BLOCKS[str(own["blocks"])]
    for number, layers in enumerate(blocks):
        for layer in range(layers):
            width += growth
            bottleneck = int(own["bottleneck"])
            where = f"block{number}.{layer}"
            last = plan.add(where, "dense_layer", last, width, bottleneck=bottleneck, norm=norm)
        if number < len(blocks) - 1:
            width = max(1, int(width * float(own["compression"])))
            stride = 2 if side // 2 >= SMALLEST else 1
            side //= stride
            last = plan.add(f"block{number}.out", "transition", last, width, stride, norm=norm)
        else:
            plan.add(f"block{number}.out", "norm_relu", last, width)


def _shuffle_choices(limits: Limits) -> tuple[Choice, ...]:
    return (
        Options("multiplier", (0.5, 0.75, 1.0, 1.25, 1.5)),
        Options("widths", tuple(SHUFFLE_WIDTHS)),
        Options("blocks", tuple(SHUFFLE_BLOCKS)),
    )


def _shufflenet(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    widths, blocks = SHUFFLE_WIDTHS[str(own["widths"])], SHUFFLE_BLOCKS[str(own["blocks"])]
    last = plan.add("stem", "conv", IMAGE, 24)
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        width = 2 * max(1, round(width * float(own["multiplier"]) / 2))
        for block in range(count):
            stride = 2 if block == 0 and side // 2 >= SMALLEST else 1
            side //= stride
            last = plan.add(f"stage{stage}.{block}", "shuffle_unit", last, width, stride)


def _efficient_choices(limits: Limits) -> tuple[Choice, ...]:
    return (
        Options("width", (0.5, 0.75, 1.0, 1.25, 1.5)),
        Options("depth", (0.8, 1.0, 1.2, 1.4)),
        Options("squeeze", (0.0, 0.125, 0.25)),
    )


def _efficientnet(plan: Plan, own: Mapping[str, Value], side: int) -> None:
    scaled = lambda width: max(4, round(width * float(own["width"])))  # noqa: E731
    last = plan.add("stem", "conv", IMAGE, scaled(32))
    for stage, (width, blocks, stride) in enumerate(EFFICIENT):
        for block in range(ceil(blocks * float(own["depth"]) - 1e-9)):
            last = plan.add(
                f"stage{stage}.{block}",
                "inverted_residual",
                last,
                scaled(width),
                stride if block == 0 else 1,
                expansion=6 if stage else 1,
                squeeze=float(own["squeeze"]),
            )


FIRST = {
    family.name: family
    for family in (
        Family("cnn", _convolutional, _cnn, 1),
        Family("mlp", _mlp_choices, _mlp, 1),
        Family("enhanced_mlp", _enhanced_choices, _mlp, 2),
        Family("resnet", _plain, _resnet, 2),
        Family("mobilenet", _separable, _mobilenet, 2),
        Family("densenet", _densenet_choices, _densenet),
        Family("shufflenetv2", _shuffle_choices, _shufflenet),
        Family("efficientnet", _efficient_choices, _efficientnet),
    )
}

"""The named axes of a network out of a search space, from what its operations read and make.

An operation that only acts on each channel alone (an identity, a pooling, a norm) passes the axes
on that it reads; a sum joins what it adds under one name; a concatenation has several names, one
after the other, and what a dense layer adds comes behind what it reads; what a split takes are some
of these names. A depthwise convolution and the gates of squeeze and excitation have one axis. What
an operation is not known to do to its channels holds the axes beside it fast: mutations leave them
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

from sseg_nase.nets import ops
from sseg_nase.nets.maps import Axis, Wires, module
from sseg_nase.nets.plan import Node

Names = tuple[str, ...]


@dataclass
class Axes:
    """Axes while they are found out: `widths` by name, names that are one, and those held fast."""

    widths: dict[str, int] = field(default_factory=dict)
    same_as: dict[str, str] = field(default_factory=dict)
    fast: set[str] = field(default_factory=set)

    def new(self, name: str, width: int) -> Names:
        """An axis of its own."""
        self.widths[name] = width
        return (name,)

    def name(self, name: str) -> str:
        """The name that stands for all that are one with `name`."""
        while name in self.same_as:
            name = self.same_as[name]
        return name

    def join(self, one: Names, other: Names) -> None:
        """Make two runs of axes one: those of a sum. Where they do not fit, both are held fast."""
        firsts, seconds = ([self.name(name) for name in names] for names in (one, other))
        if [self.widths[n] for n in firsts] != [self.widths[n] for n in seconds]:
            self.hold(one)
            self.hold(other)
            return
        for first, second in zip(firsts, seconds, strict=True):
            if self.name(first) != self.name(second):
                self.same_as[self.name(second)] = self.name(first)

    def hold(self, names: Names) -> None:
        """Let no mutation change these."""
        self.fast.update(names)

    def held_beside(self, runs: Sequence[Names]) -> bool:
        """Hold fast what stands in one dimension beside what is held; whether there was any."""
        fast = {self.name(name) for name in self.fast}
        beside = {
            name
            for names in ([self.name(each) for each in run] for run in runs)
            if fast & set(names)
            for name in names
        }
        self.fast |= beside
        return not beside <= fast

    def changeable(self) -> dict[str, int]:
        """The axes that mutations may change, with their channels."""
        fast = {self.name(name) for name in self.fast}
        return {n: w for n, w in self.widths.items() if n not in self.same_as and n not in fast}


class Part(NamedTuple):
    """What an operation makes: `out`, and the wires of its tensors by their names in it."""

    out: Names
    wires: Mapping[str, Wires] = {}


Rule = Callable[[Node, Names, int, Axes], Part | None]


def _dense(name: str, makes: Names, reads: Names) -> dict[str, Wires]:
    """Of a convolution from all channels to all, also where it reads what is held fast."""
    weight = Wires((Axis(makes), Axis(reads, reads=True) if reads else None))
    return {**module(name, makes), f"{name}.weight": weight}


def _pieces(node: Node, axes: Axes) -> Names:
    """The axes of what an operation makes: one, or those that go different ways later."""
    pieces = str(dict(node.options).get("pieces") or node.channels).split(",")
    if len(pieces) == 1:
        return axes.new(node.place, node.channels)
    names = (axes.new(f"{node.place}:{at}", int(wide)) for at, wide in enumerate(pieces))
    return tuple(name for each in names for name in each)


def _taken(ranges: str, read: Names, widths: Mapping[str, int]) -> list[Names] | None:
    """The axes in every range of channels; None where one is divided."""
    ends = list(accumulate((widths[name] for name in read), initial=0))
    if not all(edge in ends for pair in ops.ranges_of(ranges) for edge in pair):
        return None
    return [read[ends.index(a) : ends.index(b)] for a, b in ops.ranges_of(ranges)]


def _take(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    taken = _taken(dict(node.options)["ranges"], read, axes.widths)
    return None if taken is None else Part(tuple(name for names in taken for name in names))


def _depthwise(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    return Part(read, module("0", read) | module("1", read))


def _convolution(first: int, *, norm: int | None) -> Rule:
    """A dense convolution as module `first` of a sequence, with its norm as module `norm`."""

    def rule(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
        out = _pieces(node, axes)
        wires = _dense(str(first), out, read)
        if norm is not None and dict(node.options).get("norm", True):
            wires |= module(str(norm), out)
        return Part(out, wires)

    return rule


def _unchanged(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    """The input itself, or a pooling of it."""
    return Part(read) if node.channels == inside and node.stride == 1 else None


def _pooled(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    return Part(read) if node.channels == inside else None


def _norm(prefix: str) -> Rule:
    return lambda node, read, inside, axes: Part(read, module(prefix, read))


def _reads(names: Names) -> Wires:
    """Of a weight from named channels to those that no mutation changes."""
    return Wires((None, Axis(names, reads=True)))


def _inside(node: Node, key: str, usual: int, axes: Axes) -> Names:
    """An axis within an operation, whose width is its option `key`, or as usual."""
    assert key in INNER, key
    return axes.new(f"{node.place}.{key}", dict(node.options).get(key) or usual)


def _depthwise_separable(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    options = dict(node.options)
    same = node.stride == 1 and node.channels == inside
    if options.get("squeeze") or (options.get("residual") and node.stride == 1 and not same):
        return None
    out = axes.new(node.place, node.channels)
    body = ""
    if options.get("residual") and same:
        axes.join(read, out)
        body = "body."
    if not options.get("norm", True):
        return Part(out, module(f"{body}0", read) | _dense(f"{body}2", out, read))
    wires = module(f"{body}0", read) | module(f"{body}1", read)
    return Part(out, wires | _dense(f"{body}3", out, read) | module(f"{body}4", out))


def _inverted_residual(expansion: float | None) -> Rule:
    def rule(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
        options = dict(node.options)
        times = expansion or options["expansion"]
        wide = options.get("wide") or max(1, round(inside * times))
        joined = node.stride == 1 and node.channels == inside and options.get("residual", True)
        expands = "wide" in options or times != 1
        follows = "wide" not in options and times != 1 and wide == inside
        if follows or (node.stride == 1 and not joined and options.get("residual", True)):
            return None  # whether it has a first layer, or a shortcut, would depend on the widths
        body, at = "body." if joined else "", 0
        inner, out = read, axes.new(node.place, node.channels)
        if joined:
            axes.join(read, out)
        wires: dict[str, Wires] = {}
        if expands:
            inner, at = _inside(node, "wide", wide, axes), 3
            wires |= _dense(f"{body}0", inner, read) | module(f"{body}1", inner)
        wires |= module(f"{body}{at}", inner) | module(f"{body}{at + 1}", inner)
        at += 3
        if options.get("squeeze"):
            usual = max(ops.LEAST_SQUEEZED, round(wide * options["squeeze"]))
            squeezed = _inside(node, "squeezed", usual, axes)
            wires |= _dense(f"{body}{at}.down", squeezed, inner)
            wires |= _dense(f"{body}{at}.up", inner, squeezed)
            at += 1
        return Part(out, wires | _dense(f"{body}{at}", out, inner) | module(f"{body}{at + 1}", out))

    return rule


def _residual_convolution(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    """A convolution, its norm, and the input added where the option says so."""
    options = dict(node.options)
    if not options.get("residual") or node.stride != 1:
        return _convolution(0, norm=1)(node, read, inside, axes)
    if node.channels != inside:
        return None  # whether there is a shortcut would depend on the widths
    out = axes.new(node.place, node.channels)
    axes.join(read, out)
    wires = _dense("body.0", out, read)
    return Part(out, wires | module("body.1", out) if options.get("norm", True) else wires)


def _basic_block(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    options = dict(node.options)
    same = node.stride == 1 and node.channels == inside and not options.get("project")
    if node.stride == 1 and not same and not options.get("project"):
        return None  # whether the shortcut is a convolution would depend on the widths
    out = axes.new(node.place, node.channels)
    inner = _inside(node, "wide", node.channels, axes)
    second = 3 if options.get("norm", True) else 2
    wires = _dense("body.0", inner, read) | _dense(f"body.{second}", out, inner)
    if options.get("norm", True):
        wires |= module("body.1", inner) | module("body.4", out) | module("shortcut.1", out)
    if same:
        axes.join(read, out)
    else:
        wires |= _dense("shortcut.0", out, read)
    return Part(out, wires)


def _dense_layer(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    """What it makes comes behind what it reads: the names of one dimension, one after the other."""
    options = dict(node.options)
    growth = node.channels - inside
    made = axes.new(node.place, growth)
    inner = _inside(node, "wide", options.get("bottleneck", 4) * growth, axes)
    if options.get("norm", True):
        wires = module("body.0", read) | _dense("body.2", inner, read) | module("body.3", inner)
        return Part((*read, *made), wires | _dense("body.5", made, inner))
    wires = _dense("body.1", inner, read)
    return Part((*read, *made), wires | _dense("body.3", made, inner))


def _transition(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    out = axes.new(node.place, node.channels)
    if not dict(node.options).get("norm", True):
        return Part(out, _dense("1", out, read))
    return Part(out, module("0", read) | _dense("2", out, read))


def _shuffle_unit(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    """The channels inside of its right branch; those that are shuffled stay as they are."""
    out = axes.new(node.place, node.channels)
    axes.hold(read)
    axes.hold(out)
    splits = node.stride == 1 and inside == node.channels and inside % 2 == 0
    right = node.channels - (inside if splits else node.channels) // 2
    inner = _inside(node, "wide", right, axes)
    wires = _dense("right.0", inner, ()) | module("right.1", inner)
    wires |= module("right.3", inner) | module("right.4", inner)
    return Part(out, wires | {"right.5.weight": _reads(inner)})


def _units(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
    options = dict(node.options)
    if options.get("layer_norm") or (options.get("residual") and node.channels != inside):
        return None
    out = axes.new(node.place, node.channels)
    body = ""
    if options.get("residual"):
        axes.join(read, out)
        body = "body."
    wires = _dense(f"{body}0", out, read)
    return Part(out, wires | module(f"{body}1", out) if options.get("norm", True) else wires)


def _mlps(*pairs: tuple[str, str, str]) -> Rule:
    """Of MLPs within an operation the hidden units; a layer norm holds fast what it is over.

    Each is the option with their number and the names of its two linear layers.
    """

    def rule(node: Node, read: Names, inside: int, axes: Axes) -> Part | None:
        axes.hold(read)
        wires: dict[str, Wires] = {}
        for key, first, second in pairs:
            units = _inside(node, key, 0, axes)
            wires |= _dense(first, units, ()) | {f"{second}.weight": _reads(units)}
        return Part(read, wires)

    return rule


# Options that say the width of an axis within an operation.
INNER = ("wide", "squeezed", "mixed")
RULES: Mapping[str, Rule] = {
    **{f"nor_conv_{k}x{k}": _convolution(1, norm=2) for k in (1, 3, 5)},
    "conv": _residual_convolution,
    "skip_connect": _unchanged,
    "identity": _unchanged,
    "avg_pool_3x3": _pooled,
    "max_pool_3x3": _pooled,
    "norm": _norm(""),
    "norm_relu": _norm("0"),
    "ds_conv": _depthwise_separable,
    "inverted_residual": _inverted_residual(None),
    **{f"mb{e}_{k}": _inverted_residual(e) for e in (3, 6) for k in (3, 5, 7)},
    **{f"irb_e{e}": _inverted_residual(e) for e in (3, 6)},
    "basic_block": _basic_block,
    "dense_layer": _dense_layer,
    "transition": _transition,
    "shuffle_unit": _shuffle_unit,
    "units": _units,
    "take": _take,
    "depthwise": _depthwise,
    "mlp_block": _mlps(("wide", "fc1", "fc2")),
    "transformer_block": _mlps(("wide", "fc1", "fc2")),
    "mixer_block": _mlps(("mixed", "token_fc1", "token_fc2"), ("wide", "fc1", "fc2")),
}


class Found(NamedTuple):
    """What there is to change, and what of the network it is.

    `widths`: channels of the changeable axes, in order. `wires`: of the network's tensors.
    `inputs`, `outputs`: the axes of what every node reads and makes. `fixed`: channels of those
    that are held fast. `embedding`: what the embedding is made of, where that can change.
    """

    widths: dict[str, int]
    wires: dict[str, Wires]
    inputs: tuple[Names, ...]
    outputs: tuple[Names, ...]
    fixed: dict[str, int]
    embedding: Axis | None


def axes_of(nodes: Sequence[Node], insides: Sequence[int], image: int) -> Found:
    """`insides`: the channels that each node reads; `image`: the number that stands for images."""
    axes = Axes()
    made: list[Names] = []
    reads: list[Names] = []
    wires: dict[str, Wires] = {}
    for node, inside in zip(nodes, insides, strict=True):
        given = [made[source] if source != image else () for source in node.inputs]
        if node.join == "sum":
            for other in given[1:]:
                axes.join(given[0], other)
            read = given[0]
        else:
            read = tuple(name for names in given for name in names)
        images = image in node.inputs
        part = RULES[node.op](node, read, inside, axes) if node.op in RULES else None
        if part is None or (images and (len(given) > 1 or part.out == read)):
            for names in given:
                axes.hold(names)
            part = Part(axes.new(node.place, node.channels))
            axes.hold(part.out)
        elif images:
            part = Part(part.out, {n: w for n, w in part.wires.items() if w.axes})
        for name, one in part.wires.items():
            full = ".".join(filter(None, ("blocks", node.block, node.module, *name.split("."))))
            wires[full] = one
        reads.append(read)
        made.append(part.out)
    runs = [axis.names for one in wires.values() for axis in one.axes if axis is not None] + made
    while axes.held_beside(runs):
        pass
    widths = axes.changeable()
    inputs, outputs = (
        tuple(tuple(axes.name(name) for name in names) for names in each) for each in (reads, made)
    )
    named = {
        name: Wires(tuple(a and _named(a, axes, widths) for a in one.axes))
        for name, one in wires.items()
    }
    fixed = {name: width for name, width in axes.widths.items() if name not in widths}
    return Found(widths, named, inputs, outputs, fixed, _named(Axis(made[-1]), axes, widths))


def _named(axis: Axis, axes: Axes, widths: Mapping[str, int]) -> Axis | None:
    """`axis` by the names that stand for others; None where it is held fast."""
    names = tuple(axes.name(name) for name in axis.names)
    return Axis(names, axis.reads) if names and names[0] in widths else None


def resized(nodes: Sequence[Node], found: Found, widths: Mapping[str, int]) -> tuple[Node, ...]:
    """The nodes with as many channels in the changeable axes."""
    have = {**found.fixed, **found.widths, **widths}
    return tuple(
        replace(
            node,
            channels=sum(have[name] for name in made),
            options=_options(node, read, made, found, have),
        )
        for node, read, made in zip(nodes, found.inputs, found.outputs, strict=True)
    )


def _options(
    node: Node, read: Names, made: Names, found: Found, have: Mapping[str, int]
) -> tuple[tuple[str, Any], ...]:
    """The options of `node` that say widths; an inner one that is an axis, whatever it followed."""
    inner = {key: f"{node.place}.{key}" for key in INNER}
    said: dict[str, Any] = {key: have[n] for key, n in inner.items() if n in found.widths}
    options = dict(node.options)
    if "pieces" in options and len(made) > 1:
        said["pieces"] = ",".join(str(have[name]) for name in made)
    taken = None
    if "ranges" in options:
        taken = _taken(options["ranges"], read, {**found.fixed, **found.widths})
    if taken is not None:
        begins = dict(zip(read, accumulate((have[name] for name in read), initial=0), strict=False))
        ranges = ((begins[names[0]], sum(have[name] for name in names)) for names in taken)
        said["ranges"] = ",".join(f"{begin}-{begin + wide}" for begin, wide in ranges)
    return tuple(sorted({**options, **said}.items()))

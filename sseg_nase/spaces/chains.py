"""Networks of one operation after another: ENAS (macro), inverted residuals, and the house's own.

`Chain` is what evolution walks: its neighbours are GROW, WIDEN and PRUNE of a chain of ConvBlocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sseg_nase.errors import UserError
from sseg_nase.nets import ops
from sseg_nase.nets.architecture import Architecture, Block, pools
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.spaces.choice import Choice, Integers, Options, Point, Value
from sseg_nase.spaces.containing import Containing
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.networks import NetworkSpace, register_space


@dataclass(frozen=True)
class ENASMacro(NetworkSpace):
    """`layers` operations; each may add the outputs of any earlier ones (Pham et al., ICML 2018).

    Maps are halved after each third. What a skip brings across a halving is reduced on its way.
    """

    name: str = "enas_macro"
    layers: int = 12
    width: int = 36
    operations: tuple[str, ...] = ops.ENAS_MACRO

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 1:
            raise UserError(
                f"Space {self.name}: layers={self.layers}, width={self.width} must be ≥ 1."
            )
        ops.check_operations(self.operations)
        super().__post_init__()

    def _choices(self) -> tuple[Choice, ...]:
        found: list[Choice] = []
        for layer in range(self.layers):
            found.append(Options(f"{layer}.op", self.operations))
            # What the operation reads is the layer before; a skip reads one before that or it, too.
            found += [Options(f"{layer}.skip.{source}", (0, 1)) for source in range(layer)]
        return tuple(found)

    def plan(self, point: Point) -> Plan:
        """Return the operations; reductions of skips only where one is read."""
        plan, width = Plan(), self.width
        halves = [self.layers // 3, 2 * self.layers // 3] if self.layers > 2 else []
        maps = {(-1, 0): plan.add("stem", "conv", IMAGE, width, kernel=3, activation="none")}
        step = 0

        def at(source: int, layer: int) -> int:
            """Return the output of a layer at the size of the present step."""
            own = sum(half <= source for half in halves) if source >= 0 else 0
            for larger in range(own, step):
                if (source, larger + 1) not in maps:
                    # Blocks follow each other, so the reduction stands where it is read first.
                    where = f"layer{layer}.reduce{source + 1}_{larger + 1}"
                    node = plan.add(where, "skip_connect", maps[source, larger], width, 2)
                    maps[source, larger + 1] = node
            return maps[source, step]

        for layer in range(self.layers):
            step = sum(half <= layer for half in halves)
            op, read = str(point[f"{layer}.op"]), at(layer - 1, layer)
            done = [plan.add(f"layer{layer}.op", op, read, width)]
            done += [at(s, layer) for s in range(layer) if point[f"{layer}.skip.{s}"]]
            maps[layer, step] = plan.add(f"layer{layer}.sum", "norm", done, width)
        return plan


LARGE = ((24, 40, 80, 96, 192, 320), (4, 4, 4, 4, 4, 1), (2, 2, 2, 1, 2, 1))
SMALL = ((16, 24, 40, 80), (2, 4, 4, 4), (1, 2, 2, 2))  # for images of 32 px: three halvings
SMALL_IMAGE = 64
ZERO = "zero"


@dataclass(frozen=True)
class Mobile(NetworkSpace):
    """A chain of inverted residuals in stages, as ProxylessNAS and FBNet search it.

    Each block has a kernel and an expansion; from the second of a stage on it may be left out.
    Without `widths`, `depths` and `strides` they are ProxylessNAS's, for images up to 64 px those
    of a network with three halvings. `multiplier` scales all widths.
    """

    name: str = "mobile"
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    multiplier: float = 1.0
    operations: tuple[str, ...] = ops.MOBILE

    def __post_init__(self) -> None:
        usual = SMALL if self.resolution <= SMALL_IMAGE else LARGE
        for name, value in zip(("widths", "depths", "strides"), usual, strict=True):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        lengths = {len(self.widths), len(self.depths), len(self.strides)}
        if len(lengths) > 1 or min(*self.widths, *self.depths, *self.strides) < 1:
            raise UserError(
                f"Space {self.name}: widths={self.widths}, depths={self.depths}, "
                f"strides={self.strides} need one number ≥ 1 for each stage."
            )
        ops.check_operations(self.operations)
        super().__post_init__()

    def _choices(self) -> tuple[Choice, ...]:
        return tuple(
            Options(f"{stage}.{block}", (*self.operations, ZERO) if block else self.operations)
            for stage, depth in enumerate(self.depths)
            for block in range(depth)
        )

    def containing(self, partial: int = 1) -> Containing:
        """Raise `UserError`: where blocks are left out, those behind them take their places."""
        raise self.has_no_supernet(f"its choices leave blocks out ({ZERO})")

    def kept(self, point: Point, stage: int) -> list[str]:
        """Return the operations of a stage that are not left out."""
        names = [str(point[f"{stage}.{block}"]) for block in range(self.depths[stage])]
        return [name for name in names if name != ZERO]

    def canonical(self, point: Point) -> dict[str, Value]:
        """Return the point with what is left out at the end of each stage."""
        found: dict[str, Value] = {}
        for stage, depth in enumerate(self.depths):
            kept = self.kept(point, stage)
            for block, op in enumerate([*kept, *[ZERO] * (depth - len(kept))]):
                found[f"{stage}.{block}"] = op
        return found

    def plan(self, point: Point) -> Plan:
        """Return stem, a first block without expansion, and the stages."""
        plan = Plan()
        scaled = [max(1, round(self.multiplier * width)) for width in (32, 16, *self.widths)]
        small = self.resolution <= SMALL_IMAGE
        last = plan.add("stem.conv", "conv", IMAGE, scaled[0], 1 if small else 2)
        last = plan.add("stem.block", "inverted_residual", last, scaled[1], expansion=1)
        for stage, width in enumerate(scaled[2:]):
            for block, op in enumerate(self.kept(point, stage)):
                stride = 1 if block else self.strides[stage]
                last = plan.add(f"stage{stage}.{block}", op, last, width, stride)
        return plan


@dataclass(frozen=True)
class Chain(NetworkSpace):
    """Chains of ConvBlocks, the networks that evolve: depth, widths, pooling, residual blocks.

    Neighbours are what its operators do: GROW adds a residual block behind the last, WIDEN and
    PRUNE take one block to the next width. Other moves are mutations of single choices.
    """

    name: str = "chain"
    most: int = 6
    widths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128)
    activation: str = "relu"
    kernel_size: int = 3

    def __post_init__(self) -> None:
        if self.most < 1 or not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise UserError(
                f"Space {self.name}: most={self.most} must be ≥ 1 and widths={self.widths} rise."
            )
        super().__post_init__()

    def _choices(self) -> tuple[Choice, ...]:
        found: list[Choice] = [Integers("depth", 1, self.most)]
        for block in range(self.most):
            found.append(Options(f"{block}.width", self.widths))
            found.append(Options(f"{block}.pool", (0, 1)))
            if block:
                found.append(Options(f"{block}.residual", (0, 1)))
        return tuple(found)

    def active(self, point: Point) -> list[str]:
        """Return the choices of the blocks that there are, pooling only where it pools."""
        names, side = ["depth"], self.resolution
        for block in range(int(point["depth"])):
            names.append(f"{block}.width")
            if pools(side):
                names.append(f"{block}.pool")
                side = side // 2 if point[f"{block}.pool"] else side
            if block:
                names.append(f"{block}.residual")
        return names

    def describe(self, point: Point) -> Architecture:
        """Return the chain as the evolvable network that it is."""
        canonical = self.canonical(point)
        return Architecture(
            tuple(
                Block(
                    int(canonical[f"{number}.width"]),
                    bool(canonical[f"{number}.pool"]),
                    bool(canonical.get(f"{number}.residual", 0)),
                )
                for number in range(int(canonical["depth"]))
            ),
            resolution=self.resolution,
            in_channels=self.in_channels,
            kernel_size=self.kernel_size,
            activation=self.activation,
        )

    def point(self, architecture: Architecture) -> dict[str, Value]:
        """Return the point of a chain. Raises `UserError` where the space does not have it."""
        found: dict[str, Value] = {choice.name: choice.few(2)[0] for choice in self.choices}
        found["depth"] = len(architecture.blocks)
        for number, block in enumerate(architecture.blocks):
            found[f"{number}.width"] = block.channels
            found[f"{number}.pool"] = int(block.pool)
            if number or block.residual:
                found[f"{number}.residual"] = int(block.residual)
        return self.canonical(self.check(found))

    def costs(self, point: Point) -> Mapping[str, float]:
        """Return params, macs and memory by formula."""
        return chain_costs(self.describe(point))

    def graph(self, point: Point) -> Graph:
        """Return the blocks as nodes in a row, shortcuts as edges around them."""
        blocks = self.describe(point).blocks
        names = [f"{b.channels}{' pool' if b.pool else ''}" for b in blocks]
        edges = {(at, at + 1) for at in range(len(blocks) + 1)}
        edges |= {(at, at + 2) for at, b in enumerate(blocks) if b.residual}
        return Graph(("input", *names, "output"), tuple(sorted(edges)))

    def neighbours(self, point: Point) -> list[dict[str, Value]]:
        """Return GROW, and WIDEN and PRUNE of every block by one width, within the caps."""
        point, depth = self.canonical(point), int(point["depth"])
        near = []
        if depth < self.most:
            grown = {f"{depth}.width": point[f"{depth - 1}.width"], f"{depth}.pool": 0}
            near.append({**point, "depth": depth + 1, **grown, f"{depth}.residual": 1})
        for block in range(depth):
            at = self.widths.index(int(point[f"{block}.width"]))
            for to in (at + 1, at - 1):
                if 0 <= to < len(self.widths):
                    near.append({**point, f"{block}.width": self.widths[to]})
        return [self.canonical(other) for other in near if self.allows(other)]


def chain_costs(architecture: Architecture) -> Mapping[str, float]:
    """Return params, macs and memory (bytes in float32, one image) of a chain by formula."""
    sides, widths = architecture.sides(), architecture.widths
    before = [wide * side**2 for wide, side in zip(widths, sides, strict=True)]
    # A block's convolution gives a map as large as the one that it reads.
    inside = [wide * side**2 for wide, side in zip(widths[1:], sides[:-1], strict=True)]
    largest = max(read + made for read, made in zip(before[:-1], inside, strict=True))
    params = architecture.params
    return {"params": params, "macs": architecture.macs(), "memory": 4 * (params + largest)}


for _space in (ENASMacro, Mobile, Chain):
    register_space(_space.name, _space)

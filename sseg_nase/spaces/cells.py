"""Networks of repeated cells with two inputs: DARTS, ENAS (micro), PNAS and AutoSSL-Tiny.

A cell reads the outputs of the two cells before it, 0 the earlier one and 1 the later one. Each of
its steps sums two edges, an operation on an input of the cell or on an earlier step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product
from string import ascii_lowercase

from sseg_nase.errors import UserError
from sseg_nase.nets import ops
from sseg_nase.nets.mixed import DROPPED, Mixture
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.spaces.choice import Choice, Integers, Options, Point, Value
from sseg_nase.spaces.containing import Alternative, Containing
from sseg_nase.spaces.networks import NetworkSpace, register_space

Edge = tuple[int, str]
Cell = tuple[tuple[Edge, ...], ...]  # per step two edges, of a supernet all that there may be
ZEROS = ("none", "zero")


@dataclass(frozen=True)
class CellSpace(NetworkSpace):
    """A stem of `stem` × `width` channels, then `cells` cells, halving at 1/3 and 2/3 of them.

    `kinds`: one cell for all places, or `normal` and `reduction`. `distinct`: whether the two edges
    of a step read different inputs. `output`: `all` steps are concatenated, or those that no other
    step reads (`unused`). `growing`: the number of steps is a choice, `steps`, up to `steps`.
    """

    name: str = "cells"
    cells: int = 8
    width: int = 16
    stem: int = 3
    steps: int = 4
    operations: tuple[str, ...] = ops.DARTS[1:]
    kinds: tuple[str, ...] = ("normal", "reduction")
    distinct: bool = True
    output: str = "all"
    growing: bool = False

    def __post_init__(self) -> None:
        for name in ("cells", "width", "stem", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"Space {self.name}: {name}={getattr(self, name)} must be ≥ 1.")
        if self.output not in ("all", "unused"):
            raise UserError(f"Space {self.name}: output={self.output!r} is neither all nor unused.")
        ops.check_operations(self.operations)
        super().__post_init__()

    def _choices(self) -> tuple[Choice, ...]:
        found: list[Choice] = [Integers("steps", 1, self.steps)] if self.growing else []
        pairs = combinations if self.distinct else combinations_with_replacement
        for kind in self.kinds:
            for step in range(self.steps):
                read = tuple(f"{one},{other}" for one, other in pairs(range(step + 2), 2))
                found.append(Options(f"{kind}.{step}.inputs", read))
                found += [Options(f"{kind}.{step}.{op}", self.operations) for op in ("a", "b")]
        return tuple(found)

    def cell(self, point: Point, kind: str) -> Cell:
        """Return a cell as written: per step two edges (input, operation)."""
        count = int(point["steps"]) if self.growing else self.steps
        found = []
        for step in range(count):
            one, other = str(point[f"{kind}.{step}.inputs"]).split(",")
            a, b = (str(point[f"{kind}.{step}.{op}"]) for op in ("a", "b"))
            found.append(((int(one), a), (int(other), b)))
        return tuple(found)

    def active(self, point: Point) -> list[str]:
        """Return the choices of the steps that there are."""
        count = int(point["steps"]) if self.growing else self.steps
        names = [choice.name for choice in self.choices]
        return [n for n in names if n == "steps" or int(n.split(".")[1]) < count]

    def canonical(self, point: Point) -> dict[str, Value]:
        """Return the first of all ways to number the steps, with edges by their inputs."""
        found = super().canonical(point)
        for kind in self.kinds:
            for step, edges in enumerate(_first(self.cell(point, kind), self.distinct)):
                (one, a), (other, b) = edges
                found[f"{kind}.{step}.inputs"] = f"{one},{other}"
                found[f"{kind}.{step}.a"], found[f"{kind}.{step}.b"] = a, b
        return found

    def plan(self, point: Point) -> Plan:
        """Return the operations of all cells."""
        return self._plan({kind: self.cell(point, kind) for kind in self.kinds})

    def containing(self, partial: int = 1) -> Containing:
        """Return the network in which every step reads all that it may, each by a mixed operation.

        A decision is a step: two of its edges with an operation each. As in DARTS, an edge that is
        kept has an operation: zeros lead to none by the gates' weights.
        """
        if self.growing or not self.distinct or self.output != "all":
            raise self.has_no_supernet("what a cell gives depends on what its steps read")
        cells: dict[str, Cell] = {}
        gates: dict[str, tuple[str, ...]] = {}
        decisions = {}
        for kind in self.kinds:
            steps = []
            for step in range(self.steps):
                names = [f"{kind}.{step}.{source}" for source in range(step + 2)]
                gates |= dict.fromkeys(names, self.operations)
                steps.append(
                    tuple(
                        (source, Mixture(name, self.operations, partial))
                        for source, name in enumerate(names)
                    )
                )
                decisions[f"{kind}.{step}"] = tuple(self._alternatives(f"{kind}.{step}", names))
            cells[kind] = tuple(steps)
        return Containing(tuple(self._plan(cells).nodes), gates, decisions)

    def _alternatives(self, step: str, names: Sequence[str]) -> Iterator[Alternative]:
        numbers = range(len(self.operations))
        for pair in combinations(range(len(names)), 2):
            for chosen in product(numbers, repeat=2):
                operations = [self.operations[number] for number in chosen]
                values: dict[str, Value] = {f"{step}.inputs": ",".join(map(str, pair))}
                values |= {f"{step}.{op}": o for op, o in zip("ab", operations, strict=True)}
                picks = dict.fromkeys(names, DROPPED)
                picks |= {names[at]: n for at, n in zip(pair, chosen, strict=True)}
                yield Alternative(values, picks, not any(o in ZEROS for o in operations))

    def _plan(self, cells: Mapping[str, Cell]) -> Plan:
        """Return the operations of all cells, each of its kind."""
        plan = Plan()
        halves = {self.cells // 3, 2 * self.cells // 3} if self.cells > 2 else {self.cells - 1}
        last = plan.add("stem", "conv", IMAGE, self.stem * self.width, kernel=3, activation="none")
        before: list[tuple[list[int], bool]] = [([last], False), ([last], False)]
        width = self.width
        for number in range(self.cells):
            halved = number in halves
            width *= 2 if halved else 1
            kind = self.kinds[-1] if halved else self.kinds[0]
            cell, inputs = cells[kind], []
            reads = {source for step in cell for source, op in step if op not in ZEROS}
            for side, (read, _) in enumerate(before):
                if side not in reads and (side == 0 or reads & {0, 1}):
                    inputs.append(IMAGE)  # nothing reads it
                    continue
                # The earlier input is larger where the later one was halved.
                large = side == 0 and before[1][1]
                inputs.append(
                    plan.add(
                        f"cell{number}.in{side}",
                        "skip_connect" if large else "nor_conv_1x1",
                        read,
                        width,
                        2 if large else 1,
                        join="concat",
                    )
                )
            output = self._add(plan, cell, f"cell{number}", inputs, width, halved)
            before = [before[1], (output, halved)]
        read = before[1][0]
        total = len(read) * width
        plan.add(f"cell{self.cells - 1}.out", "skip_connect", read, total, join="concat")
        return plan

    def _add(
        self, plan: Plan, cell: Cell, place: str, inputs: list[int], width: int, halved: bool
    ) -> list[int]:
        """Add a cell; return the nodes that its output concatenates."""
        maps, used = list(inputs), set()
        for step, edges in enumerate(cell):
            summed = []
            for number, (source, op) in enumerate(edges):
                if op not in ZEROS:
                    used.add(source)
                    stride = 2 if halved and source < 2 else 1
                    where = f"{place}.{step}{ascii_lowercase[number]}"
                    summed.append(plan.add(where, op, maps[source], width, stride))
            if summed:
                maps.append(plan.add(f"{place}.{step}", "skip_connect", summed, width))
            else:
                some = next(node for node in inputs if node != IMAGE)
                stride = 2 if halved else 1
                maps.append(plan.add(f"{place}.{step}", "zero", some, width, stride))
        if self.output == "all":
            return maps[2:]
        return [maps[at] for at in range(2, len(maps)) if at not in used]


@lru_cache(maxsize=65536)
def _first(cell: Cell, distinct: bool) -> Cell:
    """Return the smallest of all forms of a cell: the steps renumbered, edges sorted."""
    return min(_forms(cell, distinct))


def _forms(cell: Cell, distinct: bool) -> Iterator[Cell]:
    for order in _orders(cell):
        place = {0: 0, 1: 1} | {old + 2: new + 2 for new, old in enumerate(order)}
        yield tuple(
            _edges([(place[source], op) for source, op in cell[old]], new, distinct)
            for new, old in enumerate(order)
        )


def _orders(cell: Cell, done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Yield every order of the steps in which each comes after those that it reads."""
    if len(done) == len(cell):
        yield done
    for step in range(len(cell)):
        reads = {source - 2 for source, op in cell[step] if source > 1 and op not in ZEROS}
        if step not in done and reads <= set(done):
            yield from _orders(cell, (*done, step))


def _edges(edges: Sequence[Edge], step: int, distinct: bool) -> tuple[Edge, Edge]:
    """Return two edges by their inputs; one that is nothing reads the first input it may."""
    alive = [edge for edge in edges if edge[1] not in ZEROS]
    taken = {source for source, _ in alive} if distinct else set()
    for _, op in (edge for edge in edges if edge[1] in ZEROS):
        source = next(at for at in range(step + 2) if at not in taken)
        alive.append((source, op))
        if distinct:
            taken.add(source)
    one, other = sorted(alive)
    return one, other


@dataclass(frozen=True)
class Darts(CellSpace):
    """The cells of DARTS (Liu et al., ICLR 2019): about 10¹⁸ pairs of them."""

    name: str = "darts"


@dataclass(frozen=True)
class ENASMicro(CellSpace):
    """The cells of ENAS (Pham et al., ICML 2018): five steps, unused ones are the output."""

    name: str = "enas_micro"
    steps: int = 5
    operations: tuple[str, ...] = (
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "avg_pool_3x3",
        "max_pool_3x3",
    )
    distinct: bool = False
    output: str = "unused"


@dataclass(frozen=True)
class PNAS(CellSpace):
    """The cell of progressive search (Liu et al., ECCV 2018): one kind, of one to five steps."""

    name: str = "pnas"
    steps: int = 5
    operations: tuple[str, ...] = ops.PNAS
    kinds: tuple[str, ...] = ("cell",)
    distinct: bool = False
    output: str = "unused"
    growing: bool = True


@dataclass(frozen=True)
class Tiny(CellSpace):
    """AutoSSL-Tiny's: four cells of two steps from five channels."""

    name: str = "tiny"
    cells: int = 4
    width: int = 5
    steps: int = 2
    operations: tuple[str, ...] = ops.TINY


for _space in (Darts, ENASMicro, PNAS, Tiny):
    register_space(_space.name, _space)

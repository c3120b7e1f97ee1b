"""The cell of NAS-Bench-201 (Dong and Yang, ICLR 2020), as data.

Four nodes, 0 the input and 3 the output, an edge with one of five operations from every earlier to
every later node; a node is the sum of its incoming edges. 5⁶ = 15,625 cells as written, of which
4,930 are different functions. `costs` counts as the benchmark does: the whole network of 15 cells
at 32×32 with 10 classes, edges that lead nowhere included. `describe` gives the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.spaces.choice import Choice, Options, Point, Value
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.networks import NetworkSpace, register_space
from sseg_nase.spaces.space import Encoding, Space

NONE, SKIP, CONV1, CONV3, POOL = OPERATIONS = (
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # in the order of the string form
NAMES = tuple(f"{source}-{target}" for source, target in EDGES)
INTO = {node: [at for at, edge in enumerate(EDGES) if edge[1] == node] for node in (1, 2, 3)}
ROUTES = (("0-3",), ("0-1", "1-3"), ("0-2", "2-3"), ("0-1", "1-2", "2-3"))
PATHS = tuple(path for length in (1, 2, 3) for path in product(OPERATIONS[1:], repeat=length))
COUNTS = {  # of the network without operations, and what one operation in a cell adds
    "params": (73_306, {CONV3: 243_040, CONV1: 28_000}),
    "macs": (7_943_872, {CONV3: 35_819_520, CONV1: 4_362_240, POOL: 1_290_240}),
}
DISTINCT = ("function", "written")
COUNTED = ("benchmark", "network")
CHOICES: tuple[Choice, ...] = tuple(Options(name, OPERATIONS) for name in NAMES)


@dataclass(frozen=True)
class NB201(NetworkSpace):
    """The space of NAS-Bench-201. A point is `{"0-1": "nor_conv_3x3", "0-2": …, "2-3": …}`.

    `distinct`: whether cells of the same function are one (`function`), or each cell as written is
    its own (`written`). `counts`: whether costs are the table's (`benchmark`), or those of the
    embedding network as it is built (`network`), with `cells` per stage and `width` channels in the
    first: convolutions alone, no classifier, edges without operation left out.
    """

    name: str = "nb201"
    caps: Any = field(default_factory=dict)
    distinct: str = "function"
    counts: str = "benchmark"
    cells: int = 5
    width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("distinct", DISTINCT), ("counts", COUNTED)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise UserError(f"{name}={value!r} is none of {', '.join(known)}.")
        if self.cells < 1 or self.width < 1:
            raise UserError(f"cells={self.cells} and width={self.width} must be at least 1.")

    def _choices(self) -> tuple[Choice, ...]:
        return CHOICES

    # These are made for millions of calls: nothing is built, and no move is looked at twice.
    mutate = Space.mutate
    neighbours = Space.neighbours

    def plan(self, point: Point) -> Plan:
        """Return the benchmark's network: three stages of cells, halved between them."""
        plan, operations = Plan(), _operations(point)
        last = plan.add("stem", "conv", IMAGE, self.width, kernel=3, activation="none")
        number = 0
        for stage in range(3):
            width = self.width * 2**stage
            if stage:
                last = plan.add(f"reduction{stage}", "reduction_block", last, width, 2)
            for _ in range(self.cells):
                last = _add_cell(plan, f"cell{number}", operations, last, width)
                number += 1
        plan.add("head", "norm_relu", last, width)
        return plan

    def key(self, point: Point) -> str:
        """Return the cell's function in writing, or its string form with `distinct="written"`."""
        operations = _operations(point)
        return _function(operations) if self.distinct == "function" else _string(operations)

    def canonical(self, point: Point) -> dict[str, Value]:
        """Return the first cell, in the order of `points`, with the same function."""
        return dict(zip(NAMES, _representatives()[_function(_operations(point))], strict=True))

    def costs(self, point: Point) -> Mapping[str, float]:
        """Return params and macs of the benchmark's network, whose formulas are exact."""
        if self.counts == "network":
            return super().costs(point)
        operations = _operations(point)
        return {
            name: base + sum(each.get(operation, 0) for operation in operations)
            for name, (base, each) in COUNTS.items()
        }

    @property
    def encodings(self) -> dict[str, Encoding]:
        """JSON, one-hot, the benchmark's string, adjacency with operations, and paths."""
        return {
            "json": Encoding(self.to_json, self.from_json),
            "one_hot": Encoding(self.one_hot, self.from_one_hot),
            "string": Encoding(self.to_string, self.from_string),
            "adjacency": Encoding(self.adjacency, self.from_adjacency),
            "paths": Encoding(self.paths, self.from_paths),
        }

    def to_string(self, point: Point) -> str:
        """Return the benchmark's form, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
        return _string(_operations(point))

    def from_string(self, text: str) -> dict[str, Value]:
        """Return the point of the benchmark's form. Raises `UserError`."""
        nodes = [part.strip("|").split("|") for part in text.strip().split("+")]
        if [len(node) for node in nodes] != [1, 2, 3]:
            raise UserError(f"{text!r} is no cell such as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.")
        given = {}
        for target, node in enumerate(nodes, start=1):
            for edge in node:
                operation, _, source = edge.partition("~")
                given[f"{source}-{target}"] = operation
        return self.check(given)

    def adjacency(self, point: Point) -> dict[str, list[Any]]:
        """Return `operations` of 8 nodes (input, six edges, output) and their `matrix` `[8, 8]`.

        Edges of the cell become nodes; one without operation is connected to nothing.
        """
        operations = _operations(point)
        matrix = [[0] * 8 for _ in range(8)]
        for at, (source, target) in enumerate(EDGES):
            if operations[at] == NONE:
                continue
            if source == 0:
                matrix[0][at + 1] = 1
            if target == 3:
                matrix[at + 1][7] = 1
            for to, (start, _) in enumerate(EDGES):
                if start == target and operations[to] != NONE:
                    matrix[at + 1][to + 1] = 1
        return {"operations": ["input", *operations, "output"], "matrix": matrix}

    def from_adjacency(self, code: dict[str, list[Any]]) -> dict[str, Value]:
        """Return the point of an adjacency code."""
        return self.check(dict(zip(NAMES, code["operations"][1:-1], strict=True)))

    def paths(self, point: Point) -> list[float]:
        """Return, for the 4 + 16 + 64 sequences of operations, which lead from input to output."""
        found = {tuple(point[name] for name in route) for route in ROUTES}
        return [float(path in found) for path in PATHS]

    def from_paths(self, code: list[float]) -> dict[str, Value]:
        """Return the first cell with these paths. Raises `UserError` where none has them."""
        cell = _cells_by_paths().get(tuple(code))
        if cell is None:
            raise UserError("No cell of nb201 has exactly these paths.")
        return dict(zip(NAMES, cell, strict=True))

    def graph(self, point: Point) -> Graph:
        """Return the operations that count as nodes: no `none`, skips as plain edges."""
        # Of the canonical form, so that equal functions have equal graphs.
        operations = _representatives()[_function(_operations(point))]
        labels, edges = ["input"], []
        reads: dict[int, list[int]] = {0: [0]}  # per node of the cell, the graph's nodes it sums
        for node in (1, 2, 3):
            reads[node] = []
            for at in INTO[node]:
                operation, sources = operations[at], reads[EDGES[at][0]]
                if operation == NONE or not sources or not _reaches_output(operations, node):
                    continue
                if operation == SKIP:
                    reads[node] += sources
                    continue
                labels.append(operation)
                edges += [(source, len(labels) - 1) for source in sources]
                reads[node].append(len(labels) - 1)
        labels.append("output")
        edges += [(source, len(labels) - 1) for source in reads[3]]
        return Graph(tuple(labels), tuple(edges))


def _add_cell(plan: Plan, place: str, operations: tuple[str, ...], image: int, width: int) -> int:
    """Add a cell that reads node `image` of the plan; return its output."""
    maps = {0: image}
    for node in (1, 2, 3):
        summed = []
        for at in INTO[node]:
            if operations[at] != NONE:
                where = f"{place}.{NAMES[at]}"
                summed.append(plan.add(where, operations[at], maps[EDGES[at][0]], width))
        op = SKIP if summed else NONE
        maps[node] = plan.add(f"{place}.{node}", op, summed or [image], width)
    return maps[3]


def _operations(point: Point) -> tuple[str, ...]:
    return tuple([point[name] for name in NAMES])  # type: ignore[misc]


def _string(operations: tuple[str, ...]) -> str:
    return "+".join(
        "|" + "|".join(f"{operations[at]}~{EDGES[at][0]}" for at in INTO[node]) + "|"
        for node in (1, 2, 3)
    )


@lru_cache(maxsize=len(OPERATIONS) ** len(EDGES))
def _function(operations: tuple[str, ...]) -> str:
    """Return what the output node computes: skips inlined, zeros dropped, summands sorted."""
    terms: dict[int, list[str]] = {0: ["x"]}
    for node in (1, 2, 3):
        found: list[str] = []
        for at in INTO[node]:
            operation, read = operations[at], terms[EDGES[at][0]]
            if operation == SKIP:
                found += read
            elif operation != NONE and read:
                found.append(f"{operation}({'+'.join(read)})")
        terms[node] = sorted(found)
    return "+".join(terms[3]) or "0"


def _reaches_output(operations: tuple[str, ...], node: int) -> bool:
    return node == 3 or any(
        source == node and operations[at] != NONE and _reaches_output(operations, target)
        for at, (source, target) in enumerate(EDGES)
    )


@lru_cache(maxsize=1)
def _representatives() -> dict[str, tuple[str, ...]]:
    """Return the first cell of every function."""
    cells: dict[str, tuple[str, ...]] = {}
    for operations in product(OPERATIONS, repeat=len(EDGES)):
        cells.setdefault(_function(operations), operations)
    return cells


@lru_cache(maxsize=1)
def _cells_by_paths() -> dict[tuple[float, ...], tuple[str, ...]]:
    """Return the first cell with each set of paths."""
    cells: dict[tuple[float, ...], tuple[str, ...]] = {}
    space = NB201()
    for operations in _representatives().values():
        code = tuple(space.paths(dict(zip(NAMES, operations, strict=True))))
        cells.setdefault(code, operations)
    return cells


register_space("nb201", NB201)

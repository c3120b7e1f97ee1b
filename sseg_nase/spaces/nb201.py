"""The cell of NAS-Bench-201 (Dong and Yang, ICLR 2020), as data.

Four nodes, 0 the input and 3 the output, an edge with one of five operations from every earlier to
every later node; a node is the sum of its incoming edges. 5⁶ = 15,625 cells as written, of which
4,930 are different functions. `costs` counts as the benchmark does: the whole network of 15 cells
at 32×32 with 10 classes, edges that lead nowhere included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.spaces.choice import Choice, Options, Point, Value
from sseg_nase.spaces.graph import Graph
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


@dataclass(frozen=True)
class NB201(Space):
    """The space of NAS-Bench-201. A point is `{"0-1": "nor_conv_3x3", "0-2": …, "2-3": …}`.

    `distinct`: whether cells of the same function are one (`function`), or each cell as written is
    its own (`written`).
    """

    name: str = "nb201"
    choices: tuple[Choice, ...] = tuple(Options(name, OPERATIONS) for name in NAMES)
    caps: Any = field(default_factory=dict)
    distinct: str = "function"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distinct not in DISTINCT:
            raise UserError(f"distinct={self.distinct!r} is none of {', '.join(DISTINCT)}.")

    def key(self, point: Point) -> str:
        """Return the cell's function in writing, or its string form with `distinct="written"`."""
        operations = _operations(point)
        return _function(operations) if self.distinct == "function" else _string(operations)

    def canonical(self, point: Point) -> dict[str, Value]:
        """Return the first cell, in the order of `points`, with the same function."""
        return dict(zip(NAMES, _representatives()[_function(_operations(point))], strict=True))

    def costs(self, point: Point) -> dict[str, float]:
        """Return params and macs of the benchmark's network, whose formulas are exact."""
        operations = _operations(point)
        return {
            name: base + sum(each.get(operation, 0) for operation in operations)
            for name, (base, each) in COUNTS.items()
        }

    @property
    def encodings(self) -> dict[str, Encoding]:
        """JSON, one-hot, the benchmark's string, adjacency with operations, and paths."""
        return {
            **super().encodings,
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

"""A network's cell as a labelled directed graph: what graph kernels and drawings read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Graph:
    """Nodes by number with a label each, and directed edges (from, to)."""

    labels: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def sources(self) -> list[list[int]]:
        """Return, per node, the nodes that it reads."""
        found: list[list[int]] = [[] for _ in self.labels]
        for source, target in self.edges:
            found[target].append(source)
        return found

    def to_networkx(self) -> Any:
        """Return a `networkx.DiGraph` with the attribute `label` on its nodes."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_nodes_from((node, {"label": label}) for node, label in enumerate(self.labels))
        graph.add_edges_from(self.edges)
        return graph

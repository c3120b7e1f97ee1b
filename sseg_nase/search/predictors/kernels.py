"""How alike two points are: by the choices in which they differ, or by their graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.space import Space

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the Hamming kernel, in choices
# Before any result a function is rather smooth: ℓ is log-normal around so many times the choices.
USUAL_LENGTH, SPREAD_OF_LENGTHS = 4 / 3, 0.7
DEPTHS = (0, 1, 2, 3)  # relabellings of the Weisfeiler–Lehman kernel


def hamming(space: Space, one: Sequence[Point], other: Sequence[Point]) -> list[np.ndarray]:
    """Return exp(−d / ℓ) `[n, m]` for every ℓ in `LENGTHS`.

    d counts the choices that differ; values of a range differ by their distance in it, 1 at most.
    """
    scale = np.array([c.unit for c in space.choices for _ in range(c.width)])
    a, b = (np.array([space.one_hot(p) for p in points]) * scale for points in (one, other))
    distance = np.abs(a[:, None, :] - b[None, :, :]).sum(-1)
    return [np.exp(-distance / length) for length in LENGTHS]


def length_priors(space: Space) -> np.ndarray:
    """Return the log density of every ℓ in `LENGTHS`, up to a constant.

    Few results fit any ℓ, and the likelihood alone then takes one so short that all is noise.
    """
    usual = USUAL_LENGTH * len(space.choices)
    return -0.5 * (np.log(np.array(LENGTHS) / usual) / SPREAD_OF_LENGTHS) ** 2


def no_priors(space: Space) -> np.ndarray:
    """Return 0 for every number in `DEPTHS`: the likelihood alone decides."""
    return np.zeros(len(DEPTHS))


def weisfeiler_lehman(
    space: Space, one: Sequence[Point], other: Sequence[Point]
) -> list[np.ndarray]:
    """Return the subtree kernel `[n, m]` for every number of relabellings in `DEPTHS`.

    k(G, G') = Σ_{i ≤ h} ⟨φ_i(G), φ_i(G')⟩ with φ_i the histogram of labels after i relabellings
    (Shervashidze et al., JMLR 2011), divided by √(k(G, G) · k(G', G')).
    """
    graphs = [space.graph(point) for point in (*one, *other)]
    histograms = [wl_histograms(graph, DEPTHS[-1]) for graph in graphs]
    found, a, b = [], np.zeros((len(one), 0)), np.zeros((len(other), 0))
    for depth in DEPTHS:
        level = [histogram[depth] for histogram in histograms]
        columns = {label: at for at, label in enumerate(dict.fromkeys(x for h in level for x in h))}
        counts = np.zeros((len(graphs), len(columns)))
        for row, histogram in enumerate(level):
            for label, count in histogram.items():
                counts[row, columns[label]] = count
        a, b = np.hstack([a, counts[: len(one)]]), np.hstack([b, counts[len(one) :]])
        found.append(_normal(a) @ _normal(b).T)
    return found


def wl_histograms(graph: Graph, depth: int) -> list[Counter[str]]:
    """Return how often each label occurs after 0, 1, … `depth` relabellings.

    A node's new label is its own with the sorted labels of the nodes that it reads.
    """
    labels, sources = list(graph.labels), graph.sources()
    found = [Counter(labels)]
    for _ in range(depth):
        labels = [
            f"{label}({','.join(sorted(labels[source] for source in read))})"
            for label, read in zip(labels, sources, strict=True)
        ]
        found.append(Counter(labels))
    return found


def _normal(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


KERNELS = {"hamming": hamming, "wl": weisfeiler_lehman}
PRIORS = {"hamming": length_priors, "wl": no_priors}

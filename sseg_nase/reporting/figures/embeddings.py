"""Where the images of unseen classes lie: their embeddings in two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from matplotlib.lines import Line2D

from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.embeddings import Embeddings, read_embeddings
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.unreadable import UnreadableError

TITLE = "Embeddings of unseen classes"
NEIGHBOURS = 30  # perplexity, and neighbours of UMAP
STEPS = 600  # of t-SNE


def tsne(features: np.ndarray) -> np.ndarray:
    """Positions `[n, 2]` of features `[n, D]`: t-SNE, begun with principal components."""
    from sklearn.manifold import TSNE

    perplexity = min(NEIGHBOURS, (len(features) - 1) / 3)
    method = TSNE(init="pca", random_state=0, perplexity=perplexity, max_iter=STEPS)
    return np.asarray(method.fit_transform(features))


def umap(features: np.ndarray) -> np.ndarray:
    """Positions `[n, 2]` of features `[n, D]`: UMAP. Needs `umap-learn`."""
    import umap as library

    neighbours = min(NEIGHBOURS, len(features) - 1)
    method = library.UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1)
    return np.asarray(method.fit_transform(features))


def embeddings(record: RunRecord) -> Drawing:
    """The stored embeddings by class with t-SNE, and with UMAP where that is installed."""
    try:
        found = read_embeddings(record.folder)
    except UnreadableError as error:
        return absent("embeddings", TITLE, f"The run {error}.")
    if len(found.features) < 10 or found.features.shape[1] < 2:
        return absent("embeddings", TITLE, "The run has stored too few embeddings to lay out.")
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {"t-SNE": tsne}
    if find_spec("umap") is not None:
        methods["UMAP"] = umap
    return drawn(found, {name: method(found.features) for name, method in methods.items()})


def drawn(found: Embeddings, positions: dict[str, np.ndarray]) -> Drawing:
    """A panel per method; a class has a colour and a mark."""
    with style.applied():
        figure = style.page(3.3, style.PAGE if len(positions) > 1 else 4.9)
        panels = figure.subplots(1, len(positions), squeeze=False)[0]
        looks = style.looks(len(found.class_names))
        for axes, (name, at) in zip(panels, positions.items(), strict=True):
            for label, look in enumerate(looks):
                chosen = found.labels == label
                axes.scatter(
                    at[chosen, 0], at[chosen, 1], s=11, marker=look.marker, color=look.colour,
                    alpha=0.8, linewidths=0.3, edgecolors="white", gid=found.class_names[label],
                )  # fmt: skip
            axes.set_xlabel(f"{name} 1 (no unit)")
            axes.set_ylabel(f"{name} 2 (no unit)")
            axes.set_xticks([])
            axes.set_yticks([])
        handles = [
            Line2D([], [], linestyle="none", marker=look.marker, color=look.colour, markersize=4.5,
                   label=style.shortened(name, 24))
            for name, look in zip(found.class_names, looks, strict=True)
        ]  # fmt: skip
        figure.legend(
            handles=handles, loc="outside right center", title="class", title_fontsize=style.SMALL
        )
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    caption = (
        f"{len(found.labels)} images of {len(found.class_names)} classes of {found.source} "
        f"({counts.min()} to {counts.max()} per class), none of which was trained on: the last "
        f"network's embeddings ({found.features.shape[1]} dimensions, as the evaluation takes "
        f"them) laid out by {' and '.join(positions)}. Near is alike; distances between groups "
        "and axes mean nothing."
    )
    return Drawing("embeddings", TITLE, caption, figure)

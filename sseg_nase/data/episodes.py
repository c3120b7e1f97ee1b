"""Episode lists: fixed N-way K-shot tasks, the same for every method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sseg_nase.errors import UserError


@dataclass(frozen=True)
class EpisodeList:
    """E episodes of N ways, K shots and Q queries; image indices point into an ImageStore.

    `classes` `[E, N]`, `support` `[E, N, K]`, `query` `[E, N, Q]`, all int64 and read-only.
    `counts` `[E, N]`: queries of the classes where they are not Q each; the N·Q queries of an
    episode then stand in `query` one class after the other, over the ends of its rows.
    """

    dataset: str
    split: str
    seed: int
    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        given = [self.classes, self.support, self.query]
        if self.counts is not None:
            assert (self.counts.sum(axis=1) == self.ways * self.queries).all()
            given.append(self.counts)
        for indices in given:
            assert indices.dtype == np.int64
            assert indices.shape[:2] == self.classes.shape
            indices.flags.writeable = False

    def __len__(self) -> int:
        return int(self.classes.shape[0])

    @property
    def ways(self) -> int:
        """Classes in an episode."""
        return int(self.classes.shape[1])

    @property
    def shots(self) -> int:
        """Support images of a class."""
        return int(self.support.shape[2])

    @property
    def queries(self) -> int:
        """Query images of a class, in the mean of an episode."""
        return int(self.query.shape[2])

    @property
    def labels(self) -> np.ndarray:
        """Way of every query, `[E, N·Q]` in the order of `query`."""
        counts = np.full_like(self.classes, self.queries) if self.counts is None else self.counts
        ways = np.broadcast_to(np.arange(self.ways), self.classes.shape)
        return np.repeat(ways.reshape(-1), counts.reshape(-1)).reshape(len(self), -1)

    @property
    def key(self) -> str:
        """`<dataset>/<split>/<N>w<K>s`, its name in results and metrics."""
        return f"{self.dataset}/{self.split}/{self.ways}w{self.shots}s"


def sample_episodes(
    class_indices: Sequence[np.ndarray],
    *,
    dataset: str,
    split: str,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int,
    dirichlet_alpha: float | None = None,
    class_names: Sequence[str] | None = None,
    section: str = "evaluation",
) -> EpisodeList:
    """Sample `episodes` tasks from `class_indices`, the image indices of every class of the split.

    A fixed function of the arguments (the names are hashed into the seed; `class_names` and
    `section`, of the config, only serve the messages), on every machine and NumPy version. Within
    an episode classes and images are sampled without replacement: support and query are disjoint.
    With `dirichlet_alpha` the classes of an episode share its `ways · queries` queries as a
    Dirichlet distribution with that alpha has it (Veilleux et al. 2021), 0 included; without, they
    have `queries` each. Raises UserError when the split holds fewer classes than `ways`, or a class
    fewer images than it may be asked for: `shots + queries`, or with `dirichlet_alpha`
    `shots + ways · queries`.
    """
    assert min(ways, shots, queries, episodes) >= 1
    unbalanced = dirichlet_alpha is not None
    sizes = np.array([len(indices) for indices in class_indices], dtype=np.int64)
    _check_sizes(sizes, dataset, split, ways, shots, queries, unbalanced, class_names, section)
    key: list[str | int | float] = [dataset, split, ways, shots, queries, episodes, seed]
    if dirichlet_alpha is not None:
        key += ["dirichlet", float(dirichlet_alpha)]
    stream = _Stream(key)
    classes = _draw_distinct(stream, np.full(episodes, len(sizes)), ways)
    counts, most = None, queries
    if dirichlet_alpha is not None:
        counts = _draw_counts(stream, dirichlet_alpha, episodes, ways, ways * queries)
        most = int(counts.max())
    positions = _draw_distinct(stream, sizes[classes.reshape(-1)], shots + most)
    pool = np.concatenate([np.asarray(indices, dtype=np.int64) for indices in class_indices])
    starts = np.cumsum(sizes) - sizes
    images = pool[starts[classes][:, :, None] + positions.reshape(episodes, ways, shots + most)]
    support, query = images[:, :, :shots], images[:, :, shots:]
    if counts is not None:
        query = query[np.arange(most) < counts[:, :, None]].reshape(episodes, ways, queries)
    return EpisodeList(
        dataset=dataset,
        split=split,
        seed=seed,
        classes=classes,
        support=support.copy(),
        query=query.copy(),
        counts=counts,
    )


class _Stream:
    """Uniform numbers from raw PCG64 output.

    NumPy keeps raw streams stable for ever, those of `Generator`'s methods not.
    """

    def __init__(self, key: list[str | int | float]) -> None:
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def uniform(self, *shape: int) -> np.ndarray:
        """Float64 in [0, 1), of `shape`."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        numbers: np.ndarray = (raw >> np.uint64(11)) * 2.0**-53
        return numbers.reshape(shape)


def _draw_distinct(stream: _Stream, sizes: np.ndarray, count: int) -> np.ndarray:
    """For every row r, `count` distinct integers below sizes[r], in random order: `[R, count]`.

    Floyd's algorithm on all rows at once: its cost does not grow with `sizes`. It samples a uniform
    set in an order that is not uniform, hence the shuffle.
    """
    rows = len(sizes)
    chance = stream.uniform(count, rows)
    chosen = np.empty((rows, count), dtype=np.int64)
    for i in range(count):
        last = sizes - count + i
        drawn = (chance[i] * (last + 1)).astype(np.int64)
        taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, last, drawn)
    order = np.argsort(stream.uniform(rows, count), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _draw_counts(stream: _Stream, alpha: float, episodes: int, ways: int, total: int) -> np.ndarray:
    """Shares of a Dirichlet distribution as whole numbers `[episodes, ways]` of sum `total`.

    Gamma variates over their sum, from uniform numbers by the inverse distribution function.
    Rounded down, and what is left goes to the largest remainders.
    """
    from scipy.special import gammaincinv  # a third of a second to import, and few runs need it

    drawn = gammaincinv(alpha, stream.uniform(episodes, ways))
    shares = total * drawn / drawn.sum(axis=1, keepdims=True)
    counts = np.floor(shares).astype(np.int64)
    rank = np.argsort(np.argsort(counts - shares, axis=1, kind="stable"), axis=1)
    whole: np.ndarray = counts + (rank < total - counts.sum(axis=1, keepdims=True))
    return whole


def _check_sizes(
    sizes: np.ndarray,
    dataset: str,
    split: str,
    ways: int,
    shots: int,
    queries: int,
    unbalanced: bool,
    class_names: Sequence[str] | None,
    section: str,
) -> None:
    """Raise UserError when the split cannot fill an episode."""
    if len(sizes) < ways:
        classes = "1 class" if len(sizes) == 1 else f"{len(sizes)} classes"
        fewer = f"set {section}.ways to {len(sizes)} or less" if len(sizes) > 1 else ""
        other = f"take another {section}.split" if section == "evaluation" else ""
        remedy = " or ".join(filter(None, (fewer, other, "" if fewer else "add classes")))
        raise UserError(
            f"{section}.ways={ways}: split '{split}' of dataset '{dataset}' has only {classes}. "
            f"{remedy[0].upper()}{remedy[1:]}."
        )
    most = ways * queries if unbalanced else queries
    short = np.flatnonzero(sizes < shots + most)
    if short.size:
        smallest = int(sizes.argmin())
        name = class_names[smallest] if class_names is not None else str(smallest)
        images = "1 image" if sizes[smallest] == 1 else f"{sizes[smallest]} images"
        others = f" ({short.size} classes are too small)" if short.size > 1 else ""
        asked, remedy = "", f"until their sum is {sizes[smallest]} or less"
        if unbalanced:
            asked = (
                f", with evaluation.query_balance=dirichlet where one of {ways} classes may get "
                "all queries,"
            )
            remedy = f"until shots + {ways} * queries is {sizes[smallest]} or less"
        raise UserError(
            f"{section}.shots={shots} and {section}.queries={queries}{asked} need {shots + most} "
            f"images of every class, but class '{name}' in split '{split}' of dataset "
            f"'{dataset}' has {images}{others}. Lower {section}.shots or {section}.queries "
            f"{remedy}, or add images to the class."
        )

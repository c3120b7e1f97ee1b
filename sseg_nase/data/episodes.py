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
    """

    dataset: str
    split: str
    seed: int
    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray

    def __post_init__(self) -> None:
        for indices in (self.classes, self.support, self.query):
            assert indices.dtype == np.int64
            assert indices.shape[:2] == self.classes.shape
            indices.flags.writeable = False

    def __len__(self) -> int:
        return self.classes.shape[0]

    @property
    def ways(self) -> int:
        """Classes in an episode."""
        return self.classes.shape[1]

    @property
    def shots(self) -> int:
        """Support images of a class."""
        return self.support.shape[2]

    @property
    def queries(self) -> int:
        """Query images of a class."""
        return self.query.shape[2]

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
    class_names: Sequence[str] | None = None,
) -> EpisodeList:
    """Draw `episodes` tasks from `class_indices`, the image indices of every class of the split.

    A fixed function of the arguments (the names are hashed into the seed; `class_names` only
    serve the messages), on every machine and NumPy version. Within an episode classes and images
    are drawn without replacement, so support and query are disjoint. Raises UserError when the
    split holds fewer classes than `ways`, or a class fewer images than `shots + queries`.
    """
    assert min(ways, shots, queries, episodes) >= 1
    sizes = np.array([len(indices) for indices in class_indices], dtype=np.int64)
    _check_sizes(sizes, dataset, split, ways, shots, queries, class_names)
    stream = _Stream([dataset, split, ways, shots, queries, episodes, seed])
    classes = _draw_distinct(stream, np.full(episodes, len(sizes)), ways)
    positions = _draw_distinct(stream, sizes[classes.reshape(-1)], shots + queries)
    pool = np.concatenate([np.asarray(indices, dtype=np.int64) for indices in class_indices])
    starts = np.cumsum(sizes) - sizes
    images = pool[starts[classes][:, :, None] + positions.reshape(episodes, ways, shots + queries)]
    return EpisodeList(
        dataset=dataset,
        split=split,
        seed=seed,
        classes=classes,
        support=images[:, :, :shots].copy(),
        query=images[:, :, shots:].copy(),
    )


class _Stream:
    """Uniform numbers from raw PCG64 output.

    NumPy keeps raw streams stable for ever, those of `Generator`'s methods not.
    """

    def __init__(self, key: list[str | int]) -> None:
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def uniform(self, *shape: int) -> np.ndarray:
        """Float64 in [0, 1), of `shape`."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _draw_distinct(stream: _Stream, sizes: np.ndarray, count: int) -> np.ndarray:
    """For every row r, `count` distinct integers below sizes[r], in random order: `[R, count]`.

    Floyd's algorithm on all rows at once: its cost does not grow with `sizes`. It draws a uniform
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


def _check_sizes(
    sizes: np.ndarray,
    dataset: str,
    split: str,
    ways: int,
    shots: int,
    queries: int,
    class_names: Sequence[str] | None,
) -> None:
    """Raise UserError when the split cannot fill an episode."""
    if len(sizes) < ways:
        classes = "1 class" if len(sizes) == 1 else f"{len(sizes)} classes"
        raise UserError(
            f"evaluation.ways={ways}: split '{split}' of dataset '{dataset}' has only {classes}. "
            f"Set evaluation.ways to {len(sizes)} or less, or take another evaluation.split."
        )
    short = np.flatnonzero(sizes < shots + queries)
    if short.size:
        smallest = int(sizes.argmin())
        name = class_names[smallest] if class_names is not None else str(smallest)
        images = "1 image" if sizes[smallest] == 1 else f"{sizes[smallest]} images"
        others = f" ({short.size} classes are too small)" if short.size > 1 else ""
        raise UserError(
            f"evaluation.shots={shots} and evaluation.queries={queries} need {shots + queries} "
            f"images of every class, but class '{name}' in split '{split}' of dataset "
            f"'{dataset}' has {images}{others}. Lower evaluation.shots or evaluation.queries "
            f"until their sum is {sizes[smallest]} or less, or add images to the class."
        )

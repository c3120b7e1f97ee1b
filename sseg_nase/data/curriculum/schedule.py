"""Which level the curriculum is at, and which images an epoch sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sseg_nase.data.random import derive
from sseg_nase.errors import UserError

PAIRED_LEVELS = frozenset({"ADVERSARIAL"})  # indices 2k and 2k + 1 stay in one batch


class LevelSchedule:
    """Moves through the levels, from easy to hard.

    A level is left when its loss has reached a plateau, |L(t) - L(t - w)| < threshold, and the
    teacher-student gap is small (without a teacher the plateau alone decides), or after
    `max_epochs_per_level`. Losses of an earlier level never count.
    """

    def __init__(
        self,
        levels: Sequence[str],
        *,
        progression: bool,
        mixing_ratio: float,
        max_epochs_per_level: int,
        plateau_threshold: float,
        plateau_window: int,
        gap_threshold: float,
    ) -> None:
        """Start at the first level; without `progression` all levels are mixed evenly.

        Raises:
            UserError: there is no level, or one stands there twice.
        """
        if not levels or len(set(levels)) != len(levels):
            raise UserError(
                f"curriculum.levels={list(levels)}: accepted is a list of one or more different "
                "levels, from easy to hard. Name each level once."
            )
        self._levels = tuple(levels)
        self._progression = progression
        self._mixing_ratio = mixing_ratio
        self._max_epochs = max_epochs_per_level
        self._threshold = plateau_threshold
        self._window = plateau_window
        self._gap_threshold = gap_threshold
        self._index = 0
        self._epochs = 0  # spent at this level
        self._losses: list[float] = []  # the last w + 1 at this level

    @property
    def index(self) -> int:
        """Position of the current level, from 0; without progression it stays 0."""
        return self._index

    @property
    def level(self) -> str:
        """Name of the current level."""
        return self._levels[self._index]

    def weights(self) -> dict[str, float]:
        """Share of each level's images in the current epoch; levels not seen yet are left out.

        The current level has 1 - mixing_ratio, the levels before it share mixing_ratio evenly.
        """
        if not self._progression:
            return {level: 1 / len(self._levels) for level in self._levels}
        past = self._levels[: self._index]
        if not past or self._mixing_ratio == 0:
            return {self.level: 1.0}
        shares = {level: self._mixing_ratio / len(past) for level in past}
        return {**shares, self.level: 1 - self._mixing_ratio}

    def step(self, loss: float, gap: float | None) -> str | None:
        """Close an epoch, and the level if it is to be left: `observe`, then `advance`."""
        reason = self.observe(loss, gap)
        if reason is not None:
            self.advance()
        return reason

    def observe(self, loss: float, gap: float | None) -> str | None:
        """Close an epoch; return why the level is to be left, "plateau" or "cap", or None.

        `loss` is the epoch's mean, `gap` the teacher-student gap or None without a teacher.
        """
        if not self._progression or self._index == len(self._levels) - 1:
            return None
        self._epochs += 1
        self._losses = [*self._losses, loss][-(self._window + 1) :]
        full = len(self._losses) > self._window
        flat = full and abs(self._losses[-1] - self._losses[0]) < self._threshold
        close = gap is None or gap <= self._gap_threshold
        if flat and close:
            return "plateau"
        return "cap" if self._epochs >= self._max_epochs else None

    @property
    def overdue(self) -> bool:
        """Whether the level has lasted longer than it may: its end was put off once already."""
        return self._epochs > self._max_epochs

    def advance(self) -> None:
        """Go on to the next level."""
        assert self._index < len(self._levels) - 1
        self._index += 1
        self._epochs = 0
        self._losses = []

    def state_dict(self) -> dict[str, Any]:
        """Return what changes over time, as plain values."""
        return {
            "levels": list(self._levels),
            "index": self._index,
            "epochs": self._epochs,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            UserError: the state belongs to other levels.
        """
        if tuple(state["levels"]) != self._levels:
            raise UserError(
                f"curriculum.levels={list(self._levels)}: the checkpoint has "
                f"{state['levels']}. Resume with the checkpoint's levels or start again."
            )
        self._index = int(state["index"])
        self._epochs = int(state["epochs"])
        self._losses = [float(loss) for loss in state["losses"]]


def _batch_counts(weights: dict[str, float], batches: int, batch_size: int) -> list[dict[str, int]]:
    """Images of each level in each batch: as even as whole numbers and whole pairs allow.

    What rounding withholds from a level in one batch is owed to it in the next, so that the
    shares of the epoch are right to within a pair.
    """
    total = sum(weights.values())
    paired = [level for level in weights if level in PAIRED_LEVELS]
    single = [level for level in weights if level not in PAIRED_LEVELS]
    owed = dict.fromkeys(weights, 0.0)
    counts = []
    for _ in range(batches):
        for level, weight in weights.items():
            owed[level] += batch_size * weight / total
        batch: dict[str, int] = {}
        left = batch_size
        for level in paired:
            pairs = max(0, round(owed[level] / 2)) if single or level != paired[-1] else left // 2
            batch[level] = 2 * min(pairs, left // 2)
            left -= batch[level]
        for level in single:
            batch[level] = min(left, max(0, int(owed[level])))
            left -= batch[level]
        for _ in range(left):
            behind = max(single, key=lambda level: owed[level] - batch[level])
            batch[behind] += 1
        for level in weights:
            owed[level] -= batch[level]
        counts.append({level: batch[level] for level in weights if batch[level]})
    return counts


class _Pool:
    """Indices of one level in shuffled order, reshuffled when all have been seen."""

    def __init__(self, level: str, size: int, seed: int, epoch: int) -> None:
        self._pair = level in PAIRED_LEVELS
        self._units = size // 2 if self._pair else size
        self._generator = torch.Generator().manual_seed(derive(seed, "epoch", epoch, level))
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> torch.Tensor:
        """Return the next `count` indices, int64 [count]."""
        units = count // 2 if self._pair else count
        while len(self._order) < units:
            more = torch.randperm(self._units, generator=self._generator)
            self._order = torch.cat([self._order, more])
        taken, self._order = self._order[:units], self._order[units:]
        return torch.stack([2 * taken, 2 * taken + 1], dim=1).flatten() if self._pair else taken


def plan_epoch(
    weights: dict[str, float],
    images: int,
    pool_sizes: dict[str, int],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    named: str | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Plan an epoch: its batches, each a mapping level -> int64 indices into the level's pool.

    The epoch has images // batch_size batches of exactly `batch_size` images (an incomplete last
    one is dropped), each mixed by `weights` as evenly as whole numbers allow. A level's indices
    0 .. pool_sizes[level] - 1 are visited without replacement in an order shuffled again for each
    epoch, and reshuffled within it when all have been seen. ADVERSARIAL indices come as pairs
    (2k, 2k + 1) side by side. The plan depends on the arguments alone; `named` is what messages
    call the size of a batch.

    Raises:
        UserError: there are fewer images than a batch, a level's pool is missing or too small,
            or an odd batch cannot be filled with pairs.
    """
    weights = {level: weight for level, weight in weights.items() if weight > 0}
    named = named or f"hardware.batch_size={batch_size}"
    if images < batch_size:
        raise UserError(
            f"pretrain.images_per_epoch={images}: at least one batch is needed, accepted is "
            f"{batch_size} or more. Raise it or lower {named}."
        )
    for level in weights:
        least = 2 if level in PAIRED_LEVELS else 1
        size = pool_sizes.get(level, 0)
        if size < least:
            raise UserError(
                f"curriculum.images.{level}={size}: the level is used, accepted is {least} or "
                "more. Raise it or take the level out of curriculum.levels."
            )
    if batch_size % 2 and set(weights) <= PAIRED_LEVELS:
        raise UserError(
            f"{named}: {', '.join(weights)} images come in pairs, "
            "accepted is an even number. Change it by one or mix in another level."
        )
    pools = {level: _Pool(level, pool_sizes[level], seed, epoch) for level in weights}
    return [
        {level: pools[level].take(count) for level, count in batch.items()}
        for batch in _batch_counts(weights, images // batch_size, batch_size)
    ]

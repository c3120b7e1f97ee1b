"""How much a search may spend."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil

from sseg_nase.errors import UserError
from sseg_nase.search.log import Log

UNLIMITED = 2**62


@dataclass(frozen=True)
class Budget:
    """Limits of a search; None is no limit. The first that is reached ends it.

    `candidates` counts what was asked for, at any fidelity. `images` (seen in training),
    `training_macs` and `seconds` are those of the evaluations, as the log has them, so that a
    resumed search has what is left of them.
    """

    candidates: int | None = None
    images: float | None = None
    training_macs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise UserError(
                    f"budget.{limit.name}={value} must be above 0, or null for no limit."
                )

    @property
    def endless(self) -> bool:
        """Whether there is no limit at all."""
        return all(getattr(self, limit.name) is None for limit in fields(self))

    def left(self, log: Log, first: int) -> int:
        """Return how many more candidates may be asked for.

        Of what evaluations spend it is what is left over the mean cost so far, rounded up, but no
        more than have been evaluated, or `first`: the mean of a few may be far off.
        """
        left = UNLIMITED if self.candidates is None else self.candidates - len(log.candidates)
        for name in ("images", "training_macs", "seconds"):
            limit, spent = getattr(self, name), getattr(log.spent, name)
            if limit is not None:
                enough = ceil((limit / spent - 1) * len(log.told)) if spent else first
                left = min(left, enough, max(first, len(log.told)))
        return max(0, left)

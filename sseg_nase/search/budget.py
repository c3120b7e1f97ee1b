"""How much a search may spend."""

from __future__ import annotations

from dataclasses import dataclass, fields

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

    def left(self, log: Log) -> int:
        """Return how many more candidates may be asked for."""
        for name in ("images", "training_macs", "seconds"):
            limit = getattr(self, name)
            if limit is not None and getattr(log.spent, name) >= limit:
                return 0
        if self.candidates is None:
            return UNLIMITED
        return max(0, self.candidates - len(log.candidates))

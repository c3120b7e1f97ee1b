"""When learning has saturated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any


def window_change(losses: Sequence[float], window: int) -> float:
    """L(t) − L(t−w): the change over the last `window` epochs, from its two ends alone."""
    return losses[-1] - losses[-1 - window]


def slope_change(losses: Sequence[float], window: int) -> float:
    """w · the median slope between any two of the last w + 1 losses (Theil 1950, Sen 1968).

    In the units of `window_change`, but one epoch that stands out does not move it.
    """
    recent = list(enumerate(losses[-1 - window :]))
    return window * median((b - a) / (j - i) for (i, a), (j, b) in combinations(recent, 2))


DETECTORS: Mapping[str, Callable[[Sequence[float], int], float]] = {
    "window": window_change,
    "slope": slope_change,
}


class PlateauDetector:
    """Watches the exponentially smoothed loss of each epoch.

    A plateau: |change over the last `window` epochs| < `threshold`, in `patience` epochs one after
    the other. `smoothing` s: L̄(t) = s·L̄(t−1) + (1 − s)·L(t).
    """

    def __init__(
        self,
        window: int,
        threshold: float,
        smoothing: float,
        *,
        detector: str = "window",
        patience: int = 1,
    ) -> None:
        self.window, self.threshold, self.smoothing = window, threshold, smoothing
        self.patience = patience
        self._change = DETECTORS[detector]
        self.losses: list[float] = []
        self.flat = 0  # epochs in a row without change

    def update(self, loss: float) -> None:
        """Add the loss of one epoch."""
        last = self.losses[-1] if self.losses else loss
        self.losses.append(self.smoothing * last + (1 - self.smoothing) * loss)
        change = self.change
        self.flat = self.flat + 1 if change is not None and abs(change) < self.threshold else 0

    def reset(self) -> None:
        """Forget the past: after a mutation or a change of level, losses do not compare."""
        self.losses.clear()
        self.flat = 0

    @property
    def change(self) -> float | None:
        """Change of the smoothed loss over the window, or None while the window is not full."""
        if len(self.losses) <= self.window:
            return None
        return self._change(self.losses, self.window)

    @property
    def plateau(self) -> bool:
        """Whether the smoothed loss has stopped changing."""
        return self.flat >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": list(self.losses), "flat": self.flat}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.losses, self.flat = list(state["losses"]), state["flat"]

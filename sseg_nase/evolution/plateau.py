"""When learning has saturated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plateaued(losses: Sequence[float], window: int, threshold: float) -> bool:
    """|L(t) − L(t−w)| < ε over the last `window` + 1 losses; False while there are fewer."""
    return len(losses) > window and abs(losses[-1] - losses[-1 - window]) < threshold


class PlateauDetector:
    """Watches the exponentially smoothed loss of each epoch.

    `smoothing` s: L̄(t) = s·L̄(t−1) + (1 − s)·L(t).
    """

    def __init__(self, window: int, threshold: float, smoothing: float) -> None:
        self.window, self.threshold, self.smoothing = window, threshold, smoothing
        self.losses: list[float] = []

    def update(self, loss: float) -> None:
        """Add the loss of one epoch."""
        last = self.losses[-1] if self.losses else loss
        self.losses.append(self.smoothing * last + (1 - self.smoothing) * loss)

    def reset(self) -> None:
        """Forget the past: after a mutation or a change of level, losses do not compare."""
        self.losses.clear()

    @property
    def change(self) -> float | None:
        """L̄(t) − L̄(t−w), or None while the window is not full."""
        if len(self.losses) <= self.window:
            return None
        return self.losses[-1] - self.losses[-1 - self.window]

    @property
    def plateau(self) -> bool:
        """Whether the smoothed loss has stopped changing."""
        return plateaued(self.losses, self.window, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.losses = list(state["losses"])

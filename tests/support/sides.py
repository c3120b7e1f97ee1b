"""Sides of a benchmark that cost nothing and tell what they are asked to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def resting(seconds: float, items: int, said: str) -> Callable[[], float]:
    """A side that says when it begins and ends a round."""

    def work() -> float:
        with open(said, "a") as lines:
            lines.write(f"{os.getpid()} begins\n")
        time.sleep(seconds)
        with open(said, "a") as lines:
            lines.write(f"{os.getpid()} ends\n")
        return items

    return work


def spinning() -> Callable[[], float]:
    """A side that tells how it was set up."""
    return lambda: float(os.environ.get("GOMP_SPINCOUNT", 0))


def failing() -> Callable[[], float]:
    raise RuntimeError("no such data")

"""Lightning Fabric, loaded without what it does not need here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Fabric", "LightningEnvironment"]


@contextmanager
def without(module: str) -> Iterator[None]:
    """Let `module`, unless it is loaded already, count as not installed for what is imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with without("torchmetrics"):  # only its version is asked for, and to import it takes seconds
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

"""Lightning Fabric, loaded without what it does not need here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["Fabric", "LightningEnvironment", "MixedPrecision", "restore_precision"]

DYNAMO = "torch._dynamo"


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


class _AsCompiled(type):
    """`isinstance` of what `torch.compile` returns, without loading the compiler to ask."""

    def __instancecheck__(cls, instance: object) -> bool:
        dynamo = sys.modules.get(DYNAMO)
        return dynamo is not None and isinstance(instance, dynamo.OptimizedModule)


class OptimizedModule(metaclass=_AsCompiled):
    """What Fabric knows of `torch._dynamo`: nothing is one before that is loaded."""


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let what is imported have `torch._dynamo.OptimizedModule` without all of `torch._dynamo`.

    To import that takes longer than torch itself, and only hardware.compile needs it.
    """
    if DYNAMO in sys.modules:
        yield
        return
    stand_in = ModuleType(DYNAMO)
    stand_in.OptimizedModule = OptimizedModule  # type: ignore[attr-defined]
    sys.modules[DYNAMO] = stand_in
    try:
        yield
    finally:
        del sys.modules[DYNAMO]


# Of torchmetrics only the version is asked for, and to import it takes seconds.
with without("torchmetrics"), without_compiler():
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.plugins.precision.amp import MixedPrecision


def restore_precision(fabric: Fabric, state: Mapping[str, Any] | None) -> None:
    """Let the gradient scaler of 16-mixed, if `fabric` has one, go on with its `state`.

    Checkpoints of older versions and of other precisions have none: it then begins from scratch.
    """
    if state:
        fabric.strategy.precision.load_state_dict(dict(state))

"""Which numbers are figures: the one decision about NaN and infinities.

Whatever computes, stores, reads back or shows a number asks here. A figure is a finite number.
What is none never takes part in a mean, a comparison or a choice, and is never printed as one; it
is stored as null, and whoever leaves it out says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard


def finite(value: Any) -> TypeGuard[float]:
    """Tell whether `value` is a figure: a finite number, and no truth value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def figure(value: Any) -> float | None:
    """Return `value` where it is a figure, else None."""
    return float(value) if finite(value) else None


def positive(value: Any) -> bool:
    """Tell whether `value` is a figure that a time or a size can have."""
    return finite(value) and value > 0


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and infinities as null, 0-d arrays as numbers."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity, in their order.

    `tensors` may nest, as a checkpoint does: names are then joined by dots. What is no tensor of
    floats is passed over. One look at the device, however many tensors there are.
    """
    named = list(_floating("", tensors))
    if not named:
        return []
    # x · 0 is 0 for every finite x; a sum of zeros cannot overflow.
    sums = [(tensor.detach() * 0).sum().float() for _, tensor in named]
    if sum(sums).item() == 0:
        return []
    return [name for (name, _), each in zip(named, sums, strict=True) if each.item() != 0]


def shortened(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _floating(prefix: str, values: Mapping[Any, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _floating(f"{name}.", value)
        # By what it can do, because torch takes seconds to import and reports do without it.
        elif hasattr(value, "is_floating_point") and value.is_floating_point():
            yield name, value

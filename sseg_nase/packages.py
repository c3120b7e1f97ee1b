"""What other packages that are installed bring: entry points, by the names of their groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from sseg_nase.errors import UserError

OPTIONS = "sseg_nase.options"  # options of config groups, and what they stand for
FAMILIES = "sseg_nase.families"  # options of `backbone`, with what describes them
OPERATORS = "sseg_nase.operators"  # by the name that `evolution.operators` has for it
FIGURES = "sseg_nase.figures"  # functions that draw one more figure of a run's report


@cache
def names_in(group: str) -> tuple[str, ...]:
    """Return the names of the entry points of a group; nothing is imported."""
    return tuple(dict.fromkeys(point.name for point in entry_points(group=group)))


def load(group: str) -> None:
    """Import what the entry points of a group name; it registers what it brings.

    Raises `UserError` where the module of one cannot be imported.
    """
    for point in points_in(group):
        loaded(point)


def points_in(group: str) -> Iterator[EntryPoint]:
    """Yield the entry points of a group; nothing is imported."""
    yield from entry_points(group=group)


def loaded(point: EntryPoint) -> object:
    """Import what an entry point names, and return it. Raises `UserError` where it cannot be."""
    try:
        found: object = point.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{package_of(point)}: this package has {point.group.rpartition('.')[2]} for "
            f"sseg-nase, and its {point.value} cannot be imported ({error}). Mend it, or uninstall "
            "it."
        ) from error
    return found


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that an entry point is from."""
    return point.dist.name if point.dist is not None else point.name

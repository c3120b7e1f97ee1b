"""What other packages that are installed bring: entry points, by the names of their groups."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from sseg_nase.errors import UserError

OPTIONS = "sseg_nase.options"  # options of config groups, and what they stand for
FAMILIES = "sseg_nase.families"  # options of `backbone`, with what describes them
OPERATORS = "sseg_nase.operators"  # by the name that `evolution.operators` has for it


@cache
def names_in(group: str) -> tuple[str, ...]:
    """Return the names of the entry points of a group; nothing is imported."""
    return tuple(dict.fromkeys(point.name for point in entry_points(group=group)))


def load(group: str) -> None:
    """Import what the entry points of a group name; it registers what it brings.

    Raises `UserError` where the module of one cannot be imported.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except (ImportError, AttributeError, ValueError) as error:
            package = point.dist.name if point.dist is not None else point.name
            raise UserError(
                f"{package}: this package has {group.rpartition('.')[2]} for sseg-nase, and its "
                f"{point.value} cannot be imported ({error}). Mend it, or uninstall it."
            ) from error

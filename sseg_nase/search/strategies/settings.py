"""Bounds of strategies' settings."""

from __future__ import annotations

from sseg_nase.errors import UserError


def at_least(least: int, settings: object, *names: str) -> None:
    """Raise `UserError` for the first of these settings that is below `least`."""
    for name in names:
        if getattr(settings, name) < least:
            raise UserError(f"{name}={getattr(settings, name)} must be at least {least}.")

"""Image sizes over a training: `image_sizes=[24@0,32@0.6]`, each from a share of the epochs on."""

from __future__ import annotations

from collections.abc import Sequence

WRITTEN = "[24@0,32@0.6]"


def sizes_of(schedule: Sequence[str]) -> list[tuple[int, float]]:
    """Sizes in pixels, each with the share of the epochs from which on it holds.

    Raises ValueError, with what is wrong, for what is no schedule.
    """
    found = []
    for entry in schedule:
        size, at, share = entry.partition("@")
        try:
            found.append((int(size), float(share)))
        except ValueError:
            raise ValueError(f"'{entry}' is not SIZE@SHARE, as in {WRITTEN}") from None
        if not at or not 0 <= found[-1][1] < 1:
            raise ValueError(f"'{entry}': the share of the epochs is 0 or more, and below 1")
    shares = [share for _, share in found]
    if not found or shares[0] != 0:
        raise ValueError(f"the first size begins at 0, as in {WRITTEN}")
    if sorted(set(shares)) != shares:
        raise ValueError("each size begins later than the one before it")
    return found


def size_at(schedule: Sequence[str] | None, epoch: int, epochs: int, usual: int) -> int:
    """The size of the views in `epoch`, from 0, of `epochs`; `usual` without a schedule."""
    if schedule is None:
        return usual
    begun = [size for size, share in sizes_of(schedule) if share * epochs <= epoch]
    return begun[-1]

"""What a search may choose of a family of backbones: values of the keys that its option has.

It imports no torch, so that the option of a family may say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Sequence[int | float | str]  # a `range` is a number of layers

COMMON_ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "gelu")
FILTERS = (16, 32, 64, 128, 256)
KERNELS = (3, 5, 7)
UNITS = (64, 128, 256, 512, 1024)
SWITCH = (0, 1)


@dataclass(frozen=True)
class Genome:
    """Values by the keys of the option.

    `level`: of complexity, from 1 to 3, from which on the family takes part. `lists`: of keys that
    are lists the values of every entry; all have one length, from `layers[0]` to `layers[1]`.
    `one`: of the other keys; `fixed`: what is the same in every network. `below`: of some keys the
    fewer values that there are at a level.
    """

    level: int
    one: Mapping[str, Values] = field(default_factory=dict)
    lists: Mapping[str, Values] = field(default_factory=dict)
    layers: tuple[int, int] = (2, 50)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    below: Mapping[int, Mapping[str, Values]] = field(default_factory=dict)


def patch_sizes(image_size: int) -> tuple[int, ...]:
    """The sides of square patches that fill the images and make from 4 × 4 to 12 × 12 of them."""
    return tuple(n for n in range(2, 25) if image_size % n == 0 and 4 <= image_size // n <= 12)

"""The random numbers of `sseg_nase.data.random.uniform` in compiled code: for CPUs.

One pass instead of a dozen tensor operations, and no wait for torch's threads, which takes long
where other programs, or the training itself, keep the cores busy.
"""

from __future__ import annotations

import numpy as np
import torch

from sseg_nase.data import random
from sseg_nase.hardware.compiled import compiled

_u = np.uint64  # a plain number would turn what it meets into float64
_GOLDEN, _MIX_1, _MIX_2 = _u(random._GOLDEN), _u(random._MIX_1), _u(random._MIX_2)
_STEP = np.float32(2.0**-24)


def uniform(key: int, indices: torch.Tensor, count: int) -> torch.Tensor:
    """As `sseg_nase.data.random.uniform`, number for number, on the CPU."""
    drawn = torch.empty(len(indices), count)
    _draw(_u(key), indices.contiguous().numpy().view(_u), drawn.numpy())
    return drawn


@compiled
def _draw(key, indices, drawn):  # type: ignore[no-untyped-def]
    for i in range(len(drawn)):
        counter = _mix(_mix(indices[i] + key) + key)
        for j in range(drawn.shape[1]):
            counter += _GOLDEN
            drawn[i, j] = np.float32(_mix(counter) >> _u(40)) * _STEP


@compiled
def _mix(value):  # type: ignore[no-untyped-def]
    """Scramble a number, one to one (SplitMix64's finaliser)."""
    value = (value ^ (value >> _u(30))) * _MIX_1
    value = (value ^ (value >> _u(27))) * _MIX_2
    return value ^ (value >> _u(31))

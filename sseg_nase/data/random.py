"""Random numbers that depend on (seed, name, index) alone, never on the numbers before.

A counter-based generator: the SplitMix64 finaliser (Steele, Lea and Flood 2014) of a key and a
counter. Image 7 therefore looks the same in any batch, in any order and on any device.
"""

from __future__ import annotations

import hashlib

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64-bit pattern of `value` as torch's signed int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the purpose that `names` spell, independent between purposes."""
    text = repr((seed, *names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _shift_right(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift: torch's own copies the sign bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: torch.Tensor) -> torch.Tensor:
    """Scramble int64 `values`, one to one (SplitMix64's finaliser)."""
    values = (values ^ _shift_right(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shift_right(values, 27)) * _signed(_MIX_2)
    return values ^ _shift_right(values, 31)


def uniform(key: int, indices: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` float32 numbers in [0, 1) for each of the int64 `indices` [B] -> [B, count]."""
    start = _mix(_mix(indices + _signed(key)) + _signed(key))
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=indices.device)
    bits = _mix(start[:, None] + counter * _signed(_GOLDEN))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24

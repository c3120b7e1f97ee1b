"""Memory that training frees stays with the process, ready for the next step."""

from __future__ import annotations

import ctypes
import platform

from sseg_nase.hardware.memory import resident_memory_mb

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 64 << 20  # bytes that the heap grows by at once
_LARGE_MB = 1536


def keep_memory() -> bool:
    """Let malloc neither map large blocks one by one nor give them back; True where it does.

    glibc maps every block over 32 MiB anew, and the kernel fills it with zeros page by page when it
    is first written: at 84 pixels a training step spent half its time on that. Other C libraries
    are left as they are. Calling it again changes nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _GROWTH}
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(taken)


def release_memory() -> None:
    """Give the free memory of a large process back, once: where another kind of work begins.

    Blocks that fitted the last kind of work rarely fit the next, which would take further ones. A
    small process keeps what it has: there is more time than memory to win.
    """
    resident = resident_memory_mb()
    if platform.libc_ver()[0] == "glibc" and resident is not None and resident > _LARGE_MB:
        ctypes.CDLL(None).malloc_trim(0)

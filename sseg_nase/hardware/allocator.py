"""Memory that training frees stays with the process, ready for the next step."""

from __future__ import annotations

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 64 << 20  # bytes that the heap grows by at once


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

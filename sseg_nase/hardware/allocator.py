"""Memory that training frees stays with the process, ready for the next step."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress

# Blocks over 32 MiB come from the heap, too, which grows by 64 MiB, is not given back at once and
# consists of huge pages. Without the cache of small blocks, which would lie between freed large
# ones for ever and keep them from becoming one: the heap grew to four times its size.
_TUNABLES = {
    "mmap_max": 0,
    "trim_threshold": 1 << 40,
    "top_pad": 64 << 20,
    "tcache_count": 0,
    "hugetlb": 1,
}
_LARGE_MB = 1536


def keep_memory() -> None:
    """Start this program once more, in the same process, with malloc set so that memory is kept.

    By default glibc maps every block over 32 MiB afresh, and the kernel fills it with zeros page by
    page as it is first written: at 84 pixels a training step spent almost half its time on that.
    The settings are read when a program starts. Other C libraries, and whoever has set
    GLIBC_TUNABLES, are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    settings = (f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
    os.environ["GLIBC_TUNABLES"] = ":".join(settings)
    with suppress(OSError):  # it only makes training faster
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def release_memory() -> None:
    """Give the free memory of a large process back, once: where another kind of work begins.

    Blocks that fitted the last kind of work rarely fit the next, which would take further ones. A
    small process keeps what it has: there is more time than memory to win.
    """
    from sseg_nase.hardware.memory import resident_memory_mb  # here, because it imports torch

    resident = resident_memory_mb()
    if platform.libc_ver()[0] == "glibc" and resident is not None and resident > _LARGE_MB:
        ctypes.CDLL(None).malloc_trim(0)

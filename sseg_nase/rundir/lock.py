"""A folder, of a run or of a sweep, is held by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
# Whoever asks whether a run is going on takes its lock for an instant.
SECONDS_FOR_LOCK = 1.0


def lock_of(folder: Path) -> FileLock:
    """Return the lock of a folder, not yet taken."""
    return FileLock(folder / LOCK)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder that is there. Raises filelock's `Timeout` where another process does."""
    with FileLock(folder / LOCK, timeout=SECONDS_FOR_LOCK):
        yield


def locked(folder: Path) -> bool:
    """Tell whether a living process holds the folder, also one that may only be read."""
    if not (folder / LOCK).exists():
        return False
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return _held_by_another(folder / LOCK)
    lock.release()
    return False


def _held_by_another(lock: Path) -> bool:
    """As `locked`, of a lock file that can only be read."""
    try:
        import fcntl

        handle = os.open(lock, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False

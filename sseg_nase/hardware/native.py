"""Functions compiled for this machine's CPU, and the threads that run them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numba
import torch

from sseg_nase.home import temporary_folder

logger = logging.getLogger("sseg_nase")

_BLOCKS = 4  # per thread: parts do not all take the same time


def compiled(function: Callable[..., Any] | None = None, *, fastmath: bool = False) -> Any:
    """Compile `function` at its first call; it runs without holding Python's lock.

    The machine code is kept on disk: where neither the installation nor the home folder can be
    written, below the temporary directory, because compiling takes a minute. `fastmath` lets sums
    be reordered and takes no number for infinite or NaN.
    """
    if function is None:
        return partial(compiled, fastmath=fastmath)
    compiling = partial(numba.njit, nogil=True, fastmath=fastmath, error_model="numpy")
    try:
        return compiling(cache=True)(function)
    except RuntimeError:  # no folder can be written
        _cache_elsewhere()
    try:
        return compiling(cache=True)(function)
    except RuntimeError:
        return compiling()(function)


@lru_cache(maxsize=1)
def _cache_elsewhere() -> None:
    folder = temporary_folder() / "numba"
    logger.warning(
        "Compiled kernels are kept in %s: neither the installation nor the home folder can be "
        "written. Set NUMBA_CACHE_DIR to a folder that stays.",
        folder,
    )
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]  # set from the environment


def in_blocks(work: Callable[[int, int], object], count: int) -> None:
    """Call `work(start, stop)` on parts of range(`count`), in as many threads as torch may use."""
    threads = torch.get_num_threads()
    if threads == 1 or count == 1:
        work(0, count)
        return
    step = max(1, -(-count // (_BLOCKS * threads)))
    starts = range(0, count, step)
    list(_pool(threads).map(lambda start: work(start, min(start + step, count)), starts))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="native")

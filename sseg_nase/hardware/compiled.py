"""Functions compiled for this machine's CPU, and the threads that run them."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numba
import torch
from numba.core.caching import FunctionCache

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
        return _kept(compiling(cache=True)(function))
    except RuntimeError:  # no folder can be written
        _cache_elsewhere()
    try:
        return _kept(compiling(cache=True)(function))
    except RuntimeError:
        return compiling()(function)


class _Cache(FunctionCache):
    """Numba's, of which what cannot be read or written is not there."""

    def load_overload(self, *arguments: Any) -> Any:
        return self._tried(super().load_overload, *arguments)

    def save_overload(self, *arguments: Any) -> None:
        self._tried(super().save_overload, *arguments)

    def _tried(self, access: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return access(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            _say_not_kept(self.cache_path, type(error).__name__)
            return None


def _kept(dispatcher: Any) -> Any:
    dispatcher._cache = _Cache(dispatcher.py_func)
    asked, place = numba.config.CACHE_DIR, dispatcher._cache.cache_path  # type: ignore[attr-defined]
    if asked and Path(place).parent != Path(asked):
        _say_kept_elsewhere(asked, place)
    return dispatcher


_said: set[str] = set()  # kinds of errors and folders: once for all kernels


def _say_not_kept(folder: str, error: str) -> None:
    if error in _said:
        return
    _said.add(error)
    logger.warning(
        "Compiled kernels cannot be kept in %s (%s): every process compiles them again. Make room "
        "there, or set NUMBA_CACHE_DIR to another folder.",
        folder,
        error,
    )


def _say_kept_elsewhere(asked: str, place: str) -> None:
    """Numba passes over a folder that it cannot write without a word."""
    if asked in _said:
        return
    _said.add(asked)
    logger.warning(
        "NUMBA_CACHE_DIR=%s cannot be written: compiled kernels are kept in places like %s. Name a "
        "folder that can be written, or leave it out.",
        asked,
        place,
    )


@lru_cache(maxsize=1)
def _cache_elsewhere() -> None:
    folder = temporary_folder() / "numba"
    asked = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    logger.warning(
        "Compiled kernels are kept in %s: neither %sthe installation nor the home folder can be "
        "written. Set NUMBA_CACHE_DIR to a folder that stays.",
        folder,
        f"NUMBA_CACHE_DIR={asked} nor " if asked else "",
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

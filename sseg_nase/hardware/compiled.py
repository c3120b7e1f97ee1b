"""Functions compiled for this machine's CPU, and the threads that run them."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numba
import torch
from numba.core.caching import FunctionCache

from sseg_nase.home import temporary_folder

logger = logging.getLogger("sseg_nase")

_BLOCKS = 2  # per thread: parts do not all take the same time


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
    blocks = _Blocks(work, count, max(1, -(-count // (_BLOCKS * threads))))
    team = _torch_team() if threading.current_thread() is threading.main_thread() else None
    if team is None:
        list(_pool(threads).map(lambda _: blocks.run(), range(threads)))
    else:
        _shared.append(blocks)
        try:
            team(_take_part, None, threads, 0)
        finally:
            _shared.pop()
    blocks.finish()


class _Blocks:
    """What threads share: each takes the next block until there is none."""

    def __init__(self, work: Callable[[int, int], object], count: int, size: int) -> None:
        self._work, self._count, self._size = work, count, size
        self._starts = iter(range(0, count, size))
        self._error: BaseException | None = None

    def run(self) -> None:
        """In one of the threads; errors are kept for `finish`, as C code cannot raise them."""
        try:
            for start in self._starts:
                self._work(start, min(start + self._size, self._count))
        except BaseException as error:  # Ctrl-C, too
            self._error = error

    def finish(self) -> None:
        """Do what no thread has done, as where an interrupt came first; raise what was raised."""
        self.run()
        if self._error is not None:
            raise self._error


_shared: list[_Blocks] = []  # by the main thread and its team


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _take_part(_: object) -> None:
    _shared[-1].run()


@lru_cache(maxsize=1)
def _torch_team() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP library that torch computes with; None where it has another.

    Between two operations torch's threads wait for work by looking for it all the time. Threads
    of another pool would have to share the cores with them: the backward pass of a norm took as
    long on two cores as on one.
    """
    folder = Path(torch.__file__).parent
    loaded = getattr(os, "RTLD_NOLOAD", None)  # only what is in use already
    if loaded is None:
        return None
    for path in (*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")):
        with suppress(OSError, AttributeError):
            parallel = ctypes.CDLL(str(path), mode=loaded | os.RTLD_NOW).GOMP_parallel
            parallel.argtypes = (type(_take_part), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            parallel.restype = None
            return cast(Callable[..., None], parallel)
    return None


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="native")

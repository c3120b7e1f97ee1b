"""One job per device: jobs of any process on this machine agree by file locks who has which GPU.

A lock ends with the process that holds it, however that ends. Jobs that know nothing of the locks
are told by the memory they take: a GPU is given away only while enough of it is free.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sseg_nase.hardware.nvidia import told

SECONDS_BETWEEN_TRIES = 1.0
FREE_SHARE = 0.5  # of a GPU's memory, where nothing else is asked for


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine; memory in GiB."""

    index: int
    uuid: str
    free_gb: float
    total_gb: float


def gpus(visible: str | None = None) -> list[Gpu]:
    """Return this machine's GPUs, as `nvidia-smi` lists them; none where there is no such program.

    `visible` is a CUDA_VISIBLE_DEVICES (indices or UUIDs): it picks and orders them.
    """
    found = [
        Gpu(int(index), uuid, _gib(free), _gib(total))
        for index, uuid, free, total in told("index", "uuid", "memory.free", "memory.total")
    ]
    if visible is None:
        return found
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        gpu
        for name in wanted
        for gpu in found
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]


@contextmanager
def gpu_slot(
    count: int,
    *,
    free_gb: float | None,
    visible: str | None,
    waiting: Callable[[str], None],
    seconds_between_tries: float = SECONDS_BETWEEN_TRIES,
) -> Iterator[Mapping[str, str]]:
    """Hold `count` GPUs with `free_gb` GiB free each (half of what they have, if None).

    Yields the environment that shows a process these GPUs alone; an empty one where the machine has
    fewer. Waits as long as it takes; `waiting` is told why, once.
    """
    if len(gpus(visible)) < count:  # not a matter of waiting: the run says what is missing
        yield {}
        return
    said = False
    while True:
        reasons: list[str] = []
        with ExitStack() as held:
            taken: list[Gpu] = []
            for gpu in gpus(visible):
                needed = FREE_SHARE * gpu.total_gb if free_gb is None else free_gb
                if len(taken) == count:
                    break
                if not _take(_lock(gpu), held):
                    reasons.append(f"GPU {gpu.index} has a job")
                elif gpu.free_gb < needed:
                    reasons.append(
                        f"GPU {gpu.index} has {gpu.free_gb:.1f} of {needed:.1f} GiB free"
                    )
                else:
                    taken.append(gpu)
            if len(taken) == count:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in taken)}
                return
        if not said:
            waiting(f"waiting for {count} free GPU: {', '.join(reasons)}")
            said = True
        time.sleep(seconds_between_tries)


@contextmanager
def slot_of(
    folder: Path, slots: int, seconds_between_tries: float = SECONDS_BETWEEN_TRIES
) -> Iterator[int]:
    """Hold one of `slots` places, locks in `folder`; waits until one is free. Yields its number."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as held:
            for number in range(slots):
                if _take(FileLock(folder / f"{number}.lock"), held):
                    yield number
                    return
        time.sleep(seconds_between_tries)


def is_taken(gpu: Gpu) -> bool:
    """Tell whether a job of ours holds a GPU."""
    with ExitStack() as held:
        return not _take(_lock(gpu), held)


def _take(lock: FileLock, held: ExitStack) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    held.callback(lock.release)
    return True


def _lock(gpu: Gpu) -> FileLock:
    """The same file for every user of the machine."""
    folder = Path(tempfile.gettempdir()) / "sseg-nase-gpus"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    return FileLock(folder / f"{gpu.uuid}.lock", mode=0o666)


def _gib(mib: str) -> float:
    """0 where the driver does not tell, as on boards that share the machine's memory."""
    return float(mib) / 1024 if mib.replace(".", "", 1).isdigit() else 0.0

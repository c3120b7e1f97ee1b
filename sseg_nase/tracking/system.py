"""What the machine does while a run trains: sampled by a thread of its own, shown by MLflow's UI.

The names are MLflow's own (`system/…`), which it shows in a tab of their own. Percentages of
processor, memory and disk are of the whole machine, other work on it included; `process_…` is the
run's own process.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sseg_nase.files import StorageError
from sseg_nase.hardware import nvidia
from sseg_nase.tracking.sink import RunInfo, Sink

SECONDS = 10.0
PROC = Path("/proc")
GPU_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total")
MB = 1e6
PREFIX = "system/"


class SystemMetrics(Sink):
    """Tells what the machine does, every `seconds` while the run is open, by `tell(values, step)`.

    A step is a number of `seconds` since 1970, so that a resumed run has higher ones.
    """

    def __init__(
        self, tell: Callable[[Mapping[str, float], int], None], seconds: float = SECONDS
    ) -> None:
        self._tell, self._seconds = tell, seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, run: RunInfo) -> None:
        """Begin to sample."""
        self._thread = threading.Thread(
            target=self._sample, args=(Sampler(run.directory),), name="system", daemon=True
        )
        self._thread.start()

    def close(self, status: str, error: str | None = None) -> None:
        """Sample no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, sampler: Sampler) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._tell(sampler(), int(time.time() / self._seconds))
            except StorageError:  # the run itself meets it, and says so
                return


class Sampler:
    """What the machine does since the last call; what it does not tell is left out."""

    def __init__(self, folder: Path, proc: Path = PROC) -> None:
        """`folder`: on the disk whose room is told; `proc`: where the kernel tells the rest."""
        self._folder, self._proc = folder, proc
        self._gpus = shutil.which(nvidia.PROGRAM) is not None
        self._ticks = self._busy_and_all()
        self._own, self._at = _own_seconds(), time.monotonic()

    def __call__(self) -> dict[str, float]:
        """Return the figures by their names."""
        found = {**self._processor(), **self._memory(), **self._disk(), **self._gpu()}
        return {f"{PREFIX}{name}": value for name, value in found.items()}

    def _processor(self) -> dict[str, float]:
        found, now, own = dict[str, float](), time.monotonic(), _own_seconds()
        if now > self._at:
            found["process_cpu_utilization_percentage"] = 100 * (own - self._own) / (now - self._at)
        before, self._ticks = self._ticks, self._busy_and_all()
        self._own, self._at = own, now
        if before is not None and self._ticks is not None and self._ticks[1] > before[1]:
            busy, ticks = (new - old for new, old in zip(self._ticks, before, strict=True))
            found["cpu_utilization_percentage"] = 100 * busy / ticks
        return found

    def _busy_and_all(self) -> tuple[int, int] | None:
        """Ticks of all processors since the start of the machine: at work, and all."""
        try:
            line = (self._proc / "stat").read_text().split("\n", 1)[0]
            ticks = [int(text) for text in line.split()[1:9]]  # what follows is within the first
        except (OSError, ValueError):
            return None
        return sum(ticks) - sum(ticks[3:5]), sum(ticks)  # idle, and waiting for a disk

    def _memory(self) -> dict[str, float]:
        found = dict[str, float]()
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
            told = {
                name: float(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
            }
            used = told["MemTotal"] - told["MemAvailable"]
            found["system_memory_usage_megabytes"] = used * 1024 / MB
            found["system_memory_usage_percentage"] = 100 * used / told["MemTotal"]
            pages = int((self._proc / "self" / "statm").read_text().split()[1])
            found["process_memory_megabytes"] = pages * os.sysconf("SC_PAGE_SIZE") / MB
        except (OSError, ValueError, KeyError, IndexError):
            pass
        return found

    def _disk(self) -> dict[str, float]:
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError:
            return {}
        return {
            "disk_usage_megabytes": disk.used / MB,
            "disk_usage_percentage": 100 * disk.used / disk.total,
        }

    def _gpu(self) -> dict[str, float]:
        return gpu_figures(nvidia.told(*GPU_QUERY)) if self._gpus else {}


def gpu_figures(told: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the figures in the driver's answer to `GPU_QUERY`, a list of texts per GPU."""
    found = dict[str, float]()
    for index, *texts in told:
        try:
            busy, used, total = map(float, texts)
        except ValueError:  # a board that does not tell
            continue
        found[f"gpu_{index}_utilization_percentage"] = busy
        found[f"gpu_{index}_memory_usage_megabytes"] = used * 2**20 / MB
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * used / total
    return found


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system

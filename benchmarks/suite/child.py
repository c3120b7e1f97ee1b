"""One side in a process of its own: prepare, warm up, then work whenever the parent says so.

The parent gives the side as a JSON argument and reads one JSON line per answer: when it is ready,
then seconds and amount of every round, at the end the peak memory.
"""

from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], float]


def main() -> None:
    """Answer the parent until it closes its end."""
    side = json.loads(sys.argv[1])
    if side["as_program"]:
        begin_as_program()
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    module, name = side["function"].rsplit(".", 1)
    inside = module if "." in module else f"benchmarks.suite.{module}"
    work: Work = getattr(importlib.import_module(inside), name)(**side["arguments"])
    work()
    answer(ready=True)
    workers_mb = 0.0
    for _ in sys.stdin:
        synchronize()
        began = time.perf_counter()
        amount = work()
        synchronize()
        answer(amount=amount, seconds=time.perf_counter() - began)
        workers_mb = max(workers_mb, private_mb_of_workers())
    answer(peak_mb=peak_mb(workers_mb), gpu_peak_mb=gpu_peak_mb())


def begin_as_program() -> None:
    """Set up this process as `sseg-nase` sets up its own (`__main__`); it may start once more."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch loads
    from sseg_nase.hardware.allocator import keep_memory

    keep_memory()


def scratch() -> Path:
    """A folder that is gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="sseg-nase-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def synchronize() -> None:
    """Wait for the GPU, where this side uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_mb(workers_mb: float) -> float:
    """Most main memory in MiB that this process and its workers, or a command it ran, have held."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, command = (
        resource.getrusage(who).ru_maxrss * unit / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with what the parent held
        found = re.search(r"^VmHWM:\s+(\d+)", status.read_text(encoding="ascii"), re.M)
        assert found is not None
        own = int(found[1]) / 1024
    return max(own + workers_mb, command)


def private_mb_of_workers() -> float:
    """MiB that DataLoader workers hold for themselves; what they share with this process is its.

    0 without /proc.
    """
    kib = 0
    for worker in multiprocessing.active_children():
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup")
        if rollup.exists():
            text = rollup.read_text(encoding="ascii")
            kib += sum(map(int, re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.M)))
    return kib / 1024


def gpu_peak_mb() -> float | None:
    """Most GPU memory that torch has taken, in MiB; None where it took none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_reserved() / 2**20


if __name__ == "__main__":
    main()

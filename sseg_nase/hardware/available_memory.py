"""How much memory a process may still take, in RAM and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from sseg_nase.hardware.memory import MEBIBYTE, memory_cap_mb, resident_memory_mb

# Of a control group: its limit, what it uses, and what of that is cached files, which give way.
_GROUP_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(device: torch.device, max_memory_gb: float | None = None) -> int | None:
    """Return the bytes that this process may still take on `device` (CPU: in RAM), at least 0.

    At most what it has left of `max_memory_gb`. None where neither is known.
    """
    cap_mb = memory_cap_mb(device, max_memory_gb)
    if device.type == "cuda":
        used: float | None = torch.cuda.memory_allocated(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free: float | None = torch.cuda.mem_get_info(device)[0] + unused
    else:
        resident_mb = resident_memory_mb()
        used = None if resident_mb is None else resident_mb * MEBIBYTE
        free = free_ram()
    limits = [] if free is None else [free]
    if cap_mb is not None and used is not None:
        limits.append(cap_mb * MEBIBYTE - used)
    return max(0, int(min(limits))) if limits else None


def free_ram(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of RAM that are free or hold what can be read again, None without /proc.

    In a container or a job with a memory limit, at most what the limit leaves.
    """
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    if "MemAvailable:" not in kilobytes:
        return None
    return max(0, min([1024 * kilobytes["MemAvailable:"], *_left_in_groups(proc, groups)]))


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What the limits of this process's control groups leave, from its own up to the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = groups, _GROUP_FILES["v2"]
        elif "memory" in controllers.split(","):
            root, files = groups / "memory", _GROUP_FILES["v1"]
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            left = _left(folder, *files)
            if left is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """None where the group has no limit, or does not lie here, as seen from some containers."""
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        used = int((folder / usage).read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
        )
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) - used + int(stat.get(cached, 0))

"""Which versions, which machine and which code a process runs with."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sseg_nase.hardware.profiles import cores
from sseg_nase.provenance import PACKAGE
from sseg_nase.provenance.git import git_commit, git_diff
from sseg_nase.version import __version__

PACKAGES = ("torchvision", "lightning-fabric", "numpy", "mlflow", "hydra-core")
CPUINFO = Path("/proc/cpuinfo")


def describe_environment() -> dict[str, Any]:
    """Return versions, hardware and code of this process; None for what is not known.

    `code.changed`: whether there is something in the working tree that its commit does not have.
    """
    import torch

    cuda = torch.cuda.is_available()
    diff = git_diff(PACKAGE)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"sseg-nase": __version__, "torch": str(torch.__version__)}
        | {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "code": {"commit": git_commit(PACKAGE), "changed": None if diff is None else bool(diff)},
    }


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name, or its kind where the system does not tell."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_gb() -> float | None:
    """Of the machine, in units of 2^30 bytes."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None

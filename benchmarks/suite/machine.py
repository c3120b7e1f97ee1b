"""What the figures belong to; run as a module it prints it as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from sseg_nase.hardware.profiles import cores

ROOT = Path(__file__).parents[2]


def look() -> dict[str, Any]:
    """Look at this machine from a process of its own: the caller stays without torch."""
    command = [sys.executable, "-m", "benchmarks.suite.machine"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else os.uname().machine


def _look() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "accelerator": "cuda" if cuda else "cpu",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(_look()))

"""The energy of a forward pass, where the machine tells: RAPL of a processor, NVML of a GPU.

Both count what the whole package or card takes, other work on it included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sseg_nase.hardware.measuring import blank_images, eval_mode

RAPL = Path("/sys/class/powercap")
SECONDS = 0.5  # the counters move every millisecond, or less often
Meter = Callable[[], float]  # joules since whenever


def energy(
    module: nn.Module,
    resolution: int,
    device: torch.device,
    *,
    in_channels: int = 3,
    meter: Meter | None = None,
) -> dict[str, float]:
    """Return `energy_mj_b1`: millijoules of a forward pass of one image; nothing where unknown.

    The mean of as many passes as half a second holds. `meter`: another one than the machine's.
    """
    meter = meter or _meter(device.type)
    if meter is None:
        return {}
    images = blank_images(module, resolution, 1, in_channels).to(device)
    with eval_mode(module), torch.inference_mode():
        module(images)
        passes, began, before = 0, time.perf_counter(), meter()
        while time.perf_counter() - began < SECONDS:
            module(images)
            passes += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = meter() - before
    # A counter that ran over, or has not moved, tells nothing.
    return {"energy_mj_b1": 1000 * spent / passes} if spent > 0 else {}


def why_no_energy(device: str, rapl: Path = RAPL) -> str | None:
    """Return why no energy is measured here, in words; None where it is."""
    if _meter("cuda" if device in ("cuda", "gpu") else "cpu", rapl) is not None:
        return None
    if device in ("cuda", "gpu"):
        return "NVML (pip install nvidia-ml-py) does not tell the energy of the GPU"
    if not _packages(rapl):
        return f"the processor has no RAPL counters in {rapl}"
    return f"the RAPL counters in {rapl} may not be read (energy_uj is for root alone)"


def _meter(device: str, rapl: Path = RAPL) -> Meter | None:
    return _nvml() if device == "cuda" else _rapl(rapl)


def _packages(folder: Path) -> list[Path]:
    """The counters of whole packages; those of their parts are within them."""
    return sorted(folder.glob("intel-rapl:[0-9]*/energy_uj")) if folder.is_dir() else []


def _rapl(folder: Path) -> Meter | None:
    counters = [path for path in _packages(folder) if path.parent.name.count(":") == 1]

    def joules() -> float:
        return sum(int(path.read_text()) for path in counters) / 1e6

    try:
        return joules if counters and joules() >= 0 else None
    except (OSError, ValueError):
        return None


def _nvml() -> Meter | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        # Not by its index: NVML knows nothing of CUDA_VISIBLE_DEVICES.
        name = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{name}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no driver, no such counter: none of them is a mistake
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

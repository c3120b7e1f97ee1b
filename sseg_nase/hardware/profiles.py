"""Hardware profiles: from what was asked for and what the machine has to concrete values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sseg_nase.config.schema import HardwareConfig
from sseg_nase.errors import UserError

OPEN = (None, "auto")
NOT_FILLED = ("name", "compile")  # compile=auto is decided by the training
LARGE_GPU_GB = 11  # a 12 GB card reports a little less
MOST_WORKERS = 4
CPU_PROFILE, SMALL_GPU_PROFILE, LARGE_GPU_PROFILE = "cpu", "rtx3050", "rtx3060"
GPU_PROFILES = (SMALL_GPU_PROFILE, LARGE_GPU_PROFILE)


@dataclass(frozen=True)
class Machine:
    """What a profile is fitted to; `cuda_name` is None without a usable CUDA device."""

    cuda_name: str | None
    cuda_memory_gb: float
    bf16: bool
    cores: int
    cuda_devices: int = 1


def look_at_machine() -> Machine:
    """Look for the first CUDA device, native bf16 and the cores this process may use."""
    import torch  # here, so that reading a profile does not cost it

    name, memory_gb = None, 0.0
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        name, memory_gb = card.name, card.total_memory / 2**30
    return Machine(
        cuda_name=name,
        cuda_memory_gb=memory_gb,
        bf16=native_bf16(),
        cores=cores(),
        cuda_devices=torch.cuda.device_count(),
    )


def native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether the processor multiplies bf16 itself (AVX512-BF16 or AMX on x86, BF16 on ARM).

    Emulated bf16 is slower than float32.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
    # Newer torch knows without /proc, on macOS and Windows.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve(
    hardware: HardwareConfig,
    profiles: Mapping[str, Mapping[str, Any]],
    machine: Machine | None = None,
) -> tuple[HardwareConfig, list[str]]:
    """Fill what is None or `auto` in `hardware`; return it with notes on what was chosen and why.

    `profiles` are the values of `conf/hardware/*.yaml` by name. What was set by hand stays; open
    fields come from the profile (`name=auto`: the one that fits `machine`), and what is still
    open from the machine. `max_memory_gb` (no cap) and `threads` (torch's own choice) may stay
    None. Raises UserError when a GPU is asked for and there is none, a value is missing, or one has
    no effect on this machine.
    """
    machine = look_at_machine() if machine is None else machine
    _check_cuda(hardware, machine)
    notes: list[str] = []
    hardware = _fill_from_profile(hardware, profiles, machine, notes)
    hardware = _fill_from_machine(hardware, machine, notes)
    if hardware.accelerator == "cuda" and hardware.devices > machine.cuda_devices:
        raise UserError(
            f"hardware.devices={hardware.devices}: this machine has {machine.cuda_devices} CUDA "
            f"devices. Use hardware.devices={machine.cuda_devices} or less."
        )
    if hardware.compile and hardware.accelerator == "cpu":
        hardware = _with_a_compiler(hardware, notes)
    if hardware.compile == "auto" and hardware.deterministic:
        raise UserError(
            "hardware.compile=auto: which way is faster is measured, and may come out otherwise in "
            "the next run, so hardware.deterministic=true could not give the same numbers. Choose "
            "hardware.compile=false or true."
        )
    if hardware.deterministic and hardware.accelerator == "cpu":
        raise UserError(
            "hardware.deterministic=true: it has no effect on a CPU, which gives the same numbers "
            "run after run as it is; leave it out."
        )
    if hardware.cuda_graphs and hardware.accelerator == "cpu":
        raise UserError("hardware.cuda_graphs=true: a CPU has no launches to record; leave it out.")
    for key in ("batch_size", "gradient_accumulation_steps"):
        if getattr(hardware, key) is None:
            raise UserError(
                f"hardware.{key}=null: the profile '{hardware.name}' gives no value. "
                f"Set hardware.{key} to a whole number."
            )
    return hardware, notes


def _check_cuda(hardware: HardwareConfig, machine: Machine) -> None:
    wants_cuda = hardware.name in GPU_PROFILES or hardware.accelerator == "cuda"
    if machine.cuda_name is not None or hardware.accelerator == "cpu" or not wants_cuda:
        return
    asked = (
        f"hardware={hardware.name}"
        if hardware.name in GPU_PROFILES
        else f"hardware.accelerator={hardware.accelerator}"
    )
    raise UserError(
        f"{asked}: no CUDA device was found. Use hardware=auto or hardware=cpu, or keep the "
        "profile's other values with hardware.accelerator=cpu."
    )


def _fill_from_profile(
    hardware: HardwareConfig,
    profiles: Mapping[str, Mapping[str, Any]],
    machine: Machine,
    notes: list[str],
) -> HardwareConfig:
    name = hardware.name
    if name == "auto":
        name, why = _fitting_profile(hardware, machine)
        notes.append(f"hardware=auto took the profile '{name}': {why}")
    filled = {
        key: profiles[name][key]
        for key, value in vars(hardware).items()
        if value in OPEN and profiles[name].get(key) not in OPEN and key not in NOT_FILLED
    }
    return replace(hardware, name=name, **filled)


def _fitting_profile(hardware: HardwareConfig, machine: Machine) -> tuple[str, str]:
    """Return the profile for this machine, and why."""
    if hardware.accelerator == "cpu":
        return CPU_PROFILE, "hardware.accelerator=cpu"
    if machine.cuda_name is None:
        return CPU_PROFILE, "no CUDA device was found"
    card = f"{machine.cuda_name} with {machine.cuda_memory_gb:.1f} GB"
    if machine.cuda_memory_gb >= LARGE_GPU_GB:
        return LARGE_GPU_PROFILE, f"{card}, at least {LARGE_GPU_GB} GB"
    return SMALL_GPU_PROFILE, f"{card}, less than {LARGE_GPU_GB} GB"


def _fill_from_machine(
    hardware: HardwareConfig, machine: Machine, notes: list[str]
) -> HardwareConfig:
    accelerator = hardware.accelerator
    if accelerator == "auto":
        accelerator = "cpu" if machine.cuda_name is None else "cuda"
    accumulate = "plain" if hardware.accumulate == "auto" else hardware.accumulate
    precision = hardware.precision
    if accelerator == "cpu":
        precision = _cpu_precision(precision, machine, notes)
    elif precision == "auto":
        precision = "16-mixed"
    workers = hardware.num_workers
    if workers is None:
        workers = min(MOST_WORKERS, machine.cores)
        notes.append(f"hardware.num_workers={workers}: {machine.cores} cores")
    return replace(
        hardware,
        accelerator=accelerator,
        accumulate=accumulate,
        precision=precision,
        num_workers=workers,
    )


def _cpu_precision(asked: str, machine: Machine, notes: list[str]) -> str:
    """Return a precision that pays on a processor: half precision only where it is native."""
    if asked == "bf16-mixed" and not machine.bf16:
        notes.append("hardware.precision=bf16-mixed: this processor emulates bf16, which is slow")
    if asked not in ("auto", "16-mixed"):
        return asked
    precision = "bf16-mixed" if machine.bf16 else "32-true"
    has = "has native bf16" if machine.bf16 else "has no native bf16"
    instead = "" if asked == "auto" else f" instead of {asked}"
    notes.append(f"hardware.precision={precision}{instead}: the processor {has}")
    return precision


def _with_a_compiler(hardware: HardwareConfig, notes: list[str]) -> HardwareConfig:
    """Torch compiles for a CPU with the C++ compiler that CXX names, else with one of these."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    lacking = f"on a CPU this needs a C++ compiler, and {' or '.join(wanted)} was not found"
    if any(map(shutil.which, wanted)):
        if hardware.compile != "auto":
            notes.append(
                "hardware.compile=true: measured on CPUs, steps were slower than without it"
            )
        return hardware
    if hardware.compile == "auto":
        notes.append(f"hardware.compile=false instead of auto: {lacking}")
        return replace(hardware, compile=False)
    raise UserError(
        f"hardware.compile=true: {lacking}. Install one, or use hardware.compile=false."
    )


def cores() -> int:
    """Count the cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1

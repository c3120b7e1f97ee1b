"""Memory: the peak of a forward pass, what a run uses, and what to do when there is too little."""

from __future__ import annotations

import itertools
import os
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sseg_nase.config.commands import argument
from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.hardware.measuring import blank_images, device_of, eval_mode

MEBIBYTE = 2**20
_peaks: dict[torch.device, int] = {}  # from before what is not watched
WARNING_SHARE, CRITICAL_SHARE = 0.85, 0.95
REMEDIES = 3
SMALLEST_BATCH, SMALLEST_IMAGE = 2, 8  # what the schema accepts

Level = Literal["ok", "warning", "critical"]


@dataclass(frozen=True)
class MemoryUse:
    """MiB that a run uses, and may use; None where unknown."""

    used_mb: float | None
    cap_mb: float | None

    @property
    def level(self) -> Level:
        """`ok` too where nothing is known."""
        if self.used_mb is None or self.cap_mb is None:
            return "ok"
        return level(self.used_mb, self.cap_mb)


def memory_use(device: torch.device, max_memory_gb: float | None) -> MemoryUse:
    """Return what this process uses now, and how much it may use.

    On CUDA the allocator's peak since the last call (or reset of the peak), so that what a step
    takes is seen from outside of it; on the CPU `resident_memory_mb`.
    """
    cap_mb = memory_cap_mb(device, max_memory_gb)
    if device.type != "cuda":
        return MemoryUse(resident_memory_mb(), cap_mb)
    used = max(torch.cuda.max_memory_allocated(device), _peaks.pop(device, 0))
    torch.cuda.reset_peak_memory_stats(device)
    return MemoryUse(used / MEBIBYTE, cap_mb)


@contextmanager
def unwatched(device: torch.device) -> Iterator[None]:
    """What is taken inside is no part of what `memory_use` returns next."""
    if device.type != "cuda":
        yield
        return
    before = max(torch.cuda.max_memory_allocated(device), _peaks.get(device, 0))
    try:
        yield
    finally:
        torch.cuda.reset_peak_memory_stats(device)
        _peaks[device] = before


def level(used: float, cap: float) -> Level:
    """Classify memory in use: `warning` from 85 % of the cap on, `critical` from 95 % on."""
    if used >= CRITICAL_SHARE * cap:
        return "critical"
    return "warning" if used >= WARNING_SHARE * cap else "ok"


def memory_cap_mb(device: torch.device, max_memory_gb: float | None) -> float | None:
    """Return the MiB that a run may use on `device`: at most what the CUDA device has in all.

    None on the CPU without `max_memory_gb`.
    """
    caps = [] if max_memory_gb is None else [1024.0 * max_memory_gb]
    if device.type == "cuda":
        caps.append(_cuda_total_mb(device))
    return min(caps, default=None)


def enforce_memory_cap(device: torch.device, max_memory_gb: float | None) -> None:
    """Let the CUDA allocator refuse more than `max_memory_gb`; None lifts an earlier cap.

    On the CPU nothing is enforced: there the cap is only watched.
    """
    if device.type == "cuda":
        cap_mb = memory_cap_mb(device, max_memory_gb)
        assert cap_mb is not None
        fraction = cap_mb / _cuda_total_mb(device)
        torch.cuda.set_per_process_memory_fraction(fraction, device.index)


def resident_memory_mb(statm: Path = Path("/proc/self/statm")) -> float | None:
    """Return the MiB of this process in main memory; None where the system does not tell.

    Without /proc (macOS) it is the highest value since the process began.
    """
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE


def explain_out_of_memory(error: BaseException, config: Config) -> str | None:
    """Return what to change after `error`, with values; None when memory is not what it is about.

    `config` is the effective one. Nothing is changed by itself: another batch is another task for
    NT-Xent.
    """
    if not _is_out_of_memory(error):
        return None
    hardware = config.hardware
    asked = re.search(r"ried to allocate ([\d.]+ ?\w+)", str(error))
    more = f" ({asked[1]} more were needed)" if asked else ""
    text = (
        f"out of memory on {hardware.accelerator}{more}. "
        f"Change one or more of: {'; '.join(remedies(config))}."
    )
    if config.task == "pipeline":
        smaller = max(1, config.evaluation.batch_size // 2)
        text += f" Should it have happened in the evaluation: evaluation.batch_size={smaller}."
    if hardware.accelerator == "cuda" and hardware.max_memory_gb is not None:
        text += f" The run is held to hardware.max_memory_gb={hardware.max_memory_gb:g}"
        if torch.cuda.is_available():
            total_gb = _cuda_total_mb(torch.device("cuda")) / 1024
            text += f", the device has {total_gb:.1f}"
        text += "."
    return text


def remedies(config: Config) -> list[str]:
    """Return up to three overrides that lower what the run takes, the strongest first, and why."""
    training = config.task == "pipeline"
    found = _training_remedies(config) if training else _evaluation_remedies(config)
    return found[:REMEDIES]


def _training_remedies(config: Config) -> list[str]:
    hardware, evolution = config.hardware, config.evolution
    batch = filled(hardware.batch_size, "hardware.batch_size")
    steps = hardware.gradient_accumulation_steps
    accumulation = filled(steps, "hardware.gradient_accumulation_steps")
    found = []
    if (half := batch // 2) >= SMALLEST_BATCH:
        images, before = 2 * half * accumulation, batch * accumulation
        kept = f"the same {images}" if images == before else f"{images} instead of {before}"
        compared = "all of them" if hardware.accumulate == "exact" else f"{half} at once"
        found.append(
            f"hardware.batch_size={half} with hardware.gradient_accumulation_steps="
            f"{2 * accumulation} ({kept} images a step, of which the loss compares {compared})"
        )
    if not hardware.gradient_checkpointing:
        found.append(
            "hardware.gradient_checkpointing=true (the same result in about a third more time)"
        )
    if hardware.precision == "32-true":
        half_precision = "16-mixed" if hardware.accelerator == "cuda" else "bf16-mixed"
        found.append(f"hardware.precision={half_precision} (activations of half the size)")
    found += _smaller_images(config)
    if evolution.enabled:
        found.append(
            f"evolution.max_params={evolution.max_params // 2} (the network stops growing earlier)"
        )
    if widths := getattr(config.backbone, "channels", None):
        channels = [max(1, width // 2) for width in widths]
        narrower = argument("backbone.channels", channels)
        found.append(f"{narrower} (a narrower network to start from)")
    return found


def _evaluation_remedies(config: Config) -> list[str]:
    batch = config.evaluation.batch_size
    smaller = [f"evaluation.batch_size={batch // 2} (the same result)"] if batch > 1 else []
    return [*smaller, *_smaller_images(config)]


def _smaller_images(config: Config) -> list[str]:
    size = config.dataset.image_size
    smaller = max(SMALLEST_IMAGE, size * 3 // 16 * 4)
    if smaller == size:
        return []
    return [f"dataset.image_size={smaller} ({(smaller / size) ** 2:.0%} of the pixels)"]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = (
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    return any(phrase in str(error) for phrase in said)


def _cuda_total_mb(device: torch.device) -> float:
    return torch.cuda.get_device_properties(device).total_memory / MEBIBYTE


def peak_memory_mb(
    module: nn.Module, resolution: int, batch: int, *, in_channels: int = 3
) -> float:
    """Return the peak MiB of a forward pass of `[batch, C, resolution, resolution]`, eval mode.

    Weights, buffers, images and the activations that live at the same time, without gradients,
    on the device of `module`. On the CPU the tensors' bytes are counted, which gives the same
    number every time (a kernel's own scratch memory is not seen); on CUDA the allocator is asked.
    """
    device = device_of(module)
    peak = _cuda_peak if device.type == "cuda" else _counted_peak
    with eval_mode(module), torch.no_grad():
        return (_held_bytes(module) + peak(module, resolution, batch, in_channels)) / MEBIBYTE


def _held_bytes(module: nn.Module) -> int:
    """Bytes of weights and buffers; shared storage counts once."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _counted_peak(module: nn.Module, resolution: int, batch: int, in_channels: int) -> int:
    with _LiveBytes(module) as live:
        module(blank_images(module, resolution, batch, in_channels))
    return live.peak


def _cuda_peak(module: nn.Module, resolution: int, batch: int, in_channels: int) -> int:
    device = device_of(module)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    module(blank_images(module, resolution, batch, in_channels))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made under it that live at the same time.

    What `held` owns is known from the start and not counted.
    """

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in itertools.chain(held.parameters(), held.buffers()):
            self._know(tensor, nbytes=0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._know(leaf, nbytes=leaf.untyped_storage().nbytes())
        return result

    def _know(self, tensor: Tensor, nbytes: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return

        def forget(_: weakref.ref[Any]) -> None:
            del self._known[key]
            self._live -= nbytes

        self._known[key] = weakref.ref(storage, forget)
        self._live += nbytes
        self.peak = max(self.peak, self._live)

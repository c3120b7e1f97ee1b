"""Where images lie while a network is trained on them: on disk, in RAM or on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sseg_nase.config.schema import DataConfig, HardwareConfig
from sseg_nase.data.prefetch import sent
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.hardware.available_memory import free_memory

GIBIBYTE = 2**30
COPY_BLOCK = 1024  # images copied at once
# Of the memory that is free: what images take unasked, and the most that they are given. The
# network and its activations need the rest.
OWN_SHARE, LARGEST_SHARE = 0.25, 0.75


class Images(Protocol):
    """Images of one size; `device` is where they are read to."""

    device: torch.device

    def __len__(self) -> int:
        """Count the images."""

    def read(self, indices: Tensor, out: Tensor) -> None:
        """Write the images at `indices` `[B]`, in that order, to `out` uint8 `[B, C, S, S]`."""


class HeldImages:
    """A copy of a store's images, uint8 `[n, C, S, S]` on `device`."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self.device = device
        shape = (len(store), store.channels, store.image_size, store.image_size)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        for block in torch.arange(len(store)).split(COPY_BLOCK):
            self.images[block[0] : block[-1] + 1].copy_(store.batch(block))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor, out: Tensor) -> None:
        """Write the images at `indices` `[B]`, in that order, to `out` uint8 `[B, C, S, S]`."""
        torch.index_select(self.images, 0, sent(indices, self.device), out=out)


def fetch(images: Images, indices: Tensor, out: Tensor) -> None:
    """Write the `images` at `indices` `[B]` to `out`, which may lie on a GPU when they do not."""
    if images.device.type == out.device.type:
        images.read(indices, out)
        return
    pinned = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
    images.read(indices, pinned)
    out.copy_(pinned, non_blocking=True)


@dataclass(frozen=True)
class Free:
    """Bytes that one process may still take; `ram` None where unknown, `gpu` None without one."""

    ram: int | None
    gpu: int | None


class Plan(NamedTuple):
    """Where the real images go (disk, ram or device), bytes for drawn ones, notes on both."""

    where: str
    drawn_bytes: int
    notes: list[str]


def place(
    store: ImageStore | None,
    drawn: int,
    *,
    image_size: int,
    channels: int = 3,
    data: DataConfig,
    hardware: HardwareConfig,
    device: torch.device,
) -> tuple[Images | None, int, list[str]]:
    """Put the images of `store` where `data.placement` says, for training on `device`.

    Returns them, the bytes there are for `drawn` images that are kept, and notes on what was chosen
    and why. Raises `UserError` where they do not fit.
    """
    ram = free_memory(torch.device("cpu"), hardware.max_memory_gb if device.type == "cpu" else None)
    free = Free(
        ram=None if ram is None else ram // hardware.devices,
        gpu=free_memory(device, hardware.max_memory_gb) if device.type == "cuda" else None,
    )
    real = 0 if store is None else len(store)
    where, drawn_bytes, notes = plan(real, drawn, channels * image_size**2, data, free)
    if store is None or where == "disk":
        return store, drawn_bytes, notes
    target = device if where == "device" else torch.device("cpu")
    return HeldImages(store, target), drawn_bytes, notes


def plan(real: int, drawn: int, image_bytes: int, data: DataConfig, free: Free) -> Plan:
    """Decide where `real` images of `image_bytes` go, and how much of `drawn` ones is kept.

    Unasked they take at most a quarter of what is free, and on the CPU `data.memory_gb`.
    Raises `UserError` where an asked placement does not fit.
    """
    needed, budget = real * image_bytes, data.memory_gb * GIBIBYTE
    free_ram = float("inf") if free.ram is None else free.ram
    if not real:
        where, notes = "disk", []
    elif data.placement == "auto":
        where, why = _best(needed, budget, free_ram, free.gpu)
        notes = [f"data.placement=auto took {where}: the {real:,} real images take {why}"]
    else:
        without_gpu = data.placement == "device" and free.gpu is None
        where, notes = "ram" if without_gpu else data.placement, []
        _check(needed, where, data.placement, free_ram, free.gpu)
    if free.gpu is None:
        taken = needed if where == "ram" else 0
        unasked = taken if data.placement == "auto" else 0
        most = min(budget - unasked, OWN_SHARE * (free_ram - taken))
    else:
        most = min(budget, OWN_SHARE * (free.gpu - (needed if where == "device" else 0)))
    drawn_bytes = max(0, int(most))
    if drawn * image_bytes > drawn_bytes > 0:
        notes.append(
            f"data.memory_gb={data.memory_gb:g} keeps {drawn_bytes // image_bytes:,} of the "
            f"{drawn:,} drawn images; the others are rendered each time"
        )
    return Plan(where, drawn_bytes, notes)


def _best(needed: int, budget: float, free_ram: float, free_gpu: int | None) -> tuple[str, str]:
    """The best placement that fits, and why."""
    size = _gb(needed)
    if free_gpu is not None and needed <= OWN_SHARE * free_gpu:
        return "device", f"{size}, not over {OWN_SHARE:.0%} of the {_gb(free_gpu)} free on the GPU"
    if needed > budget:
        return "disk", f"{size}, more than data.memory_gb={budget / GIBIBYTE:g}"
    if needed > OWN_SHARE * free_ram:
        return "disk", f"{size}, more than {OWN_SHARE:.0%} of the {_gb(free_ram)} free in RAM"
    return "ram", f"{size}, within data.memory_gb={budget / GIBIBYTE:g}"


def _check(needed: int, where: str, asked: str, free_ram: float, free_gpu: int | None) -> None:
    if where == "disk":
        return
    free, place = (
        (free_ram, "in RAM") if free_gpu is None or where == "ram" else (free_gpu, "on the GPU")
    )
    if needed > LARGEST_SHARE * free:
        raise UserError(
            f"data.placement={asked}: the real images take {_gb(needed)} in each process, and "
            f"{_gb(free)} are free {place}, of which images may take {LARGEST_SHARE:.0%}. Use "
            "data.placement=disk, which takes none, data.placement=auto, or a smaller "
            "dataset.image_size."
        )


def _gb(value: float) -> str:
    return f"{value / GIBIBYTE:.2f} GB"

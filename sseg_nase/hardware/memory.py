"""How much memory a forward pass takes at its peak."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sseg_nase.hardware.probe import blank_images, device_of, eval_mode

MEBIBYTE = 2**20


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

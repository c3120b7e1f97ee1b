"""How long a forward pass takes."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor, nn

from sseg_nase.finite import positive
from sseg_nase.hardware.measuring import blank_images, device_of, eval_mode

MOST_PASSES = 1000  # timed together


def latency_ms(
    module: nn.Module,
    resolution: int,
    batch: int,
    *,
    repeats: int,
    warmup: int,
    device: torch.device | str,
    in_channels: int = 3,
) -> float | None:
    """Return the median milliseconds of a forward pass of `[batch, C, resolution, resolution]`.

    In eval mode and inference mode, after `warmup` passes that are not timed; every pass is
    waited for on CUDA. A module that lies elsewhere is copied to `device`, not moved. Where the
    clock does not see one pass, several are timed together; None where it does not see even
    `MOST_PASSES` of them, for 0 is no time.
    """
    assert repeats >= 1
    assert warmup >= 0
    device = torch.device(device)
    if device_of(module).type != device.type:
        module = copy.deepcopy(module).to(device)
    images = blank_images(module, resolution, batch, in_channels)
    with eval_mode(module), torch.inference_mode():
        for _ in range(warmup):
            module(images)
        passes = 1
        while passes <= MOST_PASSES:
            times = [_seconds(module, images, passes, device) for _ in range(repeats)]
            milliseconds = 1000 * statistics.median(times) / passes
            if positive(milliseconds):
                return milliseconds
            passes *= 10
    return None


def _seconds(module: nn.Module, images: Tensor, passes: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(passes):
        module(images)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

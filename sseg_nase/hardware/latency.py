"""How long a forward pass takes."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import nn

from sseg_nase.hardware.probe import blank_images, device_of, eval_mode


def latency_ms(
    module: nn.Module,
    resolution: int,
    batch: int,
    *,
    repeats: int,
    warmup: int,
    device: torch.device | str,
    in_channels: int = 3,
) -> float:
    """Return the median milliseconds of a forward pass of `[batch, C, resolution, resolution]`.

    In eval mode and inference mode, after `warmup` passes that are not timed; every pass is
    waited for on CUDA. A module that lies elsewhere is copied to `device`, not moved.
    """
    assert repeats >= 1
    assert warmup >= 0
    device = torch.device(device)
    if device_of(module).type != device.type:
        module = copy.deepcopy(module).to(device)
    images = blank_images(module, resolution, batch, in_channels)
    times = []
    with eval_mode(module), torch.inference_mode():
        for _ in range(warmup):
            module(images)
        for _ in range(repeats):
            _wait(device)
            start = time.perf_counter()
            module(images)
            _wait(device)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

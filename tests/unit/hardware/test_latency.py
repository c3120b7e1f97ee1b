from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.hardware.latency import latency_ms


class Sleeper(nn.Module):
    """Takes the given times, one after the other, and notes what it was given."""

    def __init__(self, *milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.shapes: list[tuple[int, ...]] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.milliseconds[len(self.shapes)] / 1000)
        self.shapes.append(tuple(x.shape))
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return x


def test_the_median_of_the_passes_after_the_warm_up() -> None:
    module = Sleeper(200, 200, 5, 20, 150).train()
    found = latency_ms(module, 8, 4, repeats=3, warmup=2, device="cpu", in_channels=1)
    assert 20 <= found < 100
    assert module.shapes == [(4, 1, 8, 8)] * 5
    assert module.modes == [(False, True)] * 5
    assert module.training


def test_the_network_can_be_trained_afterwards() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert latency_ms(module, 8, 2, repeats=2, warmup=1, device="cpu") > 0
    assert module[1].num_batches_tracked == 0
    module(torch.ones(2, 3, 8, 8)).sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_module_stays_where_it_is() -> None:
    module = nn.Conv2d(3, 64, 3)
    assert latency_ms(module, 84, 64, repeats=5, warmup=2, device="cuda") > 0
    assert module.weight.device.type == "cpu"


class Clock:
    """Ticks by `step` seconds after every `calls` calls."""

    def __init__(self, step: float, calls: int) -> None:
        self.step, self.calls, self.count = step, calls, 0

    def __call__(self) -> float:
        self.count += 1
        return self.step * (self.count // self.calls)


class Ticking(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock()  # every pass takes some of the clock's calls
        return x


def test_what_a_clock_does_not_see_at_once_is_timed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(0.016, calls=40)  # a tick every forty calls
    monkeypatch.setattr(time, "perf_counter", clock)
    found = latency_ms(Ticking(clock), 8, 1, repeats=3, warmup=0, device="cpu")
    assert found is not None
    assert found == pytest.approx(16 / 40, rel=0.2)


def test_no_time_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    assert latency_ms(nn.Identity(), 8, 1, repeats=3, warmup=0, device="cpu") is None

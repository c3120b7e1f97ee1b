from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.config.compose import load
from sseg_nase.hardware import memory
from sseg_nase.hardware.memory import (
    MEBIBYTE,
    MemoryUse,
    enforce_memory_cap,
    explain_out_of_memory,
    level,
    memory_cap_mb,
    memory_use,
    peak_memory_mb,
    remedies,
    resident_memory_mb,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAINED_ON_CUDA = ["hardware=rtx3060", "dataset.image_size=32"]
IMAGE = 4 * 3 * 64 * 64
MAP = IMAGE // 3


class Forward(nn.Module):
    """A network that is one function, of 3-channel images."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def branches(x: Tensor) -> Tensor:
    a, b, c = x + 1, x + 2, x + 3
    return a + b + c


def chain(x: Tensor) -> Tensor:
    for _ in range(10):
        x = x + 1
    return x


@pytest.mark.parametrize(
    ("function", "images"),
    [
        (lambda x: x, 1),
        (lambda x: x + 1, 2),
        # The caller's images live on; of the chain only two links live at a time.
        (chain, 3),
        # x, a, b, c, and two sums: the names a, b and c keep theirs alive.
        (branches, 6),
        (lambda x: x.flatten(1).view(-1)[5:].relu_(), 1),
        # The view keeps what it looks at alive: x, x + 1, and the two halves' sum.
        (lambda x: (lambda y: y[:, :, :32] + y[:, :, 32:])((x + 1).transpose(0, 1)), 2.5),
        (lambda x: [x + 1, x + 2, x + 3][0], 4),
        (lambda x: torch.stack(x.split(1)).sum(0), 2 + 1 / 4),
    ],
)
@pytest.mark.parametrize("batch", [4])
def test_activations_that_live_together(function: object, images: float, batch: int) -> None:
    found = peak_memory_mb(Forward(function), 64, batch)
    assert found * MEBIBYTE == pytest.approx(images * batch * IMAGE)


def test_a_network_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8))
    held = 4 * (3 * 8 + 8) + 4 * 4 * 8 + 8
    # The images, and the output of one layer while that of the next is made (ReLU's, then BN's);
    # BN in eval mode also returns two empty statistics.
    found = peak_memory_mb(network, 64, 2) * MEBIBYTE
    assert found == pytest.approx(held + 2 * (IMAGE + 2 * 8 * MAP), abs=128)


def test_shared_weights_count_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    found = peak_memory_mb(nn.Sequential(layer, layer), 64, 1) * MEBIBYTE
    assert found == 4 * 9 + 3 * IMAGE


def test_a_view_of_a_weight_takes_no_memory_of_its_own() -> None:
    layer = nn.Linear(4, 2, bias=False)
    layer.register_buffer("first", layer.weight.detach()[:1])
    assert memory._held_bytes(layer) == 4 * 2 * 4
    layer.register_buffer("own", torch.zeros(3))
    assert memory._held_bytes(layer) == 4 * 2 * 4 + 3 * 4


def test_half_precision_takes_half() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    single = peak_memory_mb(network, 64, 4)
    assert peak_memory_mb(network.bfloat16(), 64, 4) == pytest.approx(single / 2)


def test_the_same_number_every_time_and_no_trace() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train()
    network(torch.ones(2, 3, 16, 16)).sum().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert len({peak_memory_mb(network, 32, 4) for _ in range(5)}) == 1
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_memory_grows_with_batch_and_resolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    assert peak_memory_mb(network, 32, 1) < peak_memory_mb(network, 32, 4)
    assert peak_memory_mb(network, 32, 4) < peak_memory_mb(network, 84, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_holds_at_least_weights_images_and_output() -> None:
    network = nn.Conv2d(3, 64, 3, padding=1).cuda()
    unrelated = torch.zeros(256 * MEBIBYTE, dtype=torch.uint8, device="cuda")
    found = peak_memory_mb(network, 64, 16) * MEBIBYTE
    assert 16 * (IMAGE + 64 * MAP) <= found < unrelated.nbytes


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (0, "ok"),
        (849, "ok"),
        (850, "warning"),
        (949, "warning"),
        (950, "critical"),
        (2000, "critical"),
    ],
)
def test_levels(used: float, expected: str) -> None:
    assert level(used, 1000) == expected
    assert MemoryUse(used, 1000).level == expected


@pytest.mark.parametrize("use", [MemoryUse(None, 1), MemoryUse(2, None)])
def test_what_is_unknown_is_no_reason_to_warn(use: MemoryUse) -> None:
    assert use.level == "ok"


def test_resident_memory_follows_what_the_process_holds() -> None:
    before = resident_memory_mb()
    assert before is not None
    held = torch.ones(200 * MEBIBYTE, dtype=torch.uint8)
    assert memory_use(CPU, None).used_mb == pytest.approx(before + 200, abs=20)
    assert memory_use(CPU, 2).cap_mb == 2048
    assert memory_use(CPU, None).cap_mb is None
    assert held.all()


def test_resident_memory_without_proc_is_the_highest_so_far(tmp_path: Path) -> None:
    def highest() -> float:
        found = resident_memory_mb(tmp_path / "statm")
        assert found is not None
        return found

    now = resident_memory_mb()
    assert now is not None
    torch.ones(200 * MEBIBYTE, dtype=torch.uint8)
    assert highest() >= now + 180
    assert highest() == highest()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device with 8 GiB, of which at most 3 have been in use."""
    seen = SimpleNamespace(fraction=None, resets=0)

    def set_fraction(fraction: float, device: int | None) -> None:
        assert device is None or isinstance(device, int)  # torch wants no device without an index
        seen.fraction = fraction

    def reset(device: Any) -> None:
        seen.resets += 1

    fakes = {
        "is_available": lambda: True,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=8 * 2**30),
        "max_memory_allocated": lambda device: 3 * 2**30,
        "reset_peak_memory_stats": reset,
        "set_per_process_memory_fraction": set_fraction,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seen


@pytest.mark.parametrize(("asked", "cap"), [(None, 8), (4, 4), (0.5, 0.5), (12, 8)])
def test_the_cap_on_cuda(fake_cuda: SimpleNamespace, asked: float | None, cap: float) -> None:
    assert memory_cap_mb(CUDA, asked) == 1024 * cap
    enforce_memory_cap(CUDA, asked)
    assert fake_cuda.fraction == cap / 8
    assert memory_use(CUDA, asked) == MemoryUse(3 * 1024, 1024 * cap)
    assert fake_cuda.resets == 1


def test_what_is_not_watched_hides_no_peak_and_shows_none(
    fake_cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = [0]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0] * MEBIBYTE)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 1)
    )
    for before, inside, after, seen in ((5, 9, 2, 5), (5, 9, 7, 7), (0, 9, 1, 1)):
        peak[0] = before
        with memory.unwatched(CUDA):
            peak[0] = inside
        peak[0] = after
        assert memory_use(CUDA, None).used_mb == seen
        assert memory_use(CUDA, None).used_mb == 1  # said once


def test_on_cuda_a_peak_is_what_comes_on_top(
    fake_cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert memory._cuda_peak(torch.nn.Conv2d(3, 1, 1), 4, 1, 3) == 2 * 2**30
    assert fake_cuda.resets == 1


def test_the_cpu_has_no_cap_to_enforce(fake_cuda: SimpleNamespace) -> None:
    assert memory_cap_mb(CPU, None) is None
    enforce_memory_cap(CPU, 4)
    assert fake_cuda.fraction is None


def test_out_of_memory_names_three_keys_with_values(fake_cuda: SimpleNamespace) -> None:
    config = load([*TRAINED_ON_CUDA, "hardware.precision=32-true", "hardware.max_memory_gb=4"])
    assert (config.hardware.batch_size, config.hardware.gradient_accumulation_steps) == (48, 3)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    text = explain_out_of_memory(error, config)
    assert text is not None
    assert "2.00 GiB" in text
    assert "hardware.batch_size=24 with hardware.gradient_accumulation_steps=6 " in text
    assert "the same 144 images a step, of which the loss compares all of them" in text
    plain = load([*TRAINED_ON_CUDA, "hardware.accumulate=plain"])
    assert "of which the loss compares 24 at once" in (explain_out_of_memory(error, plain) or "")
    assert "hardware.gradient_checkpointing=true " in text
    assert "hardware.precision=16-mixed " in text
    assert "hardware.max_memory_gb=4, the device has 8.0." in text


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["hardware=cpu", "hardware.precision=32-true"], ["precision=bf16-mixed"]),
        (["hardware.batch_size=25"], ["batch_size=12", "72 instead of 75 images"]),
        (["hardware.gradient_checkpointing=true"], ["batch_size=24", "image_size=24", "evolution"]),
        (
            ["hardware.batch_size=3", "hardware.gradient_checkpointing=true", "ablation=A2"],
            ["dataset.image_size=24", "backbone.channels=[8,16,32]"],
        ),
        (["task=evaluate", "checkpoint=x"], ["evaluation.batch_size=64", "dataset.image_size=24"]),
    ],
)
def test_remedies_that_are_used_already_make_way(overrides: list[str], keys: list[str]) -> None:
    config = load([*TRAINED_ON_CUDA, *overrides])
    found = remedies(config)
    assert len(found) <= 3
    for key in keys:
        assert any(key in remedy for remedy in found), (key, found)
    # What is proposed is accepted and differs from what is.
    for proposed in re.findall(r"[\w.]+=(?:\[[\d,]+\]|[\w-]+)", " ".join(found)):
        assert load([*TRAINED_ON_CUDA, *overrides, proposed]) != config


def test_the_processors_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    text = explain_out_of_memory(caught.value, load(["hardware=cpu", "hardware.batch_size=64"]))
    assert text is not None
    assert "hardware.batch_size=32 with hardware.gradient_accumulation_steps=2 " in text
    assert "max_memory_gb" not in text


@pytest.mark.parametrize(
    ("error", "recognised"),
    [
        (torch.OutOfMemoryError(""), True),
        (torch.cuda.OutOfMemoryError(""), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 b."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_is_out_of_memory(error: BaseException, recognised: bool) -> None:
    assert (explain_out_of_memory(error, load(["hardware=cpu"])) is not None) == recognised


CAPPED = """
import torch
from sseg_nase.config.compose import load
from sseg_nase.hardware.memory import enforce_memory_cap, explain_out_of_memory, memory_use
device = torch.device("cuda")
enforce_memory_cap(device, 1)
torch.zeros(2**29, dtype=torch.uint8, device=device)
assert memory_use(device, 1).used_mb >= 512
assert memory_use(device, 1).used_mb < 512
try:
    torch.zeros(2**31, dtype=torch.uint8, device=device)
except RuntimeError as error:
    print(explain_out_of_memory(error, load(["hardware=rtx3060", "hardware.max_memory_gb=1"])))
enforce_memory_cap(device, None)
torch.zeros(2**31, dtype=torch.uint8, device=device)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_enforces_the_cap() -> None:
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2.00 GiB more were needed" in done.stdout
    assert "hardware.max_memory_gb=1" in done.stdout

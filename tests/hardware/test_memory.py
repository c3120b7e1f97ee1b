from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.hardware.memory import MEBIBYTE, peak_memory_mb

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

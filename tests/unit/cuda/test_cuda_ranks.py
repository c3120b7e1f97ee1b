"""What every rank of a group does on its own device, without a group: all hold the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sseg_nase.training import distributed
from tests.support.cuda_paths import trainer
from tests.support.fake_cuda import CUDA, fake_cuda

RANKS = 2


@pytest.fixture(autouse=True)
def _group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collectives of two ranks that hold the same; nccl's take CUDA tensors only."""

    def all_gather(parts: list[Tensor], own: Tensor) -> None:
        for part in parts:
            assert part.is_cuda
            part.copy_(own)

    def all_reduce(values: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        if operation == dist.ReduceOp.SUM:
            assert values.is_cuda
            values.mul_(RANKS)
        else:  # flags, which gloo exchanges
            assert not values.is_cuda

    monkeypatch.setattr(distributed, "ranks", lambda: RANKS)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *_, **__: None)
    with fake_cuda():
        yield


def test_rows_of_all_ranks() -> None:
    rows = torch.ones(3, 2, device=CUDA, dtype=torch.bfloat16).requires_grad_(True)
    gathered = distributed.gather_rows(rows)
    assert gathered.is_cuda
    assert gathered.shape == (6, 2)
    gathered.sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[RANKS] * 2] * 3


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm2d(4), (6, 4, 5, 5)), (nn.BatchNorm1d(4), (6, 4))]
)
def test_batch_norm_over_all_ranks(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Two equal batches have the statistics of one."""
    norm = norm.to(CUDA)
    images = torch.randn(shape).to(CUDA).requires_grad_(True)
    alone = norm(images.detach())
    distributed.synchronize_batch_norm(norm)
    with distributed.synchronizing():
        found = norm(images)
        found.square().sum().backward()
    torch.testing.assert_close(found, alone)
    assert images.grad is not None
    assert images.grad.is_cuda


def test_flags_stay_on_the_cpu() -> None:
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)


@pytest.mark.parametrize("method", ["simclr", "dino", "barlow_twins"])
def test_a_loss_over_all_ranks(method: str) -> None:
    more = ["ssl.prototypes=8"] if method == "dino" else []
    one = trainer(f"ssl={method}", *more, "evolution=none", "sparsity=none", "pretrain.epochs=1")
    for network in (
        one.state.networks.learner,
        one.state.networks.teacher,
        one.state.networks.teacher_head,
    ):
        if network is not None:
            distributed.synchronize_batch_norm(network)
    one.fit()
    assert one.state.means is not None
    assert math.isfinite(one.state.means.loss)
    assert all(parameter.is_cuda for parameter in one.state.networks.learner.parameters())

"""A pruned network beside the dense one it comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from sseg_nase.data.views import make_views
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.sparsity.router import SparseRouter
from sseg_nase.ssl.objectives import nt_xent
from tests.bench.child import Work
from tests.bench.setting import device, drawn, program

SIZE, BATCH, STEPS, JUDGING = 32, 64, 12, 4
WIDTHS = (64, 128, 192, 256)


def pruned(batch: int) -> Work:
    """What NASE leaves of it without 30 % of its channels."""
    return _forward(networks()[1], batch)


def dense(batch: int) -> Work:
    """The whole network."""
    return _forward(networks()[0], batch)


def networks() -> tuple[EvolvableCNN, EvolvableCNN]:
    """A network after a few steps, and the same without 30 % of its channels."""
    generator = torch.Generator().manual_seed(0)
    dense = EvolvableCNN(Architecture.seed(WIDTHS, resolution=SIZE), generator=generator)
    learner = Learner(dense, ProjectionHead(WIDTHS[-1], generator=generator))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    images = drawn(SIZE, STEPS * BATCH)
    views = make_views(images, program().views, image_size=SIZE, seed=0).split(BATCH, dim=1)

    def losses(turns: range) -> Iterator[torch.Tensor]:
        for turn in turns:
            z1, z2 = learner(views[turn].flatten(0, 1))[1].chunk(2)
            yield nt_xent(z1, z2, 0.5)

    for loss in losses(range(STEPS - JUDGING)):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    router = SparseRouter(0.3, min_channels=8, round_to=8)
    router.update_masks(dense, losses(range(STEPS - JUDGING, STEPS)))
    pruned = copy.deepcopy(dense)
    router.prune_permanently(pruned)
    recalibrate(pruned, (batch[0] for batch in views))
    return dense.eval(), pruned.eval()


def _forward(network: EvolvableCNN, batch: int) -> Work:
    network.to(device())
    images = torch.zeros(batch, 3, SIZE, SIZE, device=device())
    repeats = 1280 // (batch + 16)

    @torch.no_grad()
    def work() -> float:
        for _ in range(repeats):
            network(images)
        return repeats * batch

    return work

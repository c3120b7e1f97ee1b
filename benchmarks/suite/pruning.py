"""A pruned network beside the dense one it comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.suite.child import Work
from benchmarks.suite.setting import device, drawn, program
from sseg_nase.data.views import make_views
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.evolvable import Learner, ProjectionHead
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.sparsity.router import SparseRouter
from sseg_nase.ssl.objectives import nt_xent

SIZE = 32
WIDTHS = [64, 128, 192, 256]


@dataclass(frozen=True)
class Subject:
    """What is pruned: `chosen` by an override, without `ratio` of its channels.

    Before that it is trained for `training` steps of `batch` images, and the channels are scored
    by `scoring` further ones. A round is `images` images, counting 16 for what a forward costs.
    """

    chosen: str
    ratio: float
    batch: int
    training: int
    scoring: int
    images: int


SUBJECTS = {
    "chain": Subject(f"backbone.channels={WIDTHS}", 0.3, 64, 8, 4, 1280),
    "resnet12_quarter": Subject("backbone=resnet12_quarter", 0.5, 16, 0, 2, 1280),
    "resnet18": Subject("backbone=resnet18", 0.5, 16, 0, 2, 320),
}


def pruned(network: str, batch: int) -> Work:
    """What NASE leaves of it."""
    return _forward(networks(network)[1], batch, SUBJECTS[network].images)


def dense(network: str, batch: int) -> Work:
    """The whole network."""
    return _forward(networks(network)[0], batch, SUBJECTS[network].images)


def networks(name: str) -> tuple[Backbone, Backbone]:
    """A network, and the same without a share of its channels."""
    subject, generator = SUBJECTS[name], torch.Generator().manual_seed(0)
    config = program(
        f"dataset.image_size={SIZE}", subject.chosen, "evolution=none", "sparsity=none"
    )
    dense = build(configured(config.backbone, SIZE), generator=generator)
    head = ProjectionHead(dense.architecture.features, generator=generator)
    learner = Learner(dense, head)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    steps = subject.training + subject.scoring
    images = drawn(SIZE, steps * subject.batch)
    views = make_views(images, config.views, image_size=SIZE, seed=0).split(subject.batch, dim=1)

    def losses(turns: range) -> Iterator[torch.Tensor]:
        for turn in turns:
            z1, z2 = learner(views[turn].flatten(0, 1))[1].chunk(2)
            yield nt_xent(z1, z2, 0.5)

    for loss in losses(range(subject.training)):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    router = SparseRouter(subject.ratio, min_channels=8, round_to=8)
    router.update_masks(dense, losses(range(subject.training, steps)))
    pruned = copy.deepcopy(dense)
    router.prune_permanently(pruned)
    recalibrate(pruned, (batch[0] for batch in views))
    return dense.eval(), pruned.eval()


def _forward(network: Backbone, batch: int, images_of_a_round: int) -> Work:
    network.to(device())
    images = torch.zeros(batch, 3, SIZE, SIZE, device=device())
    repeats = images_of_a_round // (batch + 16)

    @torch.no_grad()
    def work() -> float:
        for _ in range(repeats):
            network(images)
        return repeats * batch

    return work

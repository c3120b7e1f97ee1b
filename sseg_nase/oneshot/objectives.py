"""What a supernet is trained for: the classes of train, or a self-supervised loss.

Weights and whatever chooses have the same loss, on different images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.schema import SSLConfig, ViewsConfig
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views, normalize
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.evolvable import Learner, initialize
from sseg_nase.nets.heads import LinearHead
from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.ssl.methods import Losses, Teaching, make_learner, method_of
from sseg_nase.ssl.teacher import untracked
from sseg_nase.training.accumulation import differentiate, evaluate


class Images(NamedTuple):
    """Of one batch, as they are: uint8 `[B, C, S, S]`, and their classes, int64 `[B]`."""

    pixels: Tensor
    labels: Tensor


class Seen(NamedTuple):
    """Random views of a batch, per kind of them `[V, B, C, S, S]`, and the classes `[B]`."""

    views: tuple[Tensor, ...]
    labels: Tensor

    @property
    def images(self) -> int:
        """How many images go through the network."""
        return sum(views.shape[0] * views.shape[1] for views in self.views)


class Objective(Protocol):
    """`goal`: what a network is evaluated by, and `direction` whether that is to be `max` or `min`.

    `has_target`: a teacher is a part of it.
    """

    goal: str
    direction: str

    @property
    def has_target(self) -> bool:
        """Whether it needs a teacher."""

    def memory(self) -> dict[str, Tensor]:
        """What is kept beside the networks, at the start."""

    def learner(self, backbone: Backbone, generator: torch.Generator) -> Learner:
        """The backbone with the heads that the loss needs."""

    def head(self, features: int, generator: torch.Generator) -> nn.Module | None:
        """The head on a backbone, where it is none that a mutation can make itself."""

    def see(self, images: Images, seed: int) -> Seen:
        """Random views of a batch: the same for the same seed."""

    def loss(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> Losses:
        """Of a batch; its `total` is what is trained."""

    def reward(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> float:
        """How well the network does on a batch, more being better."""

    def evaluate(
        self,
        learner: nn.Module,
        teaching: Teaching,
        train: Sequence[Images],
        val: Iterable[Images],
        seed: int,
    ) -> float:
        """The `goal`, on the batches of `val`; may change BN's statistics of `learner`."""


class Labels:
    """Cross-entropy of a linear classifier; evaluated by the accuracy in percent.

    BN's statistics are re-estimated on images of train before anything is evaluated: a supernet's
    are those of no network in it.
    """

    goal, direction = "accuracy", "max"
    has_target = False

    def __init__(self, classes: int, views: ViewsConfig, image_size: int) -> None:
        self.classes, self.views, self.image_size = classes, views, image_size

    def learner(self, backbone: Backbone, generator: torch.Generator) -> Learner:
        """With a linear classifier."""
        return Learner(backbone, self.head(backbone.architecture.features, generator))

    def head(self, features: int, generator: torch.Generator) -> nn.Module:
        """The linear classifier."""
        with torch.random.fork_rng(devices=[]):
            head = LinearHead(features, self.classes)
        initialize(head, generator)
        return head

    def memory(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def see(self, images: Images, seed: int) -> Seen:
        """One view of every image."""
        views = make_views(
            images.pixels, self.views, image_size=self.image_size, seed=seed, count=1
        )
        return Seen((views,), images.labels)

    def loss(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> Losses:
        """The mean over the images."""
        loss = F.cross_entropy(learner(seen.views[0][0])[1], seen.labels)
        return Losses(loss, loss, None)

    @torch.no_grad()
    def reward(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> float:
        """The share that is right, with the statistics of the batch."""
        with untracked(learner):
            found = learner(seen.views[0][0])[1].argmax(1)
        return (found == seen.labels).float().mean().item()

    @torch.no_grad()
    def evaluate(
        self,
        learner: nn.Module,
        teaching: Teaching,
        train: Sequence[Images],
        val: Iterable[Images],
        seed: int,
    ) -> float:
        """The accuracy in percent."""
        recalibrate(learner, (normalize(each.pixels) for each in train))
        learner.eval()
        right = count = 0
        for each in val:
            found = learner(normalize(each.pixels))[1].argmax(1)
            right += int((found == each.labels).sum())
            count += len(found)
        return 100 * right / count


class SelfSupervised:
    """The loss of a method of `ssl`; evaluated by the mean of its own loss over the batches.

    `parts`: in how many a batch goes through the networks; see `training.accumulation`.
    """

    goal, direction = "loss", "min"

    def __init__(self, ssl: SSLConfig, views: ViewsConfig, image_size: int, parts: int = 1) -> None:
        self.ssl, self.image_size, self.in_parts = ssl, image_size, parts
        self.method = method_of(ssl)
        self.kinds = [
            (
                replace(views, crop_scale=list(each.scale)) if each.scale else views,
                max(1, round(each.size * image_size)),
                each.count,
            )
            for each in self.method.crops(ssl)
        ]

    def learner(self, backbone: Backbone, generator: torch.Generator) -> Learner:
        """With the method's head and predictor."""
        return make_learner(backbone, self.ssl, generator)

    @property
    def has_target(self) -> bool:
        """Whether the method has one."""
        return self.method.has_target

    def memory(self) -> dict[str, Tensor]:
        """That of the method."""
        return self.method.memory(self.ssl)

    def head(self, features: int, generator: torch.Generator) -> None:
        """None: a mutation makes those of methods itself."""

    def see(self, images: Images, seed: int) -> Seen:
        """As many views as the method compares."""
        found = [
            make_views(images.pixels, views, image_size=size, seed=derive(seed, kind), count=count)
            for kind, (views, size, count) in enumerate(self.kinds)
        ]
        return Seen(tuple(found), images.labels)

    def loss(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> Losses:
        """Of the method; in parts its gradient is known when it is."""
        if self.in_parts == 1:
            return self.method.loss(learner, teaching, list(seen.views), self.ssl)
        of = self.method.loss, learner, teaching, self._parts(seen), self.ssl
        if not torch.is_grad_enabled():
            return evaluate(*of)
        trained = [p for p in (*learner.parameters(), *_gates_of(learner)) if p.requires_grad]
        kept = [parameter.grad for parameter in trained]
        for parameter in trained:
            parameter.grad = None
        try:
            losses = differentiate(*of, backward=lambda loss: loss.backward(inputs=trained))
            slopes = [parameter.grad for parameter in trained]
        finally:
            for parameter, before in zip(trained, kept, strict=True):
                parameter.grad = before
        total = _Known.apply(losses.total, slopes, *trained)
        return losses._replace(total=total)

    def _parts(self, seen: Seen) -> list[list[Tensor]]:
        """The views of each part, per kind of them."""
        chunks = [views.chunk(self.in_parts, dim=1) for views in seen.views]
        return [list(part) for part in zip(*chunks, strict=True)]

    @torch.no_grad()
    def reward(self, learner: nn.Module, seen: Seen, teaching: Teaching) -> float:
        """The loss, turned."""
        with untracked(learner):
            losses = self.loss(learner, seen, teaching)
        return -losses.contrastive.item()

    @torch.no_grad()
    def evaluate(
        self,
        learner: nn.Module,
        teaching: Teaching,
        train: Sequence[Images],
        val: Iterable[Images],
        seed: int,
    ) -> float:
        """The mean loss, with the statistics of each batch."""
        learner.train()
        found: list[float] = []
        size = 0
        for number, each in enumerate(val):
            size = size or len(each.labels)
            if len(each.labels) < size:  # losses of smaller batches do not compare
                continue
            found.append(-self.reward(learner, self.see(each, derive(seed, number)), teaching))
        return sum(found) / len(found)


class _Known(torch.autograd.Function):
    """A value whose gradients in `tensors` are known already."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor
    ) -> Tensor:
        """The value itself."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """By the chain rule."""
        known = (None if each is None else outer[0] * each for each in ctx.gradients)
        return (None, None, *known)


def _gates_of(learner: nn.Module) -> Iterator[nn.Parameter]:
    """The α and β that its mixed operations read, which are no part of it."""
    read = {
        id(gates): gates
        for module in learner.modules()
        if isinstance(module, MixedOperation)
        for gates in module.gates
    }
    for gates in read.values():
        assert isinstance(gates, nn.Module), gates
        yield from gates.parameters()

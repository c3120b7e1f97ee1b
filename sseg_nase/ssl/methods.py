"""Self-supervised methods: from views and the networks to a loss.

A method is an `SSLMethod`: how many views it takes, the heads on the backbone, and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.ssl import (
    BYOL,
    DINO,
    BarlowTwins,
    Projected,
    PrototypePairs,
    SimCLR,
    SSLConfig,
)
from sseg_nase.config.options import imported, options_of
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.evolvable import Learner, ProjectionHead, PrototypeHead
from sseg_nase.ssl.objectives import (
    barlow_twins,
    byol,
    dino,
    distillation,
    moved_centre,
    nt_xent,
    prototype_pairs,
    similarity_distillation,
)
from sseg_nase.ssl.teacher import batch_statistics

CENTRE = "centre"
S = TypeVar("S", bound=SSLConfig)
Contra = TypeVar("Contra", bound=SSLConfig, contravariant=True)


@dataclass(frozen=True)
class Crops:
    """`count` views of every image.

    `scale`: share of the image's area that they show, None as `views.crop_scale`. `size`: their
    side as a share of the image's.
    """

    count: int = 2
    scale: tuple[float, float] | None = None
    size: float = 1.0


class Teaching(NamedTuple):
    """What a loss is given beside the student.

    `backbone`: the teacher's, None without one. `head`: its head, where it is a method's target.
    `memory`: what the method keeps beside its networks. `epoch`: the one that is trained, from 0.
    `tracks`: the teacher's BN statistics follow the batch, as in a training step; else they stay.
    `own`: it distils in the statistics of the batch; else in those that it has. `guide`: the
    network of another run, which stays as it is (ssl.teacher).
    """

    backbone: nn.Module | None = None
    head: nn.Module | None = None
    memory: Mapping[str, Tensor] = {}
    epoch: int = 0
    tracks: bool = False
    own: bool = True
    guide: nn.Module | None = None


class Losses(NamedTuple):
    """Scalars of one batch.

    `contrastive`: the method's own loss, whatever its kind. `distillation` is None without a
    teacher. `memory`: what is to be kept after training on this batch, None where nothing changes.
    """

    total: Tensor
    contrastive: Tensor
    distillation: Tensor | None
    memory: Mapping[str, Tensor] | None = None


def alone(rows: Tensor) -> Tensor:
    """What one process gathers: its own rows."""
    return rows


class Loss(Protocol[Contra]):
    """The loss of a batch.

    `views`: per kind of `Crops` `[V, B, C, S, S]`, the first of every image, then the second. All
    views of one size go through the network together, so that BN sees them as one batch. `gather`
    brings rows of all processes together, for losses over the whole batch.

    A loss that is no `Compared` is a mean over the images: that of a batch is the mean of those of
    its parts.
    """

    def __call__(
        self,
        learner: nn.Module,
        teaching: Teaching,
        views: Sequence[Tensor],
        ssl: Contra,
        gather: Callable[[Tensor], Tensor] = alone,
    ) -> Losses:
        """Of one batch."""


@dataclass(frozen=True)
class SSLMethod(Generic[S]):
    """`head` (of how many features) and `predictor`: the heads on the backbone.

    `has_target`: the teacher is a part of the method, with a head of its own, whether or not the
    student is distilled from it, too. `memory`: the method's own tensors at the start.
    """

    loss: Loss[S]
    crops: Callable[[S], tuple[Crops, ...]]
    head: Callable[[int, S, torch.Generator | None], nn.Module | None]
    predictor: Callable[[S, torch.Generator | None], nn.Module | None]
    has_target: bool = False
    memory: Callable[[S], dict[str, Tensor]] = lambda ssl: {}


def make_learner(
    backbone: Backbone, ssl: SSLConfig, generator: torch.Generator | None = None
) -> Learner:
    """`backbone` with the heads of the method of `ssl`, initialised by `generator`."""
    method = method_of(ssl)
    head = method.head(backbone.architecture.features, ssl, generator)
    return Learner(backbone, head, method.predictor(ssl, generator))


# -- losses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared(Generic[S]):
    """The loss of a method that compares the images of a batch with each other.

    `objective`: of all processes' projections, one `[B, D]` per view; the distillation is added.
    Called as any `Loss`. Its steps stand alone so that a batch can go through the networks in parts
    (see `sseg_nase.training.accumulation`): `rows` and `taught` of each, `compare` of all.
    """

    objective: Callable[[Sequence[Tensor], S], Tensor]

    def __call__(
        self,
        learner: nn.Module,
        teaching: Teaching,
        views: Sequence[Tensor],
        ssl: S,
        gather: Callable[[Tensor], Tensor] = alone,
    ) -> Losses:
        """Of one batch."""
        features, projections = self.rows(learner, views)
        taught, aims = self.taught(teaching, views), guided(teaching, views)
        return self.compare(features, projections, taught, ssl, gather, aims)

    def rows(self, learner: nn.Module, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings `[V, B, features]` and projections `[V, B, D]` of the images."""
        (images,) = views
        features, projections = learner(images.flatten(0, 1))
        shape = images.shape[:2]
        return features.unflatten(0, shape), projections.unflatten(0, shape)

    @torch.no_grad()
    def taught(self, teaching: Teaching, views: Sequence[Tensor]) -> Tensor | None:
        """The teacher's embeddings of every image's first view, `[B, features]`.

        BN uses the statistics of the batch, as in the student; with ssl.teacher_statistics=student
        the running ones that it was given.
        """
        if teaching.backbone is None:
            return None
        if not teaching.own:
            return teaching.backbone(views[0][0])
        with batch_statistics(teaching.backbone, track=teaching.tracks):
            return teaching.backbone(views[0][0])

    def compare(
        self,
        features: Tensor,
        projections: Tensor,
        embeddings: Tensor | None,
        ssl: S,
        gather: Callable[[Tensor], Tensor] = alone,
        aims: Tensor | None = None,
    ) -> Losses:
        """Of what `rows`, `taught` and `guided` say of a whole batch."""
        own = self.objective([gather(z) for z in projections], ssl)
        losses = Losses(own, own, None)
        if embeddings is not None:
            losses = _distilled(own, features[0], embeddings, ssl)
        return _following(losses, features[0], aims, ssl, gather)


@torch.no_grad()
def guided(teaching: Teaching, views: Sequence[Tensor]) -> Tensor | None:
    """The embeddings `[B, D]` that the guide has of every image's first view; None without one."""
    if teaching.guide is None:
        return None
    embedded: Tensor = teaching.guide(views[0][0])
    return embedded


def _following(
    losses: Losses,
    features: Tensor,
    aims: Tensor | None,
    ssl: SSLConfig,
    gather: Callable[[Tensor], Tensor],
) -> Losses:
    """`losses` with what the guide adds to their total, by embeddings of every first view."""
    if aims is None:
        return losses
    rows, wanted = gather(features[: len(aims)]), gather(aims)
    apart = similarity_distillation(rows, wanted, ssl.feature_temperature)
    return losses._replace(total=losses.total + ssl.feature_weight * apart)


def _distilled(
    own: Tensor,
    features: Tensor,
    embeddings: Tensor,
    ssl: SSLConfig,
    memory: Mapping[str, Tensor] | None = None,
) -> Losses:
    """`own` + λ · MSE(student, teacher) of the embeddings of every image's first view.

    One view, as the specification has it.
    """
    gap = distillation(features[: len(embeddings)], embeddings)
    return Losses(own + ssl.distillation_weight * gap, own, gap, memory)


def _aims(teaching: Teaching, images: Tensor) -> tuple[Tensor, Tensor]:
    """The target network's embeddings of the first view, and projections `[V, B, D]` of all.

    BN uses the statistics of the batch, as in the online network (Grill et al. 2020, section 3.2).
    """
    backbone, head = teaching.backbone, teaching.head
    assert backbone is not None
    assert head is not None
    track = teaching.tracks
    with (
        torch.no_grad(),
        batch_statistics(backbone, track=track),
        batch_statistics(head, track=track),
    ):
        features = backbone(images.flatten(0, 1))
        projections = head(features)
    return features[: images.shape[1]], projections.unflatten(0, images.shape[:2])


def _byol(
    learner: nn.Module,
    teaching: Teaching,
    views: Sequence[Tensor],
    ssl: BYOL,
    gather: Callable[[Tensor], Tensor] = alone,
) -> Losses:
    """Grill et al. 2020, section 3.1: each view's prediction against the other view's target."""
    (images,) = views
    embeddings, aims = _aims(teaching, images)
    features, predictions = learner(images.flatten(0, 1))
    q1, q2 = predictions.chunk(2)
    own = byol(q1, aims[1]) + byol(q2, aims[0])
    losses = _distilled(own, features, embeddings, ssl)
    return _following(losses, features, guided(teaching, views), ssl, gather)


def _dino(
    learner: nn.Module,
    teaching: Teaching,
    views: Sequence[Tensor],
    ssl: DINO,
    gather: Callable[[Tensor], Tensor] = alone,
) -> Losses:
    """Caron et al. 2021, algorithm 1, with local crops that the student alone sees."""
    whole, centre = views[0], teaching.memory[CENTRE]
    embeddings, aims = _aims(teaching, whole)
    features, logits = learner([images.flatten(0, 1) for images in views])
    own = dino(
        logits.unflatten(0, (-1, whole.shape[1])),
        aims,
        centre,
        temperature=ssl.student_temperature,
        teacher_temperature=teacher_temperature(teaching.epoch, ssl),
    )
    with torch.no_grad():
        mean = gather(aims.to(centre.dtype).mean((0, 1))[None]).mean(0)
        memory = {CENTRE: moved_centre(centre, mean, ssl.centre_momentum)}
    losses = _distilled(own, features, embeddings, ssl, memory)
    return _following(losses, features, guided(teaching, views), ssl, gather)


def teacher_temperature(epoch: int, ssl: DINO) -> float:
    """DINO's τ_t at `epoch`: linear from the first to the last, over the epochs of the warm-up."""
    first, last = ssl.teacher_temperature
    return first + (last - first) * min(1.0, epoch / max(1, ssl.teacher_warmup_epochs))


def _nt_xent(z: Sequence[Tensor], ssl: SimCLR) -> Tensor:
    return nt_xent(z[0], z[1], ssl.temperature)


def _prototype_pairs(z: Sequence[Tensor], ssl: PrototypePairs) -> Tensor:
    return prototype_pairs(torch.stack(list(z)), ssl.distance_temperature)


def _barlow_twins(z: Sequence[Tensor], ssl: BarlowTwins) -> Tensor:
    return barlow_twins(z[0], z[1], ssl.redundancy_weight)


# -- parts -----------------------------------------------------------------------------------------


def _pair(ssl: SSLConfig) -> tuple[Crops, ...]:
    return (Crops(),)


def _several(ssl: PrototypePairs) -> tuple[Crops, ...]:
    return (Crops(ssl.views),)


def _multi_crop(ssl: DINO) -> tuple[Crops, ...]:
    low, high = ssl.global_scale
    whole = Crops(scale=(low, high))
    if not ssl.local_views:
        return (whole,)
    low, high = ssl.local_scale
    return (whole, Crops(ssl.local_views, (low, high), ssl.local_size))


def _nothing(*_: object) -> None:
    return None


def _projector(features: int, ssl: Projected, generator: torch.Generator | None) -> ProjectionHead:
    return ProjectionHead(
        features,
        ssl.projection_hidden,
        ssl.projection_dim,
        layers=ssl.projection_layers,
        generator=generator,
    )


def _predictor(ssl: BYOL, generator: torch.Generator | None) -> ProjectionHead:
    """BYOL's: of the projector's shape, from projections to projections, with two layers."""
    dim = ssl.projection_dim
    return ProjectionHead(dim, ssl.projection_hidden, dim, generator=generator)


def _prototype_head(features: int, ssl: DINO, generator: torch.Generator | None) -> PrototypeHead:
    return PrototypeHead(
        features, ssl.projection_hidden, ssl.projection_dim, ssl.prototypes, generator=generator
    )


def _centre(ssl: DINO) -> dict[str, Tensor]:
    return {CENTRE: torch.zeros(ssl.prototypes)}


# Of every option of `ssl` of this package that trains; one of another package has `made_by`.
BY_OPTION: dict[type[SSLConfig], SSLMethod[Any]] = {
    SimCLR: SSLMethod(Compared(_nt_xent), _pair, _projector, _nothing),
    BYOL: SSLMethod(_byol, _pair, _projector, _predictor, has_target=True),
    PrototypePairs: SSLMethod(Compared(_prototype_pairs), _several, _nothing, _nothing),
    BarlowTwins: SSLMethod(Compared(_barlow_twins), _pair, _projector, _nothing),
    DINO: SSLMethod(_dino, _multi_crop, _prototype_head, _nothing, has_target=True, memory=_centre),
}


def method_of(ssl: SSLConfig) -> SSLMethod[Any]:
    """The method that an option of `ssl` stands for.

    Raises `UserError` where what another package has for it cannot be imported.
    """
    kind = type(ssl)
    if kind.made_by:
        made: SSLMethod[Any] = imported(kind.made_by)()
        return made
    if kind not in BY_OPTION:
        raise TypeError(
            f"ssl={ssl.name}: nothing makes it; name a function in {kind.__name__}.made_by"
        )
    return BY_OPTION[kind]


METHODS: Mapping[str, SSLMethod[Any]] = {
    name: BY_OPTION[cls] for name, cls in options_of(SSLConfig).items() if cls in BY_OPTION
}  # by the name that the configuration has for them

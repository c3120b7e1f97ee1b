"""A backbone with what a fine-tuning method learns beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.config.groups import evaluation
from sseg_nase.config.groups.finetune import R2D2, FinetuneConfig, Maml, Prototypical, Relation
from sseg_nase.config.groups.finetune import Matching as MatchingConfig
from sseg_nase.config.options import filled, imported
from sseg_nase.fewshot.classifiers import matching_scores, prototype_scores
from sseg_nase.fewshot.linear import ridge_scores
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.description import Description
from sseg_nase.nets.heads import (
    AttentionMLP,
    LinearHead,
    RelationHead,
    RelationMLP,
    RidgeHead,
)
from sseg_nase.nets.maps import READS_FEATURES, Axis, Wires

ROTATION, TO_TEACHER = "rotation", "to_teacher"  # what a classifier may have beside it


class EpisodeLearner(nn.Module):
    """A backbone and the head of its fine-tuning method, trained and kept together."""

    backbone: Backbone
    head: nn.Module

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class Prototypes(nn.Module):
    """Snell et al. 2017: −‖f(q) − c‖² (or the cosine) times `scale`, without own parameters."""

    def __init__(self, metric: str, scale: float) -> None:
        super().__init__()
        self.metric, self.scale = metric, scale

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Scores `[E, M, N]` of query `[E, M, D]` against support `[E, N, K, D]`."""
        return self.scale * prototype_scores(support, query, self.metric)


class Matching(nn.Module):
    """Vinyals et al. 2016, eq. 1: attention over the support, cosine times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Log-probabilities `[E, M, N]` of query `[E, M, D]` by support `[E, N, K, D]`."""
        return matching_scores(support, query, 1 / self.scale)


class Ridge(RidgeHead):
    """R2D2 (Bertinetto et al. 2019): ridge regression on the support, solved in closed form."""

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Scores `[E, M, N]` of query `[E, M, D]` by support `[E, N, K, D]`."""
        scores = ridge_scores(support, query, self.log_regularization.exp())
        return self.scale * scores + self.shift


class BaseClassifier(LinearHead):
    """A linear classifier of the base classes, `[B, features]` → `[B, classes]`.

    `beside`: what else is learned on the embedding, `[B, features]` → `[B, out]` each, and, like
    the classifier, is no part of what is evaluated. See `finetune.auxiliary`.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.beside = nn.ModuleDict()

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """What stands beside it reads the embedding, too."""
        beside = (f"beside.{name}.weight" for name in self.beside)
        return {**super().wiring(embedding), **dict.fromkeys(beside, READS_FEATURES)}


def cross_entropy(scores: Tensor, truth: Tensor) -> Tensor:
    """Of scores `[E, M, N]` and the classes `[M]` of every episode's queries."""
    return nn.functional.cross_entropy(scores.flatten(0, 1), truth.repeat(len(scores)))


def squared_error(relations: Tensor, truth: Tensor) -> Tensor:
    """Sung et al. 2018, eq. 2: mean of (r − 1)² for the true class and r² for the others."""
    target = nn.functional.one_hot(truth, relations.shape[-1]).to(relations.dtype)
    return (relations - target).square().mean()


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    `head`: makes what is learned beside the backbone (classes: of the base split).
    """

    head: Callable[[Any, Description, int, torch.Generator], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy


def _prototypes(f: Prototypical, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    return Prototypes(f.metric, f.scale)


def _matching(f: MatchingConfig, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    if f.head == "mlp":
        return AttentionMLP(d.features, [f.head_width], generator=g)
    return Matching(f.scale)


def _relation(f: Relation, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    if f.head == "mlp":
        return RelationMLP(d.features, [2 * f.head_width, f.head_width], generator=g)
    side = round((d.features // d.channels[-1]) ** 0.5)
    return RelationHead(d.channels[-1], side, generator=g)


def _ridge(f: R2D2, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    return Ridge(scale=f.scale)


def _maml(f: Maml, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    return linear_head(d.features, filled(f.ways, "finetune.ways"), g)


def _linear(f: FinetuneConfig, d: Description, classes: int, g: torch.Generator) -> nn.Module:
    return linear_head(d.features, classes, g, BaseClassifier)


def linear_head(
    features: int,
    classes: int,
    generator: torch.Generator,
    kind: Callable[[int, int], LinearHead] = LinearHead,
) -> nn.Linear:
    """A linear classifier, small at the start: no class is preferred, and gradients are finite."""
    head = kind(features, classes)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head


# What options of `finetune` name as `made_by`.


def prototypical() -> Method:
    """Prototypes, without anything to learn."""
    return Method(_prototypes)


def matching() -> Method:
    """Attention over the support, or a learned one."""
    return Method(_matching)


def relation() -> Method:
    """A learned comparison."""
    return Method(_relation, squared_error)


def ridge() -> Method:
    """Ridge regression with learned strength, scale and shift."""
    return Method(_ridge)


def maml() -> Method:
    """A classifier of an episode's classes, to be adapted."""
    return Method(_maml)


def linear() -> Method:
    """A classifier of all base classes."""
    return Method(_linear)


def method_of(options: FinetuneConfig) -> Method:
    """The method that an option of `finetune` stands for."""
    method: Method = imported(options.made_by)()
    return method


def head_for(
    options: FinetuneConfig, classes: int, description: Description, generator: torch.Generator
) -> nn.Module:
    """An untrained head for `options.name` on such a network; `classes`: of the base split."""
    return method_of(options).head(options, description, classes, generator)


def around(
    backbone: Backbone, options: FinetuneConfig, classes: int, generator: torch.Generator
) -> EpisodeLearner:
    """`backbone` with an untrained head for `options.name`; `classes`: of the base split.

    What `options` freeze takes no gradient, all else does, whatever it was before.
    """
    head = head_for(options, classes, backbone.architecture, generator)
    learner = EpisodeLearner(backbone, head)
    learner.requires_grad_(True)
    for module in frozen_parts(learner, options):
        module.requires_grad_(False)
    if options.freeze_norms:
        for norm in norms_of(backbone):
            norm.requires_grad_(False)
    return learner


def frozen_parts(learner: EpisodeLearner, options: FinetuneConfig) -> list[nn.Module]:
    """What is neither trained nor adapted, statistics included; norms alone are told apart."""
    if options.freeze == "encoder":
        return [learner.backbone]
    return list(learner.backbone.stages())[: options.frozen_blocks]


def norms_of(module: nn.Module) -> list[nn.Module]:
    """The layers that normalise."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)]


def fits(head: nn.Module | None, method: str, ways: int) -> bool:
    """Whether `head` is that of `method`, and one for episodes of `ways` classes."""
    if method == evaluation.MAML:
        return isinstance(head, nn.Linear) and head.out_features == ways
    return isinstance(head, {evaluation.RELATION: (RelationHead, RelationMLP)}[method])

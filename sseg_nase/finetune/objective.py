"""What a network is trained for on a step: the loss of its method, and the share that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.groups.finetune import Classifying, Linear, Maml
from sseg_nase.config.schema import FinetuneConfig
from sseg_nase.counting import BACKWARD
from sseg_nase.data.prefetch import sent
from sseg_nase.finetune.auxiliary import (
    Taught,
    Teacher,
    cosine_distance,
    count_turned,
    rotation_loss,
    softened,
    turned,
)
from sseg_nase.finetune.learner import (
    ROTATION,
    TO_TEACHER,
    BaseClassifier,
    EpisodeLearner,
    method_of,
)
from sseg_nase.finetune.maml import Classifier, adapt
from sseg_nase.finetune.mixing import blended, pasted, thinned
from sseg_nase.finetune.steps import Step
from sseg_nase.nets.backbone import Backbone
from sseg_nase.training.fabric import Fabric
from sseg_nase.training.ledger import TEACHER

Spend = Callable[[str, int], None]  # a part of the ledger, and multiply-accumulates


class Outcome(NamedTuple):
    """Of one step: the loss, a scalar, and the share of right predictions.

    A loss without gradient has been differentiated already.
    """

    loss: Tensor
    accuracy: Tensor


class Objective:
    """The loss that `options` ask for, in the precision of `fabric`.

    `teacher`: what a classifier is distilled from; its passes go to `spend`.
    """

    def __init__(
        self, options: FinetuneConfig, fabric: Fabric, teacher: Teacher | None, spend: Spend
    ) -> None:
        self.options, self.fabric, self.teacher, self.spend = options, fabric, teacher, spend
        self.method = method_of(options)

    def outcome(self, step: Step, images: Tensor, learner: EpisodeLearner) -> Outcome:
        """What `learner` makes of a step."""
        own = (found for kind, found in OUTCOMES.items() if isinstance(self.options, kind))
        return next(own, episodic)(self, step, images, learner)

    def taught(self, images: Tensor) -> Taught | None:
        """What the teacher says of images, counted as its own; None without one."""
        if self.teacher is None:
            return None
        self.spend(TEACHER, len(images) * self.teacher.architecture.macs(images.shape[-1]))
        with self.fabric.autocast():
            return self.teacher(images)

    def embedded(self, images: Tensor) -> int:
        """How many images go through the network in a step on `images`: with turned copies."""
        options = self.options
        turns = isinstance(options, Classifying) and options.rotation
        return len(images) + (count_turned(images) if turns else 0)

    def macs(self, step: Step, images: Tensor, encoder: Backbone) -> int:
        """Of one step. To differentiate a pass and its gradient takes twice as much as the two."""
        options = self.options
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        passes = 1 + BACKWARD if learns else 1
        count = passes * self.embedded(images)
        if isinstance(options, Maml):
            support = step.tasks * step.ways * step.shots
            inner = passes if options.first_order else passes * (1 + BACKWARD)
            count += support * (options.inner_steps * inner - passes)
        return count * encoder.architecture.macs(images.shape[-1])


def episodic(objective: Objective, step: Step, images: Tensor, learner: EpisodeLearner) -> Outcome:
    """All images embedded as one batch; the head scores every episode by itself."""
    with objective.fabric.autocast():
        features = learner.backbone(images)
    scores = learner.head(*step.parts(features.float()))
    truth = sent(step.query_truth(), scores.device)
    right = (scores.argmax(dim=-1) == truth).float().mean()
    return Outcome(objective.method.loss(scores, truth), right)


def classification(
    objective: Objective, step: Step, images: Tensor, learner: EpisodeLearner
) -> Outcome:
    """Cross-entropy of a plain classifier of all base classes, smoothed and mixed as configured.

    With mixup: λ · CE(z, y) + (1 − λ) · CE(z, y'), z of λ · x + (1 − λ) · x' (Zhang et al. 2018);
    with CutMix z is of x with a rectangle of x', and λ the share of pixels that are x's. Right is
    what has the image's own class. What a teacher and turned copies add is of the same images,
    mixed or not: nothing tells them from each other but what is to be learned.
    """
    assert step.truth is not None
    options, count = objective.options, len(images)
    assert isinstance(options, Classifying)
    partner, share = None, step.share
    if step.partner is not None:
        partner = sent(step.partner, images.device)
        if step.centre is None:
            images = blended(images, partner, share)
        else:
            images, share = pasted(images, partner, share, step.centre)
    shown = torch.cat((images, turned(images))) if options.rotation else images
    with objective.fabric.autocast():
        features = learner.backbone(shown)
    features = features.float()
    read = features[:count]
    if step.noise is not None:
        read = thinned(read, options.dropout, step.noise)
    logits = learner.head(read)
    truth = sent(step.truth, logits.device)
    right = (logits.argmax(dim=-1) == truth).float().mean()
    smoothing = options.label_smoothing
    loss = F.cross_entropy(logits, truth, label_smoothing=smoothing)
    if partner is not None:
        others = F.cross_entropy(logits, truth[partner], label_smoothing=smoothing)
        loss = share * loss + (1 - share) * others
    taught = objective.taught(images)
    if taught is not None:
        assert isinstance(options, Linear)  # no other has a teacher
        loss = _distilled(loss, features[:count], logits, taught, options, learner.head)
    if options.rotation:
        rotation = _beside_of(learner.head, ROTATION)
        loss = loss + options.rotation * rotation_loss(rotation, features, count)
    return Outcome(loss, right)


def _distilled(
    loss: Tensor,
    features: Tensor,
    logits: Tensor,
    taught: Taught,
    options: Linear,
    head: nn.Module,
) -> Tensor:
    """(1 − w) · `loss` + w · `softened`, and the cosine distance of the embeddings."""
    weight, temperature = options.distillation_weight, options.distillation_temperature
    loss = (1 - weight) * loss + weight * softened(logits, taught.logits, temperature)
    if options.feature_weight:
        mapped = _beside_of(head, TO_TEACHER)(features)
        loss = loss + options.feature_weight * cosine_distance(mapped, taught.features)
    return loss


def _beside_of(head: nn.Module, name: str) -> nn.Module:
    assert isinstance(head, BaseClassifier)
    return head.beside[name]


def meta_learned(
    objective: Objective, step: Step, images: Tensor, learner: EpisodeLearner
) -> Outcome:
    """MAML: the loss on the queries after the inner steps, averaged over the episodes (eq. 4).

    Differentiated episode by episode: what one episode's gradient needs is large.
    """
    options, classifier = objective.options, Classifier(learner)
    assert isinstance(options, Maml)
    support, query = step.parts(images)
    truth = sent(step.query_truth(), images.device)
    own = torch.arange(step.ways, device=images.device).repeat_interleave(step.shots)
    weights = dict(classifier.named_parameters())
    outcomes = []
    for s, q in zip(support, query, strict=True):
        with objective.fabric.autocast():
            adapted = adapt(
                classifier,
                weights,
                s.flatten(0, 1),
                own,
                steps=options.inner_steps,
                lr=options.inner_lr,
                second_order=not options.first_order,
            )
            logits = torch.func.functional_call(classifier, dict(adapted), (q,)).float()
        loss = F.cross_entropy(logits, truth)
        objective.fabric.backward(loss / step.tasks)
        right = (logits.argmax(dim=-1) == truth).float().mean()
        outcomes.append(Outcome(loss.detach(), right))
    losses, accuracies = zip(*outcomes, strict=True)
    return Outcome(torch.stack(losses).mean(), torch.stack(accuracies).mean())


OUTCOMES: Mapping[type, Callable[[Objective, Step, Tensor, EpisodeLearner], Outcome]] = {
    Classifying: classification,
    Maml: meta_learned,
}

"""Model-agnostic meta-learning (Finn et al. 2017): weights that a few gradient steps adapt.

The inner steps go over all weights of backbone and head, but for what is frozen. BN uses the
statistics of the batch, in training and in tests, as in the paper's code: the queries of an episode
are seen together there, so results of MAML are transductive in this respect.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sseg_nase.finetune.learner import EpisodeLearner
from sseg_nase.nets.batch_norm import twice_differentiable
from sseg_nase.ssl.teacher import batch_statistics

Weights = Mapping[str, Tensor]


class Classifier(nn.Module):
    """Images `[B, C, S, S]` to logits `[B, N]`: the backbone and the head in a row."""

    def __init__(self, learner: EpisodeLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, S, S]` → `[B, N]`."""
        return self.learner.head(self.learner.backbone(images))


def adapt(
    classifier: nn.Module,
    weights: Weights,
    images: Tensor,
    truth: Tensor,
    *,
    steps: int,
    lr: float,
    second_order: bool,
) -> Weights:
    """θ' of eq. 1: `steps` times θ ← θ − lr · ∇ L(θ; support), beginning with `weights`.

    `images` `[N·K, C, S, S]` and `truth` `[N·K]` are an episode's support. With `second_order` the
    result is differentiable in `weights` through the gradients too; without, gradients are taken
    for constants (the paper's first-order approximation).
    """
    trained = [name for name, tensor in weights.items() if tensor.requires_grad]
    for _ in range(steps):
        with twice_differentiable(classifier) if second_order else nullcontext():
            loss = F.cross_entropy(functional_call(classifier, dict(weights), (images,)), truth)
        gradients = torch.autograd.grad(
            loss, [weights[name] for name in trained], create_graph=second_order
        )
        stepped = {
            name: weights[name] - lr * gradient
            for name, gradient in zip(trained, gradients, strict=True)
        }
        weights = {**weights, **stepped}
    return weights


def adapted_scores(
    learner: EpisodeLearner, support: Tensor, query: Tensor, *, steps: int, lr: float
) -> Tensor:
    """Logits `[M, N]` of query images `[M, C, S, S]` after `steps` on support `[N, K, C, S, S]`.

    What takes no gradient in `learner` was frozen in training: it is not adapted, and its BN keeps
    its statistics.
    """
    classifier = Classifier(learner)
    ways, shots = support.shape[:2]
    truth = torch.arange(ways, device=support.device).repeat_interleave(shots)
    frozen = [
        norm
        for norm in classifier.modules()
        if isinstance(norm, nn.BatchNorm2d) and not any(p.requires_grad for p in norm.parameters())
    ]
    with batch_statistics(classifier), torch.enable_grad():
        for norm in frozen:
            norm.eval()
        weights: Weights = {
            name: tensor.detach().requires_grad_(tensor.requires_grad)
            for name, tensor in classifier.named_parameters()
        }
        weights = adapt(
            classifier,
            weights,
            support.flatten(0, 1),
            truth,
            steps=steps,
            lr=lr,
            second_order=False,
        )
        with torch.no_grad():
            return functional_call(classifier, dict(weights), (query,)).float()

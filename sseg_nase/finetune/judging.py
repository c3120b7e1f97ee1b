"""Few-shot methods that a fine-tuned head brings with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sseg_nase.config.schema import EvaluationConfig
from sseg_nase.fewshot.methods import METHODS, Method, Sizes
from sseg_nase.finetune.learner import EpisodeLearner, Ridge
from sseg_nase.finetune.maml import adapted_scores
from sseg_nase.hardware.probe import eval_mode
from sseg_nase.nets.heads import RelationHead


def method_of(
    learner: EpisodeLearner | None, evaluation: EvaluationConfig, read: Callable[[Tensor], Tensor]
) -> Method:
    """The method that `evaluation` names, with the head of `learner` where it has one for it.

    MAML adapts the network to the images themselves: it takes their indices for features, float32
    `[n, 1]`, and `read` gives the images `[B, C, S, S]` at such indices `[B]`, normalised.
    """
    head = None if learner is None else learner.head
    if evaluation.method == "relation":
        assert isinstance(head, RelationHead)
        return Method(_judging(head), lambda _: "relation", _of_pairs(head))
    if evaluation.method == "ridge" and isinstance(head, Ridge):
        known = METHODS["ridge"]
        return Method(_judging(head), lambda _: "ridge/learned", known.entries)
    if evaluation.method == "maml":
        assert learner is not None
        return _maml(learner, read)
    return METHODS[evaluation.method]


def _judging(head: torch.nn.Module) -> Callable[[Tensor, Tensor, EvaluationConfig], Tensor]:
    def scores(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
        with eval_mode(head), torch.no_grad():
            scored: Tensor = head(support, query)
        return scored

    return scores


def _of_pairs(head: RelationHead) -> Callable[[Sizes], int]:
    """The first maps of all pairs, before and after the norm, are the most that lives at once."""

    def entries(s: Sizes) -> int:
        pairs = s.queries * s.ways
        maps = head.conv2.in_channels * head.side**2
        return (s.support + s.queries) * (s.features + maps) + 3 * pairs * maps

    return entries


def _maml(learner: EpisodeLearner, read: Callable[[Tensor], Tensor]) -> Method:
    def scores(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
        options = evaluation.maml
        return torch.stack(
            [
                adapted_scores(
                    learner,
                    read(s.reshape(-1)).unflatten(0, s.shape[:2]),
                    read(q.reshape(-1)),
                    steps=options.steps,
                    lr=options.lr,
                )
                for s, q in zip(support[..., 0].long(), query[..., 0].long(), strict=True)
            ]
        )

    # Its queries are normalised together, so their statistics are part of every answer.
    return Method(
        scores,
        lambda e: f"maml/{e.maml.steps}steps",
        lambda s: s.queries * s.ways,
        transductive=True,
    )

"""Few-shot methods that a fine-tuned head brings with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from sseg_nase.config.groups.evaluation import MAML, MATCHING, RELATION, RIDGE
from sseg_nase.config.schema import EvaluationConfig
from sseg_nase.fewshot.methods import METHODS, Method, Sizes, method_named
from sseg_nase.finetune.learner import EpisodeLearner, Ridge
from sseg_nase.finetune.maml import adapted_scores
from sseg_nase.hardware.measuring import eval_mode
from sseg_nase.nets.heads import AttentionMLP, PairHead, RelationHead, RelationMLP

Episode = tuple[Tensor, Tensor]  # support and queries
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def method_of(
    learner: EpisodeLearner | None,
    evaluation: EvaluationConfig,
    read: Callable[[Tensor], Tensor],
    precision: str = "32-true",
) -> Method:
    """The method that `evaluation` names, with the head of `learner` where it has one for it.

    MAML adapts the network to the images themselves: it takes their indices for features, float32
    `[n, 1]`, and `read` gives the images `[B, C, S, S]` at such indices `[B]`, normalised; it
    computes in `precision` (of `hardware`), and on a CPU with an episode per thread.
    """
    head = None if learner is None else learner.head
    if evaluation.method == RELATION:
        if isinstance(head, RelationMLP):
            return Method(_scoring(head), lambda _: "relation/mlp", _of_mlp(head))
        assert isinstance(head, RelationHead)
        return Method(_scoring(head), lambda _: RELATION, _of_pairs(head))
    if evaluation.method == MATCHING and isinstance(head, AttentionMLP):
        return Method(_scoring(head), lambda _: "matching/mlp", _of_mlp(head))
    if evaluation.method == RIDGE and isinstance(head, Ridge):
        known = METHODS[RIDGE]
        return Method(_scoring(head), lambda _: "ridge/learned", known.entries)
    if evaluation.method == MAML:
        assert learner is not None
        return _maml(learner, read, precision)
    return method_named(evaluation.method)


def _scoring(head: torch.nn.Module) -> Callable[[Tensor, Tensor, EvaluationConfig], Tensor]:
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


def _of_mlp(head: PairHead) -> Callable[[Sizes], int]:
    """The first hidden layer of all pairs, before and after its ReLU, and the one behind it."""

    def entries(s: Sizes) -> int:
        against = s.ways if isinstance(head, RelationMLP) else s.support
        once = (s.support + s.queries) * (s.features + head.hidden[0])
        return once + 3 * s.queries * against * head.hidden[0]

    return entries


def _maml(learner: EpisodeLearner, read: Callable[[Tensor], Tensor], precision: str) -> Method:
    half = _HALF.get(precision)

    def scores(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
        options = evaluation.maml

        def adapted(network: EpisodeLearner, episode: Episode) -> Tensor:
            s, q = episode
            images = read(s.reshape(-1)).unflatten(0, s.shape[:2]), read(q.reshape(-1))
            with torch.autocast(s.device.type, half, enabled=half is not None):
                return adapted_scores(network, *images, steps=options.steps, lr=options.lr)

        episodes = list(zip(support[..., 0].long(), query[..., 0].long(), strict=True))
        if support.device.type == "cpu" and torch.get_num_threads() > 1:
            return torch.stack(_side_by_side(adapted, learner, episodes))
        return torch.stack([adapted(learner, episode) for episode in episodes])

    # Its queries are normalised together, so their statistics are part of every answer.
    return Method(
        scores,
        lambda e: f"maml/{e.maml.steps}steps",
        lambda s: s.queries * s.ways,
        transductive=True,
    )


def _side_by_side(
    work: Callable[[EpisodeLearner, Episode], Tensor],
    learner: EpisodeLearner,
    episodes: Sequence[Episode],
) -> list[Tensor]:
    """`work(learner, episode)` for each, by as many threads as torch may use, which compute alone.

    Small operations gain little from a second thread. Every thread has a copy of `learner`, since
    weights are put into it.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(episodes))
    idle: SimpleQueue[EpisodeLearner] = SimpleQueue()
    for _ in range(workers):
        idle.put(copy.deepcopy(learner))

    def alone(episode: Episode) -> Tensor:
        own = idle.get()
        try:
            return work(own, episode)
        finally:
            idle.put(own)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(alone, episodes))
    finally:
        torch.set_num_threads(threads)

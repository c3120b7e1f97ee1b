"""Few-shot evaluation: every image embedded once, all episodes in a few tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.config.options import filled
from sseg_nase.config.schema import EvaluationConfig, ViewsConfig
from sseg_nase.data.episodes import EpisodeList
from sseg_nase.data.prefetch import sent
from sseg_nase.data.random import derive
from sseg_nase.data.views import apply_views, draw_parameters
from sseg_nase.errors import UserError
from sseg_nase.fewshot.classifiers import NORMALIZATIONS
from sseg_nase.fewshot.methods import Method, Sizes
from sseg_nase.finite import not_finite
from sseg_nase.hardware.measuring import eval_mode

SMALLEST_SPREAD = 1e-6  # of embeddings that differ, relative to their length; less is rounding


class NotFiniteError(UserError):
    """Embeddings or scores that no accuracy can be taken from."""


class Images(Protocol):
    """What is read of an ImageStore."""

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the images at `indices` as uint8 `[B, 3, H, W]`."""


@dataclass(frozen=True)
class Evaluated:
    """How a method did on an episode list.

    `accuracies` of the episodes, float64 `[E]` in [0, 1]; `top_k` the share of queries, by k, whose
    class is among the k highest; `confusion` `[C, C]` int64 how often a query of the row's class
    was taken for the column's, over all episodes.
    """

    accuracies: np.ndarray
    top_k: Mapping[int, float]
    confusion: np.ndarray


def embed(
    network: nn.Module,
    store: Images,
    *,
    batch_size: int,
    device: torch.device | str,
    preprocess: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the embeddings float32 `[n, D]` of all images of `store`, in order, on `device`.

    `network` gives `[B, D]` and lies on `device`; it runs in eval mode (BN uses its running
    statistics) and without gradients, and gets its mode back. `preprocess` turns uint8
    `[B, 3, H, W]` on `device` into what the network takes.
    """

    def images(indices: np.ndarray) -> Tensor:
        return preprocess(sent(store.batch(indices), torch.device(device)))

    return _embedded(network, images, np.arange(len(store)), batch_size)


def embed_views(
    network: nn.Module,
    store: Images,
    chosen: np.ndarray,
    views: ViewsConfig,
    *,
    count: int,
    image_size: int,
    seed: int,
    batch_size: int,
    device: torch.device | str,
) -> Tensor:
    """Return the mean embeddings float32 `[n, D]` of `count` random views of each `chosen` image.

    An image's views are a function of (views, count, seed) and its index in `store`, whichever
    others are chosen and however they are batched.
    """
    height, width = store.batch(chosen[:1]).shape[2:]
    n, seed = len(store), derive(seed, "support")
    drawn = draw_parameters(count * n, views, height=height, width=width, seed=seed)

    def images(view: int, indices: np.ndarray) -> Tensor:
        batch = sent(store.batch(indices), torch.device(device))
        parameters = drawn[torch.from_numpy(view * n + indices)]
        return apply_views(batch, parameters, image_size=image_size)[0]

    embedded = [
        _embedded(network, partial(images, view), chosen, batch_size) for view in range(count)
    ]
    return torch.stack(embedded).mean(dim=0)


def evaluate_episodes(
    features: Tensor,
    episodes: EpisodeList,
    method: Method,
    evaluation: EvaluationConfig,
    *,
    mean: Tensor | None,
    classes: int,
    support_features: Tensor | None = None,
) -> Evaluated:
    """Evaluate `method` on every episode, with the options of `evaluation`.

    `features` `[n, D]` are the embeddings of the store, of `classes` classes, that the episodes
    index, and `support_features` those that its images have in a support, where they differ; `mean`
    `[D]` is that of the base split (for `normalize="cl2n"`). Episodes are taken as many at a time
    as `memory_mb` MiB hold. Raises `NotFiniteError` where features or scores are not finite.
    """
    features = normalized(features, mean, evaluation)
    of_support = features
    if support_features is not None:
        of_support = normalized(support_features, mean, evaluation)
    per_chunk = _episodes_per_chunk(features, episodes, method, evaluation.memory_mb)
    support = torch.tensor(episodes.support, device=features.device)
    query = torch.tensor(episodes.query, device=features.device).flatten(1)
    labels = torch.tensor(episodes.labels, device=features.device)
    chunks = zip(*(x.split(per_chunk) for x in (support, query, labels)), strict=True)
    predicted, ranks = [], []
    unfit = torch.zeros(())  # read once: every look waits for the device
    with torch.no_grad():
        for s, q, truth in chunks:
            scores = method.scores(of_support[s], features[q], evaluation)
            # The highest is NaN where any score is; −∞ is a probability of 0, unless all are.
            unfit = unfit + (~scores.amax(dim=-1).isfinite()).sum()
            predicted.append(scores.argmax(dim=-1))
            if evaluation.top_k:
                ranks.append(_ranks(scores, truth))
    if unfit.item():
        raise NotFiniteError(
            f"the scores of {int(unfit.item()):,} queries by evaluation.method={evaluation.method} "
            f"are not finite{_with(evaluation)}"
        )
    taken = torch.cat(predicted).cpu().numpy()
    rank = torch.cat(ranks).cpu().numpy() if ranks else None
    return Evaluated(
        accuracies=(taken == episodes.labels).sum(axis=1) / taken.shape[1],
        top_k={} if rank is None else {k: float((rank < k).mean()) for k in evaluation.top_k},
        confusion=_confusion(episodes, taken, classes),
    )


def _with(evaluation: EvaluationConfig) -> str:
    """The options of the method, which may be what is wrong."""
    name = evaluation.method
    options = getattr(evaluation, name, None)
    if options is None:
        return ""
    given = (f"evaluation.{name}.{key}={value}" for key, value in vars(options).items())
    return f" (with {', '.join(given)})"


def normalized(features: Tensor, mean: Tensor | None, evaluation: EvaluationConfig) -> Tensor:
    """`features` `[n, D]` as `evaluation.normalize` has them; raises `NotFiniteError`.

    Also where they are finite but too long for their length to be.
    """
    tensors = {"embeddings": features} if mean is None else {"mean": mean, "embeddings": features}
    if not_finite(tensors):
        count = int((~features.isfinite().all(dim=1)).sum())
        raise NotFiniteError(
            f"the embeddings of {count:,} of {len(features):,} images are not finite"
            if count
            else "the mean embedding of the base split is not finite"
        )
    if evaluation.normalize == "none":
        return features
    centred = features if mean is None else features - mean
    lengths = torch.linalg.vector_norm(centred, dim=1)
    if count := int((~lengths.isfinite()).sum()):
        raise NotFiniteError(
            f"the embeddings of {count:,} of {len(features):,} images are so large that their "
            "lengths are not finite"
        )
    return NORMALIZATIONS[evaluation.normalize](features, mean)


def doubts(
    embedded: Tensor | None,
    features: Tensor | None,
    accuracies: np.ndarray,
    evaluation: EvaluationConfig,
) -> list[str]:
    """What speaks against an accuracy that is a figure: a sentence each, mostly none.

    `embedded` `[n, D]` by the network and `features` `[n, D]` as `normalized`, where the method
    looks at them; `accuracies` `[E]` of the episodes in [0, 1].
    """
    found = []
    if embedded is not None and features is not None and len(features) > 1:
        equal = spread_doubt(embedded)
        zero = int((features == 0).all(dim=1).sum())
        if equal is not None:
            found.append(equal)
        elif zero and (evaluation.normalize != "none" or evaluation.metric == "cosine"):
            found.append(f"{zero:,} of {len(features):,} embeddings are zero, without a direction")
    mean = float(accuracies.mean())
    if len(accuracies) > 1 and np.ptp(accuracies) == 0 and mean < 1:
        chance = 100 / filled(evaluation.ways, "evaluation.ways")
        found.append(
            f"each of the {len(accuracies):,} episodes has the same accuracy of {100 * mean:.2f} %"
            f" (chance is {chance:.2f} %)"
        )
    return found


def spread_doubt(embedded: Tensor) -> str | None:
    """Say where all embeddings `[n, D]` of a network are equal but for rounding."""
    exact = embedded.double()  # the squares of what is finite are finite
    spread = torch.linalg.vector_norm(exact - exact.mean(dim=0))
    if len(exact) > 1 and spread <= SMALLEST_SPREAD * torch.linalg.vector_norm(exact):
        return "all embeddings are equal: the network tells no image from another"
    return None


def _embedded(
    network: nn.Module,
    images: Callable[[np.ndarray], Tensor],
    chosen: np.ndarray,
    batch_size: int,
) -> Tensor:
    assert len(chosen) > 0
    with eval_mode(network), torch.no_grad():
        return torch.cat(
            [
                network(images(chosen[start : start + batch_size])).float()
                for start in range(0, len(chosen), batch_size)
            ]
        )


def _episodes_per_chunk(
    features: Tensor, episodes: EpisodeList, method: Method, memory_mb: float
) -> int:
    """At least 1."""
    queries = episodes.ways * episodes.queries
    sizes = Sizes(episodes.ways, episodes.shots, queries, features.shape[1])
    return max(1, int(memory_mb * 2**20 / (method.entries(sizes) * features.element_size())))


def _ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """How many classes come before the true one `[E, M]`; of equal ones the first comes first."""
    own = scores.gather(-1, truth[..., None])
    earlier = torch.arange(scores.shape[-1], device=scores.device) < truth[..., None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=-1)


def _confusion(episodes: EpisodeList, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts `[C, C]` of (true, predicted) class, from the ways `[E, N·Q]` that were predicted."""
    true, taken = (
        np.take_along_axis(episodes.classes, ways, axis=1) for ways in (episodes.labels, predicted)
    )
    pairs = (true * classes + taken).reshape(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

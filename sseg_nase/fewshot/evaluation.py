"""Few-shot evaluation: every image embedded once, all episodes in a few tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.data.episodes import EpisodeList
from sseg_nase.fewshot.classifiers import NORMALIZATIONS, prototype_scores
from sseg_nase.hardware.probe import eval_mode


class Images(Protocol):
    """What is read of an ImageStore."""

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the images at `indices` as uint8 `[B, 3, H, W]`."""


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
    assert len(store) > 0
    batches = []
    with eval_mode(network), torch.no_grad():
        for start in range(0, len(store), batch_size):
            indices = np.arange(start, min(start + batch_size, len(store)))
            images = store.batch(indices).to(device, non_blocking=True)
            batches.append(network(preprocess(images)).float())
    return torch.cat(batches)


def evaluate_episodes(
    features: Tensor,
    episodes: EpisodeList,
    *,
    mean: Tensor | None,
    normalize: str,
    metric: str,
    memory_mb: float,
) -> np.ndarray:
    """Return the accuracy of every episode, float64 `[E]` in [0, 1], with the nearest prototype.

    `features` `[n, D]` are the embeddings of the store that the episodes index; `mean` `[D]` is
    that of the base split (for `normalize="cl2n"`). Episodes are taken as many at a time as
    `memory_mb` MiB hold.
    """
    features = NORMALIZATIONS[normalize](features, mean)
    per_chunk = _episodes_per_chunk(features, episodes, memory_mb)
    support = torch.tensor(episodes.support, device=features.device)
    query = torch.tensor(episodes.query, device=features.device).flatten(1)
    truth = torch.arange(episodes.ways, device=features.device).repeat_interleave(episodes.queries)
    correct = []
    for s, q in zip(support.split(per_chunk), query.split(per_chunk), strict=True):
        predicted = prototype_scores(features[s], features[q], metric).argmax(dim=-1)
        correct.append((predicted == truth).sum(dim=-1))
    return torch.cat(correct).cpu().numpy() / len(truth)


def _episodes_per_chunk(features: Tensor, episodes: EpisodeList, memory_mb: float) -> int:
    """At least 1. An episode holds its features twice (gathered and centred) and the scores."""
    ways, queries = episodes.ways, episodes.ways * episodes.queries
    gathered = (ways * episodes.shots + queries + ways) * features.shape[1]
    entries = 2 * gathered + 4 * queries * ways
    return max(1, int(memory_mb * 2**20 / (entries * features.element_size())))

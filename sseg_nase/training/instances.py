"""Few-shot episodes without labels: every image is a class of its own.

One view of an image is its support, another one its query (Khodadadeh et al. 2019, UMTRA). What a
network makes of them is a 5-way 1-shot accuracy that looks at no label and at no class of val or
test, so it may be taken while a network is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sseg_nase.data.random import derive

WAYS, EPISODES = 5, 600


def instance_accuracies(support: Tensor, query: Tensor, episodes: int, *, seed: int) -> Tensor:
    """Accuracy in percent of `episodes` episodes, float64 `[episodes]` on the CPU.

    `support` and `query` `[B, D]`: embeddings of two views of the same B images, of which every
    episode has `WAYS` (or all of fewer), sampled by `seed`. The nearest support by cosine is taken,
    after the mean of both is subtracted. NaN where an embedding is not finite.
    """
    both = torch.stack((support, query)).double().cpu()
    if not both.isfinite().all():
        return torch.full((episodes,), float("nan"), dtype=torch.float64)
    generator = torch.Generator().manual_seed(derive(seed, "episodes"))
    images = len(support)
    drawn = torch.rand((episodes, images), generator=generator).argsort(1)[:, :WAYS]
    directions = F.normalize(both - both.mean((0, 1)), dim=-1)
    scores = directions[1][drawn] @ directions[0][drawn].mT
    right = scores.argmax(-1) == torch.arange(drawn.shape[1])
    return 100 * right.double().mean(1)

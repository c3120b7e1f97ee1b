"""Few-shot classifiers on frozen embeddings, batched over episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float


def cl2n(
    features: Float[Tensor, "*E D"], mean: Float[Tensor, " D"] | None
) -> Float[Tensor, "*E D"]:
    """(f − mean) / ‖f − mean‖₂ for features `[..., D]`; SimpleShot, Wang et al. 2019.

    `mean` `[D]` is that of the base split, never of the classes under test.
    """
    assert mean is not None, "CL2N needs the mean of the base split"
    return F.normalize(features - mean, dim=-1)


def l2n(
    features: Float[Tensor, "*E D"], mean: Float[Tensor, " D"] | None = None
) -> Float[Tensor, "*E D"]:
    """f / ‖f‖₂ for features `[..., D]`."""
    return F.normalize(features, dim=-1)


def none(
    features: Float[Tensor, "*E D"], mean: Float[Tensor, " D"] | None = None
) -> Float[Tensor, "*E D"]:
    """Features as they are."""
    return features


NORMALIZATIONS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "cl2n": cl2n,
    "l2n": l2n,
    "none": none,
}


def cosine(
    prototypes: Float[Tensor, "*E N D"], query: Float[Tensor, "*E M D"]
) -> Float[Tensor, "*E M N"]:
    """Cosine similarity of `[E, N, D]` and `[E, M, D]`: `[E, M, N]` in [−1, 1]."""
    inner = query @ F.normalize(prototypes, dim=-1).transpose(-1, -2)
    return inner / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp_min(1e-12)


def euclidean(
    prototypes: Float[Tensor, "*E N D"], query: Float[Tensor, "*E M D"]
) -> Float[Tensor, "*E M N"]:
    """Negative squared distance of `[E, N, D]` and `[E, M, D]`: `[E, M, N]`, ≤ 0.

    ‖q − p‖² = ‖q‖² + ‖p‖² − 2q·p about the centre of the prototypes, where it cancels least.
    """
    centre = prototypes.mean(dim=-2, keepdim=True)
    prototypes, query = prototypes - centre, query - centre
    # The norms by `vector_norm` and the 2 on the small product: no further copy of the queries.
    q, p = (torch.linalg.vector_norm(x, dim=-1).square() for x in (query, prototypes))
    inner = query @ prototypes.transpose(-1, -2)
    return (2 * inner - q[..., :, None] - p[..., None, :]).clamp_max(0)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "euclidean": euclidean,
}


def prototype_scores(
    support: Float[Tensor, "*E N K D"], query: Float[Tensor, "*E M D"], metric: str
) -> Float[Tensor, "*E M N"]:
    """Score support `[E, N, K, D]` against query `[E, M, D]`: `[E, M, N]`, the nearest highest.

    A class's prototype is the mean of its support (Snell et al. 2017, eq. 1).
    """
    return METRICS[metric](support.mean(dim=-2), query)


def matching_scores(
    support: Float[Tensor, "*E N K D"], query: Float[Tensor, "*E M D"], temperature: float | Tensor
) -> Float[Tensor, "*E M N"]:
    """Log-probabilities `[E, M, N]` of query `[E, M, D]` by attention to support `[E, N, K, D]`.

    P(y|q) = Σᵢ a(q, xᵢ) yᵢ with a the softmax of cos(q, xᵢ) / `temperature` over the whole support
    (Vinyals et al. 2016, eq. 1).
    """
    ways, shots = support.shape[-3:-1]
    attention = (cosine(support.flatten(-3, -2), query) / temperature).log_softmax(dim=-1)
    return attention.unflatten(-1, (ways, shots)).logsumexp(dim=-1)

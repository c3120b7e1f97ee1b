"""PT-MAP: queries and classes matched by optimal transport (Hu, Gripon and Pateux 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

_OFFSET = 1e-6  # PT-MAP's, where a feature is zero


def power_transform(features: Float[Tensor, "*E D"], power: float) -> Float[Tensor, "*E D"]:
    """sign(f)·(|f| + 10⁻⁶)^`power` for features `[..., D]`, scaled to length 1 (PT-MAP, eq. 1)."""
    return F.normalize(features.sign() * (features.abs() + _OFFSET) ** power, dim=-1)


def sinkhorn(
    cost: Float[Tensor, "E M N"], start: Float64[Tensor, "E N"], *, entropy: float, scalings: int
) -> tuple[Float64[Tensor, "E M N"], Float64[Tensor, "E N"]]:
    """Assign M queries to N classes of equal shares at `cost` `[E, M, N]`.

    The plan `[E, M, N]`, float64, minimises ⟨plan, cost⟩ − `entropy` · H(plan) where every query
    has mass 1, exactly, and every class M/N, as nearly as `scalings` of both get it (Cuturi 2013).
    `start` `[E, N]`, float64, is where the scaling of the classes starts; as it ended is returned
    too, for the next costs. Costs of a query may differ by up to 600 · `entropy`.
    """
    M, N = cost.shape[-2:]
    nearest = cost.amin(dim=-1, keepdim=True)
    kernel = torch.exp((nearest - cost).double() / entropy)
    columns = start
    for _ in range(scalings):
        rows = 1 / (kernel @ columns[..., None])
        columns = M / N / (kernel.mT @ rows)[..., 0]
    plan = kernel * columns[..., None, :]
    return plan / plan.sum(dim=-1, keepdim=True), columns


def transport_scores(
    support: Float[Tensor, "E N K D"],
    query: Float[Tensor, "E M D"],
    *,
    uniform: bool,
    power: float,
    entropy: float,
    scalings: int,
    updates: int,
    update_rate: float,
) -> Float[Tensor, "E M N"]:
    """Log-probabilities `[E, M, N]` of query `[E, M, D]`, all together; support `[E, N, K, D]`.

    Queries, power-transformed, centred and of length 1, are assigned to class centres; `updates`
    times the centres move by `update_rate` towards the mean of what is assigned to them, support
    included (PT-MAP, algorithm 1). `uniform`: the classes have equal shares of the queries, as
    published. Without it the shares are not known: a query's assignment is a softmax, and it is
    centred on the support's mean, for that of the queries lies towards the classes that have most.
    """
    E, N, K, _ = support.shape
    support, query = power_transform(support.flatten(-3, -2), power), power_transform(query, power)
    middle = support.mean(dim=-2, keepdim=True)
    support = F.normalize(support - middle, dim=-1)
    middle = query.mean(dim=-2, keepdim=True) if uniform else middle
    query = F.normalize(query - middle, dim=-1)
    of_support = support.unflatten(-2, (N, K)).sum(dim=-2)
    centres = of_support / K
    columns = torch.ones(E, N, dtype=torch.float64, device=query.device)

    def assigned() -> Tensor:
        nonlocal columns
        # ‖q − c‖² without ‖q‖², which is the same for every class.
        cost = centres.square().sum(dim=-1)[..., None, :] - 2 * query @ centres.mT
        if not uniform:
            return (-cost / entropy).softmax(dim=-1)
        plan, columns = sinkhorn(cost, columns, entropy=entropy, scalings=scalings)
        return plan.to(query.dtype)

    for _ in range(updates):
        share = assigned().mT
        mean = (of_support + share @ query) / (K + share.sum(dim=-1, keepdim=True))
        centres = centres + update_rate * (mean - centres)
    # The smallest positive number where nothing at all is assigned.
    return assigned().clamp_min(torch.finfo(query.dtype).tiny).log()

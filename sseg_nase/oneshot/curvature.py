"""The largest eigenvalue of the Hessian of a loss in α: it rises before DARTS collapses.

Power iteration on products with the Hessian, each of which is a difference of two gradients:
H v ≈ (∇L(α + ε v) − ∇L(α − ε v)) / (2 ε) (RobustDARTS, Zela et al., ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sseg_nase.oneshot.bilevel import Loss

STEP = 1e-2  # ε, for v of length 1: α is of the order of 1
ITERATIONS = 20
SETTLED = 1e-3  # relative change of the eigenvalue at which it stops


def largest_eigenvalue(
    alphas: Sequence[Tensor],
    loss: Loss,
    generator: torch.Generator,
    *,
    iterations: int = ITERATIONS,
    step: float = STEP,
) -> float:
    """The eigenvalue that is largest in size of the Hessian of `loss` in all `alphas` together.

    The alphas are bit for bit what they were. 0 where the loss is linear in them.
    """
    kept = [alpha.detach().clone() for alpha in alphas]
    shapes, sizes = [a.shape for a in alphas], [a.numel() for a in alphas]
    v = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    v /= v.norm()
    found = 0.0

    def moved(direction: Tensor, sign: int) -> Tensor:
        parts = direction.split(sizes)
        with torch.no_grad():
            for alpha, before, part, shape in zip(alphas, kept, parts, shapes, strict=True):
                alpha.copy_(before + sign * step * part.view(shape).to(before))
        gradients = torch.autograd.grad(loss(), list(alphas), allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(a) if g is None else g).double().flatten().cpu()
                for a, g in zip(alphas, gradients, strict=True)
            ]
        )

    try:
        for _ in range(iterations):
            product = (moved(v, 1) - moved(v, -1)) / (2 * step)
            before, found = found, float(v @ product)
            length = product.norm()
            if length == 0:
                return 0.0
            v = product / length
            if abs(found - before) <= SETTLED * abs(found):
                break
    finally:
        with torch.no_grad():
            for alpha, known in zip(alphas, kept, strict=True):
                alpha.copy_(known)
    return found


def rising(values: Sequence[float], ratio: float, window: int) -> bool:
    """Whether the mean eigenvalue `window` epochs ago is less than `ratio` of that of now.

    Each mean is over `window` epochs, or as many as there were. Not before 2 `window` epochs.
    """
    if len(values) < 2 * window:
        return False
    now, then = values[-window:], values[-2 * window : -window]
    means = [sum(abs(v) for v in part) / window for part in (then, now)]
    return means[0] < ratio * means[1]

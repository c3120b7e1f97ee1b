"""Self-supervised objectives, as pure functions of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return SimCLR's loss for two views of the same images, `[B, D]` each: a scalar, ≥ 0.

    Chen et al. 2020, eq. 1: ℓ(i, j) = −log exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ), with s the cosine
    similarity and j the other view of image i, averaged over all 2B views. At least in float32,
    under autocast too.
    """
    assert z1.shape == z2.shape
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(_at_least_float32(torch.cat((z1, z2))), dim=1)
        views = len(z)
        itself = torch.eye(views, dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
        other_view = torch.arange(views, device=z.device).roll(views // 2)
        return F.cross_entropy(similarity, other_view)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return MSE(student, teacher) over all entries of two `[B, D]`: a scalar, ≥ 0.

    No gradient reaches the teacher. At least in float32, under autocast too.
    """
    assert student.shape == teacher.shape
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(_at_least_float32(student), _at_least_float32(teacher.detach()))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""Self-supervised objectives, as pure functions of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

STANDARD_EPS = 1e-5  # under the root of a variance, as in BN


def nt_xent(
    z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"], temperature: float
) -> Float[Tensor, ""]:
    """Return SimCLR's loss for two views of the same images, `[B, D]` each: a scalar, ≥ 0.

    Chen et al. 2020, eq. 1: ℓ(i, j) = −log exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ), with s the cosine
    similarity and j the other view of image i, averaged over all 2B views. At least in float32,
    under autocast too.
    """
    assert z1.shape == z2.shape
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(at_least_float32(torch.cat((z1, z2))), dim=1)
        views = len(z)
        itself = torch.eye(views, dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
        other_view = torch.arange(views, device=z.device).roll(views // 2)
        return F.cross_entropy(similarity, other_view)


def byol(prediction: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return BYOL's loss for one direction, `[B, D]` each: a scalar in [0, 4].

    Grill et al. 2020, eq. 2: ‖q̄ − z̄'‖² = 2 − 2 · ⟨q, z'⟩ / (‖q‖ · ‖z'‖), with the online network's
    prediction q of one view and the target network's projection z' of the other, averaged over the
    images. No gradient reaches the target. At least in float32, under autocast too.
    """
    assert prediction.shape == target.shape
    with torch.autocast(prediction.device.type, enabled=False):
        q, z = at_least_float32(prediction), at_least_float32(target.detach())
        return (2 - 2 * F.cosine_similarity(q, z, dim=1)).mean()


def prototype_pairs(z: Float[Tensor, "V B D"], temperature: float) -> Float[Tensor, ""]:
    """Return the loss of prototype pairs for V ≥ 2 views of the same images: a scalar, ≥ 0.

    `z` `[V, B, D]`. Contrastive prototypical learning (CPN): view v of image i is told from those
    of the other images of the batch by −log exp(−d(z_vi, p_vi)/τ) / Σ_j exp(−d(z_vi, p_vj)/τ), with
    d the squared Euclidean distance and p_vj the mean of image j's other views, averaged over all
    V · B views. The paper's Wasserstein confidence penalty is no part of it. At least in float32,
    under autocast too.
    """
    V, B, _ = z.shape
    assert V > 1
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_float32(z)
        prototypes = (z.sum(0) - z) / (V - 1)
        # ‖z‖² is the same for all prototypes: softmax does not see it.
        scores = 2 * z @ prototypes.transpose(1, 2) - prototypes.square().sum(2)[:, None]
        own = torch.arange(B, device=z.device).repeat(V)
        return F.cross_entropy(scores.flatten(0, 1) / temperature, own)


def similarity_distillation(
    features: Float[Tensor, "B D"], aims: Float[Tensor, "B D_aims"], temperature: float
) -> Float[Tensor, ""]:
    """Return how far the similarities among images, `[B, D]`, are from those in `aims`.

    Mean over images i of KL(p_i ‖ q_i), with q_i the softmax over all other images j of the cosines
    s_ij / τ of `features`, and p_i that of `aims` (SEED, Fang et al. 2021, eq. 3, with the images
    of the batch for its queue): a scalar, ≥ 0. The two may differ in length. No gradient reaches
    `aims`. At least in float32, under autocast too.
    """
    assert len(features) == len(aims)
    with torch.autocast(features.device.type, enabled=False):
        found, wanted = (
            _others(F.normalize(at_least_float32(z), dim=1), temperature)
            for z in (features, aims.detach())
        )
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _others(z: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, "B B-1"]:
    """Log-softmax of every row's cosines to the other rows, `[B, B - 1]`."""
    count = len(z)
    similarity = (z @ z.T / temperature).flatten()[1:]
    return similarity.view(count - 1, count + 1)[:, :-1].reshape(count, count - 1).log_softmax(1)


def barlow_twins(
    z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"], redundancy_weight: float
) -> Float[Tensor, ""]:
    """Return the loss of Barlow Twins for two views of the same images: a scalar, ≥ 0.

    `[B, D]` each. Zbontar et al. 2021, eq. 1: Σ_i (1 − C_ii)² + λ · Σ_i Σ_{j≠i} C_ij², with
    C_ij = Σ_b z1_bi · z2_bj / B of projections standardised over the batch (biased variances, as
    BN has them). At least in float32, under autocast too.
    """
    assert z1.shape == z2.shape
    with torch.autocast(z1.device.type, enabled=False):
        a, b = (_standardized(at_least_float32(z)) for z in (z1, z2))
        correlation = a.T @ b / len(a)
        own = correlation.diagonal()
        redundancy = correlation.square().sum() - own.square().sum()
        return (1 - own).square().sum() + redundancy_weight * redundancy


def dino(
    student: Float[Tensor, "V B P"],
    teacher: Float[Tensor, "G B P"],
    centre: Float[Tensor, " P"],
    *,
    temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Return DINO's loss: a scalar, ≥ 0.

    `student` `[V, B, P]`: logits of V views, first those of the G views that `teacher` `[G, B, P]`
    has seen, in the same order; `centre` `[P]`. Caron et al. 2021, eq. 3 and section 3.1: the cross
    entropy −Σ_k P_t(x)_k · log P_s(x')_k with P_t = softmax((t − c)/τ_t) and P_s = softmax(s/τ_s),
    averaged over all pairs of a teacher's view x and another view x', and over the images. No
    gradient reaches the teacher. At least in float32, under autocast too.
    """
    (V, B, P), G = student.shape, len(teacher)
    assert teacher.shape[1:] == (B, P)
    assert V > 1
    with torch.autocast(student.device.type, enabled=False):
        aims = (at_least_float32(teacher.detach()) - centre.detach()) / teacher_temperature
        said = F.log_softmax(at_least_float32(student) / temperature, dim=2)
        crossed = -aims.softmax(dim=2).flatten(1) @ said.flatten(1).T / B
        same = torch.eye(G, V, dtype=torch.bool, device=crossed.device)
        # Not an index: how many entries a mask has, a GPU would have to be asked.
        return crossed.masked_fill(same, 0).sum() / (G * V - G)


@torch.no_grad()
def moved_centre(
    centre: Float[Tensor, " P"], teacher: Float[Tensor, " P"], momentum: float
) -> Float[Tensor, " P"]:
    """Return DINO's next centre `[P]` from the teacher's mean logits of a batch `[P]`.

    Caron et al. 2021, eq. 4: c ← m · c + (1 − m) · mean of g_t(x). In the type of `centre`.
    """
    assert centre.shape == teacher.shape
    return torch.lerp(centre, teacher.to(centre.dtype), 1 - momentum)


def distillation(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return MSE(student, teacher) over all entries of two `[B, D]`: a scalar, ≥ 0.

    No gradient reaches the teacher. At least in float32, under autocast too.
    """
    assert student.shape == teacher.shape
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(at_least_float32(student), at_least_float32(teacher.detach()))


def _standardized(z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, 0, correction=0)
    return (z - mean) * torch.rsqrt(variance + STANDARD_EPS)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is where it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

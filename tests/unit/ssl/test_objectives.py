from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sseg_nase.ssl.objectives import (
    STANDARD_EPS,
    barlow_twins,
    byol,
    dino,
    distillation,
    moved_centre,
    nt_xent,
    prototype_pairs,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1 of the paper, written out."""
    B = len(z1)
    z = [*z1, *z2]

    def s(i: int, k: int) -> torch.Tensor:
        return (z[i] @ z[k]) / (z[i].norm() * z[k].norm())

    total = torch.zeros((), dtype=z1.dtype)
    for i in range(2 * B):
        j = (i + B) % (2 * B)
        others = sum(torch.exp(s(i, k) / temperature) for k in range(2 * B) if k != i)
        total = total - torch.log(torch.exp(s(i, j) / temperature) / others)
    return total / (2 * B)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("B", "D"), [(2, 3), (5, 8), (9, 4)])
def test_nt_xent_equals_the_paper_with_gradients(B: int, D: int, temperature: float) -> None:
    z1, z2 = normal(B, D).requires_grad_(), normal(B, D, seed=1).requires_grad_()
    ours, reference = nt_xent(z1, z2, temperature), slow_nt_xent(z1, z2, temperature)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-12)
    gradients = torch.autograd.grad(ours, (z1, z2))
    expected = torch.autograd.grad(reference, (z1, z2))
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_nt_xent_of_views_all_alike_is_log_of_the_choices() -> None:
    z = torch.ones(4, 3)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(7))


def test_nt_xent_is_finite_at_a_temperature_where_exp_overflows() -> None:
    z = normal(8, 16, dtype=torch.float32).requires_grad_()
    loss = nt_xent(z, -z, 1e-3)
    loss.backward()
    assert loss.item() > 500
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_dead_projection_does_not_give_nan() -> None:
    z = torch.zeros(4, 8, requires_grad=True)
    loss = nt_xent(z, z, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7))
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    z1, z2 = normal(16, 8).to(dtype), normal(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contrastive, mse = nt_xent(z1, z2, 0.1), distillation(z1, z2)
    assert contrastive.dtype == mse.dtype == torch.float32
    exact = slow_nt_xent(z1.double(), z2.double(), 0.1)
    assert contrastive.item() == pytest.approx(exact.item(), rel=1e-5)
    assert mse.item() == pytest.approx(F.mse_loss(z1.double(), z2.double()).item(), rel=1e-5)


def test_distillation_equals_a_slow_loop() -> None:
    student, teacher = normal(4, 6), normal(4, 6, seed=1)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (s - t) ** 2
    assert distillation(student, teacher).item() == pytest.approx(total / 24, abs=1e-12)


def test_distillation_teaches_the_student_alone() -> None:
    student, teacher = normal(4, 6).requires_grad_(), normal(4, 6, seed=1).requires_grad_()
    distillation(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.allclose(student.grad, 2 * (student - teacher).detach() / 24)


def test_shapes_that_would_broadcast_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        distillation(normal(4, 6), normal(1, 6))
    with pytest.raises(AssertionError):
        nt_xent(normal(4, 6), normal(3, 6), 0.5)


# -- BYOL ------------------------------------------------------------------------------------------


def slow_byol(q: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Eq. 2 of the paper before its second form: squared distance of unit vectors."""
    distances = [((a / a.norm() - b / b.norm()) ** 2).sum() for a, b in zip(q, z, strict=True)]
    return torch.stack(distances).mean()


@pytest.mark.parametrize(("B", "D"), [(1, 3), (5, 8)])
def test_byol_equals_the_paper_with_gradients(B: int, D: int) -> None:
    q, z = normal(B, D).requires_grad_(), normal(B, D, seed=1)
    ours, reference = byol(q, z), slow_byol(q, z)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-12)
    (found,), (expected,) = (torch.autograd.grad(loss, q) for loss in (ours, reference))
    assert torch.allclose(found, expected, atol=1e-12)


def test_byol_is_0_for_what_points_alike_and_4_for_opposites() -> None:
    z = normal(4, 6)
    assert byol(3 * z, z).item() == pytest.approx(0, abs=1e-12)
    assert byol(-z, 2 * z).item() == pytest.approx(4)


def test_no_gradient_reaches_byols_target() -> None:
    q, z = normal(4, 6).requires_grad_(), normal(4, 6, seed=1).requires_grad_()
    byol(q, z).backward()
    assert q.grad is not None
    assert z.grad is None


# -- prototype pairs -------------------------------------------------------------------------------


def slow_prototype_pairs(z: torch.Tensor, temperature: float) -> torch.Tensor:
    V, B, _ = z.shape
    total = torch.zeros((), dtype=z.dtype)
    for v in range(V):
        others = [u for u in range(V) if u != v]
        prototypes = [torch.stack([z[u, j] for u in others]).mean(0) for j in range(B)]
        for i in range(B):
            away = [((z[v, i] - p) ** 2).sum() / temperature for p in prototypes]
            total = total - torch.log(torch.exp(-away[i]) / sum(torch.exp(-d) for d in away))
    return total / (V * B)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize(("V", "B", "D"), [(2, 3, 4), (4, 5, 3), (3, 1, 2)])
def test_prototype_pairs_equal_a_slow_loop(V: int, B: int, D: int, temperature: float) -> None:
    z = normal(V, B, D).requires_grad_()
    ours, reference = prototype_pairs(z, temperature), slow_prototype_pairs(z, temperature)
    assert ours.item() == pytest.approx(reference.item(), abs=1e-12)
    (found,), (expected,) = (torch.autograd.grad(loss, z) for loss in (ours, reference))
    assert torch.allclose(found, expected, atol=1e-12)


def test_prototype_pairs_of_images_all_alike_are_log_of_the_batch() -> None:
    assert prototype_pairs(torch.ones(4, 6, 3), 5.0).item() == pytest.approx(math.log(6))


# -- Barlow Twins ----------------------------------------------------------------------------------


def slow_barlow_twins(z1: torch.Tensor, z2: torch.Tensor, weight: float) -> torch.Tensor:
    B, D = z1.shape

    def standard(z: torch.Tensor, i: int) -> torch.Tensor:
        column = z[:, i]
        variance = ((column - column.mean()) ** 2).mean()
        return (column - column.mean()) / (variance + STANDARD_EPS).sqrt()

    total = torch.zeros((), dtype=z1.dtype)
    for i in range(D):
        for j in range(D):
            c = sum(a * b for a, b in zip(standard(z1, i), standard(z2, j), strict=True)) / B
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
@pytest.mark.parametrize(("B", "D"), [(4, 3), (7, 5)])
def test_barlow_twins_equal_the_paper_with_gradients(B: int, D: int, weight: float) -> None:
    z1, z2 = normal(B, D).requires_grad_(), normal(B, D, seed=1).requires_grad_()
    ours, reference = barlow_twins(z1, z2, weight), slow_barlow_twins(z1, z2, weight)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-10)
    gradients = torch.autograd.grad(ours, (z1, z2))
    expected = torch.autograd.grad(reference, (z1, z2))
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_barlow_twins_ask_for_views_alike_and_features_unlike() -> None:
    """Collapsed features cost all of the diagonal; decorrelated ones that agree cost nothing."""
    hadamard = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    assert barlow_twins(hadamard, hadamard, 1.0).item() == pytest.approx(0, abs=1e-4)
    assert barlow_twins(torch.ones(4, 3), torch.ones(4, 3), 1.0).item() == pytest.approx(3)


# -- DINO ------------------------------------------------------------------------------------------


def slow_dino(
    student: torch.Tensor, teacher: torch.Tensor, c: torch.Tensor, τ_s: float, τ_t: float
) -> torch.Tensor:
    (V, B, K), G = student.shape, len(teacher)
    terms = []
    for g in range(G):
        for v in range(V):
            if v == g:
                continue
            for b in range(B):
                aims = torch.exp((teacher[g, b] - c) / τ_t)
                said = torch.exp(student[v, b] / τ_s)
                aims, said = aims / aims.sum(), said / said.sum()
                terms.append(-sum(aims[k] * torch.log(said[k]) for k in range(K)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("V", "B", "K"), [(2, 1, 3), (5, 4, 6)])
def test_dino_equals_the_paper_with_gradients(V: int, B: int, K: int) -> None:
    student, teacher = normal(V, B, K).requires_grad_(), normal(2, B, K, seed=1).requires_grad_()
    centre = normal(K, seed=2)
    ours = dino(student, teacher, centre, temperature=0.3, teacher_temperature=0.1)
    reference = slow_dino(student, teacher.detach(), centre, 0.3, 0.1)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-12)
    (expected,) = torch.autograd.grad(reference, student)
    ours.backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, atol=1e-12)
    assert teacher.grad is None


def test_dino_collapsed_to_one_prototype_is_undone_by_the_centre() -> None:
    """A teacher that says the same of all images says nothing once its centre has got there."""
    logits = torch.zeros(2, 3, 4)
    logits[..., 1] = 1.0
    ways = {"temperature": 0.1, "teacher_temperature": 0.04}
    collapsed = dino(logits, logits, torch.zeros(4), **ways)
    assert collapsed.item() == pytest.approx(0, abs=1e-3)
    centre = torch.zeros(4)
    for _ in range(200):
        centre = moved_centre(centre, logits.mean((0, 1)), 0.9)
    assert torch.allclose(centre, logits[0, 0])
    assert dino(logits, logits, centre, **ways).item() > 1


def test_the_centre_moves_as_the_paper_says() -> None:
    centre, mean = normal(5), normal(5, seed=1)
    assert torch.allclose(moved_centre(centre, mean, 0.9), 0.9 * centre + 0.1 * mean)
    assert moved_centre(centre.float(), mean, 0.9).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision_of_any_method(dtype: torch.dtype) -> None:
    z = normal(3, 8, 6).to(dtype)
    exact, c = z.double(), normal(6, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            byol(z[0], z[1]),
            prototype_pairs(z, 1.0),
            barlow_twins(z[0], z[1], 0.1),
            dino(z, z[:2], c, temperature=0.1, teacher_temperature=0.04),
        ]
    expected = [
        slow_byol(exact[0], exact[1]),
        slow_prototype_pairs(exact, 1.0),
        slow_barlow_twins(exact[0], exact[1], 0.1),
        slow_dino(exact, exact[:2], c.double(), 0.1, 0.04),
    ]
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(reference.item(), rel=1e-4)


def test_more_shapes_that_would_broadcast_are_our_mistake() -> None:
    for wrong in (
        lambda: byol(normal(4, 6), normal(1, 6)),
        lambda: barlow_twins(normal(4, 6), normal(3, 6), 0.1),
        lambda: prototype_pairs(normal(1, 4, 6), 1.0),
        lambda: moved_centre(normal(4), normal(1), 0.9),
        lambda: dino(
            normal(2, 4, 6), normal(2, 1, 6), normal(6), temperature=1, teacher_temperature=1
        ),
    ):
        with pytest.raises(AssertionError):
            wrong()

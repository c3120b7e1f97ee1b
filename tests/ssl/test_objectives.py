from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sseg_nase.ssl.objectives import distillation, nt_xent


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

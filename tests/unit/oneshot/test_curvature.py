"""The largest eigenvalue of a Hessian, on quadratics whose eigenvalues are known."""

from __future__ import annotations

import pytest
import torch

from sseg_nase.oneshot.curvature import largest_eigenvalue, rising


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("eigenvalues", [(3.0, 1.0, 0.5, 0.1, 0.0), (0.4, -2.0, 0.3, 0.2, 0.1)])
def test_of_a_quadratic_it_is_known(eigenvalues: tuple[float, ...]) -> None:
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeded(), dtype=torch.float64))
    hessian = turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T
    alphas = [
        torch.randn(2, generator=seeded(1), dtype=torch.float64, requires_grad=True),
        torch.randn(3, generator=seeded(2), dtype=torch.float64, requires_grad=True),
    ]
    kept = [alpha.detach().clone() for alpha in alphas]

    def loss() -> torch.Tensor:
        x = torch.cat(alphas)
        return x @ hessian @ x / 2 + x.sum()

    found = largest_eigenvalue(alphas, loss, seeded(3), iterations=100)
    largest = max(eigenvalues, key=abs)
    assert found == pytest.approx(largest, rel=1e-2)
    assert all(map(torch.equal, alphas, kept))
    assert all(alpha.grad is None for alpha in alphas)


def test_of_a_linear_loss_it_is_0() -> None:
    alpha = torch.randn(3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert largest_eigenvalue([alpha], lambda: 2 * alpha.sum(), seeded()) == pytest.approx(0)


def test_a_loss_that_fails_leaves_the_alphas_as_they_were() -> None:
    alpha = torch.zeros(3, requires_grad=True)

    def fails() -> torch.Tensor:
        raise RuntimeError("no images")

    with pytest.raises(RuntimeError, match="no images"):
        largest_eigenvalue([alpha], fails, seeded())
    assert torch.equal(alpha, torch.zeros(3))


def test_it_rises_where_the_mean_before_is_a_smaller_share_of_now() -> None:
    assert rising([1, 1, 2, 2], 0.75, 2)
    assert not rising([1, 1, 1.2, 1.2], 0.75, 2)
    assert rising([1, 1, -2, -2], 0.75, 2)  # by its size
    assert not rising([1, 2, 9], 0.75, 2)  # too few epochs

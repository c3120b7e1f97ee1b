"""Linear classifiers fitted to the support of many episodes at once.

What is fitted lies in the span of an episode's S = N·K support images, so logistic regression and
gradient descent see `[S, S]` and not D features, in float64. Coefficients and logits of the support
are `[E, N, S]`: classes first, for a softmax over the last axis of a few classes is slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

LOGISTIC_TOLERANCE = 1e-6  # norm of the gradient of Σ CE + ‖√λ·W‖²/2 in √λ·W and b
_NEWTON_STEPS, _CONJUGATE_STEPS, _HALVINGS = 50, 100, 30
_FORCING, _ARMIJO = 1e-2, 1e-4


def ridge_scores(
    support: Float[Tensor, "*E N K D"],
    query: Float[Tensor, "*E M D"],
    regularization: float | Tensor,
    scale: float | Tensor = 1.0,
) -> Float[Tensor, "*E M N"]:
    """Score query `[E, M, D]` by ridge regression on the classes of support `[E, N, K, D]`.

    `scale` · q (XᵀX + λI)⁻¹XᵀY with one-hot Y: `[E, M, N]`, no probabilities (R2D2, Bertinetto et
    al. 2019, eq. 4). Where N·K < D it solves the smaller Xᵀ(XXᵀ + λI)⁻¹Y, eq. 6. Differentiable in
    every tensor.
    """
    inputs, targets = support.flatten(-3, -2), _one_hot(support)
    S, D = inputs.shape[-2:]
    if S < D:
        weights = inputs.mT @ _solved(inputs @ inputs.mT, regularization, targets).to(inputs.dtype)
    else:
        weights = _solved(inputs.mT @ inputs, regularization, inputs.mT @ targets).to(inputs.dtype)
    return scale * (query @ weights)


def logistic_scores(
    support: Float[Tensor, "E N K D"], query: Float[Tensor, "E M D"], regularization: float
) -> Float[Tensor, "E M N"]:
    """Log-probabilities `[E, M, N]` by multinomial logistic regression on support `[E, N, K, D]`.

    W, b minimise the summed cross-entropy + λ/2·‖W‖², so scikit-learn's C is 1/λ (with two classes,
    where it has one vector for both, 2/λ); b is free. Solved by Newton's method with conjugate
    gradients, in every episode until the gradient's norm is at most `LOGISTIC_TOLERANCE`.
    """
    inputs, targets = support.flatten(-3, -2), _one_hot(support).double().mT
    basis = None
    if inputs.shape[-2] < inputs.shape[-1]:
        basis, upper = torch.linalg.qr(inputs.mT)
        inputs = upper.mT
    root = regularization**0.5
    weights = fit_logistic(F.pad(inputs.double() / root, (0, 1), value=1.0), targets)
    weights, intercept = (weights[..., :-1] / root).to(query.dtype), weights[..., -1:]
    return _log_probabilities(weights if basis is None else weights @ basis.mT, intercept, query)


def linear_scores(
    support: Float[Tensor, "E N K D"],
    query: Float[Tensor, "E M D"],
    *,
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Float[Tensor, "E M N"]:
    """Log-probabilities `[E, M, N]` of a linear layer trained on support `[E, N, K, D]`.

    `steps` steps of SGD as torch has it, on the mean cross-entropy of the whole support, from zero
    weights (Chen et al. 2019, the Baseline, there in batches of 4 from random weights).
    """
    inputs, targets = support.flatten(-3, -2), _one_hot(support).double().mT
    kernel = (inputs @ inputs.mT).double()
    # Weights and bias, each with its momentum; the weights by their coefficients.
    weights = torch.zeros_like(targets).expand(len(kernel), -1, -1)
    bias = torch.zeros_like(weights[..., :1])
    of_weights, of_bias = torch.zeros_like(weights), torch.zeros_like(bias)
    for _ in range(steps):
        slope = ((weights @ kernel + bias).softmax(dim=-2) - targets) / inputs.shape[-2]
        of_weights = momentum * of_weights + slope + weight_decay * weights
        of_bias = momentum * of_bias + slope.sum(dim=-1, keepdim=True) + weight_decay * bias
        weights, bias = weights - lr * of_weights, bias - lr * of_bias
    return _log_probabilities(weights.to(query.dtype) @ inputs, bias, query)


def _one_hot(support: Float[Tensor, "*E N K D"]) -> Float[Tensor, "N*K N"]:
    """The classes of support `[..., N, K, D]`: `[S, N]`."""
    ways, shots = support.shape[-3:-1]
    targets = torch.eye(ways, dtype=support.dtype, device=support.device)
    return targets.repeat_interleave(shots, dim=0)


def _solved(matrix: Tensor, regularization: float | Tensor, right: Tensor) -> Tensor:
    """(matrix + λI)⁻¹ right in float64: λ may be far below what float32 resolves beside it."""
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    return torch.linalg.solve(matrix.double() + regularization * identity, right.double())


def _log_probabilities(weights: Tensor, intercept: Tensor, query: Tensor) -> Tensor:
    """Of query `[E, M, D]`, from weights `[E, N, D]` and intercept `[E, N, 1]`: `[E, M, N]`."""
    return (weights @ query.mT + intercept.to(query.dtype)).log_softmax(dim=-2).mT


def fit_logistic(
    inputs: Float[Tensor, "E S r"], targets: Float[Tensor, "N S"]
) -> Float[Tensor, "E N r"]:
    """Weights W `[E, N, r]` for inputs X `[E, S, r]`, the last of them 1, and targets Y `[N, S]`.

    They minimise Σ CE(WXᵀ, Y) + ‖W‖²/2 without the intercepts W[..., -1]. An episode that has
    arrived takes no further step, so its result does not depend on its neighbours.
    """
    penalized = torch.ones(inputs.shape[-1], dtype=inputs.dtype, device=inputs.device)
    penalized[-1] = 0
    W = inputs.new_zeros(len(inputs), len(targets), inputs.shape[-1])
    for _ in range(_NEWTON_STEPS):
        logits = W @ inputs.mT
        P = logits.softmax(dim=-2)
        gradient = (P - targets) @ inputs + penalized * W
        far = _inner(gradient, gradient) > LOGISTIC_TOLERANCE**2
        if not far.any():
            break
        step = _newton_step(inputs, P, gradient, penalized)
        # Halve it until it descends (Armijo).
        further, descent = step @ inputs.mT, _inner(gradient, step)
        linear, quadratic = _inner(penalized * W, step), _inner(penalized * step, step) / 2
        loss = _cross_entropy(logits, targets)
        length = far.to(inputs.dtype)
        for _ in range(_HALVINGS):
            risen = _cross_entropy(logits + length * further, targets) - loss
            risen = risen + length * linear + length**2 * quadratic
            # Where float64 resolves no difference any more the step is as good as any.
            long = risen > _ARMIJO * length * descent + 1e-12 * loss
            if not long.any():
                break
            length = torch.where(long, length / 2, length)
        W = W + length * step
    return W


def _newton_step(inputs: Tensor, P: Tensor, gradient: Tensor, penalized: Tensor) -> Tensor:
    """Solve H(A) = −gradient for A `[E, N, r]` by conjugate gradients.

    H(A) = (P∘F − P(P·F)) X + A with F = AXᵀ, the Hessian of cross-entropy and penalty.
    """
    A, residual = torch.zeros_like(gradient), -gradient
    along, square = residual, _inner(residual, residual)
    enough = _FORCING**2 * square
    for _ in range(_CONJUGATE_STEPS):
        far = square > enough
        if not far.any():
            break
        weighted = P * (along @ inputs.mT)
        curved = weighted - P * weighted.sum(dim=-2, keepdim=True)
        image = curved @ inputs + penalized * along
        length = torch.where(far, square / _inner(image, along), 0)
        A, residual = A + length * along, residual - length * image
        before, square = square, _inner(residual, residual)
        along = residual + torch.where(far, square / before, 0) * along
    return A


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of every episode, `[E, 1, 1]`."""
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed over the support of every episode, `[E, 1, 1]`."""
    return -_inner(logits.log_softmax(dim=-2), targets)

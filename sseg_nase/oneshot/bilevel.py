"""The gradient of a validation loss in α, through one step of the weights (DARTS).

Weights w are trained on one half of the images, gates α on the other: α is to lower
L_val(w'(α), α), where w' = w − ξ (∇_w L_train(w, α) + λ w + μ m) is the next step of SGD with
momentum buffer m (Liu et al., ICLR 2019, eq. 7). With v = ∇_{w'} L_val(w', α)

    ∇_α = ∇_α L_val(w', α) − ξ (∇_α L_train(w⁺, α) − ∇_α L_train(w⁻, α)) / (2 ε),

w± = w ± ε v and ε = `EPSILON` / ‖v‖ (eq. 8). At ξ = 0 this is the first order: w' = w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor]  # of the network as it is

EPSILON = 0.01  # of the length of v


def first_order(alphas: Sequence[Tensor], val_loss: Loss) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The validation loss and its gradients in `alphas`, with the weights as they are."""
    loss = val_loss()
    return loss.detach(), _gradients(loss, alphas)


def second_order(
    network: nn.Module,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_loss: Loss,
    val_loss: Loss,
    *,
    rate: float,
    momentum: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    weight_decay: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The validation loss after the next step of `weights`, and its gradients in `alphas`.

    `rate`, `momentum`, `buffers` (of each weight, None where it has none yet) and `weight_decay`
    are those of the SGD that trains `weights`. The four passes that this takes leave nothing
    behind: weights and all buffers of `network` are bit for bit what they were, and no `.grad` is
    touched.
    """
    with _untouched(network, weights):
        slopes = _gradients(train_loss(), weights)
        with torch.no_grad():
            momenta = buffers if buffers is not None else [None] * len(weights)
            for weight, slope, buffer in zip(weights, slopes, momenta, strict=True):
                step = slope.add(weight, alpha=weight_decay)
                if buffer is not None:
                    step = step.add(buffer, alpha=momentum)
                weight.sub_(step, alpha=rate)
        loss = val_loss()
        found = _gradients(loss, (*alphas, *weights))
    direct, towards = found[: len(alphas)], found[len(alphas) :]
    length = torch.sqrt(sum((v.double().square().sum() for v in towards), torch.zeros(())))
    if rate == 0 or length == 0:
        return loss.detach(), direct
    epsilon = EPSILON / float(length)
    sides = []
    for sign in (1, -1):
        with _untouched(network, weights):
            with torch.no_grad():
                for weight, v in zip(weights, towards, strict=True):
                    weight.add_(v, alpha=sign * epsilon)
            sides.append(_gradients(train_loss(), alphas))
    both = zip(direct, *sides, strict=True)
    return loss.detach(), tuple(d - rate * (up - down) / (2 * epsilon) for d, up, down in both)


@contextmanager
def _untouched(network: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Copied back, since adding and subtracting again would round."""
    kept = [tensor.detach().clone() for tensor in (*weights, *network.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip((*weights, *network.buffers()), kept, strict=True):
                tensor.copy_(before)


def _gradients(loss: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros for what the loss does not depend on, such as paths that were not taken."""
    found = torch.autograd.grad(loss, list(of), allow_unused=True)
    return tuple(
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(of, found, strict=True)
    )

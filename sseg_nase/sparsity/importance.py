"""How much every channel matters to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from sseg_nase.nets.evolvable import EvolvableCNN


def _taylor(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """|θ · ∂L/∂θ|: first-order estimate of the loss's change when θ is removed."""
    return (parameter * gradient).abs()


def _magnitude(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    return parameter.abs()


def _random(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    # One number per channel: a sum over its weights would hardly vary where there are many.
    return torch.rand(len(parameter), generator=generator).to(parameter)


IMPORTANCE: Mapping[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "taylor": _taylor,
    "magnitude": _magnitude,
    "random": _random,
}


def channel_importance(
    backbone: EvolvableCNN, losses: Iterable[Tensor], *, kind: str = "taylor", seed: int = 0
) -> list[Tensor]:
    """Importance of every output channel: one `[C]` tensor ≥ 0 per block.

    `losses` yields scalar losses, one per batch, with a graph to `backbone`'s parameters; scores
    are averaged over them. The score of a channel is the sum over the parameters that make it: its
    filter, and γ and β of its norm (Molchanov et al. 2019). The parameters' `.grad` is untouched.
    """
    generator = torch.Generator().manual_seed(seed)
    score = IMPORTANCE[kind]
    parameters = [p for block in backbone.blocks for p in _makers(block)]
    totals = [torch.zeros(c) for c in backbone.architecture.channels]
    batches = 0
    for loss in losses:
        gradients = iter(torch.autograd.grad(loss, parameters))
        for total, block in zip(totals, backbone.blocks, strict=True):
            for parameter in _makers(block):
                each = score(parameter.detach().float(), next(gradients).float(), generator)
                total += each.flatten(1).sum(1).cpu() if each.dim() > 1 else each.cpu()
        batches += 1
    assert batches, "importance needs at least one batch"
    return [total / batches for total in totals]


def normalized(importance: Iterable[Tensor]) -> list[Tensor]:
    """Each block's scores divided by their root mean square, so that blocks compare."""
    return [scores / scores.square().mean().sqrt().clamp_min(1e-12) for scores in importance]


def sensitivity(importance: Iterable[Tensor]) -> list[float]:
    """One value per block: the mean importance of its channels."""
    return [scores.mean().item() for scores in importance]


def _makers(block: nn.Module) -> list[nn.Parameter]:
    """The parameters whose first axis is the block's output channels."""
    return list(block.parameters())

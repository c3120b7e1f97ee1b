"""How much every channel matters to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sseg_nase.nets.evolvable import ConvBlock, EvolvableCNN


def _taylor(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """|θ · ∂L/∂θ|: first-order estimate of the loss's change when θ is removed."""
    return (parameter * gradient).abs()


def _magnitude(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    return parameter.abs()


def _random(parameter: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    # One number per channel: a sum over its weights would hardly vary where there are many.
    return torch.rand(len(parameter), generator=generator)


IMPORTANCE: Mapping[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "taylor": _taylor,
    "magnitude": _magnitude,
    "random": _random,
}
COUPLED = frozenset({"taylor", "magnitude"})  # kinds that say what a removal loses


class Importance(NamedTuple):
    """One `[C]` tensor per block: the mean over batches, and its standard error.

    Errors are sd / √K over the K batches, and NaN where there was one batch only.
    """

    scores: list[Tensor]
    errors: list[Tensor]


def channel_importance(
    backbone: EvolvableCNN,
    losses: Iterable[Tensor],
    *,
    kind: str = "taylor",
    coupled: bool = True,
    seed: int = 0,
) -> list[Tensor]:
    """Importance of every output channel: one `[C]` tensor ≥ 0 per block.

    `losses` yields scalar losses, one per batch, with a graph to `backbone`'s parameters; scores
    are averaged over them. The score of a channel is the sum over the parameters that make it: its
    filter, and γ and β of its norm (Molchanov et al. 2019); `coupled` adds those that reach it
    through shortcuts (see `couple`; never for `random`). The parameters' `.grad` is untouched.
    """
    parameters = makers(backbone)
    gradients = (torch.autograd.grad(loss, parameters) for loss in losses)
    return importance_of(backbone, gradients, kind=kind, coupled=coupled, seed=seed).scores


def importance_of(
    backbone: EvolvableCNN,
    gradients: Iterable[Sequence[Tensor]],
    *,
    kind: str = "taylor",
    coupled: bool = True,
    seed: int = 0,
) -> Importance:
    """`channel_importance` by the gradients of the losses in `makers`, one sequence per loss.

    With the standard errors of the scores, which are those of what is `coupled`, too.
    """
    generator = torch.Generator().manual_seed(seed)
    score = IMPORTANCE[kind]
    adds = coupled and kind in COUPLED
    totals = [torch.zeros(c) for c in backbone.architecture.channels]
    batches: list[list[Tensor]] = []
    for found in gradients:
        each_of = iter(found)
        own = [torch.zeros_like(total) for total in totals]
        for scores, block in zip(own, backbone.blocks, strict=True):
            for parameter in _makers(block):
                each = score(parameter.detach().float(), next(each_of).float(), generator)
                scores += each.flatten(1).sum(1).cpu() if each.dim() > 1 else each.cpu()
        for total, scores in zip(totals, own, strict=True):
            total += scores
        batches.append(couple(backbone, own) if adds else own)
    assert batches, "importance needs at least one batch"
    mean = [total / len(batches) for total in totals]
    errors = [standard_error(torch.stack(block)) for block in zip(*batches, strict=True)]
    return Importance(couple(backbone, mean) if adds else mean, errors)


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis of `[K, …]`: sd / √K; NaN for K = 1."""
    if len(values) == 1:
        return torch.full_like(values[0], float("nan"))
    return values.std(dim=0) / len(values) ** 0.5


def couple(backbone: EvolvableCNN, own: Sequence[Tensor]) -> list[Tensor]:
    """Add to each channel's own score what its removal loses of the shortcut: `[C]` per block.

    A channel after a residual block is the sum of branch and shortcut, and goes with both. The
    shortcut's part are the channels it is made of, with all that they are made of themselves:
    s_b[c] = own_b[c] + Σ_j |R_b[c, j]| · s_{b−1}[j], where R_b is the routing (the identity as far
    as both widths reach, unless mutations have moved channels) and s = 0 for the image. Blocks
    without a shortcut keep their own scores.
    """
    coupled: list[Tensor] = []
    source = torch.zeros(backbone.architecture.in_channels)
    for block, scores in zip(backbone.blocks, own, strict=True):
        assert isinstance(block, ConvBlock)
        if block.residual:
            routing = block.routing
            if routing is None:
                routing = torch.eye(len(scores), len(source))
            scores = scores + routing.detach().abs().to(source) @ source
        coupled.append(scores)
        source = scores
    return coupled


def normalized(importance: Iterable[Tensor]) -> list[Tensor]:
    """Each block's scores divided by their root mean square, so that blocks compare."""
    return [scores / scores.square().mean().sqrt().clamp_min(1e-12) for scores in importance]


def sensitivity(importance: Iterable[Tensor]) -> list[float]:
    """One value per block: the mean importance of its channels.

    To compare what blocks do themselves, give it scores that are not `coupled`: those grow along
    every chain of shortcuts.
    """
    return [scores.mean().item() for scores in importance]


def makers(backbone: EvolvableCNN) -> list[nn.Parameter]:
    """The parameters that make the channels, block by block."""
    return [p for block in backbone.blocks for p in _makers(block)]


def _makers(block: nn.Module) -> list[nn.Parameter]:
    """The parameters whose first axis is the block's output channels."""
    return list(block.parameters())

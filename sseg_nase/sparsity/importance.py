"""How much every channel matters to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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
    return importance_of(backbone, gradients, kind=kind, coupled=coupled, seed=seed)


def importance_of(
    backbone: EvolvableCNN,
    gradients: Iterable[Sequence[Tensor]],
    *,
    kind: str = "taylor",
    coupled: bool = True,
    seed: int = 0,
) -> list[Tensor]:
    """`channel_importance` by the gradients of the losses in `makers`, one sequence per loss."""
    generator = torch.Generator().manual_seed(seed)
    score = IMPORTANCE[kind]
    totals = [torch.zeros(c) for c in backbone.architecture.channels]
    batches = 0
    for found in gradients:
        each_of = iter(found)
        for total, block in zip(totals, backbone.blocks, strict=True):
            for parameter in _makers(block):
                each = score(parameter.detach().float(), next(each_of).float(), generator)
                total += each.flatten(1).sum(1).cpu() if each.dim() > 1 else each.cpu()
        batches += 1
    assert batches, "importance needs at least one batch"
    own = [total / batches for total in totals]
    return couple(backbone, own) if coupled and kind in COUPLED else own


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

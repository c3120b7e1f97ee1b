"""How much every channel matters to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.maps import Axis


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
    """One `[C]` tensor per named axis: the mean over batches, and its standard error.

    Of a chain these are its blocks.
    Errors are sd / √K over the K batches, and NaN where there was one batch only.
    """

    scores: list[Tensor]
    errors: list[Tensor]


def channel_importance(
    backbone: Backbone,
    losses: Iterable[Tensor],
    *,
    kind: str = "taylor",
    coupled: bool = True,
    seed: int = 0,
) -> list[Tensor]:
    """Importance of every channel: one `[C]` tensor ≥ 0 per named axis, of a chain per block.

    `losses` yields scalar losses, one per batch, with a graph to `backbone`'s parameters; scores
    are averaged over them. The score of a channel is the sum over the parameters that make it: its
    filters, and γ and β of its norms (Molchanov et al. 2019); `coupled` adds those that reach it
    through shortcuts (see `couple`; never for `random`). The parameters' `.grad` is untouched.
    """
    parameters = makers(backbone)
    gradients = (torch.autograd.grad(loss, parameters) for loss in losses)
    return importance_of(backbone, gradients, kind=kind, coupled=coupled, seed=seed).scores


def importance_of(
    backbone: Backbone,
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
    makes = _makers(backbone)
    totals = [torch.zeros(c) for c in backbone.architecture.axes.values()]
    batches: list[list[Tensor]] = []
    for found in gradients:
        own = {name: torch.zeros(c) for name, c in backbone.architecture.axes.items()}
        for (parameter, dim, axis), gradient in zip(makes, found, strict=True):
            each = score(parameter.detach().float(), gradient.float(), generator)
            if each.dim() > 1:
                each = each.movedim(dim, 0).flatten(1).sum(1)
            widths = [len(own[name]) for name in axis.names]
            for name, part in zip(axis.names, each.cpu().split(widths), strict=True):
                own[name] += part
        scores = list(own.values())
        for total, each in zip(totals, scores, strict=True):
            total += each
        batches.append(couple(backbone, scores) if adds else scores)
    assert batches, "importance needs at least one batch"
    mean = [total / len(batches) for total in totals]
    errors = [standard_error(torch.stack(block)) for block in zip(*batches, strict=True)]
    return Importance(couple(backbone, mean) if adds else mean, errors)


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis of `[K, …]`: sd / √K; NaN for K = 1."""
    if len(values) == 1:
        return torch.full_like(values[0], float("nan"))
    error: Tensor = values.std(dim=0) / len(values) ** 0.5
    return error


def couple(backbone: Backbone, own: Sequence[Tensor]) -> list[Tensor]:
    """Add to each channel's own score what its removal loses of a shortcut: `[C]` per named axis.

    A channel after a residual block of a chain is the sum of branch and shortcut, and goes with
    both. The shortcut's part are the channels it is made of, with all that they are made of
    themselves: s_b[c] = own_b[c] + Σ_j |R_b[c, j]| · s_{b−1}[j], where R_b is the routing (the
    identity as far as both widths reach, unless mutations have moved channels) and s = 0 for the
    image. Axes without a shortcut keep their own scores: where a sum joins two under one name, all
    that makes its channels counts already.
    """
    added = backbone.shortcuts()
    coupled: dict[str, Tensor] = {}
    for name, scores in zip(backbone.architecture.axes, own, strict=True):
        if name in added and (before := added[name][0]) is not None:
            scores = scores + added[name][1].abs().to(scores) @ coupled[before]
        coupled[name] = scores
    return list(coupled.values())


def normalized(importance: Iterable[Tensor]) -> list[Tensor]:
    """Each axis's scores divided by their root mean square, so that axes compare."""
    return [scores / scores.square().mean().sqrt().clamp_min(1e-12) for scores in importance]


def sensitivity(importance: Iterable[Tensor]) -> list[float]:
    """One value per axis: the mean importance of its channels.

    To compare what axes do themselves, give it scores that are not `coupled`: those grow along
    every chain of shortcuts.
    """
    return [scores.mean().item() for scores in importance]


def makers(backbone: Backbone) -> list[nn.Parameter]:
    """The parameters that make the channels of named axes."""
    return [parameter for parameter, _, _ in _makers(backbone)]


def _makers(backbone: Backbone) -> list[tuple[nn.Parameter, int, Axis]]:
    """Every such parameter with the dimension in which its channels stand."""
    wiring = backbone.architecture.wiring()
    return [
        (parameter, dim, axis)
        for name, parameter in backbone.named_parameters()
        for dim, axis in enumerate(wiring[name].axes)
        if axis is not None and not axis.reads
    ]

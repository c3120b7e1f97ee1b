"""The gradient of one batch that goes through the networks in parts.

A loss that is a mean over images is simply averaged over the parts. Where images are compared with
each other, all must be known before the loss is: they are embedded part by part without a graph,
the loss of the whole batch is differentiated in the embeddings, and every part then goes through
the student once more, to take its share of that gradient on to the weights (GradCache, Gao et al.
2021, section 3.2). The price is one more forward pass of the student.

Both passes of a part see the same views and the same BN statistics, those of the part; what BN
tracks moves once, in the second one. No network here draws random numbers in its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import SSLConfig
from sseg_nase.ssl.methods import Compared, Loss, Losses, Teaching, alone, guided
from sseg_nase.ssl.objectives import at_least_float32
from sseg_nase.ssl.teacher import untracked

Views = Sequence[Tensor]  # per kind of crops `[V, B, C, S, S]`


def differentiate(
    loss: Loss,
    learner: nn.Module,
    teaching: Teaching,
    parts: Sequence[Views],
    ssl: SSLConfig,
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    gather: Callable[[Tensor], Tensor] = alone,
    around: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
    known: Callable[[], None] = lambda: None,
) -> Losses:
    """Add the gradient of the loss of one batch, whose views come in `parts`, to `learner`'s.

    Returns the losses, detached. `backward` is called once per part, with a scalar. `autocast`
    holds every computation of a loss or of what it needs, `around` the graph of each part (it is
    told whether it is the last one); `known` is called when the loss is. `gather` as for `Loss`.
    """
    if len(parts) > 1 and isinstance(loss, Compared):
        return _replayed(
            loss,
            learner,
            teaching,
            parts,
            ssl,
            backward=backward,
            autocast=autocast,
            gather=gather,
            around=around,
            known=known,
        )
    found = []
    for number, views in enumerate(parts, start=1):
        with around(number == len(parts)):
            with autocast():
                losses = loss(learner, teaching, views, ssl, gather)
            if number == len(parts):
                known()
            backward(losses.total if len(parts) == 1 else losses.total / len(parts))
        found.append(_detached(losses))
    return found[0] if len(found) == 1 else _mean(found)


@torch.no_grad()
def evaluate(
    loss: Loss,
    learner: nn.Module,
    teaching: Teaching,
    parts: Sequence[Views],
    ssl: SSLConfig,
    *,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    gather: Callable[[Tensor], Tensor] = alone,
) -> Losses:
    """The losses that `differentiate` returns, without their gradient, and without a guide's."""
    teaching = teaching._replace(guide=None)
    with autocast():
        if isinstance(loss, Compared):
            rows = [loss.rows(learner, views) for views in parts]
            taught = [loss.taught(teaching, views) for views in parts]
            whole = [torch.cat(columns, dim=1) for columns in zip(*rows, strict=True)]
            return loss.compare(whole[0], whole[1], _joined(taught), ssl, gather)
        return _mean([loss(learner, teaching, views, ssl, gather) for views in parts])


def _replayed(
    loss: Compared,
    learner: nn.Module,
    teaching: Teaching,
    parts: Sequence[Views],
    ssl: SSLConfig,
    *,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[None]],
    gather: Callable[[Tensor], Tensor],
    around: Callable[[bool], AbstractContextManager[None]],
    known: Callable[[], None],
) -> Losses:
    rows, taught, aims = [], [], []
    with torch.no_grad(), untracked(learner):
        for views in parts:
            with autocast():
                rows.append(loss.rows(learner, views))
                taught.append(loss.taught(teaching, views))
                aims.append(guided(teaching, views))
    # Gradients of embeddings are small: float16 might lose them before anything scales them up.
    features, projections = (
        torch.cat([at_least_float32(row) for row in columns], dim=1).requires_grad_()
        for columns in zip(*rows, strict=True)
    )
    with autocast():
        losses = loss.compare(features, projections, _joined(taught), ssl, gather, _joined(aims))
    known()
    gradients = torch.autograd.grad(losses.total, (features, projections), allow_unused=True)
    start = 0
    for number, views in enumerate(parts, start=1):
        with around(number == len(parts)):
            with autocast():
                again = loss.rows(learner, views)
            stop = start + again[0].shape[1]
            shares = [
                (at_least_float32(row) * gradient[:, start:stop]).sum()
                for row, gradient in zip(again, gradients, strict=True)
                if gradient is not None
            ]
            backward(torch.stack(shares).sum())
        start = stop
    return _detached(losses)


def _joined(embeddings: Sequence[Tensor | None]) -> Tensor | None:
    known = [each for each in embeddings if each is not None]
    return torch.cat(known) if known else None


def _mean(found: Sequence[Losses]) -> Losses:
    """The losses of a batch by those of its parts, which are equally large.

    What is kept afterwards, too: every part has moved it from the same value.
    """
    gaps = [each.distillation for each in found if each.distillation is not None]
    memories = [each.memory for each in found if each.memory is not None]
    return Losses(
        _average(each.total for each in found),
        _average(each.contrastive for each in found),
        _average(gaps) if gaps else None,
        {name: _average(memory[name] for memory in memories) for name in memories[0]}
        if memories
        else None,
    )


def _average(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)


def _detached(losses: Losses) -> Losses:
    gap = losses.distillation
    return Losses(
        losses.total.detach(),
        losses.contrastive.detach(),
        None if gap is None else gap.detach(),
        losses.memory,
    )

"""Which mutations are possible, and how fit each one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sseg_nase.nets.description import Description
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Caps, Options, proposing

SMALLEST_LOSS = 1e-12  # that a fall is related to: a loss may be 0


def penalty(architecture: Description, caps: Caps) -> float:
    """FLOPs / target FLOPs + params / target params; the targets are the caps."""
    flops = 2 * architecture.macs(caps.at(architecture))
    return flops / caps.max_flops + architecture.params / caps.max_params


class Difference(NamedTuple):
    """A mean over pairs, and its standard error."""

    mean: float
    error: float


def paired(first: Tensor, second: Tensor) -> Difference:
    """`first` − `second` of two `[K]` that are pairs, K ≥ 2: losses on the same batches."""
    assert first.shape == second.shape
    apart = (first - second).double()
    return Difference(apart.mean().item(), (apart.std() / len(apart) ** 0.5).item())


def advantage(
    before: Tensor, stay: Tensor, mutant: Tensor, dearer: float, alpha: float
) -> Difference:
    """F(mutant) − F(stay), with F = performance − α · penalty.

    Performance is the relative fall of the held loss: `before` any step, after those of the
    unmutated network and of the mutant, `[K]` on the same batches. `dearer`: the mutant's penalty
    less that of the unmutated network. Not finite where a loss is not.
    """
    if not before.isfinite().all():
        return Difference(float("nan"), float("nan"))
    lead = paired(stay, mutant)
    scale = max(abs(before.mean().item()), SMALLEST_LOSS)
    return Difference(lead.mean / scale - alpha * dearer, lead.error / scale)


def refusals(architecture: Description, operators: Sequence[str]) -> list[str]:
    """Why some of `operators` have no rule for such an architecture, in sentences."""
    found = (proposing(name)[0].refuses(architecture) for name in operators)
    return [why for why in dict.fromkeys(found) if why is not None]


def candidates(
    architecture: Description,
    *,
    operators: Sequence[str],
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
    recent: Sequence[str] = (),
    max_repeats: int | None = None,
) -> list[Mutation]:
    """Every mutation within the caps. `sensitivity`: one value per named axis.

    An operator that has no rule for such an architecture makes none; `refusals` says why.

    `recent` lists the kinds accepted so far: a kind that the last `max_repeats` of them are stands
    back for the other, whichever operators make it, so that depth and width grow together; it is
    taken again when nothing else fits.
    """
    found: list[Mutation] = []
    for name in operators:
        operator, propose = proposing(name)
        if operator.refuses(architecture) is None:
            found += propose(architecture, sensitivity, options, caps, seed)
    tail = list(recent)[-max_repeats:] if max_repeats else []
    tired = tail[0] if len(tail) == max_repeats and len(set(tail)) == 1 else None
    return [candidate for candidate in found if candidate.kind != tired] or found

"""The operation that is several at once, weighed by gates: what a supernet is made of.

    plan.add("cell0.0-1", "mixed", 0, 16, choices="skip_connect|nor_conv_3x3", gate="0-1")

It is an entry of the table of operations like any other, so that a supernet is described, counted
and built as every searched network. Without gates its candidates are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sseg_nase.errors import UserError
from sseg_nase.nets.ops import Shared, Zero, add_weighed, build_operation, register

DROPPED = -1  # in the place of a candidate's number: none of them is computed


class Mixture(str):
    """In the place of an operation's name: all of `choices` at once, weighed by the gate `gate`."""

    options: Mapping[str, Any]

    def __new__(cls, gate: str, choices: Sequence[str], partial: int = 1) -> Mixture:
        """`partial`: only one in so many channels is mixed."""
        made = super().__new__(cls, "mixed")
        made.options = {"gate": gate, "choices": "|".join(choices)}
        if partial > 1:
            made.options |= {"partial": partial}
        return made


class Compared(Protocol):
    """Two candidates that are compared."""

    @property
    def candidates(self) -> tuple[int, int]:
        """Their numbers."""

    @property
    def active(self) -> int:
        """Which of the two is computed: 0 or 1."""


class GatesOf(Protocol):
    """What is read of `sseg_nase.oneshot.gates.Gates`, which says more."""

    def weights(self, name: str) -> Tensor:
        """Of all candidates, `[candidates]`."""

    def share(self, name: str) -> Tensor | None:
        """Of the edge, a number; None where edges are not weighed."""

    def pick_of(self, name: str) -> int | Compared | None:
        """The candidate that is computed alone (or `DROPPED`), or two; None: all are mixed."""

    def binary(self, name: str, pair: Any) -> Tensor:
        """The gates `[2]` of two."""


class MixedOperation(nn.Module):
    """Σ_o w_o · o(x) over candidates o, with the weights w of the gate `gate`.

    With `partial` = K only the first 1/K of the channels are mixed; the others pass, halved by a
    2×2 max-pool where the stride is 2, and the channels are shuffled so that others are the first
    ones in what reads them (PC-DARTS). The candidates' BN has no γ and β of its own while it
    searches: they are there for the network that is chosen, at 1 and 0, and are not trained.

    `again`: of all that the candidates compute nothing but the input is kept for gradients; the
    backward pass computes it again (Chen et al. 2016), with the same result.
    """

    again = False

    def __init__(
        self,
        inside: int,
        outside: int,
        stride: int,
        choices: str,
        gate: str,
        partial: int = 1,
    ) -> None:
        super().__init__()
        if inside % partial or outside % partial or (partial > 1 and inside != outside):
            near = max(partial, round(outside / partial) * partial)
            raise UserError(
                f"gate {gate}: {inside} and {outside} channels are not divisible by {partial}, of "
                f"which one part is mixed. The nearest number of channels that is: {near}."
            )
        self.gate, self.partial, self.stride = gate, partial, stride
        self.choices = tuple(choices.split("|"))
        self.candidates = nn.ModuleList(
            build_operation(name, inside // partial, outside // partial, stride)
            for name in self.choices
        )
        for module in self.candidates.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.requires_grad_(False)
                module.bias.requires_grad_(False)
        self.nothing = Zero(inside // partial, outside // partial, stride)
        self.gates: list[GatesOf] = []  # a list: what it holds is no part of this module

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', ⌈H / stride⌉, ⌈W / stride⌉]`."""
        share = self.gates[0].share(self.gate) if self.gates else None
        if self.partial == 1:
            return self._mixed(x, share)
        part = x.shape[1] // self.partial
        mixed, passed = x[:, :part], x[:, part:]
        if self.stride > 1:
            passed = F.max_pool2d(passed, self.stride, ceil_mode=True)
        both = self._mixed(mixed, share), _times(share, passed)
        return F.channel_shuffle(torch.cat(both, 1), self.partial)

    def _mixed(self, x: Tensor, share: Tensor | None) -> Tensor:
        """Times the `share` of the edge."""
        if not self.gates:
            return _sum([op(x) / len(self.candidates) for op in self.candidates])
        (gates,) = self.gates
        pick = gates.pick_of(self.gate)
        if pick == DROPPED:
            return self.nothing(x)
        if isinstance(pick, int):
            return _times(share, self.candidates[pick](x))
        if pick is not None:
            g, outputs = gates.binary(self.gate, pick), []
            for row, number in enumerate(pick.candidates):
                with torch.set_grad_enabled(row == pick.active and torch.is_grad_enabled()):
                    outputs.append(self.candidates[number](x))
            return _times(share, _sum([g[row] * output for row, output in enumerate(outputs)]))
        if self.again and torch.is_grad_enabled():
            made: Tensor = checkpoint(
                self._weighed, gates, x, share, use_reentrant=False, context_fn=self._contexts
            )
            return made
        return self._weighed(gates, x, share)

    def _weighed(self, gates: GatesOf, x: Tensor, share: Tensor | None) -> Tensor:
        total, read = None, Shared(x)
        weights = _times(share, gates.weights(self.gate))
        for weight, op in zip(weights.unbind(), self.candidates, strict=True):
            if not isinstance(op, Zero):
                total = add_weighed(total, weight, op, read)
        return self.candidates[0](x) if total is None else total

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What the candidates are computed in first, and again."""
        norms = [part for part in self.candidates.modules() if isinstance(part, nn.BatchNorm2d)]
        return nullcontext(), _as_before(norms, [norm.track_running_stats for norm in norms])


@contextmanager
def _as_before(norms: Sequence[nn.BatchNorm2d], tracking: Sequence[bool]) -> Iterator[None]:
    """Within, norms compute what they did when they were `tracking`, and track nothing.

    A share of 0 does that: without its buffers a norm would keep less for gradients than before,
    and what is computed again has to be the same.
    """
    now = [(norm.track_running_stats, norm.momentum, norm.num_batches_tracked) for norm in norms]
    counts = [None if count is None else count.clone() for _, _, count in now]
    for norm, tracked in zip(norms, tracking, strict=True):
        norm.track_running_stats, norm.momentum = tracked, 0.0
    try:
        yield
    finally:
        for norm, (tracked, momentum, count), before in zip(norms, now, counts, strict=True):
            norm.track_running_stats, norm.momentum = tracked, momentum
            if count is not None and before is not None:
                count.copy_(before)


def _times(share: Tensor | None, y: Tensor) -> Tensor:
    return y if share is None else share * y


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


register("mixed", MixedOperation)

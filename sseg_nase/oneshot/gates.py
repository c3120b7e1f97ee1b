"""Gates: what decides how much of each candidate operation a mixed one computes.

Every mixed operation names the gate that it reads, and operations in different cells may read the
same one. A gate has one number α per candidate, whose weights are softmax(α). Where edges have
numbers β of their own, what an edge gives is weighed by softmax(β) over those into the same node
(PC-DARTS, Xu et al., ICLR 2020). Or one candidate is picked, and nothing else is computed; or two
are compared, of which one is computed with the other's gradient known (ProxylessNAS, Cai et al.,
ICLR 2019, eq. 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SPREAD = 1e-3  # of α at the start


@dataclass(frozen=True)
class Pair:
    """Two candidates that are compared; `active` (0 or 1) says which of them is computed."""

    candidates: tuple[int, int]
    active: int


Pick = int | Pair  # a candidate alone (or `DROPPED`: nothing), or two of them


class Gates(nn.Module):
    """α per gate, and β per edge where `edges` is given.

    `choices`: how many candidates each gate has. `edges`: by node, the gates of the edges that
    lead into it. The parameters come in the order of the names, whatever the order of `choices`, so
    that an optimizer's state finds them again.
    """

    def __init__(
        self,
        choices: Mapping[str, int],
        edges: Mapping[str, Sequence[str]] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(sorted(choices))
        self.alphas = nn.ParameterList(
            SPREAD * torch.randn(choices[name], generator=generator) for name in self.names
        )
        self.nodes = tuple(sorted(edges or {}))
        self.edges = tuple(tuple((edges or {})[node]) for node in self.nodes)
        self.betas = nn.ParameterList(
            SPREAD * torch.randn(len(names), generator=generator) for names in self.edges
        )
        self._place = {
            name: (number, row)
            for number, names in enumerate(self.edges)
            for row, name in enumerate(names)
        }
        self._picks: dict[str, Pick] = {}

    def alpha(self, name: str) -> Tensor:
        """α of a gate, `[candidates]`."""
        return self.alphas[self.names.index(name)]

    def weights(self, name: str) -> Tensor:
        """softmax(α): the weights of a gate's candidates, `[candidates]`."""
        return self.alpha(name).softmax(0)

    def share(self, name: str) -> Tensor | None:
        """The edge's part of its node by softmax(β), a number; None without β."""
        if name not in self._place:
            return None
        number, row = self._place[name]
        return self.betas[number].softmax(0)[row]

    def pick_of(self, name: str) -> Pick | None:
        """What is picked of a gate; None: all candidates are mixed."""
        return self._picks.get(name)

    @contextmanager
    def picked(self, picks: Mapping[str, Pick]) -> Iterator[None]:
        """Compute only these within."""
        before, self._picks = self._picks, dict(picks)
        try:
            yield
        finally:
            self._picks = before

    def binary(self, name: str, pair: Pair) -> Tensor:
        """The two gates `[2]`: 1 and 0, with the gradient that softmax over the pair's α has.

        ∂L/∂α_i = Σ_j ∂L/∂g_j · p_j (δ_ij − p_i), the sums over the two.
        """
        p = self.alpha(name)[list(pair.candidates)].softmax(0)
        hard = torch.zeros_like(p)
        hard[pair.active] = 1
        return hard + p - p.detach()

    @torch.no_grad()
    def scores(self) -> dict[str, list[float]]:
        """log softmax(α) of the candidates of every gate, by the order of the names.

        Where edges are weighed, with log softmax(β) of the gate's edge.
        """
        found = {}
        for name, alpha in zip(self.names, self.alphas, strict=True):
            share = self.share(name)
            edge = 0.0 if share is None else share.double().log()
            found[name] = (alpha.double().log_softmax(0) + edge).tolist()
        return found

    @torch.no_grad()
    def sample_pairs(self, generator: torch.Generator) -> dict[str, Pair]:
        """Two candidates of every gate by softmax(α) without replacement, one of them active.

        The active one is sampled by the softmax over the two.
        """
        found = {}
        for name, alpha in zip(self.names, self.alphas, strict=True):
            p = alpha.softmax(0).cpu()
            first, second = torch.multinomial(p, 2, generator=generator).tolist()
            active = int(torch.multinomial(p[[first, second]], 1, generator=generator))
            found[name] = Pair((first, second), active)
        return found

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> dict[str, int]:
        """One candidate of every gate by softmax(α)."""
        return {
            name: int(torch.multinomial(alpha.softmax(0).cpu(), 1, generator=generator))
            for name, alpha in zip(self.names, self.alphas, strict=True)
        }

    @contextmanager
    def perturbed(self, size: float, generator: torch.Generator) -> Iterator[None]:
        """α with uniform noise up to `size` within (SmoothDARTS, Chen and Hsieh, ICML 2020)."""
        kept = [alpha.detach().clone() for alpha in self.alphas]
        try:
            with torch.no_grad():
                for alpha in self.alphas:
                    noise = 2 * torch.rand(alpha.shape, generator=generator) - 1
                    alpha.add_(size * noise.to(alpha))
            yield
        finally:
            with torch.no_grad():
                for alpha, before in zip(self.alphas, kept, strict=True):
                    alpha.copy_(before)

    @contextmanager
    def keeping_mass(self, pairs: Mapping[str, Pair]) -> Iterator[None]:
        """Shift the α of each pair after a step, so that what both have together stays.

        The step compares the two alone: without this, the others would lose or gain by it.
        """
        rows = [(self.alpha(name), list(pair.candidates)) for name, pair in pairs.items()]
        before = [alpha.detach()[two].logsumexp(0) for alpha, two in rows]
        yield
        with torch.no_grad():
            for (alpha, two), mass in zip(rows, before, strict=True):
                alpha[two] += mass - alpha[two].logsumexp(0)

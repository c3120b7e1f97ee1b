"""Trained classifiers of episodes: they score queries against the support of their own episode."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.nets.architecture import pools
from sseg_nase.nets.evolvable import initialize
from sseg_nase.nets.fused import norm_act_pool
from sseg_nase.nets.maps import READS_FEATURES, Axis, Wires, layer


class RelationHead(nn.Module):
    """The relation module g of Sung et al. 2018, eq. 1: r = g([Σ_k f(x_k), f(q)]) in (0, 1).

    Two ConvBlocks (3×3, BN, ReLU, 2×2 max-pool while the map is large enough) over the maps of a
    class and of a query, then Linear, ReLU, Linear, sigmoid. Embeddings `[..., channels · side²]`
    are flattened maps, channel-major. A class's map is the mean of its shots, not their sum: with
    another number of shots it then stays of the same size.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        *,
        width: int = 64,
        hidden: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        # One convolution over both maps is the sum of one over each: then every map is convolved
        # once, however many pairs it is in.
        self.of_class = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.of_query = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        for _ in range(2):
            side = side // 2 if pools(side) else side
        self.fc1 = nn.Linear(width * side**2, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        initialize(self, generator)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Relations `[E, M, N]` of query `[E, M, D]` to the classes of support `[E, N, K, D]`."""
        classes = support.mean(dim=-2)
        E, N, M = len(classes), classes.shape[1], query.shape[1]
        c, q = (
            conv(self._maps(x)).unflatten(0, (E, -1))
            for conv, x in ((self.of_class, classes), (self.of_query, query))
        )
        pairs = (c[:, None] + q[:, :, None]).flatten(0, 2)
        x = norm_act_pool(self.norm1, pairs, activation="relu", pool=pools(pairs.shape[-1]))
        x = self.conv2(x)
        x = norm_act_pool(self.norm2, x, activation="relu", pool=pools(x.shape[-1]))
        x = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return x.sigmoid().view(E, M, N)

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """Its first convolutions read maps, whose channels are those of the last block."""
        if embedding is None:
            return {}
        reads = layer(4, reads=embedding.names)
        return {"of_class.weight": reads, "of_query.weight": reads}

    def _maps(self, features: Tensor) -> Tensor:
        maps = features.reshape(-1, self.channels, self.side, self.side)
        return maps.to(memory_format=torch.channels_last)


class PairHead(nn.Module):
    """An MLP that scores pairs of embeddings: `[a, b]` of `2 · features` → `hidden` … → 1.

    Between its layers there is ReLU. The first layer is kept as one part for each side: every
    embedding then goes through it once, however many pairs it is in.
    """

    def __init__(
        self, features: int, hidden: Sequence[int], *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.of_support = nn.Linear(features, hidden[0], bias=False)
        self.of_query = nn.Linear(features, hidden[0])
        sizes = [*hidden, 1]
        layers = [nn.Linear(into, out) for into, out in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        initialize(self, generator)
        with torch.no_grad():  # initialised for half of the inputs that a pair has
            self.of_support.weight.mul_(0.5**0.5)
            self.of_query.weight.mul_(0.5**0.5)

    def pairs(self, support: Tensor, query: Tensor) -> Tensor:
        """Scores `[E, M, A]` of query `[E, M, D]` with each of support `[E, A, D]`."""
        x = self.of_query(query)[:, :, None] + self.of_support(support)[:, None]
        for linear in self.layers:
            x = linear(F.relu(x))
        return x[..., 0]

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """Both parts of its first layer read the embedding."""
        return {"of_support.weight": READS_FEATURES, "of_query.weight": READS_FEATURES}


class AttentionMLP(PairHead):
    """Matching networks with a learned attention: the softmax of an MLP on `[query, support]`.

    Instead of the cosine of Vinyals et al. 2016, eq. 1; what it does with it is the same.
    """

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Log-probabilities `[E, M, N]` of query `[E, M, D]` by support `[E, N, K, D]`."""
        ways, shots = support.shape[-3:-1]
        attention = self.pairs(support.flatten(-3, -2), query).log_softmax(dim=-1)
        return attention.unflatten(-1, (ways, shots)).logsumexp(dim=-1)


class RelationMLP(PairHead):
    """The relation module as an MLP on `[query, class mean]`, for embeddings that are no maps."""

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """Relations `[E, M, N]` in (0, 1) of query `[E, M, D]` to support `[E, N, K, D]`."""
        return self.pairs(support.mean(dim=-2), query).sigmoid()


class LinearHead(nn.Linear):
    """A linear classifier of embeddings: `[..., features]` → `[..., classes]`."""

    def wiring(self, embedding: Axis | None) -> dict[str, Wires]:
        """Its weights read the embedding."""
        return {"weight": READS_FEATURES}


class RidgeHead(nn.Module):
    """What R2D2 learns beside the embedding: λ, and scale and shift of the scores."""

    def __init__(self, regularization: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.log_regularization = nn.Parameter(torch.tensor(float(regularization)).log())
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(0.0))

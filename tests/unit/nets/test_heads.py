from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sseg_nase.nets.heads import AttentionMLP, PairHead, RelationHead, RelationMLP


def pair_by_pair(head: RelationHead, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """As Sung et al. 2018 draw it: both maps one behind the other, one convolution over them."""
    weight = torch.cat((head.of_class.weight, head.of_query.weight), dim=1)
    E, N = support.shape[:2]
    shape = (head.channels, head.side, head.side)
    pairs = [
        torch.cat((support[e, n].mean(0).view(shape), query[e, m].view(shape)))
        for e in range(E)
        for m in range(query.shape[1])
        for n in range(N)
    ]
    x = F.conv2d(torch.stack(pairs), weight, padding=1)
    for norm, conv in ((head.norm1, head.conv2), (head.norm2, None)):
        x = F.relu(norm(x))
        x = F.max_pool2d(x, 2) if x.shape[-1] >= 4 else x
        x = x if conv is None else conv(x)
    x = torch.sigmoid(head.fc2(F.relu(head.fc1(x.flatten(1)))))
    return x.view(E, -1, N)


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("training", [True, False])
def test_relations_are_those_of_every_pair(side: int, training: bool) -> None:
    generator = torch.Generator().manual_seed(side)
    head = RelationHead(6, side, width=8, generator=generator).train(training)
    support = torch.randn(2, 3, 4, 6 * side**2, generator=generator)
    query = torch.randn(2, 5, 6 * side**2, generator=generator)
    relations = head(support, query)
    assert relations.shape == (2, 5, 3)
    torch.testing.assert_close(relations, pair_by_pair(head, support, query), rtol=1e-4, atol=1e-5)


def test_relations_agree_with_easyfsl() -> None:
    methods = pytest.importorskip("easyfsl.methods")
    generator = torch.Generator().manual_seed(0)
    head = RelationHead(4, 5, width=4, generator=generator).eval()
    support = torch.randn(3, 2, 4 * 25, generator=generator)
    query = torch.randn(6, 4 * 25, generator=generator)

    class Joined(torch.nn.Module):
        def forward(self, pairs: torch.Tensor) -> torch.Tensor:
            weight = torch.cat((head.of_class.weight, head.of_query.weight), dim=1)
            x = F.max_pool2d(F.relu(head.norm1(F.conv2d(pairs, weight, padding=1))), 2)
            x = F.relu(head.norm2(head.conv2(x)))
            return torch.sigmoid(head.fc2(F.relu(head.fc1(x.flatten(1)))))

    maps = torch.nn.Unflatten(1, (4, 5, 5))
    theirs = methods.RelationNetworks(maps, feature_dimension=4, relation_module=Joined())
    with torch.no_grad():
        theirs.process_support_set(support.flatten(0, 1), torch.arange(3).repeat_interleave(2))
        torch.testing.assert_close(theirs(query), head(support[None], query[None])[0])


def mlp_of(head: PairHead, support: torch.Tensor, query: torch.Tensor) -> float:
    """One pair of embeddings `[D]`, joined, through one layer after the other."""
    first = torch.cat((head.of_query.weight, head.of_support.weight), dim=1)
    x = first @ torch.cat((query, support)) + head.of_query.bias
    for layer in head.layers:
        x = layer.weight @ x.clamp_min(0) + layer.bias
    return float(x.detach())


def test_attention_is_a_softmax_of_the_mlp_over_the_whole_support() -> None:
    generator = torch.Generator().manual_seed(2)
    head = AttentionMLP(6, [5], generator=generator).double()
    support = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    found = head(support, query)
    assert found.shape == (2, 7, 3)
    for e in range(2):
        for m in range(7):
            scores = [
                [mlp_of(head, support[e, n, k], query[e, m]) for k in range(4)] for n in (0, 1, 2)
            ]
            attention = torch.tensor(scores, dtype=torch.float64).flatten().softmax(0).view(3, 4)
            torch.testing.assert_close(found[e, m].exp(), attention.sum(1))


def test_relations_of_the_mlp_are_those_of_every_query_and_class_mean() -> None:
    generator = torch.Generator().manual_seed(3)
    head = RelationMLP(6, [8, 4], generator=generator).double()
    support = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    expected = [
        [[mlp_of(head, support[e, n].mean(0), query[e, m]) for n in range(3)] for m in range(7)]
        for e in range(2)
    ]
    found = head(support, query)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).sigmoid())


def test_the_first_layer_of_a_pair_begins_as_one_layer_of_both_would() -> None:
    head = RelationMLP(400, [300, 4], generator=torch.Generator().manual_seed(0))
    joined = torch.cat((head.of_query.weight, head.of_support.weight), dim=1)
    assert joined.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.02)

"""Supernets of spaces that choose what a step reads: an edge from all, two kept per step."""

from __future__ import annotations

import itertools
import json
from functools import cache

import pytest
import torch

from sseg_nase.errors import UserError
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.nets.searched import SearchedNetwork
from sseg_nase.oneshot.deriving import Picks, derive
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.supernet import choose, choosing, described_supernet, supernet
from sseg_nase.oneshot.training import check_options
from sseg_nase.spaces import PNAS, Darts, ENASMicro, Mobile, NetworkSpace, Tiny
from tests.support.small_supernet import finished, options_of, training_of

TINY = Tiny(cells=3, width=4, resolution=8)
DARTS = Darts(cells=2, width=4, steps=3, resolution=8)
SPACES = {"tiny": TINY, "darts": DARTS}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(space: NetworkSpace, generator: torch.Generator) -> Picks:
    decisions = space.containing().decisions
    return {n: int(torch.randint(len(a), (), generator=generator)) for n, a in decisions.items()}


@cache
def trained(name: str) -> tuple[SearchedNetwork, Gates]:
    """With weights and statistics that are not those of the start."""
    network, gates = supernet(SPACES[name], generator=seeded())
    network.double().train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        network(torch.randn(8, 3, 8, 8, generator=seeded(step)).double()).square().mean().backward()
        optimizer.step()
    return network, gates


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_network_computes_what_the_supernet_computes_with_it_alone(
    name: str, seed: int
) -> None:
    (network, gates), space, generator = trained(name), SPACES[name], seeded(seed)
    picks = drawn(space, generator)
    containing = space.containing()
    x = torch.randn(4, 3, 8, 8, generator=generator).double()
    for training in (False, True):
        derived = choose(space, network.train(training), picks)
        with gates.picked(containing.candidates(picks)):
            torch.testing.assert_close(derived(x), network(x), rtol=1e-5, atol=1e-8)
    assert derived.architecture == space.describe(containing.point(picks))


def test_steps_whose_edges_are_all_zeros_are_left_out_by_both() -> None:
    network, gates = trained("tiny")
    containing = TINY.containing()
    zero = TINY.operations.index("zero")
    picks = {
        name: next(n for n, each in enumerate(alternatives) if {*each.picks.values()} <= {zero, -1})
        if name == "normal.0"
        else 0
        for name, alternatives in containing.decisions.items()
    }
    x = torch.randn(4, 3, 8, 8, generator=seeded(1)).double()
    derived = choose(TINY, network.eval(), picks)
    with gates.picked(containing.candidates(picks)):
        torch.testing.assert_close(derived(x), network(x), rtol=1e-5, atol=1e-8)
    assert any(node.op == "zero" for node in derived.architecture.nodes)


@pytest.mark.parametrize("space", [TINY, Darts(cells=1, width=2, steps=1, kinds=("normal",))])
def test_every_point_is_one_set_of_alternatives(space: NetworkSpace) -> None:
    containing = space.containing()
    settled: set[str] = set()
    count = 1
    for alternatives in containing.decisions.values():
        assert not settled & alternatives[0].values.keys()
        settled |= alternatives[0].values.keys()
        assert len({json.dumps(each.values) for each in alternatives}) == len(alternatives)
        count *= len(alternatives)
    assert settled == {choice.name for choice in space.choices}
    assert count == space.size


def test_of_every_step_the_two_edges_with_the_largest_weight_are_kept() -> None:
    """By hand, as DARTS says it: by the largest weight of an operation that computes something."""
    _, gates = supernet(TINY, generator=seeded())
    generator = seeded(3)
    for parameter in gates.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    with torch.no_grad():  # zeros win by far, and yet lead to nothing
        gates.alpha("normal.1.0")[TINY.operations.index("zero")] = 9.0
    containing = TINY.containing()
    found = containing.point(derive(containing.scores(gates.scores()), lambda picks: True))
    for kind, step in itertools.product(TINY.kinds, range(TINY.steps)):
        best = []
        for source in range(step + 2):
            weights = gates.weights(f"{kind}.{step}.{source}").tolist()
            named = dict(zip(TINY.operations, weights, strict=True))
            del named["zero"]
            op = max(named, key=lambda each, named=named: named[each])
            best.append((named[op], source, op))
        (_, one, a), (_, other, b) = sorted(sorted(best)[-2:], key=lambda each: each[1])
        assert found[f"{kind}.{step}.inputs"] == f"{one},{other}"
        assert (found[f"{kind}.{step}.a"], found[f"{kind}.{step}.b"]) == (a, b)


def test_weighed_edges_are_kept_by_their_weight_and_their_operations() -> None:
    network, gates = supernet(TINY, partial=2, edges=True, generator=seeded())
    assert {edges for edges in gates.edges if len(edges) == 3} == {
        tuple(f"{kind}.1.{source}" for source in range(3)) for kind in TINY.kinds
    }
    with torch.no_grad():
        for names, beta in zip(gates.edges, gates.betas, strict=True):
            beta.copy_(torch.tensor([5.0 if name.endswith(".1.2") else 0.0 for name in names]))
        gates.alpha("normal.1.0")[0] = 9.0  # a clear operation of an edge that weighs little
    containing = TINY.containing()
    scores = gates.scores()
    expected = (gates.weights("normal.1.2") * gates.share("normal.1.2")).log()
    torch.testing.assert_close(torch.tensor(scores["normal.1.2"]), expected.detach())
    found = containing.point(derive(containing.scores(scores), lambda picks: True))
    assert found["normal.1.inputs"] == "0,2"
    assert found["reduction.1.inputs"].endswith(",2")
    network(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.parameters())


def test_the_record_is_enough_to_make_it_again() -> None:
    before = described_supernet(DARTS)
    mutation = choosing(DARTS, before, drawn(DARTS, seeded(5)))
    again = rebuild("CHOOSE", json.loads(json.dumps(mutation.target)), before)
    assert (again.after, again.target) == (mutation.after, mutation.target)
    assert again.sources == mutation.sources  # type: ignore[attr-defined]
    kept = [gate for gate, op in mutation.target["chosen"].items() if op is not None]
    assert len(kept) == 2 * DARTS.steps * len(DARTS.kinds)
    wrong = {**mutation.target["chosen"], kept[0]: None}
    with pytest.raises(UserError, match="CHOOSE target"):
        rebuild("CHOOSE", {**mutation.target, "chosen": wrong}, before)


SLOW = ("pc_darts", "enas", "random_sharing")  # as the first


@pytest.mark.parametrize(
    "strategy", ["darts", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_each_of_them_trains_and_chooses(strategy: str) -> None:
    space = Tiny(cells=2, width=4, resolution=8, operations=("ds_conv", "identity", "zero"))
    given = {"order": "first"} if strategy == "darts" else {}
    one = finished(training_of(strategy, space=space, epochs=1, **given))
    for record in one.records:
        assert record["picks"].keys() == {"normal.0", "normal.1", "reduction.0", "reduction.1"}
        point = one.point(record["picks"])
        assert record["scores"]["skips"] == sum(op == "identity" for op in point.values())
    record = one.choose(one.ended.record)
    assert record.trigger["inherits"] == (strategy != "pc_darts")
    assert not record.trigger["inherits"] or record.function_delta < 1e-5
    assert one.learner.backbone.architecture == space.describe(
        one.point(one.records[one.ended.record]["picks"])
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (ENASMicro(cells=1), "enas_micro: what a cell gives depends on what its steps read"),
        (PNAS(cells=1), "pnas: what a cell gives"),
        (Mobile(), r"mobile: its choices leave blocks out \(zero\)"),
    ],
)
def test_spaces_that_no_network_contains_are_refused(space: NetworkSpace, said: str) -> None:
    with pytest.raises(UserError, match=said):
        supernet(space)


def test_two_candidates_of_an_edge_are_not_compared_alone() -> None:
    with pytest.raises(UserError, match="strategy=proxyless: it compares two candidates"):
        check_options(options_of("proxyless"), TINY)

"""Gates and what mixed operations make of them, against slow versions of the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.errors import UserError
from sseg_nase.nets import ops
from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.oneshot.gates import Gates, Pair

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CHOICES = "|".join(NAMES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(gates: Gates | None = None, **options: int) -> MixedOperation:
    torch.manual_seed(0)
    made = MixedOperation(8, 8, options.pop("stride", 1), CHOICES, "a", **options).double()
    if gates is not None:
        made.gates.append(gates)
    return made.train()


def wide(gates: Gates, seed: int = 3) -> Gates:
    """The same with α and β that are not all alike."""
    for parameter in gates.parameters():
        nn.init.normal_(parameter, generator=seeded(seed))
    return gates.double()


def test_a_mixture_is_the_weighed_sum_of_its_candidates() -> None:
    gates = wide(Gates({"a": 5}))
    op, x = mixed(gates), torch.randn(2, 8, 6, 6).double()
    weights = torch.exp(gates.alpha("a")) / torch.exp(gates.alpha("a")).sum()
    expected = sum(w * candidate(x) for w, candidate in zip(weights, op.candidates, strict=True))
    torch.testing.assert_close(op(x), expected)
    without = mixed()
    torch.testing.assert_close(without(x), sum(c(x) for c in without.candidates) / 5)


def test_part_of_the_channels_is_mixed_and_the_others_pass() -> None:
    gates = wide(Gates({"a": 5, "b": 5}, {"node": ("b", "a")}))
    x = torch.randn(2, 8, 6, 6).double()
    for stride in (1, 2):
        op = mixed(gates, partial=4, stride=stride)
        first = sum(w * c(x[:, :2]) for w, c in zip(gates.weights("a"), op.candidates, strict=True))
        passed = x[:, 2:] if stride == 1 else nn.functional.max_pool2d(x[:, 2:], 2)
        joined = torch.cat((first, passed), 1)
        # shuffled: channel j of group i becomes channel 4 j + i
        order = [group * 2 + channel for channel in range(2) for group in range(4)]
        share = torch.exp(gates.betas[0][1]) / torch.exp(gates.betas[0]).sum()
        torch.testing.assert_close(op(x), share * joined[:, order])


def test_channels_that_cannot_be_divided_name_the_nearest_that_can() -> None:
    with pytest.raises(UserError, match=r"gate a: 5 and 5 channels .* by 4.* that is: 4\."):
        MixedOperation(5, 5, 1, CHOICES, "a", partial=4)
    with pytest.raises(UserError, match=r"that is: 8\."):
        MixedOperation(7, 7, 1, CHOICES, "a", partial=4)


def test_one_candidate_alone_is_computed() -> None:
    gates = wide(Gates({"a": 5}))
    op, x = mixed(gates).eval(), torch.randn(2, 8, 6, 6).double()
    ran: list[int] = []
    for number, candidate in enumerate(op.candidates):
        candidate.register_forward_hook(lambda *_, number=number: ran.append(number))
    with gates.picked({"a": 3}):
        assert torch.equal(op(x), op.candidates[3](x))
    assert set(ran) == {3}
    assert gates.pick_of("a") is None


def test_gradients_of_two_compared_candidates() -> None:
    """Σ_j ⟨∂L/∂y, o_j(x)⟩ p_j (δ_ij − p_i), though only the active one is differentiated."""
    gates = wide(Gates({"a": 5}))
    op, x = mixed(gates).eval(), torch.randn(2, 8, 6, 6).double()
    towards = torch.randn(2, 8, 6, 6).double()
    for pair in (Pair((2, 4), 0), Pair((3, 2), 1)):
        gates.zero_grad()
        op.zero_grad()
        with gates.picked({"a": pair}):
            y = op(x)
        active = pair.candidates[pair.active]
        torch.testing.assert_close(y, op.candidates[active](x))
        (y * towards).sum().backward()
        two = list(pair.candidates)
        p = torch.softmax(gates.alpha("a").detach()[two], 0)
        inner = torch.stack([(towards * op.candidates[n](x)).sum() for n in two]).detach()
        expected = torch.zeros(5).double()
        for i in range(2):
            expected[two[i]] = sum(inner[j] * p[j] * (float(i == j) - p[i]) for j in range(2))
        torch.testing.assert_close(gates.alpha("a").grad, expected)
        idle = op.candidates[pair.candidates[1 - pair.active]]
        assert all(q.grad is None for q in idle.parameters())


def test_a_step_on_two_keeps_what_both_have_together() -> None:
    gates = wide(Gates({"a": 5, "b": 5}))
    pairs = {"a": Pair((0, 3), 0), "b": Pair((1, 4), 1)}
    before = {name: gates.weights(name).detach() for name in pairs}
    with gates.keeping_mass(pairs), torch.no_grad():
        for name, pair in pairs.items():
            gates.alpha(name)[list(pair.candidates)] += torch.tensor([0.7, -0.2]).double()
    for name, pair in pairs.items():
        after, two = gates.weights(name).detach(), list(pair.candidates)
        assert after[two].sum() == pytest.approx(float(before[name][two].sum()))
        others = [n for n in range(5) if n not in two]
        torch.testing.assert_close(after[others], before[name][others])
        assert after[two[0]] > before[name][two[0]]


def test_draws_follow_the_weights() -> None:
    gates = Gates({"a": 3})
    with torch.no_grad():
        gates.alpha("a").copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    generator = seeded()
    count = 2_000
    found = torch.tensor([gates.sample(generator)["a"] for _ in range(count)]).bincount(minlength=3)
    assert (found / count - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.04
    pairs = [gates.sample_pairs(generator)["a"] for _ in range(count)]
    assert all(len({*pair.candidates}) == 2 for pair in pairs)
    first = torch.tensor([pair.candidates[0] for pair in pairs]).bincount(minlength=3)
    assert (first / count - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.04
    both = [pair for pair in pairs if {*pair.candidates} == {0, 1}]
    of_first = sum(pair.candidates[pair.active] == 0 for pair in both) / len(both)
    assert abs(of_first - 0.5 / 0.8) < 0.06


def test_the_order_of_the_parameters_is_that_of_the_names() -> None:
    """An optimizer's state finds its tensor again under another order of a dict."""
    edges = {"n": ("b", "c"), "m": ("a",)}
    ours = Gates({"b": 2, "a": 3, "c": 2}, edges, generator=seeded())
    turned = dict(reversed(edges.items()))
    theirs = Gates({"c": 2, "a": 3, "b": 2}, turned, generator=seeded(9))
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    adam = [torch.optim.Adam(gates.parameters(), lr=0.1) for gates in (ours, theirs)]
    (ours.alpha("b")[0] + ours.share("a") * 2).backward()
    adam[0].step()
    theirs.load_state_dict(ours.state_dict())
    adam[1].load_state_dict(copy.deepcopy(adam[0].state_dict()))
    for gates, optimizer in zip((ours, theirs), adam, strict=True):
        optimizer.zero_grad()
        gates.alpha("b").square().sum().backward()
        optimizer.step()
    assert torch.equal(ours.alpha("b"), theirs.alpha("b"))
    assert torch.equal(ours.alpha("a"), theirs.alpha("a"))


def test_a_mixed_operation_is_counted_as_all_its_candidates() -> None:
    options = (("choices", CHOICES), ("gate", "a"))
    whole = ops.cost("mixed", 8, 8, 1, 6, options)
    parts = [ops.cost(name, 8, 8, 1, 6) for name in NAMES]
    assert whole.macs == sum(part.macs for part in parts)
    norms = 2 * 2 * 8  # γ and β of both convolutions: not trained
    assert whole.params == sum(part.params for part in parts) - norms


def test_norms_inside_are_not_trained() -> None:
    op = mixed()
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.weight.requires_grad
            assert not module.bias.requires_grad
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def test_where_nothing_can_be_mixed_there_are_zeros() -> None:
    gates = wide(Gates({"a": 1}))
    op = MixedOperation(4, 4, 2, "none", "a").double()
    op.gates.append(gates)
    x: Tensor = torch.randn(2, 4, 6, 6).double()
    assert torch.equal(op(x), torch.zeros(2, 4, 3, 3).double())

"""CHOOSE: by maps, so that weights, moments and teacher go across, and the record is enough."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.operators import TrainingState, apply, named_moments
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.kinds import kind_of
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.heads import LinearHead
from sseg_nase.nets.mutations.choose import choose
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.supernet import choosing, supernet
from sseg_nase.spaces.nb201 import NAMES, NB201
from sseg_nase.ssl.teacher import ema_update, make_teacher

SPACE = NB201(width=4, cells=1, resolution=8)
PICKS = dict(zip(NAMES, (3, 1, 2, 0, 4, 3), strict=True))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def trained() -> tuple[Learner, Gates, torch.optim.Optimizer, nn.Module]:
    """A supernet with a head, trained a little by an optimizer with moments, and its teacher."""
    network, gates = supernet(SPACE, generator=seeded())
    learner = Learner(network, LinearHead(network.architecture.features, 3)).train()
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    teacher = make_teacher(network)
    for step in range(3):
        optimizer.zero_grad()
        learner(torch.randn(8, 3, 8, 8, generator=seeded(step)))[1].square().mean().backward()
        optimizer.step()
        ema_update(teacher, network, 0.5)
    return learner, gates, optimizer, teacher


def test_weights_moments_and_teacher_go_across(trained) -> None:
    learner, gates, optimizer, teacher = trained
    mutation = choosing(SPACE, learner.backbone.architecture, PICKS)
    moments = named_moments(optimizer, learner)
    state = TrainingState(learner.state_dict(), teacher.state_dict(), moments)
    head = LinearHead(mutation.after.features, 3)
    after = apply(mutation, state, head=head)
    derived = Learner(mutation.after.network(None), head)
    derived.load_state_dict(dict(after.student))
    x = torch.randn(4, 3, 8, 8, generator=seeded(9))
    for network, found in ((learner.backbone, derived.backbone), (teacher, None)):
        if found is None:
            found = mutation.after.network(None)
            found.load_state_dict(dict(after.teacher))
            for module in network.modules():  # a copy of the gates came with the teacher's copy
                if hasattr(module, "gates"):
                    module.gates[:] = [gates]
        with gates.picked(PICKS):
            expected = network.eval()(x)
        torch.testing.assert_close(found.eval()(x), expected, rtol=1e-5, atol=1e-6)
    trainable = {n for n, _ in derived.named_parameters()}
    before = {n.replace(".candidates.3.", ".") for n in moments}
    assert after.moments.keys() == trainable & before
    kept = "blocks.cell0.0-1.1.weight"
    source = "backbone.blocks.cell0.0-1.candidates.3.1.weight"
    assert mutation.sources[kept] == source.removeprefix("backbone.")
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after.moments[f"backbone.{kept}"][key], moments[source][key])
        assert torch.equal(after.moments["head.weight"][key], moments["head.weight"][key])


def test_what_is_gone_is_said_and_nothing_else_goes(trained) -> None:
    learner, *_ = trained
    mutation = choosing(SPACE, learner.backbone.architecture, PICKS)
    names = set(learner.backbone.state_dict())
    taken = {source for source in mutation.sources.values() if source is not None}
    assert taken | set(mutation.gone) == names
    assert not taken & set(mutation.gone)
    assert all(".candidates." in name for name in mutation.gone)
    stranger = {**learner.state_dict(), "backbone.blocks.other.weight": torch.zeros(1)}
    with pytest.raises(KeyError, match=r"does not know the student's backbone\.blocks\.other"):
        apply(mutation, TrainingState(stranger), head=LinearHead(16, 3))


def test_the_record_is_enough_to_make_it_again() -> None:
    network, _ = supernet(SPACE)
    before = network.architecture
    mutation = choosing(SPACE, before, PICKS)
    target = json.loads(json.dumps(mutation.target))
    again = rebuild("CHOOSE", target, before)
    assert (again.after, again.target) == (mutation.after, mutation.target)
    record = MutationRecord(
        0, 0, 0, "CHOOSE", target, {}, counts(before), counts(mutation.after), 0.0, None, None,
        None, 0.0, True,
    )  # fmt: skip
    assert replay(before, [json.loads(json.dumps(record.to_dict()))])[-1] == mutation.after
    wrong = copy.deepcopy(record.to_dict())
    wrong["target"]["chosen"]["0-1"] = "avg_pool_3x3"
    with pytest.raises(ReplayError, match="nor_conv_3x3 and not avg_pool_3x3"):
        replay(before, [wrong])
    assert "0-1: nor_conv_3x3" in kind_of("CHOOSE").describe(target)
    assert kind_of("CHOOSE").describe({"chosen": 3}) == '{"chosen": 3}'


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"0-1": "sep_conv_9x9"}, "0-1 has no candidate sep_conv_9x9; it has none, skip_connect"),
        ({"0-9": "none"}, "there is no gate 0-9"),
        ({"0-1": None}, "of the gate 0-1 nothing is chosen"),
        ({"0-1": "none"}, "is nor_conv_3x3 and not none"),
        ({"0-3": "skip_connect"}, "cell0.0-3 is gone, of which skip_connect was"),
    ],
)
def test_a_network_that_does_not_follow_is_refused(chosen: dict, said: str) -> None:
    network, _ = supernet(SPACE)
    mutation = choosing(SPACE, network.architecture, PICKS)
    wanted = {k: v for k, v in {**mutation.target["chosen"], **chosen}.items() if v is not None}
    with pytest.raises(ValueError, match=said):
        choose(network.architecture, mutation.after, wanted)
    with pytest.raises(UserError, match="CHOOSE target"):
        rebuild("CHOOSE", {**mutation.target, "chosen": wanted}, network.architecture)


def test_a_network_without_mixed_operations_has_nothing_to_choose() -> None:
    plain = SPACE.describe(dict.fromkeys(NAMES, "nor_conv_3x3"))
    assert "no mixed operations" in str(kind_of("CHOOSE").refuses(plain))  # type: ignore[attr-defined]
    target = choosing(SPACE, supernet(SPACE)[0].architecture, PICKS).target
    with pytest.raises(UserError, match="no mixed operations"):
        rebuild("CHOOSE", target, plain)


def test_of_a_part_of_the_channels_what_was_mixed_begins_anew() -> None:
    network, _ = supernet(SPACE, partial=2, generator=seeded())
    mutation = choosing(SPACE, network.architecture, PICKS)
    fresh = {name for name, source in mutation.sources.items() if source is None}
    assert fresh
    assert all(".0-1." in n or ".1-2." in n or ".2-3." in n for n in fresh)
    state = TrainingState({f"backbone.{n}": t for n, t in network.state_dict().items()})
    after = apply(mutation, state)
    stem = "backbone.blocks.stem.op.0.weight"
    assert torch.equal(after.student[stem], state.student[stem])

"""An operator of one's own is one object: records, replay, metrics, figures and text follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from sseg_nase import kinds
from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord, accepted_kinds, removed_channels
from sseg_nase.evolution.operators import TrainingState, build_learner, perform
from sseg_nase.evolution.replay import replay
from sseg_nase.evolution.selection import candidates, refusals
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import ChannelMap
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Caps, Operator, Options, resized
from sseg_nase.reporting.figures.style import mutation_handles, mutation_style
from sseg_nase.reporting.run_report import _target
from sseg_nase.tracking.rows import Rows
from tests.support.learners import make_images, make_learner

CAPS = Caps(12, 64, 10**6, 10**9, 16)
OPTIONS = Options(1.5, "preserve", "duplicate", 0.0)


def mirror(before: Description, axis: str) -> Mutation:
    """The channels of one axis in the opposite order: the function stays."""
    width = before.axes[axis]
    turned = ChannelMap(tuple(reversed(range(width))), width)
    return resized("MIRROR", {"axis": axis}, before, {axis: turned})


def proposed(
    before: Description, sensitivity: Sequence[float], options: Options, caps: Caps, seed: int
) -> list[Mutation]:
    return [mirror(before, next(iter(before.axes)))]


class Mirror(Operator):
    name, code = "MIRROR", 7
    colour, marker = "#123456", "s"
    proposals: ClassVar = {"mirror": proposed}

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        return mirror(before, target["axis"])

    def describe(self, target: Mapping[str, Any]) -> str:
        return f"{target['axis']} mirrored"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds.kinds()))
    kinds.register(Mirror())


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("residual", [False, True])
def test_it_is_proposed_recorded_replayed_counted_and_drawn(residual: bool) -> None:
    seed = Architecture.seed([4, 6], resolution=8, residual=residual)
    found = candidates(
        seed, operators=["mirror"], sensitivity=[1, 2], options=OPTIONS, caps=CAPS, seed=0
    )
    assert [each.label for each in found] == ["MIRROR"]
    assert refusals(seed, ["grow", "mirror"]) == []
    learner, images = make_learner(seed, 1).eval(), make_images(seed, 2)
    state, record = perform(found[0], TrainingState(learner.state_dict()), probe=images)
    new = build_learner(found[0], state, like=learner)
    torch.testing.assert_close(new(images)[1], learner(images)[1])
    assert record.function_delta == pytest.approx(0, abs=1e-12)

    line = json.loads(json.dumps(record.to_dict()))
    assert replay(seed, [line]) == [seed, found[0].after]
    read = MutationRecord.from_dict(line)
    assert accepted_kinds([read]) == ["MIRROR"]
    assert removed_channels([read]) == 0
    assert ("mutation/kind", 7.0) in {row[:2] for row in Rows().mutation(line, 0)}
    assert mutation_style("MIRROR", accepted=True)["markerfacecolor"] == "#123456"
    assert [handle.get_marker() for handle in mutation_handles([line])] == ["s"]
    assert _target("MIRROR", line["target"]) == "blocks.0 mirrored"


def test_a_kind_that_nobody_defined_is_named() -> None:
    with pytest.raises(UserError, match=r"'MIRROR': accepted GROW, WIDEN, PRUNE"):
        kinds.kind_of("MIRROR")
    assert _target("MIRROR", {"axis": "a"}) == '{"axis": "a"}'  # a report of it can still be made
    with pytest.raises(UserError, match=r"'mirror' is none; accepted grow, widen"):
        refusals(Architecture.seed([4], resolution=8), ["mirror"])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("name", "code"), [("MIRROR", 9), ("ROTATE", 7), ("PRUNE", 9)])
def test_a_name_or_a_code_stands_for_one_kind(name: str, code: int) -> None:
    class Other(Operator):
        pass

    Other.name, Other.code = name, code
    with pytest.raises(UserError, match="in use"):
        kinds.register(Other())

"""A mutation by hand: applied and recorded at once."""

from __future__ import annotations

import json

import pytest
import torch

from sseg_nase.evolution.history import counts
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    named_moments,
    perform,
)
from sseg_nase.evolution.replay import replay
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from tests.support.learners import (
    OPTIMIZERS,
    assert_same,
    loss_of,
    make_images,
    make_learner,
    projections_of,
    relative,
    snapshot,
)

PLAIN = Architecture.seed([4, 5, 6], resolution=16)
RESIDUAL = Architecture.seed([4, 6, 6], resolution=16, residual=True, embedding="flatten")
MUTATIONS = [
    grow(PLAIN, out_channels=9, seed=4),
    grow(PLAIN, mode="fresh", seed=4),
    widen(PLAIN, 2, noise=0.1, seed=4),
    widen(PLAIN, 1, mode="zero", seed=4),
    prune(PLAIN, [[0, 2], [1], [3, 4, 5]]),
    grow(RESIDUAL, position=1, seed=4),
    widen(RESIDUAL, None, noise=0.1, seed=4),
    widen(RESIDUAL, None, mode="zero", seed=4),
]


def a_state(architecture: Architecture) -> TrainingState:
    """Of a network with a teacher, after one optimizer step."""
    learner = make_learner(architecture, 1)
    optimizer = OPTIMIZERS["adamw"](learner)
    loss_of(learner, make_images(architecture, 1)).backward()
    optimizer.step()
    teacher = make_learner(architecture, 5).backbone.state_dict()
    return TrainingState(learner.state_dict(), teacher, named_moments(optimizer, learner))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_performing_applies_and_records(mutation: Mutation) -> None:
    state = a_state(mutation.before)
    kept, images = snapshot(state), make_images(mutation.before, 2)
    after, record = perform(mutation, state, probe=images)
    assert_same(after, apply(mutation, state))
    assert_same(state, kept)

    old = make_learner(mutation.before, 3)
    old.load_state_dict(dict(state.student))
    new = build_learner(mutation, after, like=old)
    before, changed = (projections_of(net, images, training=False) for net in (old, new))
    assert record.function_delta is not None
    assert record.function_delta == pytest.approx(relative(changed, before), rel=1e-6, abs=1e-15)
    exact = mutation.kind != "PRUNE" and not mutation.noise and mutation.target["mode"] != "fresh"
    assert (record.function_delta <= 1e-10) == exact

    assert (record.kind, record.target) == (mutation.kind, mutation.target)
    assert (record.before, record.after) == (counts(mutation.before), counts(mutation.after))
    assert (record.index, record.epoch, record.step, record.accepted) == (0, 0, 0, True)
    assert (record.loss_before, record.loss_after, record.fitness) == (None, None, None)
    assert record.seconds > 0
    assert perform(mutation, state)[1].function_delta is None


def test_the_delta_is_taken_in_float64_whatever_the_weights_are() -> None:
    state = TrainingState(make_learner(PLAIN, 1).float().state_dict())
    images = make_images(PLAIN, 1).float()
    after, record = perform(grow(PLAIN), state, probe=images)
    assert record.function_delta == 0
    assert after.student["head.fc1.weight"].dtype == torch.float32
    doubled = perform(widen(PLAIN, 1, channels=10), state, probe=images)[1].function_delta
    assert doubled is not None
    assert doubled < 1e-14  # halves are exact in float32: only float64 sums in another order


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_record_alone_gives_the_same_weights(mutation: Mutation) -> None:
    state = a_state(mutation.before)
    after, record = perform(mutation, state)
    line = json.loads(json.dumps(record.to_dict()))
    again = rebuild(line["kind"], line["target"], mutation.before)
    assert_same(apply(again, state), after)


def test_records_made_by_hand_replay() -> None:
    state, present, records = a_state(PLAIN), PLAIN, []
    for mutate in (lambda a: grow(a), lambda a: widen(a, None), lambda a: widen(a, 1, noise=0.1)):
        mutation = mutate(present)
        state, record = perform(mutation, state)
        present = mutation.after
        records.append(record)
    assert replay(PLAIN, records)[-1] == present

"""A step of the loop by hand: what is averaged, what is seen, what follows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.data.random import derive
from sseg_nase.ssl.teacher import ema_decay
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interventions import importance
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Decision, within
from tests.support.small_state import record_of

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "pretrain.epochs=2",
    "ssl.projection_hidden=16",
    "ssl.projection_dim=8",
]  # 4 batches an epoch


def trainer(*overrides: str, callbacks: tuple[Callback, ...] = (), sink: Sink | None = None) -> Any:
    config = load([*TINY, *overrides])
    return trainer_of(config, list(callbacks), sink or Sink(), None, lambda: False)


class At(Callback):
    """Calls `do` at `event`."""

    def __init__(self, event: Event, do: Any) -> None:
        self.event, self.do = event, do

    def on(self, event: Event, state: Pretraining) -> None:
        if event is self.event:
            self.do(state)


def gradients(loss: Tensor, one: Trainer) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(one.state.networks.learner.parameters())))


def test_accumulated_gradients_are_the_mean_over_their_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups of three and, for what is left of the epoch, one."""
    still = ["ablation=A2", "optimizer=sgd", "optimizer.lr=1e-12"]
    overrides = [*still, "hardware.gradient_accumulation_steps=3", "pretrain.epochs=1"]
    one, twin = trainer(*overrides), trainer(*overrides)
    found: list[list[Tensor]] = []
    step = one.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        found.append([p.grad.clone() for p in one.state.networks.learner.parameters()])
        return step(*args, **kwargs)

    monkeypatch.setattr(one.optimizer, "step", watched)
    one.fit()
    twin.model.train()
    losses = []
    for index, batch in enumerate(twin.feed.epoch(0)):
        seed = derive(twin.config.seed, "views", 0, index)
        views = twin.state.probe.views(batch.images, seed, first=batch.first, of=batch.of)
        of = twin.method.loss(twin.model, twin.state.networks.teaching(0), views, twin.config.ssl)
        losses.append(of.total)
    expected = [gradients(sum(losses[:3]) / 3, twin), gradients(losses[3], twin)]
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_every_batch_of_every_epoch_has_views_of_its_own() -> None:
    seeds: list[int] = []
    one = trainer("ablation=A2")
    views = one.state.probe.views

    def watched(images: Tensor, seed: int, **kwargs: Any) -> Any:
        seeds.append(seed)
        return views(images, seed, **kwargs)

    one.state.probe.views = watched
    one.fit()
    assert len(seeds) == 8
    assert len(set(seeds)) == 8
    other = trainer("ablation=A2", "seed=1")
    one.state.probe.views = views
    for a, b in ((one, other),):
        first, second = (next(iter(t.feed.epoch(0))).images for t in (a, b))
        assert not torch.equal(first, second)


def test_the_means_of_an_epoch_are_those_of_its_batches() -> None:
    losses: list[list[float]] = []
    one = trainer("ablation=A5", "hardware.gradient_accumulation_steps=3", "evolution=none")
    plain = one._losses

    def watched(*given: Any, **named: Any) -> Any:
        found = plain(*given, **named)
        losses.append([part.item() for part in found[:3]])
        return found

    one._losses = watched
    means: list[Any] = []
    one.callbacks.append(At(Event.EPOCH_END, lambda t: means.append(t.means)))
    one.fit()
    for epoch, mean in enumerate(means):
        expected = torch.tensor(losses[4 * epoch : 4 * epoch + 4]).mean(0).tolist()
        assert [mean.loss, mean.contrastive, mean.gap] == pytest.approx(expected, rel=1e-5)
    assert one.state.progress.images_seen["synthetic"] == 2 * 64


def test_the_rate_is_that_of_the_step_and_the_teacher_follows_after_it() -> None:
    """Teacher: θ ← d·θ + (1 − d)·student, with the student after the step."""
    rates, decays = [], []
    one = trainer(
        "ablation=A5", "evolution=none", "ssl.ema_schedule=cosine", "ssl.ema_decay=0.9",
        "scheduler.warmup_epochs=1",
    )  # fmt: skip
    before: list[Tensor] = []

    def remember(t: Pretraining) -> None:
        before[:] = [p.clone() for p in t.networks.teacher.parameters()]  # type: ignore[union-attr]

    def check(t: Pretraining) -> None:
        rates.append(t.networks.optimizer.param_groups[0]["lr"])
        decay = ema_decay(t.progress.step - 1, 8, t.config.ssl)
        decays.append(decay)
        assert t.networks.teacher is not None
        student = t.networks.learner.backbone.parameters()
        for old, now, theirs in zip(before, t.networks.teacher.parameters(), student, strict=True):
            torch.testing.assert_close(now, decay * old + (1 - decay) * theirs)

    one.callbacks += [At(Event.BATCH_START, remember), At(Event.AFTER_STEP, check)]
    one.fit()
    assert rates[:4] == pytest.approx([0.001 * (step + 1) / 5 for step in range(4)])
    assert rates[4] == pytest.approx(0.001)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert decays == sorted(decays)
    assert decays[0] == pytest.approx(0.9)
    assert decays[-1] > 0.95


class Wanted:
    """An intervention that wants `decision(trainer)` after the first epoch."""

    name = "wanted"

    def __init__(self, decision: Any) -> None:
        self.decision = decision

    def observe(self, state: Pretraining) -> None:
        """Nothing."""

    def decide(self, state: Pretraining) -> Decision:
        if state.progress.epoch:
            return Decision(None, {"reason": "done"})
        return self.decision(state)

    def state_dict(self) -> dict[str, Any]:
        return {}


class Told(Sink):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def event(self, kind: str, values: Any) -> None:
        self.events.append((kind, values))


def grown(state: Pretraining, **options: Any) -> Decision:
    from sseg_nase.nets.mutations.grow import grow

    mutation = grow(state.networks.architecture, out_channels=64, mode="preserve", seed=0)
    return Decision(mutation, {"reason": "wanted"}, **options)


def mutated(losses: list[float], epochs: int = 3, **options: Any) -> tuple[Trainer, Told]:
    """A run with one GROW after its first epoch, whose held losses are `losses`, in turn."""
    told = Told()
    one = trainer("ablation=A2", f"pretrain.epochs={epochs}", sink=told)
    one.surgery.interventions = [Wanted(lambda t: grown(t, **options))]
    turn = itertools.chain(losses, itertools.repeat(1.0))

    def held(networks: Any, epoch: int) -> Tensor:
        """Of two batches, which differ from each other by far more than networks do."""
        return torch.tensor([[next(turn)] * 2 for _ in networks]) + torch.tensor([-0.9, 0.9])

    one.state.probe.held_losses = held
    one.fit()
    return one, told


@pytest.mark.parametrize(
    ("losses", "options", "accepted"),
    [
        ([2.0, 2.2], {"tolerance": 0.1}, True),
        ([2.0, 2.21], {"tolerance": 0.1}, False),
        ([2.0, 1.0], {"tolerance": 0.0}, True),
        ([2.0, 2.0001], {"tolerance": 0.0}, False),
        ([2.0, float("nan")], {}, False),
        ([2.0, float("inf")], {}, False),  # not over an infinite limit, and yet no loss
        ([float("nan"), 1.0], {}, False),  # nothing to compare with
        ([2.0, float("inf")], {"tolerance": 0.1, "grace": 1}, False),
        ([2.0, 2.5], {"tolerance": 0.1, "grace": 1}, True),  # it has time to make up for it
    ],
)
def test_a_mutation_stays_within_its_tolerance(
    losses: list[float], options: dict[str, Any], accepted: bool
) -> None:
    one, _ = mutated(losses, **options)
    (record,) = one.state.progress.history
    assert record.accepted == accepted
    assert len(one.state.networks.architecture.channels) == (4 if accepted else 3)
    spoiled = [
        f"the held loss {when} it is not finite"
        for when, loss in zip(("before", "after"), losses, strict=True)
        if not math.isfinite(loss)
    ]
    assert record.trigger.get("refused") == ("; ".join(spoiled) or None)


def test_a_mutation_that_leaves_weights_that_are_not_finite_is_refused() -> None:
    told = Told()
    one = trainer("ablation=A2", "pretrain.epochs=2", sink=told)
    one.surgery.interventions = [Wanted(grown)]
    make = one.workshop.mutated

    def spoiled(networks: Any, mutation: Any) -> Any:
        new = make(networks, mutation)
        new.learner.backbone.blocks[3].norm.running_var[0] = float("inf")
        return new

    one.surgery.mutated = spoiled
    one.fit()
    (record,) = one.state.progress.history
    assert not record.accepted
    assert "running_var" in record.trigger["refused"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("now", "without", "kept"),
    [
        (2.1, 2.0, True),
        (2.3, 2.0, False),
        (NAN, 2.0, False),
        (2.0, NAN, True),  # what was before is no better
        (float("inf"), 2.0, False),
    ],
)
def test_a_probation_ends_as_the_losses_say(now: float, without: float, kept: bool) -> None:
    one, told = mutated([2.0, 2.0, now, without], tolerance=0.1, grace=1)
    (ended,) = [values for kind, values in told.events if kind == "probation"]
    assert ended["kept"] == kept
    assert ended["epoch"] == 1
    assert ("reason" in ended) == (not torch.tensor([now, without]).isfinite().all())
    (record,) = one.state.progress.history
    assert record.accepted == kept
    assert len(one.state.networks.architecture.channels) == (4 if kept else 3)


def test_a_probation_ends_with_the_training_at_the_latest() -> None:
    one, told = mutated([2.0, 2.0, 2.3, 2.0], tolerance=0.1, grace=9)
    (ended,) = [values for kind, values in told.events if kind == "probation"]
    assert (ended["epoch"], ended["kept"]) == (2, False)
    assert len(one.state.networks.architecture.channels) == 3


def test_a_probation_between_two_losses_that_are_none_ends_the_run() -> None:
    from sseg_nase.training.divergence import DivergenceError

    with pytest.raises(DivergenceError, match="with the mutation on probation and without it"):
        mutated([2.0, 2.0, NAN, NAN], tolerance=0.1, grace=1)


@pytest.mark.parametrize(
    ("rises", "tolerance", "fits"),
    [
        ([0.1, 0.1], 0.0, False),
        ([-0.1, -0.1], 0.0, True),
        ([0.0, 0.0], 0.0, True),
        ([0.3, -0.1], 0.0, True),  # 0.1 ± 0.2
        ([0.12, 0.08], 0.0, False),  # 0.1 ± 0.02
        ([0.12, 0.08], 0.02, True),  # of a loss of 3: 0.06 and two errors
        ([0.12, 0.08], 0.019, False),
        ([-0.1, -0.1], -0.1, False),
        ([-0.4, -0.4], -0.1, True),
    ],
)
def test_what_is_on_probation_may_be_worse_by_tolerance_and_error(
    rises: list[float], tolerance: float, fits: bool
) -> None:
    old = torch.tensor([1.0, 5.0], dtype=torch.float64)
    assert within(old + torch.tensor(rises), old, tolerance) == fits


ALONG = ["ablation=A5", "hardware.gradient_accumulation_steps=3", "scheduler.rewarmup_steps=3"]


def undone(told: Sink, *overrides: str, control: bool) -> Trainer:
    """A run whose mutation after the first epoch has to go after the third."""
    one = trainer(*ALONG, "pretrain.epochs=4", *overrides, sink=told)
    one.surgery.interventions = [
        Wanted(lambda t: grown(t, tolerance=-9.0, grace=2, control=control))
    ]
    one.fit()
    assert [record.accepted for record in one.state.progress.history] == [False]
    return one


@pytest.mark.parametrize("overrides", [[], ["optimizer=sgd"], ["ssl=dino", "ssl.prototypes=9"]])
def test_the_unmutated_network_is_trained_along_and_comes_back_trained(
    overrides: list[str],
) -> None:
    """As if there had never been a mutation: weights, teacher, moments and memory."""
    told = Told()
    still = [*overrides, "scheduler.rewarmup_steps=0"]
    one = undone(told, *still, control=True)
    never = trainer(*ALONG, "pretrain.epochs=4", *still)
    never.surgery.interventions = []
    never.fit()
    ours, theirs = (each.state.networks.state_dict() for each in (one, never))
    assert flattened(ours).keys() == flattened(theirs).keys()
    for name, tensor in flattened(theirs).items():
        assert torch.equal(flattened(ours)[name], tensor), name
    (ended,) = [values for kind, values in told.events if kind == "probation"]
    assert ended["control"]
    assert ended["error"] > 0


def flattened(state: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {prefix: state}
    if not isinstance(state, dict):
        return {}
    return {k: v for key, of in state.items() for k, v in flattened(of, f"{prefix}.{key}").items()}


def test_without_a_control_the_networks_from_before_come_back() -> None:
    told, kept = Told(), list[Any]()
    one = trainer(*ALONG, "pretrain.epochs=4", sink=told)

    def wanted(t: Pretraining) -> Decision:
        kept.append({k: v.clone() for k, v in t.networks.learner.state_dict().items()})
        return grown(t, tolerance=-9.0, grace=3)

    one.surgery.interventions = [Wanted(wanted)]
    one.fit()
    found = one.state.networks.learner.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in kept[0].items())
    assert one.surgery.control is None


def test_the_network_trained_along_goes_on_after_a_resume() -> None:
    one = trainer(*ALONG)
    one.surgery.operate(grown(one.state).mutation, grown(one.state, grace=2, control=True))
    again = trainer(*ALONG)
    again.load_state_dict(one.state_dict())
    assert again.surgery.control is not None
    assert again.surgery.control.networks is again.surgery.probation.old


def test_where_the_training_skips_a_step_the_control_takes_none() -> None:
    """And forgets the gradients of it, as the training does."""
    one = trainer(*ALONG)
    one.surgery.operate(grown(one.state).mutation, grown(one.state, grace=2, control=True))
    one._install(one.state.networks)
    control = one.surgery.control
    parameters = list(control.networks.learner.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    one.guard.took = lambda step: False
    one.train_epoch()
    assert one.state.progress.skipped == 2
    assert control._gradients is None
    assert all(torch.equal(old, now) for old, now in zip(before, parameters, strict=True))


def test_interventions_see_every_epoch_before_they_are_asked() -> None:
    """Also the last one, after which none is."""
    done: list[tuple[str, int]] = []

    class Watches(Wanted):
        def observe(self, state: Pretraining) -> None:
            done.append(("observed", state.progress.epoch))

        def decide(self, state: Pretraining) -> Decision:
            done.append(("asked", state.progress.epoch))
            return Decision(None, {"reason": "nothing"})

    one = trainer("ablation=A2", "pretrain.epochs=2")
    one.surgery.interventions = [Watches(None)]
    one.fit()
    assert done == [("observed", 0), ("asked", 0), ("observed", 1)]


def test_a_network_is_as_old_as_its_last_mutation_and_its_last_rollback() -> None:
    """So it is compiled when it has lasted."""
    one = trainer("ablation=A2")
    undone = record_of(2, accepted=False, trigger={"rollback": {"epoch": 4}})
    for history, expected in (
        ([], -1),
        ([record_of(1)], 1),
        ([record_of(1), record_of(3, accepted=False)], 1),  # refused: nothing changed
        ([record_of(1), undone], 4),
        ([undone, record_of(5)], 5),
    ):
        one.state.progress.history = history
        assert one._epoch_of_last_change() == expected


LEVELS = ["ablation=A4", "evolution=none", "curriculum.max_epochs_per_level=2"]


def levels_of(told: Told) -> list[tuple[str, int]]:
    return [(values["level"], values["epoch"]) for kind, values in told.events if kind == "level"]


class At2(Wanted):
    """Wants a mutation after the second epoch, at which the level is over, too."""

    def decide(self, state: Pretraining) -> Decision:
        if state.progress.epoch != 1:
            return Decision(None, {"reason": "not now"})
        return self.decision(state)


def test_a_level_is_left_where_nothing_is_mutated() -> None:
    """One decision between two epochs; what was put off is done at the next occasion."""
    for wanted, expected in (
        (lambda t: Decision(None, {"reason": "the unmutated network stays"}), [2, 4]),
        (grown, [3, 5]),
        # A mutation that was refused was tried all the same.
        (lambda t: grown(t, tolerance=-9.0), [3, 5]),
    ):
        told = Told()
        one = trainer(*LEVELS, "pretrain.epochs=5", sink=told)
        one.surgery.interventions = [At2(wanted)]
        one.fit()
        assert [epoch for _, epoch in levels_of(told)] == expected


def test_a_level_is_put_off_once_at_most() -> None:
    told = Told()
    one = trainer(*LEVELS, "pretrain.epochs=6", sink=told)
    always = Wanted(grown)
    always.decide = always.decision  # type: ignore[method-assign]
    one.surgery.interventions = [always]
    one.fit()
    assert [epoch for _, epoch in levels_of(told)] == [3, 6]
    put_off = [values["epoch"] for kind, values in told.events if kind == "decision"]
    assert put_off == [2]  # and after the last epoch nothing is decided
    assert [record.epoch for record in one.state.progress.history] == [0, 1, 3, 4]


@pytest.mark.parametrize("control", [True, False])
def test_a_probation_ends_before_its_level(control: bool) -> None:
    told = Told()
    one = trainer(*LEVELS, "pretrain.epochs=5", sink=told)
    one.surgery.interventions = [Wanted(lambda t: grown(t, grace=4, control=control))]
    levels: list[str] = []
    held = one.state.probe.held_losses

    def watched(networks: Any, epoch: int) -> Tensor:
        levels.append(one.feed.schedule.level)
        return held(networks, epoch)

    one.state.probe.held_losses = watched
    one.fit()
    (ended,) = [values for kind, values in told.events if kind == "probation"]
    assert (ended["epoch"], levels_of(told)[0]) == (1, ("TEXTURE", 2))
    assert levels == ["BASIC", "BASIC"]  # when it was made, and when it ended
    kinds = [kind for kind, _ in told.events if kind in ("probation", "level")]
    assert kinds[:2] == ["probation", "level"]


def test_while_one_mutation_is_on_probation_there_is_no_other() -> None:
    _, told = mutated([2.0, 2.0], epochs=5, tolerance=0.1, grace=2)
    reasons = [values["reason"] for kind, values in told.events if kind == "decision"]
    assert reasons == ["the last mutation is on probation", "done", "done"]


def test_the_rate_warms_up_again_after_a_mutation_that_stayed() -> None:
    rewarm = ("scheduler=constant", "scheduler.warmup_epochs=0", "scheduler.rewarmup_steps=3")
    one = trainer("ablation=A2", *rewarm)
    one.surgery.interventions = [Wanted(grown)]
    rates: list[float] = []
    one.callbacks.append(
        At(Event.AFTER_STEP, lambda t: rates.append(t.networks.optimizer.param_groups[0]["lr"]))
    )
    one.fit()
    assert [record.step for record in one.state.progress.history if record.accepted] == [4]
    share = [1, 1, 1, 1, 1 / 4, 2 / 4, 3 / 4, 1]
    assert rates == pytest.approx([0.001 * each for each in share])


def test_levels_advance_by_the_whole_loss_and_the_gap() -> None:
    one = trainer("ablation=A5", "evolution=none")
    asked: list[tuple[float, float | None]] = []
    observe = one.feed.schedule.observe

    def watched(loss: float, gap: float | None) -> Any:
        asked.append((loss, gap))
        return observe(loss, gap)

    one.feed.schedule.observe = watched
    means: list[Any] = []
    one.callbacks.append(At(Event.EPOCH_END, lambda t: means.append(t.means)))
    one.fit()
    assert asked == [(mean.loss, mean.gap) for mean in means]
    assert all(mean.gap is not None and mean.loss > mean.contrastive for mean in means)


@pytest.mark.parametrize("asked", [["ssl.teacher_statistics=own"], ["ssl=byol"]])
def test_the_teacher_tracks_statistics_of_its_own_in_steps_and_nowhere_else(
    asked: list[str],
) -> None:
    one = trainer("ablation=A5", "evolution=none", "pretrain.epochs=1", *asked)

    def statistics() -> dict[str, Tensor]:
        parts = {"backbone": one.state.networks.teacher, "head": one.state.networks.teacher_head}
        return {
            f"{part}.{name}": tensor.clone()
            for part, network in parts.items()
            if network is not None
            for name, tensor in network.named_buffers()
        }

    one.train_epoch()
    tracked = statistics()
    counts = [value for name, value in tracked.items() if name.endswith("num_batches_tracked")]
    assert len(counts) == (4 if "ssl=byol" in asked else 3)
    assert all(count == 4 for count in counts)  # once per batch
    students = dict(one.state.networks.learner.named_buffers())
    means = [name for name in tracked if name.endswith("running_mean")]
    assert all(not torch.equal(tracked[name], students[name]) for name in means)

    one.state.probe.held_losses([one.state.networks], 0)
    mutation = grown(one.state).mutation
    assert mutation is not None
    one.state.probe.trials(one.state.networks, [mutation], epoch=0, steps=2, lr=0.01)
    importance(one.state, kind="taylor", batches=2, seed=0)
    assert all(torch.equal(now, tracked[name]) for name, now in statistics().items())

    # A mutation takes them along as the student's; after PRUNE they are those of what is left.
    new = one.workshop.mutated(one.state.networks, mutation)
    assert new.teacher is not None
    carried = dict(new.teacher.named_buffers())
    for name in means:
        kept = carried.get(name.removeprefix("backbone."))
        if name.startswith("backbone.") and kept is not None:
            assert torch.equal(kept, tracked[name])
    before = {name: tensor.clone() for name, tensor in carried.items()}
    one.state.probe.recalibrate(new, 0, 2)
    assert all(not torch.equal(before[n], t) for n, t in carried.items() if n.endswith("_mean"))


def test_a_teacher_may_have_the_students_statistics() -> None:
    one = trainer("ablation=A5", "evolution=none", "pretrain.epochs=1")  # the default
    one.train_epoch()
    assert one.state.networks.teacher is not None
    students = dict(one.state.networks.learner.backbone.named_buffers())
    buffers = dict(one.state.networks.teacher.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in students.items())
    again = one.workshop.restored(one.state.networks.state_dict())
    assert not again.own_statistics
    assert not again.teaching(0).own


def test_a_target_head_follows_the_students() -> None:
    one = trainer("ablation=A2", "ssl=byol", "ssl.ema_schedule=constant", "ssl.ema_decay=0.5")
    before: list[Tensor] = []

    def remember(t: Pretraining) -> None:
        assert t.networks.teacher_head is not None
        before[:] = [p.clone() for p in t.networks.teacher_head.parameters()]

    def check(t: Pretraining) -> None:
        assert t.networks.teacher_head is not None
        target = t.networks.teacher_head.parameters()
        for old, now, own in zip(before, target, t.networks.learner.head.parameters(), strict=True):
            torch.testing.assert_close(now, (old + own) / 2)

    one.callbacks += [At(Event.BATCH_START, remember), At(Event.AFTER_STEP, check)]
    one.fit()

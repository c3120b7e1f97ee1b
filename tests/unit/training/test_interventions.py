"""When the architecture changes: the triggers, seen from outside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.sparsity.importance import Importance
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import interventions
from sseg_nase.training.interventions import Evolve, Sparsify
from sseg_nase.training.state import EpochMeans, PretrainingProgress
from sseg_nase.training.surgery import Decision
from tests.support.small_state import WithGap, record_of, state_of

SETTINGS = dataclasses.replace(
    load([]).evolution,
    plateau_window_size=2,
    plateau_threshold=0.1,
    smoothing=0.0,
    burn_in_epochs=0,
    cooldown_epochs=0,
    rollback_grace_epochs=0,
)


def reasons(
    losses: list[float],
    levels: list[str] | None = None,
    channels: list[tuple[int, ...]] | None = None,
) -> list[str]:
    """The reason given after each epoch of those losses, levels and widths."""
    evolve = Evolve(SETTINGS, seed=0)
    found = Decision(None, {"reason": "plateau"})
    evolve._fittest = lambda state, trigger: found  # the triggers are what is tested
    given = []
    for epoch, loss in enumerate(losses):
        level = levels[epoch] if levels else "BASIC"
        widths = channels[epoch] if channels else (16, 32)
        state = state_of(
            epochs=100,
            probe=WithGap(None),
            means=EpochMeans(level, widths, loss, 9.0 * epoch, None, 1.0),  # a part that goes on
            progress=PretrainingProgress(epoch=epoch),
        )
        evolve.observe(state)
        given.append(evolve.decide(state).trigger["reason"])
    return given


def test_a_plateau_is_seen_when_the_window_is_full() -> None:
    assert reasons([5.0, 4.0, 4.0, 4.0]) == ["no plateau"] * 3 + ["plateau"]


def test_losses_of_an_earlier_level_do_not_count() -> None:
    levels = ["BASIC", "BASIC", "TEXTURE", "TEXTURE", "TEXTURE"]
    assert reasons([4.0] * 5, levels) == ["no plateau"] * 4 + ["plateau"]


def test_losses_of_an_earlier_architecture_do_not_count() -> None:
    channels = [(16, 32)] * 3 + [(12, 32)] * 4
    expected = ["no plateau"] * 2 + ["plateau"] + ["no plateau"] * 2 + ["plateau"] * 2
    assert reasons([4.0] * 7, channels=channels) == expected


# -- when, at the edges ----------------------------------------------------------------------------


def asked(
    epoch: int,
    *,
    epochs: int = 100,
    gap: float | None = None,
    last: int | None = None,
    tried: int | None = None,
    **settings: Any,
) -> str:
    """The reason given after `epoch` where the loss is flat; `last` mutation after that epoch."""
    changed = dataclasses.replace(SETTINGS, **settings)
    evolve = Evolve(changed, seed=0)
    evolve.tried = tried
    evolve._fittest = lambda state, trigger: Decision(None, {"reason": "evolve"})  # type: ignore
    for _ in range(9):
        evolve.detector.update(4.0)
    history = [] if last is None else [record_of(0), record_of(last)]
    state = state_of(
        epochs=epochs,
        probe=WithGap(gap),
        means=EpochMeans("BASIC", (16,), 4.0, 4.0, 1e9, 1.0),  # the distillation of the epoch
        progress=PretrainingProgress(epoch=epoch, history=history),
    )
    return str(evolve.decide(state).trigger["reason"])


def test_the_burn_in_counts_epochs_that_are_over() -> None:
    found = [asked(epoch, burn_in_epochs=3) for epoch in range(4)]
    assert found == ["burn-in of 3 epochs"] * 2 + ["evolve"] * 2


def test_the_cooldown_counts_epochs_after_the_last_mutation() -> None:
    found = [asked(epoch, last=4, cooldown_epochs=2) for epoch in range(5, 9)]
    assert found == ["cooldown of 2 epochs after the last mutation"] * 2 + ["evolve"] * 2


def test_trials_that_led_to_no_mutation_count_for_the_cooldown() -> None:
    found = [asked(epoch, last=1, tried=4, cooldown_epochs=2) for epoch in range(5, 9)]
    assert found == ["cooldown of 2 epochs after the last trial"] * 2 + ["evolve"] * 2
    assert asked(5, last=4, tried=4, cooldown_epochs=2).endswith("after the last mutation")


def test_the_gap_must_be_over_its_threshold() -> None:
    small = "plateau, but the student–teacher gap of {:.4f} is not over 0.25"
    gaps = (0.2, 0.25, float("nan"), 0.3, None)
    found = [asked(9, gap=gap, distillation_gap_threshold=0.25) for gap in gaps]
    assert found == [*(small.format(gap) for gap in gaps[:3]), "evolve", "evolve"]


@pytest.mark.parametrize(
    ("epochs", "settings", "needed"),
    [
        (100, {}, 20),
        (20, {"cooldown_epochs": 2, "rollback_grace_epochs": 1}, 4),  # the quickstart
        (20, {"cooldown_epochs": 3, "rollback_grace_epochs": 2}, 5),
        (20, {"cooldown_epochs": 0, "rollback_grace_epochs": 9}, 9),
        (6, {"cooldown_epochs": 0, "rollback_grace_epochs": 0}, 1),  # debug=tiny
    ],
)
def test_nothing_grows_that_could_not_be_trained(
    epochs: int, settings: dict[str, Any], needed: int
) -> None:
    settings = {"rollback_grace_epochs": 0, **settings}
    last = epochs - needed - 1
    assert asked(last, epochs=epochs, **settings) == "evolve"
    late = asked(last + 1, epochs=epochs, **settings)
    assert late.startswith(f"too few epochs left: {needed - 1}, and what is new takes {needed} ")


# -- which one -------------------------------------------------------------------------------------


BATCHES = 4


def tried(gains: dict[str, float], **given: Any) -> Decision:
    """What `decided` has decided."""
    return decided(gains, **given)[1]


def decided(
    gains: dict[str, float], *, stay: float = 0.0, apart: float = 0.0, **settings: Any
) -> tuple[Evolve, Decision]:
    """What is decided where the trials of GROW and WIDEN gain this share of a held loss of 2.

    `stay`: what the unmutated network gains. `apart`: how far the leads of half of the held batches
    lie above their mean, and those of the others below.
    """
    config = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A3"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    state.means = EpochMeans("BASIC", (16, 32, 64), 4.0, 4.0, None, 1.0)
    state.progress.step = 2  # in the warm-up
    given = {"trial_steps": 7, "trial_margin": 2.0, "fitness_alpha": 0.0, **settings}
    evolution = dataclasses.replace(config.evolution, **given)

    def trials(networks: Any, mutations: Any, *, epoch: int, steps: int, **rates: Any) -> Any:
        assert networks is state.networks
        assert (epoch, steps) == (state.progress.epoch, 7)
        assert rates.pop("lr") == state.learning_rate < config.optimizer.lr
        assert rates == {"new_lr_ratio": evolution.trial_new_lr_ratio}
        before = torch.tensor([1.0, 1.5, 2.5, 3.0], dtype=torch.float64)
        spread = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * apart
        after = [before - 2 * (gains[each.kind] + spread) for each in mutations]
        return torch.stack([before, before - 2 * stay, *after])

    state.probe.trials = trials  # type: ignore[method-assign]
    evolve = Evolve(evolution, seed=0)
    return evolve, evolve._fittest(state, {"gap": None})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("grow", "widen", "chosen"),
    [
        (0.3, 0.1, "GROW"),
        (0.1, 0.3, "WIDEN"),
        (-0.3, -0.1, None),  # the network without a mutation is fitter
        (NAN, 0.5, "WIDEN"),
        (0.5, NAN, "GROW"),
        (INF, 0.5, "WIDEN"),
        (0.5, -INF, "GROW"),
        (NAN, -0.5, None),
        (NAN, NAN, None),
        (INF, -INF, None),
    ],
)
def test_the_fittest_is_taken_of_those_that_are_finite(
    grow: float, widen: float, chosen: str | None
) -> None:
    decision = tried({"GROW": grow, "WIDEN": widen})
    assert (decision.mutation.kind if decision.mutation else None) == chosen
    finite = {kind: g for kind, g in (("GROW", grow), ("WIDEN", widen)) if abs(g) < INF}
    assert decision.fitness == (pytest.approx(max(finite.values())) if chosen else None)
    recorded = decision.trigger["candidates"]
    assert recorded == {kind: pytest.approx(finite.get(kind)) for kind in ("GROW", "WIDEN")}
    assert decision.trigger["errors"] == dict.fromkeys(finite, pytest.approx(0, abs=1e-9))
    unfit = [kind for kind in ("GROW", "WIDEN") if kind not in finite]
    reason = decision.trigger.get("not_finite", "")
    assert all(kind in reason for kind in unfit)
    assert bool(reason) == bool(unfit)
    if not finite:
        assert decision.trigger["reason"] == "no trial ended with a finite loss"


def test_what_is_tried_is_told_apart_by_its_place() -> None:
    decision = tried({"GROW": 0.3, "WIDEN": 0.1}, grow_positions="stages")
    inside = [f"GROW {number} before pooling" for number in (2, 3, 4)]
    assert list(decision.trigger["candidates"]) == [*inside, "GROW", "WIDEN"]
    assert decision.mutation is not None
    assert decision.mutation.label == inside[0]  # the first of those that are equally fit


def test_a_mutation_must_beat_the_unmutated_network_beyond_the_error() -> None:
    """By what it leads the network that took the same steps, not by what its loss has fallen."""
    error = 0.01 / 3**0.5  # of four leads, ± 0.01 around their mean
    gains = {"GROW": 0.5, "WIDEN": 0.1}
    margin = 2 * error
    for stay, chosen in (
        (0.5 + 1e-3, None),
        (0.5 - 0.99 * margin, None),
        (0.5 - 1.01 * margin, "GROW"),
    ):
        decision = tried(gains, stay=stay, apart=0.01)
        assert (decision.mutation.kind if decision.mutation else None) == chosen
        assert decision.trigger["stay"] == pytest.approx(stay)
        lead = {kind: pytest.approx(gain - stay) for kind, gain in gains.items()}
        assert decision.trigger["candidates"] == lead
        assert decision.trigger["errors"] == dict.fromkeys(gains, pytest.approx(error))
        if chosen is None:
            reason = decision.trigger["reason"]
            figures = f"GROW is {0.5 - stay:+.5f} ± {error:.5f} fitter"
            assert reason.startswith("the unmutated network stays: ")
            assert figures in reason
            assert "more than 2 × the error" in reason
        else:
            assert decision.fitness == pytest.approx(0.5 - stay)
    wide = tried(gains, stay=0.5 - 1.01 * margin, apart=0.01, trial_margin=3.0)
    assert wide.mutation is None
    always = tried(gains, stay=0.9, apart=0.01, trial_margin=None)
    assert always.mutation is not None
    assert always.mutation.kind == "GROW"


def test_what_a_mutation_costs_counts_against_staying_as_one_is() -> None:
    free = tried({"GROW": 0.1, "WIDEN": 0.1})
    dear = tried({"GROW": 0.1, "WIDEN": 0.1}, fitness_alpha=0.5)
    costs = {
        kind: free.trigger["candidates"][kind] - dear.trigger["candidates"][kind]
        for kind in ("GROW", "WIDEN")
    }
    assert costs["GROW"] == pytest.approx(0.5 * 0.0669, rel=0.01)  # of the caps, not all there is
    assert 0 < costs["WIDEN"] < costs["GROW"]
    assert dear.mutation is not None
    assert dear.mutation.kind == "WIDEN"


def test_importance_that_is_not_finite_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [torch.tensor([1.0, NAN]), torch.ones(2), torch.ones(2)]
    given = Importance(bad, bad)
    monkeypatch.setattr(interventions, "importance", lambda *args, **more: given)
    decision = tried({"GROW": 1.0, "WIDEN": 2.0})
    assert decision.mutation is None
    assert decision.trigger["reason"] == "the importance is not finite"


def test_operators_without_a_rule_for_the_network_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"GROW": 0.5, "WIDEN": 0.1}
    assert "no_rule" not in tried(gains).trigger
    monkeypatch.setattr(interventions, "refusals", lambda *given: ["GROW: none", "WIDEN: none"])
    assert tried(gains).trigger["no_rule"] == "GROW: none; WIDEN: none"


def test_the_epoch_of_trials_is_remembered_whatever_came_of_them() -> None:
    gains = {"GROW": 0.5, "WIDEN": 0.1}
    for stay, chosen in ((0.0, True), (0.9, False)):
        evolve, decision = decided(gains, stay=stay)
        assert (decision.mutation is not None) == chosen
        assert evolve.tried == 0
    evolve, decision = decided(gains, max_params=1)  # there was nothing to try
    assert decision.trigger["reason"] == "every candidate is over a hard cap"
    assert evolve.tried is None


# -- pruning ---------------------------------------------------------------------------------------


PLAIN = load([])
PLANNED = load(["evolution=balanced"]).evolution


def sparsify(epochs: int, evolution: dict[str, Any] | None = None, **settings: Any) -> Sparsify:
    given = evolution or {}
    usual = PLANNED if given.get("order") == "balanced" else PLAIN.evolution
    return Sparsify(
        dataclasses.replace(PLAIN.sparsity, **settings),
        dataclasses.replace(usual, **given),
        dataclasses.replace(PLAIN.pretrain, epochs=epochs),
        0,
    )


def test_prunings_are_due_from_the_start_epoch_on_and_never_at_the_end() -> None:
    assert sparsify(10, start_epoch=2, pruning_interval_epochs=3).due == [2, 5, 8]
    assert sparsify(9, start_epoch=2, pruning_interval_epochs=3).due == [2, 5, 8]
    assert sparsify(8, start_epoch=2, pruning_interval_epochs=3).due == [2, 5]
    assert sparsify(10, start_epoch=0, pruning_interval_epochs=4).due == [1, 5, 9]


@pytest.mark.parametrize(
    ("epochs", "evolution", "due"),
    [
        (100, {}, [81, 83, 85, 87, 89, 91, 93, 95, 97, 99]),  # 20 epochs must be left to grow
        (20, {"rollback_grace_epochs": 1}, [17, 19]),
        (20, {"cooldown_epochs": 15}, [10, 12, 14, 16, 18]),  # never before the middle
        (10, {"order": "balanced"}, [7, 9]),  # nothing grows after 0.6 of the epochs
        (10, {"enabled": False}, [5, 7, 9]),
        (6, {"cooldown_epochs": 0, "rollback_grace_epochs": 0}, [5]),
        (2, {"cooldown_epochs": 0, "rollback_grace_epochs": 0}, [1]),
    ],
)
def test_pruning_begins_when_growth_has_ended(
    epochs: int, evolution: dict[str, Any], due: list[int]
) -> None:
    assert sparsify(epochs, evolution, start_epoch=None, pruning_interval_epochs=2).due == due
    given = sparsify(epochs, evolution, start_epoch=1, pruning_interval_epochs=epochs)
    assert given.due == [1]  # whoever says when is believed


@pytest.mark.parametrize("epochs", [8, 20, 33])
def test_growth_has_ended_where_no_trigger_allows_it_any_more(epochs: int) -> None:
    settings = {"cooldown_epochs": 2, "rollback_grace_epochs": 1}
    evolution = dataclasses.replace(SETTINGS, enabled=True, **settings)
    grows = [asked(epoch, epochs=epochs, **settings) == "evolve" for epoch in range(epochs)]
    ended = interventions.growth_ends(evolution, epochs)
    assert grows == [done < ended for done in range(1, epochs + 1)]


def test_a_pruning_that_was_missed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A6"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    targets = []
    for epoch, expected in ((0, False), (1, True), (2, False), (6, True)):
        one = Sparsify(config.sparsity, config.evolution, config.pretrain, 0)
        one.due, one.rounds = [2, 4, 6], {0: 0, 1: 0, 2: 1, 6: 1}[epoch]
        state.progress.epoch = epoch
        decision = one.decide(state)
        assert (decision.trigger["reason"] != "no pruning is due") == expected
        assert one.decide(state).trigger == {"reason": "no pruning is due"}  # it is over
        targets.append(decision.trigger.get("target_sparsity"))
    ratio = config.sparsity.ratio
    assert targets[1] == pytest.approx(ratio * (1 - (2 / 3) ** 3))
    assert targets[3] == pytest.approx(ratio)  # two rounds at once


def test_blocks_are_compared_by_what_they_do_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Taylor importance, not with what comes along shortcuts."""
    asked: list[dict[str, Any]] = []
    plain = interventions.importance

    def watched(state: Any, **options: Any) -> Any:
        asked.append(options)
        return plain(state, **options)

    monkeypatch.setattr(interventions, "importance", watched)
    tried({"GROW": 1.0, "WIDEN": 2.0})
    ((options,)) = asked
    assert (options["kind"], options["coupled"]) == ("taylor", False)
    assert options["batches"] == interventions.SENSITIVITY_BATCHES


def test_a_pruning_is_asked_for_as_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A6"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    settings = dataclasses.replace(
        config.sparsity,
        importance="magnitude",
        importance_batches=3,
        rollback_tolerance=0.07,
        rollback_grace_epochs=5,
        recalibration_batches=2,
        probation="tolerance",
    )
    asked: list[dict[str, Any]] = []

    def scores(state: Any, **options: Any) -> Any:
        asked.append(options)
        blocks = [torch.arange(float(n)) for n in state.networks.architecture.channels]
        return Importance(blocks, [torch.full_like(block, 0.55559) for block in blocks])

    monkeypatch.setattr(interventions, "importance", scores)
    one = Sparsify(settings, config.evolution, config.pretrain, 0)
    one.due = [1]
    decision = one.decide(state)
    assert decision.mutation is not None
    assert (decision.tolerance, decision.grace, decision.recalibrate) == (0.07, 5, 2)
    assert not decision.control
    assert (asked[0]["kind"], asked[0]["batches"]) == ("magnitude", 3)
    assert "coupled" not in asked[0]  # with all that goes along
    widths = state.networks.architecture.channels
    assert decision.trigger["importance"] == [[float(c) for c in range(n)] for n in widths]
    assert decision.trigger["importance_errors"] == [[0.5556] * n for n in widths]
    removed = decision.mutation.target["removed"]
    assert decision.trigger["undecided"] == len(removed)  # the last one of each block
    assert decision.negative is not None
    kept = [len(removed.get(str(block), range(n))) for block, n in enumerate(widths)]
    assert list(decision.negative.after.channels) == kept
    silent = Sparsify(
        dataclasses.replace(settings, negative_path=False), config.evolution, config.pretrain, 0
    )
    silent.due = [1]
    assert silent.decide(state).negative is None
    assert one.decide(state).trigger == {"reason": "no pruning is due"}  # this one is over


def test_what_was_removed_before_is_not_removed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share that is to be gone is that of all channels there have ever been."""
    config = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A6"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    blocks = [torch.arange(1.0, n + 1) for n in state.networks.architecture.channels]
    monkeypatch.setattr(interventions, "importance", lambda *_, **__: Importance(blocks, blocks))
    settings = dataclasses.replace(config.sparsity, ratio=0.25, min_channels=1, round_to=1)
    counts = []
    for before in (0, 8):
        removed = {"removed": {"1": list(range(before))}}
        state.progress.history = [record_of(kind="PRUNE", target=removed)]
        one = Sparsify(settings, config.evolution, config.pretrain, 0)
        one.due = [1]
        decision = one.decide(state)
        assert decision.mutation is not None
        assert decision.trigger["removed_before"] == before
        counts.append(sum(map(len, decision.mutation.target["removed"].values())))
    assert counts == [28, 22]  # a quarter of 112; of 120, less 8


def test_a_growth_is_decided_on_as_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = tried({"GROW": 1.0, "WIDEN": 2.0}, rollback_tolerance=0.07, rollback_grace_epochs=5)
    assert (decision.tolerance, decision.grace, decision.control) == (0.07, 5, True)
    assert not tried({"GROW": 1.0, "WIDEN": 2.0}, probation="tolerance").control
    given: list[Any] = []
    plain = interventions.candidates

    def watched(network: Any, **options: Any) -> Any:
        given.append((options["recent"], options["max_repeats"]))
        return plain(network, **options)

    monkeypatch.setattr(interventions, "candidates", watched)
    monkeypatch.setattr(interventions, "accepted_kinds", lambda history: ["WIDEN"] * 3)
    assert tried({"GROW": 1.0, "WIDEN": 2.0}, max_repeats=3).mutation.kind == "GROW"  # type: ignore
    assert given == [(["WIDEN"] * 3, 3)]


def test_what_is_measured_leaves_the_student_as_it_was() -> None:
    config = load(["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A3"])
    state = trainer_of(config, [], Sink(), None, lambda: False).state
    learner = state.networks.learner.eval()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    interventions.importance(state, kind="taylor", batches=1, seed=0)
    assert state.networks.learner is learner
    assert not learner.training
    assert all(torch.equal(before[name], now) for name, now in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_what_was_seen_goes_on_after_a_resume() -> None:
    """In the middle of a window, and between two prunings."""
    before, after = Evolve(SETTINGS, seed=0), Evolve(SETTINGS, seed=0)
    for one in (before, after):
        one._fittest = lambda state, trigger: Decision(None, {"reason": "plateau"})  # type: ignore
    given = []
    for epoch in range(4):
        one = before if epoch < 2 else after
        if epoch == 2:
            after.load_state_dict(before.state_dict())
        state = state_of(
            epochs=100,
            probe=WithGap(None),
            means=EpochMeans("BASIC", (16, 32), 4.0, 4.0, None, 1.0),
            progress=PretrainingProgress(epoch=epoch),
        )
        one.observe(state)
        given.append(one.decide(state).trigger["reason"])
    assert given == ["no plateau"] * 2 + ["plateau"] * 2
    before.tried = 3
    after.load_state_dict(before.state_dict())
    assert after.tried == 3
    first, second = sparsify(10), sparsify(10)
    first.rounds = 2
    second.load_state_dict(first.state_dict())
    assert second.rounds == 2


def test_a_mutation_that_was_rolled_back_counts_for_the_cooldown() -> None:
    evolve = Evolve(dataclasses.replace(SETTINGS, cooldown_epochs=2), seed=0)
    evolve._fittest = lambda state, trigger: Decision(None, {"reason": "evolve"})  # type: ignore
    for _ in range(9):
        evolve.detector.update(4.0)
    undone = PretrainingProgress(epoch=6, history=[record_of(5, accepted=False)])
    means = EpochMeans("BASIC", (16,), 4.0, 4.0, None, 1.0)
    state = state_of(epochs=100, means=means, progress=undone)
    assert "cooldown" in evolve.decide(state).trigger["reason"]

"""Supernets in training: every strategy runs, goes on bit for bit, and derives what it may."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import replay
from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.oneshot import rules
from sseg_nase.oneshot.bilevel import second_order
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.images import halves
from sseg_nase.oneshot.supernet import described_supernet
from sseg_nase.oneshot.training import check_options, latencies_of
from sseg_nase.searches.oneshot import training_of as configured
from sseg_nase.spaces import named
from sseg_nase.spaces.nb201 import NAMES, OPERATIONS
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.interruption import Interrupted
from tests.support.small_supernet import CPU, OF, SPACE, finished, images, options_of, training_of

SKIP = OPERATIONS.index("skip_connect")
CONV = OPERATIONS.index("nor_conv_3x3")
FOUR = dict(zip(NAMES, ["nor_conv_3x3"] * 4 + ["none"] * 2, strict=True))


def stored(state: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file, which may hold tensors and plain data alone."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(one: Any, other: Any, at: str = "") -> None:
    """Bit for bit, but for the seconds that it took."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), at
        for name in one:
            if name != "seconds":
                same(one[name], other[name], f"{at}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), at
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{at}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    else:
        assert one == other, at


def set_gates(gates: Gates, operation: int, size: float = 5.0) -> None:
    with torch.no_grad():
        for alpha in gates.alphas:
            alpha.zero_()
            alpha[operation] = size


SLOW = ("pc_darts", "proxyless", "random_sharing")  # as the others, to go on with


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OF],
)
def test_what_was_stopped_anywhere_goes_on_bit_for_bit(strategy: str) -> None:
    whole = finished(training_of(strategy))
    whole.choose(whole.ended.record)
    steps = [0]

    def stop() -> bool:
        return True  # after every single step: each is gone on with by another training

    one = training_of(strategy, stop=stop)
    while one.more:
        try:
            one.train_epoch()
            one.close_epoch()
        except Interrupted:
            steps[0] += 1
        state = stored(one.state_dict())
        one = training_of(strategy, stop=stop)
        one.load_state_dict(state)
    one.choose(one.ended.record)
    assert steps[0] == 2 * one.halves[0].batches
    same(stored(one.state_dict()), stored(whole.state_dict()))
    again = training_of(strategy)
    again.load_state_dict(stored(whole.state_dict()))
    same(stored(again.state_dict()), stored(whole.state_dict()))


@pytest.mark.parametrize("strategy", OF)
def test_every_epoch_is_recorded_with_what_is_derived_and_what_it_took(strategy: str) -> None:
    one = finished(training_of(strategy))
    assert [r["epoch"] for r in one.records if r["images"]] == [0, 1]
    for record in one.records:
        assert record["picks"].keys() == set(NAMES)
        assert 0 <= record["scores"]["accuracy"] <= 100
        point = one.point(record["picks"])
        assert record["scores"]["skips"] == sum(op == "skip_connect" for op in point.values())
    mixes = strategy in ("darts", "pc_darts")
    assert ("supernet_accuracy" in one.records[0]["scores"]) == mixes
    last = [r for r in one.records if r["epoch"] == 1]
    assert len(last) == (3 if "samples" in OF[strategy] else 1)
    best = max(r["scores"]["accuracy"] for r in last)
    assert one.records[one.ended.record]["scores"]["accuracy"] == best
    moved = one.gates.alphas[0].detach() != training_of(strategy).gates.alphas[0]
    assert bool(moved.any()) == ("samples" not in OF[strategy])


def test_what_an_epoch_costs_is_counted() -> None:
    one = training_of("darts", order="first", epochs=1)
    one.train_epoch()
    half, macs = len(one.halves[0]), described_supernet(SPACE).macs()
    assert one.progress.images == 2 * half
    assert one.progress.macs == 3 * 2 * half * macs
    two = training_of("darts", order="second", epochs=1)
    two.train_epoch()
    assert two.progress.macs == 3 * half * macs * (1 + 1 + 3)


def test_the_weights_are_trained_on_one_half_and_the_gates_on_the_other() -> None:
    first, second = training_of("darts").halves
    assert not {*first.chosen} & {*second.chosen}
    assert len(first) + len(second) == 32
    one = training_of("darts")
    weights = {id(p) for group in one.optimizer.param_groups for p in group["params"]}
    alphas = {id(p) for group in one.rule.optimizer.param_groups for p in group["params"]}
    assert alphas == {id(p) for p in one.gates.parameters()}
    assert not weights & alphas
    decays = {g["weight_decay"] for g in one.rule.optimizer.param_groups}
    assert decays == {one.options.alpha_weight_decay} != {one.options.weight_decay}


def test_the_other_half_is_met_once_before_it_is_met_again() -> None:
    half = training_of("darts").halves[1]
    seen = [half.at(number) for number in range(2 * half.batches)]
    for cycle in (seen[: half.batches], seen[half.batches :]):
        pixels = torch.cat([each.pixels for each in cycle])
        assert len(torch.unique(pixels.flatten(1).sum(1))) == len(pixels)
    assert not torch.equal(seen[0].pixels, seen[half.batches].pixels)
    assert torch.equal(half.at(3).pixels, half.at(3).pixels)


def test_before_the_weights_are_warm_the_gates_stay() -> None:
    one = training_of("darts", warmup_epochs=1)
    before = [alpha.detach().clone() for alpha in one.gates.alphas]
    one.train_epoch()
    assert all(map(torch.equal, one.gates.alphas, before))
    assert all(alpha.grad is None for alpha in one.gates.alphas)  # of the weights alone
    assert one.progress.images == len(one.halves[0])
    one.close_epoch()
    one.train_epoch()
    assert not any(map(torch.equal, one.gates.alphas, before))


def test_a_step_of_the_gates_leaves_weights_and_statistics_alone() -> None:
    for strategy in ("darts", "proxyless"):
        one = training_of(strategy)
        one.learner.train()
        seen = one.objective.see(one.halves[0].at(0), 0)
        kept = {n: t.clone() for n, t in one.learner.state_dict().items()}
        one.rule.train(one, seen)
        assert all(torch.equal(t, kept[n]) for n, t in one.learner.state_dict().items())
        assert all(p.grad is None for p in one.learner.parameters())


def test_the_gates_are_trained_through_the_next_step_as_the_weights_will_take_it() -> None:
    """With their rate, decay and momentum: by hand from the same place."""
    one = training_of("darts", weight_decay=0.1)
    one.train_epoch()
    other = training_of("darts", weight_decay=0.1)
    other.load_state_dict(stored(one.state_dict()))
    seen = one.objective.see(one.halves[0].at(0), 0)
    one.rule.train(one, seen)
    val = other.validation()
    with other.without_tracking():
        _, gradients = second_order(
            other.learner,
            other.weights,
            list(other.gates.parameters()),
            lambda: other.loss(seen),
            lambda: other.loss(val),
            rate=other.rate,
            momentum=0.9,
            buffers=[other.optimizer.state[w]["momentum_buffer"] for w in other.weights],
            weight_decay=0.1,
        )
    other.rule.apply(gradients)
    assert all(map(torch.equal, one.gates.alphas, other.gates.alphas))


def test_a_step_on_two_candidates_leaves_the_others_as_likely_as_they_were() -> None:
    one = training_of("proxyless", alpha_lr=0.5)
    set_gates(one.gates, CONV, 0.5)
    before = [one.gates.weights(name).detach() for name in one.gates.names]
    pairs = one.gates.sample_pairs(one.generator(rules.ALPHA))
    one.rule.train(one, one.objective.see(one.halves[0].at(0), 0))
    moved = 0
    for name, was in zip(one.gates.names, before, strict=True):
        others = [n for n in range(5) if n not in pairs[name].candidates]
        now = one.gates.weights(name).detach()
        torch.testing.assert_close(now[others], was[others])
        moved += int((now - was).abs().max() > 1e-3)
    assert moved


def test_paths_that_are_not_taken_keep_their_weights() -> None:
    one = training_of("random_sharing")
    picks = dict.fromkeys(NAMES, CONV)
    kept = {n: p.detach().clone() for n, p in one.learner.named_parameters()}
    with one.gates.picked(picks):
        one._gradient(one.objective.see(one.halves[0].at(0), 0), picks)
        one.step()
    for name, parameter in one.learner.named_parameters():
        moved = not torch.equal(parameter, kept[name])
        candidates = ".candidates." in name
        assert moved == (
            parameter.requires_grad and (not candidates or f"candidates.{CONV}" in name)
        )


def test_noise_on_the_gates_is_gone_after_the_step() -> None:
    one = training_of("darts", perturbation=0.5, warmup_epochs=1)
    before = [alpha.detach().clone() for alpha in one.gates.alphas]
    felt: list[bool] = []
    handle = one.learner.register_forward_pre_hook(
        lambda *_: felt.append(not torch.equal(one.gates.alphas[0], before[0]))
    )
    one.train_epoch()
    handle.remove()
    assert felt
    assert all(felt)
    assert all(map(torch.equal, one.gates.alphas, before))
    with one.gates.perturbed(0.5, torch.Generator().manual_seed(0)):
        change = torch.cat([a.detach() - b for a, b in zip(one.gates.alphas, before, strict=True)])
    assert 0.4 < change.abs().max() <= 0.5


# -- brakes ------------------------------------------------------------------------------------


def test_too_many_skips_end_the_search_with_the_network_before() -> None:
    one = training_of("darts", epochs=9, stop_at_skips=3, alpha_lr=1e-9)
    for operation in (CONV, SKIP):
        set_gates(one.gates, operation)
        one.train_epoch()
        one.close_epoch()
    assert not one.more
    assert one.ended.why == "6 skip connections, strategy.stop_at_skips=3"
    assert one.records[one.ended.record]["scores"]["skips"] == 0
    assert one.records[-1]["scores"]["skips"] == 6


def test_a_cap_on_skips_holds_in_what_is_derived() -> None:
    one = training_of("darts", max_skips=2, alpha_lr=1e-9)
    set_gates(one.gates, SKIP)
    with torch.no_grad():
        for number, alpha in enumerate(one.gates.alphas):
            alpha[CONV] = 4.0 + number / 10
    (picks,) = one.rule.derived(one)
    # The skips that win by most stay: those of the first two gates by name.
    assert [picks[name] for name in sorted(NAMES)] == [SKIP] * 2 + [CONV] * 4


def test_a_cap_of_the_space_holds_in_what_is_derived() -> None:
    most = SPACE.costs(FOUR)["params"]
    one = training_of("darts", space=SPACE.under({"params": most}), alpha_lr=1e-9)
    set_gates(one.gates, CONV)
    (picks,) = one.rule.derived(one)
    assert SPACE.costs(one.point(picks))["params"] <= most
    free = training_of("darts", alpha_lr=1e-9)
    set_gates(free.gates, CONV)
    assert free.rule.derived(free) == [dict.fromkeys(sorted(NAMES), CONV)]


def test_rising_curvature_ends_the_search_with_the_network_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = iter([1.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(rules, "largest_eigenvalue", lambda *_: next(values))
    one = training_of("darts", epochs=5, order="first", eigenvalue_ratio=0.75, eigenvalue_window=1)
    finished(one)
    assert [r["scores"]["eigenvalue"] for r in one.records] == [1.0, 1.0, 2.0]
    assert "risen to 2" in one.ended.why
    assert one.ended.record == 1


def test_the_curvature_is_that_of_the_validation_loss() -> None:
    one = training_of("darts", epochs=1, order="first", eigenvalue_ratio=0.5)
    one.train_epoch()
    kept = [alpha.detach().clone() for alpha in one.gates.alphas]
    statistics = {n: b.clone() for n, b in one.learner.named_buffers()}
    seen, macs = one.progress.seen, one.progress.macs
    found = one.rule.close_epoch(one)["eigenvalue"]
    assert found != 0
    assert one.progress.seen == seen + 1
    assert one.progress.macs > macs
    assert all(map(torch.equal, one.gates.alphas, kept))
    assert all(torch.equal(b, statistics[n]) for n, b in one.learner.named_buffers())


# -- proxyless ---------------------------------------------------------------------------------


def test_the_expected_latency_is_the_mean_over_all_networks_that_are_drawn() -> None:
    costs = dict(zip(OPERATIONS, (0.0, 0.1, 0.4, 1.6, 0.3), strict=True))
    times = latencies_of(SPACE, lambda point: 7 + sum(costs[str(op)] for op in point.values()))
    gates = Gates(dict.fromkeys(NAMES, 5), generator=torch.Generator().manual_seed(0))
    for alpha in gates.alphas:
        nn.init.normal_(alpha, generator=torch.Generator().manual_seed(1))
    expected = rules.expected_latency(gates, times)
    slow = sum(
        w.item() * costs[op]
        for name in NAMES
        for w, op in zip(gates.weights(name), OPERATIONS, strict=True)
    )
    assert expected.item() == pytest.approx(slow)
    expected.backward()
    # The slowest becomes less likely.
    assert all(int(alpha.grad.argmax()) == CONV for alpha in gates.alphas)


def test_latency_moves_the_gates_and_presses_harder_above_a_cap() -> None:
    times = {name: [0.0, 0.0, 0.0, 10.0, 0.0] for name in NAMES}
    given = {"latency_weight": 100.0, "latency_target": 1.0, "alpha_lr": 0.05, "epochs": 3}
    capped = SPACE.under({"params": SPACE.costs(FOUR)["params"]})
    one = training_of("proxyless", latencies=times, space=capped, **given)
    set_gates(one.gates, CONV, 1.0)
    before = one.gates.weights(NAMES[0])[CONV].item()
    one.train_epoch()
    assert one.gates.weights(NAMES[0])[CONV].item() < before
    set_gates(one.gates, CONV, 5.0)
    one.close_epoch()
    assert one.rule.pressure == 2
    set_gates(one.gates, 0, 5.0)
    one.train_epoch()
    one.close_epoch()
    assert one.rule.pressure == 2
    again = training_of("proxyless", latencies=times, space=capped, **given)
    again.load_state_dict(stored(one.state_dict()))
    assert again.rule.pressure == 2


def test_gates_move_every_so_many_steps() -> None:
    one = training_of("proxyless", alpha_interval=2)
    one.train_epoch()
    assert one.halves[0].batches == 2
    assert one.progress.seen == 1


# -- without labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("ssl", ["byol", pytest.param("barlow_twins", marks=pytest.mark.slow)])
def test_it_runs_without_labels(ssl: str) -> None:
    whole = finished(training_of("darts", ssl=ssl, epochs=1, order="second"))
    record = whole.records[0]
    assert {"loss", "supernet_loss"} <= record["scores"].keys()
    again = training_of("darts", ssl=ssl, epochs=1, order="second")
    again.load_state_dict(stored(whole.state_dict()))
    same(stored(again.state_dict()), stored(whole.state_dict()))
    for each in (whole, again):
        each.choose(each.ended.record)
        assert (each.teacher is not None) == (ssl == "byol")
    same(stored(again.state_dict()), stored(whole.state_dict()))
    if whole.teacher is not None:
        assert whole.teacher.architecture == whole.learner.backbone.architecture


def test_a_batch_in_parts_is_one_batch_to_the_loss() -> None:
    """With BN in eval mode, which in a part has other statistics than in the whole."""
    one, parts = (training_of("darts", ssl="barlow_twins", parts=count) for count in (1, 4))
    found = []
    for each in (one, parts):
        each.learner.double()
        each.gates.double()
        for module in each.learner.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        seen = each.objective.see(each.halves[0].at(0), 0)
        seen = seen._replace(views=tuple(views.double() for views in seen.views))
        of = [*each.weights, *each.gates.alphas]
        loss = each.loss(seen)
        with torch.no_grad():
            torch.testing.assert_close(each.loss(seen), loss.detach(), rtol=1e-9, atol=0)
        found.append((loss.detach(), torch.autograd.grad(loss, of, allow_unused=True)))
        assert all(parameter.grad is None for parameter in of)
    (whole, expected), (loss, slopes) = found
    torch.testing.assert_close(loss, whole, rtol=1e-9, atol=0)
    assert any(float(slope.abs().sum()) > 0 for slope in expected[-6:])
    for ours, theirs in zip(slopes, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_steps_in_parts_train_weights_and_gates_and_go_on_bit_for_bit() -> None:
    whole = finished(training_of("darts", ssl="barlow_twins", parts=2, epochs=1, order="first"))
    again = training_of("darts", ssl="barlow_twins", parts=2, epochs=1, order="first")
    before = [alpha.detach().clone() for alpha in again.gates.alphas]
    assert not any(map(torch.equal, whole.gates.alphas, before))
    same(stored(finished(again).state_dict()), stored(whole.state_dict()))


def test_a_teacher_reads_the_gates_that_are_trained() -> None:
    one = training_of("darts", ssl="byol")
    own = [m for m in one.teacher.modules() if isinstance(m, MixedOperation)]  # type: ignore[union-attr]
    assert own
    assert all(module.gates == [one.gates] for module in own)


# -- what is chosen ----------------------------------------------------------------------------


def test_the_network_that_was_chosen_trains_on_with_its_weights() -> None:
    one = finished(training_of("darts", further_epochs=2))
    before = described_supernet(SPACE)
    record = one.choose(one.ended.record)
    assert record.function_delta < 1e-5
    assert record.trigger["inherits"]
    architecture = one.learner.backbone.architecture
    assert replay(before, [record])[-1] == architecture
    momenta = [one.optimizer.state[w].get("momentum_buffer") for w in one.weights]
    assert any(m is not None and float(m.abs().sum()) > 0 for m in momenta)
    kept = one.learner.backbone.state_dict()["blocks.stem.op.0.weight"].clone()
    epochs = 0
    while one.further:
        one.train_epoch()
        one.end_epoch()
        epochs += 1
    assert epochs == 2
    assert not torch.equal(one.learner.backbone.state_dict()["blocks.stem.op.0.weight"], kept)
    alphas = [alpha.detach().clone() for alpha in one.gates.alphas]
    assert all(map(torch.equal, one.gates.alphas, alphas))
    again = training_of("darts", further_epochs=2)
    again.load_state_dict(stored(one.state_dict()))
    assert not again.further
    same(stored(again.state_dict()), stored(one.state_dict()))


def test_evaluating_changes_nothing() -> None:
    one = training_of("darts", epochs=1)
    one.train_epoch()
    kept = stored(one.state_dict())
    picks = dict.fromkeys(NAMES, CONV)
    assert one.goal_of(picks) == one.goal_of(picks)
    now = stored(one.state_dict())
    assert kept.pop("macs") < now.pop("macs")
    same(now, kept)
    mixed = [m for m in one.learner.modules() if isinstance(m, MixedOperation)]
    assert all(module.gates == [one.gates] for module in mixed)


def test_what_is_evaluated_is_the_derived_network_with_statistics_of_its_own() -> None:
    """By hand: choose, estimate BN's statistics on the weights' half, count what is right."""
    one = training_of("darts", epochs=1)
    one.train_epoch()
    picks = dict.fromkeys(NAMES, CONV)
    found = one.goal_of(picks)
    other = training_of("darts", epochs=1)
    other.load_state_dict(stored(one.state_dict()))
    other.records = [{"epoch": 0, "picks": picks}]
    other.choose(0)
    learner = other.learner
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        learner.train()
        for each in other.halves[0].all():
            learner(each.pixels / 127.5 - 1)
        learner.eval()
        right = [
            (learner(each.pixels / 127.5 - 1)[1].argmax(1) == each.labels)
            for each in other.halves[1].all()
        ]
    assert found == pytest.approx(100 * torch.cat(right).float().mean().item())


# -- mistakes ----------------------------------------------------------------------------------


def test_weights_that_come_apart_are_said() -> None:
    one = training_of("darts", weight_lr=1e9, clip_norm=None, order="first", epochs=9)
    with pytest.raises(DivergenceError, match=r"Lower strategy\.weight_lr=1e\+09"):
        finished(one)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": 33}, "strategy.images=33: train has 32"),
        ({"images": 8, "batch_size": 5}, "each half of 8 images of train has 4"),
    ],
)
def test_too_few_images_are_said(given: dict[str, int], said: str) -> None:
    whole = {"images": None, "batch_size": 8, **given}
    with pytest.raises(UserError, match=said):
        halves(images(), seed=0, device=CPU, **whole)  # type: ignore[arg-type]


def test_spaces_and_channels_that_do_not_fit_are_said() -> None:
    with pytest.raises(UserError, match="describe no network"):
        check_options(options_of("darts"), named("overrides", choices={"optimizer.lr": [1e-3]}))
    with pytest.raises(UserError, match="is not one of operations"):
        check_options(options_of("darts"), named("enas_macro", layers=2))
    with pytest.raises(UserError, match="not divisible by 3"):
        check_options(options_of("pc_darts", partial=3), SPACE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": 2}, "strategy.parts=2: it has an effect with strategy.objective=ssl alone"),
        ({"parts": 3, "objective": "ssl"}, "strategy.batch_size=8 must be a multiple of it"),
        ({"parts": 8, "objective": "ssl"}, "with two images in each part"),
    ],
)
def test_parts_that_do_not_fit_are_said(given: dict[str, Any], said: str) -> None:
    assert any(said in wrong for wrong in options_of("darts", **given).wrong())
    assert not list(options_of("darts", parts=4, objective="ssl").wrong())


def test_networks_that_are_all_above_the_caps_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TRIES", 50)
    one = training_of("random_sharing", max_skips=0)
    one.allowed = lambda picks: False  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"none is within search\.caps"):
        one.rule.derived(one)


def test_any_path_is_as_likely_as_any_other() -> None:
    rule, generator = training_of("random_sharing").rule, torch.Generator().manual_seed(0)
    found = torch.tensor([rule.draw(generator)[NAMES[0]] for _ in range(1_000)])
    assert (found.bincount(minlength=5) / 1_000 - 0.2).abs().max() < 0.05


def test_no_network_is_scored_twice() -> None:
    one = training_of("random_sharing", samples=40, epochs=1)
    found = one.rule.derived(one)
    assert len({one.key(picks) for picks in found}) == len(found) == 40


@pytest.mark.parametrize("last", [True, False])
def test_maps_are_laid_out_as_the_hardware_says(last: bool) -> None:
    asked = ["task=search", "space=nb201", "strategy=darts", "dataset=digits"]
    config = load([*asked, f"hardware.channels_last={last}", "hardware.accelerator=cpu"])
    learner = configured(config, SPACE, lambda: False).learner
    weights = [p for p in learner.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    assert weights
    for weight in weights:
        assert weight.is_contiguous(memory_format=torch.channels_last) == last

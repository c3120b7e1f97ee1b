"""Growth and pruning while a network is trained on labels."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.counting import BACKWARD
from sseg_nase.data.placement import HeldImages
from sseg_nase.errors import UserError
from sseg_nase.evolution.operators import named_moments
from sseg_nase.finetune.evolving import HELD_STEPS, Tuned, mutated
from sseg_nase.finetune.learner import around
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.nets.maps import NEW
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.stages.pretraining import interventions_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.ledger import CHECKS, IMPORTANCE
from sseg_nase.training.surgery import Before, Decision

EPISODES = ["finetune.episodes_per_epoch=4", "finetune.tasks_per_step=2", "finetune.queries=3"]
TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "hardware.batch_size=64",
    "tracking=jsonl",
    "ssl=none",
    "evolution=balanced",
    "sparsity=none",
    "backbone.channels=[8,16]",
    "finetune.evolve=true",
    "finetune.epochs=4",
    "finetune.validation_episodes=10",
    "evaluation.untrained_reference=false",
]
PRUNING = ["evolution=none", "sparsity=nase", "sparsity.rollback_tolerance=1"]


def composed(method: str, *further: str) -> Any:
    episodes = [] if method == "linear" else EPISODES
    return load([*TINY, f"finetune={method}", *episodes, *further])


def tuner(method: str, *further: str, sink: Sink | None = None) -> FineTuner:
    config = composed(method, *further)
    store = stages.labelled(config)
    learner = around(
        stages.seed_backbone(config),
        config.finetune,
        len(store.class_names),
        torch.Generator().manual_seed(0),
    )
    return FineTuner(
        config,
        learner=learner,
        base=store,
        images=HeldImages(store, torch.device("cpu")),
        fabric=build_fabric("cpu", 1, "32-true"),
        validate=lambda learner: (50.0, 1.0),
        save=lambda name, state: None,
        sink=sink,
        interventions=interventions_of(config),
        before=Before(epochs=10, mutations=3),
    )


def steps(one: FineTuner, count: int) -> None:
    one.begin_epoch()
    for index, batch in zip(range(count), one.batches(), strict=False):
        one.progress.batch = index
        one.differentiate(batch, 1, last=True)
        one.step()
    one.progress.batch = 0


def scores(learner: nn.Module, images: torch.Tensor, masks: Any = None) -> torch.Tensor:
    """What the head makes of images `[20, ...]`: of episodes with 5 ways, or one by one."""
    backbone, head = learner.backbone, learner.head
    features = backbone(images, masks=masks)
    if isinstance(head, nn.Linear):
        return head(features)
    return head(features[:10].unflatten(0, (1, 5, 2)), features[None, 10:])


@pytest.mark.parametrize(
    ("method", "further"),
    [
        ("linear", []),
        ("linear", ["backbone.embedding=flatten"]),
        ("relation", ["backbone.embedding=flatten"]),
        ("relation", ["finetune.head=mlp", "finetune.head_width=8"]),
        ("matching", ["finetune.head=mlp", "finetune.head_width=8"]),
        ("r2d2", []),
    ],
)
def test_head_and_moments_follow_the_encoder(method: str, further: list[str]) -> None:
    one = tuner(method, *further)
    steps(one, 2)
    images = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    classes, moments = (
        len(one.base.class_names),
        named_moments(one.state.networks.optimizer, one.learner),
    )
    architecture = one.state.networks.architecture
    kept = [[0, 2, 3, 5], [1, 2, 3, 4, 6, 9, 11, 15]]
    changes = [grow(architecture, out_channels=24, seed=5), prune(architecture, kept)]
    for mutation in (*changes, grow_stages(architecture)):
        new, moved = mutated(mutation, one.learner, one.options, classes, moments)
        old, new = one.learner.eval(), new.eval()
        masks = None
        if mutation.kind == "PRUNE":
            masks = [torch.zeros(s.old).index_fill(0, torch.tensor(s.index), 1)
                     for s in mutation.spaces[1:]]  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(scores(new, images), scores(old, images, masks))
        _moments_as_by_hand(mutation, method, moments, moved)


def _moments_as_by_hand(mutation: Mutation, method: str, old: Any, new: Any) -> None:
    name = {"r2d2": None, "linear": "head.weight"}.get(method, "head.of_query.weight")
    if name is None:
        return
    maps = "head.of_class.weight" in new  # whose channels are those of the last block
    channels = mutation.spaces[-1] if maps else mutation.features
    for key in ("exp_avg", "exp_avg_sq"):
        for column, source in enumerate(channels.index):
            moment = new[name][key][:, column]
            if source != NEW:
                assert torch.equal(moment, old[name][key][:, source])
            elif key == "exp_avg":
                assert not moment.any()
    kept = ("head.bias", "head.fc1.weight", "head.layers.0.weight")  # what no mutation changes
    assert [new[name]["step"] for name in kept if name in new] == [2]


def test_the_average_grows_along_and_the_best_network_is_chosen_anew() -> None:
    told: list[dict[str, Any]] = []

    class Kept(Sink):
        def event(self, kind: str, values: Any) -> None:
            if kind == "mutation":
                told.append(dict(values))

    one = tuner("linear", "finetune.ema_decay=0.5", sink=Kept())
    steps(one, 3)
    one.progress.epoch, one.progress.best_accuracy, one.progress.best_epoch = 0, 90.0, 0
    one.progress.watched, one.progress.watched_epoch = 90.0, 0
    before = copy.deepcopy(one.evaluated).eval()
    images = torch.randn(4, 3, 16, 16)
    moments = named_moments(one.state.networks.optimizer, one.learner)
    one._change()
    moved = named_moments(one.state.networks.optimizer, one.learner)
    assert len(moved) == len(moments)  # those of the new blocks begin at 0
    assert torch.equal(moved["head.weight"]["exp_avg"], moments["head.weight"]["exp_avg"])
    first, second = "backbone.blocks.1.conv.weight", "backbone.blocks.2.conv.weight"
    assert torch.equal(moved[second]["exp_avg"], moments[first]["exp_avg"])
    assert len(one.learner.backbone.stages()) == len(one.evaluated.backbone.stages()) == 4
    assert one.evaluated is not one.learner
    with torch.no_grad():
        torch.testing.assert_close(one.evaluated.eval().backbone(images), before.backbone(images))
    assert one.progress.best_accuracy is None
    assert one.progress.watched_epoch is None  # patience begins again, too
    (record,) = told
    assert (record["index"], record["epoch"], record["step"]) == (3, 10, 3)
    assert record["function_delta"] < 1e-12
    assert record["loss_before"] == pytest.approx(record["loss_after"], rel=1e-5)
    per_image = sum(
        a.macs() for a in (before.backbone.architecture, one.state.networks.architecture)
    )
    assert one.progress.beside == {CHECKS: HELD_STEPS * 64 * per_image}
    held = one.state.probe.held_losses([one.state.networks], 0)[0].mean().item()
    assert held == pytest.approx(record["loss_after"], rel=1e-6)
    one.progress.epoch = 3
    one._change()  # nothing changes after the last epoch
    assert len(told) == 1


def test_gammas_have_a_rate_of_their_own_and_do_not_decay() -> None:
    one = tuner("linear", "finetune.gamma_lr_ratio=10", "finetune.weight_decay=0.1")
    one._change()
    of = {
        name: group
        for group in one.state.networks.optimizer.param_groups
        for name, parameter in one.learner.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert len(of) == len(list(one.learner.parameters()))
    grown, plain = of["backbone.blocks.1.norm.weight"], of["backbone.blocks.0.norm.weight"]
    assert (grown["first_lr"], grown["weight_decay"]) == (10 * plain["first_lr"], 0)
    assert plain["weight_decay"] == 0.1


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_channels_are_scored_by_the_loss_with_labels(
    scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever scale float16 gives the loss."""
    one = tuner("linear", *PRUNING)
    if scale is not None:
        scaler = SimpleNamespace(get_scale=lambda: scale)
        precision = one.state.probe.objective.fabric.strategy.precision
        monkeypatch.setattr(precision, "scaler", scaler, raising=False)
    learner = copy.deepcopy(one.learner).train()
    networks = Tuned(learner, learner, one.state.networks.optimizer)
    steps_of, views_of, seen = one.feed.steps_of, one.feed.views_of, []
    one.feed.views_of = lambda step, *how: seen.append((step, views_of(step, *how))) or seen[-1][1]  # type: ignore[method-assign]
    for _ in one.state.probe.gradients(networks, 2, 1):
        found = [p.grad.clone() for p in networks.learner.parameters()]
    ((step, images),) = seen
    by_hand = copy.deepcopy(one.learner).train()
    logits = by_hand.head(by_hand.backbone(images))
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(logits, step.truth), list(by_hand.parameters())
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    macs = one.state.networks.architecture.macs()
    assert one.progress.beside == {IMPORTANCE: (1 + BACKWARD) * 64 * macs}
    trained_on = {tuple(each.indices.tolist()) for each in steps_of(0)}
    assert tuple(step.indices.tolist()) not in trained_on
    assert not any(p.grad is not None for p in one.learner.parameters())


@pytest.mark.parametrize(("tolerance", "kept"), [(1.0, True), (-1.0, False)])
def test_a_pruning_is_decided_on_at_once_and_leaves_all_as_it_was_where_it_fails(
    tolerance: float, kept: bool
) -> None:
    one = tuner("linear", *PRUNING)
    steps(one, 2)
    before = copy.deepcopy(one.state_dict())
    one.progress.best_accuracy = 90.0
    few = prune(one.state.networks.architecture, [[0, 1, 2, 3], list(range(8))])
    one.surgery.operate(few, Decision(few, {}, tolerance=tolerance, recalibrate=1))
    (record,) = one.progress.history
    assert record.accepted is kept
    assert record.loss_after != record.loss_before
    assert one.state.networks.architecture.channels == ((4, 8) if kept else (8, 16))
    assert (one.progress.best_accuracy is None) is kept
    if not kept:
        for name, tensor in before["student"].items():
            assert torch.equal(one.learner.state_dict()[name], tensor), name


def test_rates_stay_while_it_grows_and_fall_to_zero_at_the_end() -> None:
    one = tuner("linear", "finetune.scheduler=constant_decay", "finetune.decay_share=0.5")
    rates = {}
    for epoch, position in ((0, 0), (1, 9), (3, 0), (3, one.batches_per_epoch - 1)):
        one.progress.epoch, one.progress.batch = epoch, position
        for parameter in one.learner.parameters():
            parameter.grad = torch.zeros_like(parameter)
        one.step()
        rates[epoch, position] = one.optimizer.param_groups[0]["lr"] / 0.001
    last = one.batches_per_epoch - 1
    assert rates[0, 0] == rates[1, 9] == 1
    assert rates[3, 0] == pytest.approx(0.5)
    assert rates[3, last] == pytest.approx(0.5 / one.batches_per_epoch)


def test_growth_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = composed("linear", "finetune.ema_decay=0.5", "finetune.epochs=3")

    def trained(folder: Path, **options: Any) -> stages.Reached:
        before = stages.Reached(stages.seed_backbone(config))
        return stages.fine_tune(config, before, Sink(), folder, **options)

    whole = trained(tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 17  # in the second epoch, when it has grown

    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", stop=stop)
    state = checkpoint.load(tmp_path / "parts" / "checkpoints" / "finetune_last.pt")
    assert len(state["finetune"]["history"]) == 1
    parts = trained(tmp_path / "parts", state=state)
    assert whole.backbone.architecture.channels == (8, 8, 8, 16, 16, 16)
    assert parts.macs == whole.macs
    assert [{**one, "seconds": 0} for one in parts.history] == [
        {**one, "seconds": 0} for one in whole.history
    ]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune=maml", "evaluation.ways=5"], "inner steps"),
        (["finetune=linear", "finetune.freeze=encoder"], "finetune.freeze=encoder"),
        (["finetune=linear", "finetune.frozen_blocks=1"], "finetune.frozen_blocks=1"),
        (["finetune=linear", "finetune.freeze_norms=true"], "finetune.freeze_norms=true"),
        (["finetune=linear", "evolution=sseg"], "evolution.order=trials"),
        (["finetune=linear", "evolution=none"], "nothing changes the network"),
        (["finetune=linear", "sparsity=nase", "sparsity.rollback_grace_epochs=2"], "at once"),
        (["finetune=linear", "finetune.evolve=false"], "finetune.evolve=true"),
        (["finetune=linear", "backbone=resnet12_quarter", "backbone.channels=[8,8,8,8]"],
         "no rule for more blocks"),
    ],
)  # fmt: skip
def test_what_cannot_evolve_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*TINY, *overrides])
    assert said in str(error.value)

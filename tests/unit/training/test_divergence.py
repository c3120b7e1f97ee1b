"""Training that comes apart ends within the epoch, with what to change, and costs nothing saved."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.finite import not_finite
from sseg_nase.run import run
from sseg_nase.ssl.methods import Losses, SSLMethod
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.divergence import DivergenceError, Guard, explained
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "pretrain.epochs=3",
    "ssl.projection_hidden=16",
    "ssl.projection_dim=8",
]
PLAIN = [key for key in TINY if not key.startswith("ssl.")]
TUNING = [
    *PLAIN,
    "ablation=A2",
    "finetune.epochs=2",
    "finetune.validation_episodes=20",
]
EPISODES = ["finetune.episodes_per_epoch=8", "finetune.queries=5"]
RATES = ["finetune.lr_encoder=1e6", "finetune.lr_head=1e6"]


class Told(Sink):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, values: Any) -> None:
        self.events.append((kind, dict(values)))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for one, values in self.events if one == kind]


def saved(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("*")}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["optimizer.lr=1e9"], "optimizer.lr=1e+09 (try 0.001)"),
        (["optimizer.lr=1e4"], "optimizer.lr=10000 (try 0.001)"),
        (["optimizer=sgd", "optimizer.lr=1e6"], "optimizer.lr=1e+06 (try 0.03)"),
        (["optimizer=adam", "optimizer.lr=1e6"], "optimizer=adam (try adamw)"),
        (["ssl=byol", "optimizer.lr=1e9"], "ssl.temperature"),
        (["ssl=barlow_twins", "optimizer=sgd", "optimizer.lr=1e6"], "hardware.precision=32-true"),
        (["ssl=dino", "ssl.prototypes=12", "optimizer.lr=1e9"], "ssl.student_temperature=0.1"),
        (["optimizer.lr=1e9", "hardware.gradient_accumulation_steps=4"], "optimizer.lr"),
        (["optimizer.lr=1e9", "tracking.interval_steps=1"], "optimizer.lr"),
        (["optimizer.weight_decay=1e6"], " optimizer.weight_decay=0.0001 resume="),
        (["ssl.temperature=1e-30"], " ssl.temperature=0.5 resume="),
    ],
)
def test_pretraining_that_diverges(overrides: list[str], named: str, tmp_path: Path) -> None:
    told = Told()
    config = load([*TINY, "ablation=A7", *overrides])
    with pytest.raises(UserError, match="pretraining diverged") as caught:
        stages.pretrain(config, told, tmp_path)
    assert not told.of("epoch")  # not even one is over
    assert not saved(tmp_path)
    message = str(caught.value)
    assert "epoch 1 (level BASIC)" in message
    assert "step " in message
    if named != "ssl.temperature":  # which has no effect on BYOL
        assert named in message
    else:
        assert named not in message
    assert "as there is no checkpoint yet" in message


@pytest.mark.parametrize("backbone", ["resnet12_quarter", "vit_small", "conv4"])
def test_so_does_that_of_other_backbones(backbone: str, tmp_path: Path) -> None:
    config = load([*TINY, "ablation=A2", f"backbone={backbone}", "optimizer.lr=1e7"])
    with pytest.raises(UserError, match=r"epoch 1 .*optimizer\.lr=1e\+07"):
        stages.pretrain(config, Told(), tmp_path)
    assert not saved(tmp_path)


def test_loss_and_weights_that_explode_diverge_though_they_are_finite(tmp_path: Path) -> None:
    config = load([*PLAIN, "ablation=A2", "ssl=prototype_pairs", "optimizer.lr=1000"])
    with pytest.raises(UserError, match=r"the loss is .*, at the first step it was|weights of"):
        stages.pretrain(config, Told(), tmp_path)
    config = load([*TINY, "ablation=A2", "optimizer.lr=1000"])
    with pytest.raises(UserError, match="the weights of the student are"):
        stages.pretrain(config, Told(), tmp_path)
    assert not saved(tmp_path)


def test_weights_that_grow_much_are_a_warning_once(tmp_path: Path) -> None:
    told = Told()
    stages.pretrain(load([*TINY, "ablation=A2", "optimizer.lr=10"]), told, tmp_path)
    (warning,) = told.of("warning")
    assert "may be diverging" in warning["text"]
    assert "learning rate" in warning["text"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("further", [[], ["optimizer=sgd"], ["ssl.temperature=1e-6"]])
def test_training_that_goes_well_is_left_alone(
    precision: str, further: list[str], tmp_path: Path
) -> None:
    told = Told()
    config = load([*TINY, "ablation=A7", f"hardware.precision={precision}", *further])
    stages.pretrain(config, told, tmp_path)
    assert len(told.of("epoch")) == 3
    assert not told.of("warning")


# -- the guard -------------------------------------------------------------------------------------


def guard(*, steps_per_epoch: int = 100, scaler: Any = None, **parts: nn.Module) -> Guard:
    strategy = SimpleNamespace(precision=SimpleNamespace(scaler=scaler))
    fabric: Any = SimpleNamespace(device=torch.device("cpu"), strategy=strategy)
    return Guard(fabric, parts, steps_per_epoch=steps_per_epoch, what="training")


def of_size(size: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, size)
    return layer


@pytest.mark.parametrize(
    ("start", "now", "said"),
    [
        (0.2, 5.9, None),
        (0.2, 6.1, "may be diverging"),
        (0.2, 199.0, "may be diverging"),
        (0.2, 201.0, "diverged here: the weights of the head are 201"),
        (0.0, 2.9, None),  # what began near 0 is measured from 0.1 on
        (0.0, 3.1, "may be diverging"),
        (0.0, 101.0, "diverged here: the weights of the head are 101"),
    ],
)
def test_weights_are_measured_by_their_size_at_the_start(
    start: float, now: float, said: str | None
) -> None:
    head = of_size(start)
    one = guard(backbone=of_size(1.0), head=head)
    for parameter in head.parameters():
        nn.init.constant_(parameter, now)
    try:
        found = one.check_epoch(1.0, {"backbone": of_size(1.0), "head": head}, "here")
    except DivergenceError as error:
        found = str(error)
    assert (found is None) == (said is None)
    assert said is None or said in str(found)


def test_every_part_that_grows_is_told_once() -> None:
    parts = {"backbone": of_size(1.0), "head": of_size(1.0)}
    one = guard(**parts)
    grown = {name: of_size(40.0) for name in parts}
    said = [one.check_epoch(1.0, grown, "here") for _ in range(4)]
    assert ["backbone" in str(text) for text in said] == [True, False, False, False]
    assert ["head" in str(text) for text in said] == [False, True, False, False]


def test_weights_that_are_not_trained_are_not_measured() -> None:
    frozen = of_size(1e9)
    part = nn.Sequential(of_size(1.0), frozen.requires_grad_(False))
    one = guard(part=part)
    assert one.start == {"part": 1.0}
    assert guard(part=frozen).start == {"part": 0.1}


@pytest.mark.parametrize(
    ("losses", "mean", "diverged"),
    [
        ([5.0, 1e9], 4.9e4, False),
        ([5.0, 1e9], 5.1e4, True),  # the first one is the measure
        ([-5.0], 4.9e4, False),
        ([1e-6], 9e3, False),  # losses near 0 may rise to 1
        ([1e-6], 1.1e4, True),
        ([], 1.1e4, True),
        ([float("inf")], 1e30, False),  # said of the losses themselves
    ],
)
def test_a_loss_is_measured_by_that_of_the_first_step(
    losses: list[float], mean: float, diverged: bool
) -> None:
    one = guard()
    for loss in losses:
        one.saw(torch.tensor(loss))
    if not diverged:
        assert one.check_epoch(mean, {}, "here") is None
        return
    with pytest.raises(DivergenceError, match="diverged here: the loss is"):
        one.check_epoch(mean, {}, "here")


def test_a_first_loss_that_is_changed_in_place_later_stays_the_measure() -> None:
    one, loss = guard(), torch.tensor(2.0)
    one.saw(loss)
    loss += 1e9
    with pytest.raises(DivergenceError, match="at the first step it was 2"):
        one.check_epoch(1e6, {}, "here")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_loss_may_be_not_finite(place: int, value: float) -> None:
    losses = [1.0, 2.0, 3.0]
    guard().check_losses(losses, "here")
    losses[place] = value
    with pytest.raises(DivergenceError, match="diverged here: the loss is not finite"):
        guard().check_losses(losses, "here")


@pytest.mark.parametrize(("steps_per_epoch", "most"), [(1, 4), (4, 4), (7, 7), (1000, 40)])
def test_so_many_steps_in_a_row_may_be_skipped(steps_per_epoch: int, most: int) -> None:
    scaler = SimpleNamespace(_scale=torch.tensor(2.0**16), get_scale=lambda: 1.0)
    one = guard(steps_per_epoch=steps_per_epoch, scaler=scaler)

    def step(by: float) -> bool:
        return one.took(lambda: setattr(scaler, "_scale", scaler._scale * by))

    for by in (*[0.5] * (most - 1), 1.0, *[0.5] * (most - 1), 2.0):  # one is taken in between
        assert step(by) == (by >= 1)
        one.check_skipped("here")
    for _ in range(most - 1):
        step(0.5)
    one.check_skipped("here")
    step(0.5)
    with pytest.raises(DivergenceError, match=f"the last {most} steps were all skipped"):
        one.check_skipped("here")


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (1e-45, 0.0)])
def test_at_a_scale_of_nothing_no_step_is_taken(before: float, after: float) -> None:
    scaler = SimpleNamespace(_scale=torch.tensor(before))
    one = guard(scaler=scaler)
    assert not one.took(lambda: setattr(scaler, "_scale", torch.tensor(after)))
    assert one.skipped == 1


@pytest.mark.parametrize("part", ["student", "teacher", "moments"])
def test_no_part_of_the_state_may_be_not_finite(part: str) -> None:
    state = {name: {"w": torch.ones(2)} for name in ("student", "teacher", "moments")}
    guard().check_state(state, "here")
    state[part]["w"][1] = float("nan")
    with pytest.raises(DivergenceError, match=rf"diverged here: not finite are .*{part}\.w"):
        guard().check_state(state, "here")


def remedied(overrides: list[str], said: str, folder: Path, name: str = "last") -> tuple[str, str]:
    """What is said of the remedies, and the command."""
    error = explained(DivergenceError(said), load([*TINY, *overrides]), folder, name)
    shown, _, command = str(error).rpartition(": sseg-nase ")
    return shown, command


def test_all_that_is_far_from_its_usual_value_stands_in_the_command(tmp_path: Path) -> None:
    given = ["ablation=A2", "optimizer.lr=5", "ssl.temperature=0.001"]
    _, command = remedied(given, "it diverged.", tmp_path)
    assert command.startswith("optimizer.lr=0.001 ssl.temperature=0.5 resume=")
    _, command = remedied([*given[:2], "ssl.temperature=0.4"], "it diverged.", tmp_path)
    assert command.startswith("optimizer.lr=0.001 resume=")  # it is near enough


@pytest.mark.parametrize(
    ("rates", "first"),
    [
        (["finetune.lr_encoder=100", "finetune.lr_head=0.5"], "lr_encoder"),
        (["finetune.lr_encoder=0.5", "finetune.lr_head=100"], "lr_head"),
    ],
)
@pytest.mark.parametrize(("optimizer", "usual"), [("adam", "0.001"), ("sgd", "0.1")])
def test_the_rate_that_is_furthest_off_comes_first(
    rates: list[str], first: str, optimizer: str, usual: str, tmp_path: Path
) -> None:
    given = ["finetune=prototypical", f"finetune.optimizer={optimizer}", *rates]
    shown, command = remedied(given, "it diverged.", tmp_path, "finetune_last")
    assert f"Change one or more of: finetune.{first}=100 (try {usual})" in shown
    assert command.startswith(f"finetune.{first}={usual} ")


@pytest.mark.parametrize("there", [True, False])
def test_what_a_resume_begins_with_is_said(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.pt").touch()
    shown, _ = remedied(["ablation=A2"], "it diverged.", tmp_path)
    assert ("(from last.pt)" in shown) == there
    assert ("there is no checkpoint yet" in shown) != there


def test_float16_is_the_first_to_go_where_it_is_to_blame(tmp_path: Path) -> None:
    given = ["ablation=A2", "hardware.precision=16-mixed"]
    shown, command = remedied(given, "they overflow float16.", tmp_path)
    assert "of: hardware.precision=16-mixed (try bf16-mixed), optimizer.lr" in shown
    assert command.startswith("hardware.precision=bf16-mixed resume=")
    shown, command = remedied(given, "the loss is not finite.", tmp_path)
    assert "of: optimizer.lr" in shown
    assert shown.index("(from") > shown.index("hardware.precision=16-mixed (try bf16-mixed)")


# -- in the middle of a run ------------------------------------------------------------------------


class Spoiled:
    """A method whose loss is changed by `spoil`, called with the number of the step from 0."""

    def __init__(self, config: Config, spoil: Any) -> None:
        from sseg_nase.ssl.methods import METHODS

        self.method: SSLMethod = METHODS[config.ssl.name]
        self.spoil, self.calls = spoil, 0

    def build(self) -> SSLMethod:
        def loss(learner: Any, teaching: Any, views: Any, ssl: Any, gather: Any) -> Losses:
            losses = self.method.loss(learner, teaching, views, ssl, gather)
            self.calls += 1
            return losses._replace(total=self.spoil(self.calls - 1, losses.total, learner))

        return dataclasses.replace(self.method, loss=loss)


def spoil_losses(monkeypatch: pytest.MonkeyPatch, config: Config, spoil: Any) -> None:
    """Of training only: probes and trials see the method as it is."""
    spoiled = Spoiled(config, spoil).build()
    init = Trainer.__init__

    def changed(self: Trainer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.method = spoiled

    monkeypatch.setattr(Trainer, "__init__", changed)


def nan_at(step: int) -> Any:
    return lambda at, total, learner: total * (float("nan") if at == step else 1)


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("interval", [1, 3, 1000])
def test_the_last_checkpoint_from_before_is_kept(
    every_step: bool, interval: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also as on CUDA, where not every step is looked at. 4 steps an epoch."""
    config = load([*TINY, "ablation=A7", f"tracking.interval_steps={interval}"])
    whole = tmp_path / "whole"
    reference = stages.pretrain(config, Told(), whole)
    with monkeypatch.context() as patch:
        spoil_losses(patch, config, nan_at(9))
        if not every_step:
            init = Guard.__init__

            def seldom(self: Guard, *args: Any, **kwargs: Any) -> None:
                init(self, *args, **kwargs)
                self.at_every_step = False

            patch.setattr(Guard, "__init__", seldom)
        with pytest.raises(UserError, match="diverged") as caught:
            stages.pretrain(config, Told(), tmp_path)
    message = str(caught.value)
    if every_step:
        assert "at step 10, epoch 3" in message
    elif interval == 1:
        assert "by step 10, epoch 3" in message
    else:
        assert "by step 12, epoch 3" in message or "in epoch 3" in message
    assert "from last.pt" in message
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert (state["epoch"], state["step"]) == (2, 8)
    assert not not_finite(state)
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["epoch"] <= 1
    again = stages.pretrain(config, Told(), tmp_path, state=state)
    ours, theirs = (t.networks.learner.state_dict() for t in (again, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_image_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A NaN that one image of one batch sends through the network."""
    config = load([*TINY, "ablation=A2"])
    plain = Trainer.differentiate

    def poisoned(self: Trainer, parts: Any, *given: Any, **named: Any) -> Any:
        if (self.state.progress.epoch, self.state.progress.batch) != (1, 2):
            return plain(self, parts, *given, **named)
        first, *_ = self.state.networks.learner.backbone.stages()

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            bad = torch.zeros_like(output)
            bad[3, 0, 0, 0] = float("nan")
            return output + bad

        handle = first.register_forward_hook(hook)
        try:
            return plain(self, parts, *given, **named)
        finally:
            handle.remove()

    monkeypatch.setattr(Trainer, "differentiate", poisoned)
    with pytest.raises(UserError, match="at step 7, epoch 2"):
        stages.pretrain(config, Told(), tmp_path)
    assert not not_finite(checkpoint.load(tmp_path / "checkpoints" / "last.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["parameter", "statistic", "moment", "teacher"])
def test_weights_that_the_loss_does_not_show(tensor: str, value: float, tmp_path: Path) -> None:
    class Spoil(Callback):
        def on(self, event: Event, state: Pretraining) -> None:
            if event is not Event.AFTER_STEP or state.progress.step != 8:  # epoch 2's last
                return
            networks = state.networks
            assert networks.teacher is not None
            with torch.no_grad():
                if tensor == "parameter":
                    networks.learner.head.fc1.weight[0, 0] = value
                elif tensor == "teacher":
                    networks.teacher.blocks[0].norm.weight[0] = value
                elif tensor == "statistic":
                    networks.learner.backbone.blocks[0].norm.running_var[0] = value
                else:
                    (first, *_) = networks.optimizer.state.values()
                    first["exp_avg_sq"][0] = value

    from sseg_nase.stages import pretraining
    from sseg_nase.training.callbacks import Checkpoints

    config = load([*TINY, "ablation=A5"])
    callbacks = [Spoil(), Checkpoints(tmp_path / "checkpoints", 1, {})]
    trainer = pretraining.trainer_of(config, callbacks, Told(), None, lambda: False)
    with pytest.raises(DivergenceError, match=r"epoch 2 .* after step 8: .*not finite|weights"):
        trainer.fit()
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 4
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == 4


def test_an_interrupted_run_saves_nothing_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load([*TINY, "ablation=A2"])
    nan = float("nan")
    spoil_losses(monkeypatch, config, lambda at, total, learner: total * (nan if at == 5 else 1))
    monkeypatch.setattr(Guard, "check_losses", lambda self, losses, where: None)
    steps = iter(range(100))
    with pytest.raises(UserError, match="not finite are"):
        stages.pretrain(config, Told(), tmp_path, stop=lambda: next(steps) == 5)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 4


def test_a_checkpoint_is_never_written_over_with_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"student": {"w": torch.ones(2)}})
    with pytest.raises(DivergenceError, match=r"last\.pt is not written: .*student\.w"):
        checkpoint.save(path, {"student": {"w": torch.tensor([1.0, float("nan")])}})
    assert checkpoint.load(path)["student"]["w"].tolist() == [1, 1]


# -- float16 ---------------------------------------------------------------------------------------


def test_float16_that_goes_well_is_left_alone(tmp_path: Path) -> None:
    told = Told()
    config = load([*TINY, "ablation=A7", "hardware.precision=16-mixed"])
    stages.pretrain(config, told, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["precision"]["scale"] > 0
    assert len(told.of("epoch")) == 3
    assert not told.of("warning")


@pytest.mark.parametrize("rate", ["1e5", "1e9"])
def test_a_learning_rate_too_high_for_float16(rate: str, tmp_path: Path) -> None:
    config = load([*TINY, "ablation=A2", "hardware.precision=16-mixed", f"optimizer.lr={rate}"])
    with pytest.raises(UserError, match=r"epoch 1 .*precision=16-mixed \(try bf16-mixed\)"):
        stages.pretrain(config, Told(), tmp_path)
    assert not saved(tmp_path)


def steep(loss: torch.Tensor) -> torch.Tensor:
    """The same finite loss, with gradients that overflow at any scale."""
    same = loss * 1
    same.register_hook(lambda gradient: gradient * float("inf"))
    return same


@pytest.mark.parametrize("skipped", [lambda at: at < 3, lambda at: at % 2 == 0])
def test_a_scaler_that_settles_is_left_alone(
    skipped: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scale of 2^16 may be too large at first, and now and then later."""
    config = load([*TINY, "ablation=A2", "hardware.precision=16-mixed"])
    spoil_losses(
        monkeypatch,
        config,
        lambda at, total, learner: steep(total) if skipped(at) else total,
    )
    trainer = stages.pretrain(config, Told(), tmp_path)
    assert trainer.progress.skipped == sum(map(skipped, range(12)))
    assert trainer.progress.step == 12 - trainer.progress.skipped
    assert not not_finite(trainer.networks.state_dict())


@pytest.mark.parametrize("every_step", [True, False])
def test_a_scaler_that_never_settles_diverges(
    every_step: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load([*TINY, "ablation=A2", "hardware.precision=16-mixed"])
    spoil_losses(monkeypatch, config, lambda at, total, learner: steep(total))
    if not every_step:
        init = Guard.__init__

        def seldom(self: Guard, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.at_every_step = False

        monkeypatch.setattr(Guard, "__init__", seldom)
    with pytest.raises(UserError, match="overflow float16") as caught:
        stages.pretrain(config, Told(), tmp_path)
    assert "epoch 1" in str(caught.value)
    assert "sseg-nase hardware.precision=bf16-mixed resume=" in str(caught.value)
    assert not saved(tmp_path)


def test_a_forward_pass_that_overflows_float16_diverges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load([*TINY, "ablation=A2", "hardware.precision=16-mixed"])
    seed = stages.pretraining.seed_learner

    def loud(config: Config) -> Any:
        learner = seed(config)
        with torch.no_grad():
            learner.backbone.blocks[1].norm.weight.fill_(1e5)  # over the 65,504 of float16
        return learner

    monkeypatch.setattr(stages.pretraining, "seed_learner", loud)
    with pytest.raises(UserError, match=r"at step 1, .*hardware\.precision=16-mixed"):
        stages.pretrain(config, Told(), tmp_path)


# -- fine-tuning -----------------------------------------------------------------------------------


def started(config: Config) -> stages.Reached:
    return stages.Reached(stages.seed_backbone(config))


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune=prototypical", *EPISODES, *RATES],
        ["finetune=prototypical", *EPISODES, *RATES, "finetune.optimizer=sgd"],
        ["finetune=maml", *EPISODES, *RATES],
        ["finetune=maml", *EPISODES, "finetune.inner_lr=1e6"],
        ["finetune=matching", *EPISODES, *RATES],
        ["finetune=relation", *EPISODES, *RATES],
        ["finetune=r2d2", *EPISODES, *RATES],
        ["finetune=linear", *RATES],
        ["finetune=linear", "finetune.freeze=encoder", "finetune.lr_head=1e6"],
    ],
    ids=lambda overrides: " ".join(key.removeprefix("finetune.") for key in overrides[:1]),
)
def test_fine_tuning_that_diverges(overrides: list[str], tmp_path: Path) -> None:
    config, told = load([*TUNING, *overrides]), Told()
    with pytest.raises(UserError, match=r"fine-tuning diverged .*epoch 1") as caught:
        stages.fine_tune(config, started(config), told, tmp_path)
    assert not saved(tmp_path)
    assert not told.of("finetune")
    command = shlex.split(str(caught.value).rpartition(": sseg-nase ")[2])
    changed = [text for text in command if text.startswith("finetune.")]
    assert {text.partition("=")[0] for text in changed} >= {
        text.partition("=")[0] for text in overrides if "lr" in text
    }
    calm = load([*TUNING, *overrides, *changed])
    stages.fine_tune(calm, started(calm), told, tmp_path)
    assert len(told.of("finetune")) == 2


def test_fine_tuning_keeps_what_was_finite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sseg_nase.finetune import objective

    config = load([*TUNING, "finetune=prototypical", *EPISODES])  # 2 steps an epoch
    plain, calls = objective.episodic, iter(range(100))

    def spoiled(*args: Any) -> objective.Outcome:
        outcome = plain(*args)
        return outcome._replace(loss=outcome.loss * (float("nan") if next(calls) == 3 else 1))

    monkeypatch.setattr(objective, "episodic", spoiled)
    with pytest.raises(UserError, match="at step 4, epoch 2") as caught:
        stages.fine_tune(config, started(config), Told(), tmp_path)
    assert "from finetune_last.pt" in str(caught.value)
    state = checkpoint.load(tmp_path / "checkpoints" / "finetune_last.pt")
    assert state["finetune"]["epoch"] == 1
    done = stages.fine_tune(config, started(config), Told(), tmp_path, state=state)
    assert done.step == 4


# -- the whole program -----------------------------------------------------------------------------


def runs() -> list[Path]:
    return list(Path("runs/debug").iterdir())


def test_a_run_that_diverged_is_failed_and_resumes_with_other_keys() -> None:
    overrides = [*TINY, "ablation=A7", "optimizer.lr=1e9"]
    with pytest.raises(UserError, match="diverged") as caught:
        run(load(overrides), overrides)
    (directory,) = runs()
    status = read_json(directory / "status.json")
    assert status is not None
    assert status["status"] == "FAILED"
    assert status["error"] == str(caught.value)
    assert not (directory / "results.json").exists()
    from sseg_nase.config.compose import continued

    command = shlex.split(str(caught.value).rpartition(": sseg-nase ")[2])
    again = [*command, *continued(command)]
    assert run(load(again), again) == directory.absolute()
    status, results = (read_json(directory / f"{name}.json") for name in ("status", "results"))
    assert status is not None
    assert status["status"] == "FINISHED"
    assert results is not None
    assert results["fewshot"]["digits/val/5w1s"]["doubts"] == []
    assert "NaN" not in (directory / "events.jsonl").read_text()


@pytest.mark.parametrize("best", [True, False])
def test_a_checkpoint_of_an_older_version_that_is_not_finite(
    best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*TINY, "ablation=A2"]
    directory = run(load(overrides), overrides)
    (directory / "results.json").unlink()
    folder = directory / "checkpoints"
    for name in ("last", "best"):
        state = torch.load(folder / f"{name}.pt", weights_only=True)
        if name == "last" or not best:
            state["student"]["backbone.blocks.0.conv.weight"][0] = float("nan")
        torch.save(state, folder / f"{name}.pt")
    again = [*overrides, f"resume={directory}", "optimizer.lr=1e-4", "resume_overrides=true"]
    with pytest.raises(UserError, match=r"blocks\.0\.conv\.weight") as caught:
        run(load(again), again)
    assert f"resume={directory}" in str(caught.value)
    assert ("best.pt is finite" in str(caught.value)) == best
    assert (read_json(directory / "status.json") or {})["status"] == "FINISHED"  # as it was
    if best:  # what the message says works
        (folder / "last.pt").write_bytes((folder / "best.pt").read_bytes())
    else:
        (folder / "last.pt").unlink()
    run(load(again), again)
    assert not not_finite(checkpoint.load(folder / "last.pt"))


@pytest.mark.slow
def test_two_processes_diverge_together(tmp_path: Path) -> None:
    for ssl in ("simclr", "byol"):  # byol's loss is of each process's own share
        config = load(
            [*TINY, "ablation=A2", f"ssl={ssl}", "optimizer.lr=1e9", "hardware.devices=2"]
        )
        with pytest.raises(UserError, match=r"diverged .*epoch 1"):
            stages.pretrain(config, Told(), tmp_path)
        assert not saved(tmp_path)

"""Training in float16 with a gradient scaler, on a CPU: what mutates, resumes and is skipped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.hardware import profiles
from sseg_nase.run import run
from sseg_nase.ssl.teacher import ema_decay
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint, distributed
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.state import Pretraining

HALF = [
    "debug=tiny",
    "evolution.operators=[grow]",
    "hardware=cpu",
    "hardware.precision=16-mixed",
    "tracking.interval_steps=1",
    "evolution.rollback_grace_epochs=1",
    "ssl.projection_hidden=16",
    "ssl.projection_dim=8",
]  # 4 batches an epoch
SCALE = 2.0**16  # with which a scaler begins
TOO_LARGE = 2.0**19  # gradients of these networks fit into float16 at a scale of 2^17 or less


class Told(Sink):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.steps: dict[str, list[int]] = {}

    def event(self, kind: str, values: Any) -> None:
        self.events.append((kind, dict(values)))

    def metrics(self, values: Any, step: int) -> None:
        for name in values:
            self.steps.setdefault(name, []).append(step)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for one, values in self.events if one == kind]


class At(Callback):
    """Calls `do` at `event`."""

    def __init__(self, event: Event, do: Any) -> None:
        self.event, self.do = event, do

    def on(self, event: Event, state: Pretraining) -> None:
        if event is self.event:
            self.do(state)


def after(steps: int) -> Callable[[], bool]:
    counter = itertools.count(1)
    return lambda: next(counter) == steps


def scale_of(fabric: Any) -> float:
    return float(fabric.strategy.precision.scaler.get_scale())


def begin_with(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every scaler begin with `scale`."""
    build = distributed.build_fabric

    def changed(*args: Any) -> Any:
        fabric = build(*args)
        fabric.strategy.precision.scaler._init_scale = scale
        return fabric

    monkeypatch.setattr(distributed, "build_fabric", changed)


def types_of_convolutions(network: torch.nn.Module) -> set[torch.dtype]:
    """Fills, while `network` runs, with the types of what its convolutions put out."""
    found: set[torch.dtype] = set()
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda module, given, out: found.add(out.dtype))
    return found


def same_tensors(first: Any, second: Any) -> bool:
    """Bit for bit, in nested dictionaries."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same_tensors(first[key], second[key]) for key in first
        )
    return bool(first == second)


# -- pretraining -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_networks_train_mutate_and_resume_in_float16(tmp_path: Path) -> None:
    config = load([*HALF, "ablation=A7"])
    whole = stages.pretrain(config, Told(), tmp_path / "whole")
    assert {"GROW", "PRUNE"} <= {record.kind for record in whole.progress.history}
    found = types_of_convolutions(whole.networks.learner)
    next(whole.probe.gradients(whole.networks, 0, 1))
    assert found == {torch.float16}
    assert whole.networks.learner.backbone.blocks[0].conv.weight.dtype == torch.float32
    expected = checkpoint.load(tmp_path / "whole" / "checkpoints" / "last.pt")
    assert 0 < expected["precision"]["scale"] <= SCALE
    for steps in (1, 6, whole.progress.step - 2):
        folder = tmp_path / f"after-{steps}"
        with pytest.raises(Interrupted):
            stages.pretrain(config, Told(), folder, stop=after(steps))
        state = checkpoint.load(folder / "checkpoints" / "last.pt")
        stages.pretrain(config, Told(), folder, state=state)
        found_there = checkpoint.load(folder / "checkpoints" / "last.pt")
        for part in ("student", "teacher", "moments", "precision", "step", "skipped"):
            assert same_tensors(found_there[part], expected[part]), part


def test_widening_in_float16(tmp_path: Path) -> None:
    config = load([*HALF, "ablation=A7", "evolution.operators=[widen]"])
    trainer = stages.pretrain(config, Told(), tmp_path)
    assert {"WIDEN", "PRUNE"} <= {record.kind for record in trainer.progress.history}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_skipped_steps_are_none(
    accumulation: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first steps, at whose scale gradients overflow, leave all as it was but the scale."""
    begin_with(TOO_LARGE, monkeypatch)
    told, epochs = Told(), 3
    steps_per_epoch = -(-4 // accumulation)
    config = load(
        [
            *(*HALF, "ablation=A5", "evolution=none", f"pretrain.epochs={epochs}"),
            *("scheduler.warmup_epochs=2", "ssl.ema_decay=0.5", "ssl.ema_schedule=cosine"),
            f"hardware.gradient_accumulation_steps={accumulation}",
        ]
    )
    trainer = trainer_of(config, [], told, None, lambda: False)
    learner = trainer.state.networks.learner
    weights = {k: v.clone() for k, v in learner.named_parameters()}
    rates: list[float] = []
    teacher: list[dict[str, torch.Tensor]] = []

    def remember(t: Pretraining) -> None:
        assert t.networks.teacher is not None
        if t.progress.step == 0:
            assert all(torch.equal(weights[k], v) for k, v in t.networks.learner.named_parameters())
            for state in t.networks.optimizer.state.values():
                assert not any(value.any() for value in state.values())
        teacher.append({k: v.clone() for k, v in t.networks.teacher.named_parameters()})

    def check(t: Pretraining) -> None:
        assert t.networks.teacher is not None
        rates.append(t.networks.optimizer.param_groups[0]["lr"])
        decay = ema_decay(t.progress.step - 1, steps_per_epoch * epochs, t.config.ssl)
        student = dict(t.networks.learner.backbone.named_parameters())
        for name, now in t.networks.teacher.named_parameters():
            expected = decay * teacher[-1][name] + (1 - decay) * student[name]
            torch.testing.assert_close(now, expected)

    trainer.callbacks += [At(Event.BATCH_START, remember), At(Event.AFTER_STEP, check)]
    trainer.fit()
    progress = trainer.state.progress
    assert progress.skipped >= 2
    assert progress.step + progress.skipped == steps_per_epoch * epochs
    assert len(rates) == progress.step
    warmup = 2 * steps_per_epoch
    expected = [config.optimizer.lr * (step + 1) / (warmup + 1) for step in range(warmup)]
    assert rates[:warmup] == pytest.approx(expected[: len(rates)])
    assert told.steps["pretrain/loss"] == list(range(1, progress.step + 1))
    (said,) = told.of("skipped")
    assert (said["skipped"], said["steps"]) == (progress.skipped, progress.step)
    assert f"{progress.skipped} of {steps_per_epoch * epochs} steps were skipped" in said["text"]
    assert [epoch.get("skipped") for epoch in told.of("epoch")][-1] == progress.skipped


@pytest.mark.slow
def test_a_run_that_skips_steps_resumes_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_with(TOO_LARGE, monkeypatch)
    config = load([*HALF, "ablation=A7"])
    stages.pretrain(config, Told(), tmp_path / "whole")
    expected = checkpoint.load(tmp_path / "whole" / "checkpoints" / "last.pt")
    assert expected["skipped"] >= 2
    for steps in (1, 2, 3, 7):  # the first ones are skipped
        folder, told = tmp_path / f"after-{steps}", Told()
        with pytest.raises(Interrupted):
            stages.pretrain(config, told, folder, stop=after(steps))
        assert not told.of("skipped")
        state = checkpoint.load(folder / "checkpoints" / "last.pt")
        assert state["step"] + state["skipped"] == steps
        stages.pretrain(config, told, folder, state=state)
        assert len(told.of("skipped")) == 1
        found = checkpoint.load(folder / "checkpoints" / "last.pt")
        for part in ("student", "teacher", "moments", "precision", "step", "skipped"):
            assert same_tensors(found[part], expected[part]), part


def test_skipped_steps_stand_in_events_results_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_with(TOO_LARGE, monkeypatch)
    monkeypatch.setattr(profiles, "_cpu_precision", lambda asked, *_: asked)  # CPUs take bfloat16
    given = [*HALF, "ablation=A2", "pretrain.epochs=2", "tracking=jsonl", "report.at_end=true"]
    directory = run(load(given), given)
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    (said,) = [line["values"] for line in lines if line["kind"] == "skipped"]
    assert said["skipped"] >= 2
    results = json.loads((directory / "results.json").read_text())
    assert results["skipped_steps"] == {"pretraining": said["skipped"]}
    report = (directory / "report" / "report.md").read_text()
    assert f"pretraining: {said['skipped']} steps were skipped" in report


def test_no_step_at_all_is_a_divergence_however_short_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three steps: fewer than are given the scaler to settle."""
    begin_with(2.0**60, monkeypatch)
    short = ["ablation=A2", "pretrain.epochs=3", "pretrain.images_per_epoch=16"]
    with pytest.raises(UserError, match=r"the last 3 steps were all skipped.*precision=16-mixed"):
        stages.pretrain(load([*HALF, *short]), Told(), tmp_path)


def test_a_scale_that_is_used_up_skips_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 cannot be halved: a step at this scale is none."""
    trainer = trainer_of(load([*HALF, "ablation=A2"]), [], Sink(), None, lambda: False)
    trainer.guard.scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
    for scale, taken in ((SCALE, True), (0.0, False)):
        trainer.guard.scaler._scale.fill_(scale)
        assert trainer.guard.took(lambda: None) == taken
    assert trainer.guard.skipped == 1


@pytest.mark.parametrize("before", ["32-true", "bf16-mixed"])
def test_a_run_goes_on_in_float16_as_the_memory_message_proposes(
    before: str, tmp_path: Path
) -> None:
    options = ["ablation=A2", "pretrain.epochs=2"]
    config = load([*HALF, *options, f"hardware.precision={before}"])
    with pytest.raises(Interrupted):
        stages.pretrain(config, Told(), tmp_path, stop=after(3))
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert state["precision"] == {}
    trained = stages.pretrain(load([*HALF, *options]), Told(), tmp_path, state=state)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["precision"]["scale"] == SCALE
    assert trained.progress.step == 8


def test_a_checkpoint_from_before_skipped_steps_were_counted(tmp_path: Path) -> None:
    config = load([*HALF, "ablation=A2", "pretrain.epochs=2"])
    with pytest.raises(Interrupted):
        stages.pretrain(config, Told(), tmp_path, stop=after(3))
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    del state["skipped"]
    assert stages.pretrain(config, Told(), tmp_path, state=state).progress.step == 8


# -- fine-tuning -----------------------------------------------------------------------------------

TUNING = [
    *(key for key in HALF if not key.startswith("ssl.")),
    *("ablation=A2", "finetune.epochs=2", "finetune.validation_episodes=20"),
    *("finetune.ema_decay=0.9", "finetune.tasks_per_step=1"),
]
EPISODES = ["finetune.episodes_per_epoch=5", "finetune.queries=5"]


def tune(config: Config, folder: Path, **options: Any) -> tuple[stages.Reached, Told]:
    told = Told()
    started = stages.Reached(stages.seed_backbone(config))
    return stages.fine_tune(config, started, told, folder, **options), told


@pytest.mark.parametrize(
    "method", ["prototypical", "relation", pytest.param("maml", marks=pytest.mark.slow)]
)
def test_fine_tuning_keeps_the_scale(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    brief = ["finetune.inner_steps=1"] if method == "maml" else []
    config = load([*TUNING, f"finetune={method}", *EPISODES, *brief])
    begin_with(1024.0, monkeypatch)  # unlike that of a new scaler
    tune(config, tmp_path / "whole")
    expected = checkpoint.load(tmp_path / "whole" / "checkpoints" / "finetune_last.pt")
    assert 0 < expected["precision"]["scale"] <= 1024
    with pytest.raises(Interrupted):
        tune(config, tmp_path / "stopped", stop=after(3))
    begin_with(SCALE, monkeypatch)
    state = checkpoint.load(tmp_path / "stopped" / "checkpoints" / "finetune_last.pt")
    tune(config, tmp_path / "stopped", state=state)
    found = checkpoint.load(tmp_path / "stopped" / "checkpoints" / "finetune_last.pt")
    for part in ("student", "average", "precision", "finetune"):
        assert same_tensors(found[part], expected[part]), part


@pytest.mark.parametrize("left", [None, {}])
def test_older_checkpoints_of_fine_tuning_have_no_scale(left: Any, tmp_path: Path) -> None:
    config = load([*TUNING, "finetune=prototypical", *EPISODES])
    with pytest.raises(Interrupted):
        tune(config, tmp_path, stop=after(3))
    state = checkpoint.load(tmp_path / "checkpoints" / "finetune_last.pt")
    del state["precision"], state["finetune"]["skipped"]
    if left is not None:
        state["precision"] = left
    skipped = 3 - state["finetune"]["step"]
    reached, _ = tune(config, tmp_path, state=state)
    assert reached.step + reached.skipped["fine-tuning"] + skipped == 10


def test_skipped_steps_of_fine_tuning_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sseg_nase.finetune import loop

    begin_with(2.0**40, monkeypatch)
    config = load([*TUNING, "finetune=prototypical", *EPISODES, "finetune.epochs=8"])
    averaged: list[float] = []
    plain = loop.average

    def watched(towards: Any, network: Any, decay: float) -> None:
        averaged.append(decay)
        plain(towards, network, decay)

    monkeypatch.setattr(loop, "average", watched)
    # The scaler needs more steps here than it is given: it is the counting that is looked at.
    monkeypatch.setattr("sseg_nase.training.divergence.FEWEST_SKIPPED", 40)
    reached, told = tune(config, tmp_path)
    skipped = reached.skipped["fine-tuning"]
    assert skipped >= 2
    assert reached.step == 40 - skipped
    assert averaged == [min(0.9, n / (n + 10)) for n in range(1, reached.step + 1)]
    assert told.steps["finetune/loss"] == list(range(1, reached.step + 1))
    (said,) = told.of("skipped")
    assert said["text"].startswith(f"fine-tuning: {skipped} of 40 steps were skipped")


def test_fine_tuning_whose_steps_are_all_skipped_diverges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_with(2.0**100, monkeypatch)
    short = ["finetune.episodes_per_epoch=1", "finetune.epochs=2", "finetune.queries=5"]
    config = load([*TUNING, "finetune=prototypical", *short])
    with pytest.raises(UserError, match=r"fine-tuning diverged .*steps were all skipped"):
        tune(config, tmp_path)

"""Views of one size after the other, in pretraining and in fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.sizes import size_at, sizes_of
from sseg_nase.data.placement import HeldImages
from sseg_nase.errors import UserError
from sseg_nase.finetune.learner import around
from sseg_nase.finetune.loop import STATISTICS_BATCHES, FineTuner
from sseg_nase.run import run
from sseg_nase.stages import seed_learner
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.loop import Trainer

SMALL = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "evolution=none",
    "sparsity=none",
    "backbone.channels=[8,16]",
    "evaluation.untrained_reference=false",
]
TUNING = ["ssl=none", "finetune=linear", "hardware.batch_size=256", "finetune.epochs=4"]
TUNING += ["finetune.image_sizes=[8@0,12@0.5]", "finetune.validation_episodes=10"]
PRETRAINING = ["pretrain.epochs=3", "pretrain.image_sizes=[12@0,16@0.5]", "curriculum=natural"]


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def test_a_size_holds_from_its_share_of_the_epochs_on() -> None:
    schedule = ["24@0", "32@0.6", "40@0.75"]
    assert sizes_of(schedule) == [(24, 0), (32, 0.6), (40, 0.75)]
    found = [size_at(schedule, epoch, 10, 84) for epoch in range(10)]
    assert found == [24] * 6 + [32] * 2 + [40] * 2
    assert size_at(None, 3, 10, 84) == 84


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ([], "begins at 0"),
        (["24@0.1"], "begins at 0"),
        (["24"], "not SIZE@SHARE"),
        (["24@0", "32@x"], "'32@x' is not"),
        (["24@0", "32@1"], "below 1"),
        (["24@0", "32@nan"], "below 1"),
        (["24@0", "28@0.5", "32@0.5"], "later than the one before"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sizes_of(schedule)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pretrain.image_sizes=[24@0.5]"], "pretrain.image_sizes=[24@0.5]: the first size begins"),
        (["pretrain.image_sizes=[12@0,14@0.5]"], "the last size must be dataset.image_size=16"),
        (["pretrain.image_sizes=[20@0,16@0.5]"], "sizes are 8 to dataset.image_size=16"),
        (["pretrain.image_sizes=[12@0,16@0.5]", "ssl=none"], "no effect with ssl=none"),
        (["pretrain.image_sizes=[12@0,16@0.5]", "evolution=sseg"], "losses of other sizes"),
        (["pretrain.image_sizes=[12@0,16@0.5]", "backbone.embedding=flatten"], "of one size only"),
        (["finetune.image_sizes=[4@0]"], "finetune.image_sizes=[4@0]: sizes are 8 to"),
        (["finetune.image_sizes=[12@0]", "backbone.embedding=flatten"], "embedding=average"),
        (["finetune.image_sizes=[12@0]", "finetune.frozen_blocks=1"], "what is frozen keeps"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(overrides: list[str], said: str) -> None:
    more = ["finetune=linear"] if overrides[0].startswith("finetune") else []
    with pytest.raises(UserError) as error:
        load([*SMALL, *more, *overrides])
    assert said in str(error.value)


def tuner(*further: str) -> FineTuner:
    config = load([*SMALL, *TUNING, *further])
    store = stages.labelled(config)
    generator = torch.Generator().manual_seed(0)
    backbone = stages.seed_backbone(config)
    return FineTuner(
        config,
        learner=around(backbone, config.finetune, len(store.class_names), generator),
        base=store,
        images=HeldImages(store, torch.device("cpu")),
        fabric=build_fabric("cpu", 1, "32-true"),
        validate=lambda learner: (50.0, 1.0),
        save=lambda name, state: None,
    )


def test_fine_tuning_is_evaluated_with_statistics_of_the_size_at_which_it_is_evaluated() -> None:
    one = tuner("finetune.epochs=2", "finetune.image_sizes=[8@0,16@0.5]")
    sizes: list[int] = []
    evaluated: list[Any] = []
    outcome = one.objective.outcome

    def watched(step: Any, images: torch.Tensor, learner: Any) -> Any:
        sizes.append(images.shape[-1])
        return outcome(step, images, learner)

    saved: dict[str, Any] = {}
    one.objective.outcome = watched  # type: ignore[method-assign]
    one.validate = lambda learner: (evaluated.append(learner), (len(evaluated), 1.0))[1]  # type: ignore
    one.save = lambda name, state: saved.update({f"{name}{len(evaluated)}": state})
    per_epoch = one.batches_per_epoch
    one.fit()
    assert sizes == [8] * per_epoch + [16] * per_epoch
    assert evaluated[1] is one.learner  # trained at the size at which it is evaluated
    assert evaluated[0] is not one.learner
    # By hand: the mean over batches of what BN sees at 16 px in the first layer.
    first = evaluated[0].backbone.blocks[0]
    seed_of = one.state.probe._batches("statistics 0", STATISTICS_BATCHES, 16)
    with torch.no_grad():
        means = [first.conv(images).mean((0, 2, 3)) for _, images in seed_of]
    torch.testing.assert_close(
        first.norm.running_mean, torch.stack(means).mean(0), atol=1e-4, rtol=1e-3
    )
    for name, tensor in saved["best1"]["student"].items():
        assert torch.equal(tensor, evaluated[0].state_dict()[name])
    macs = one.learner.backbone.architecture.macs
    batch = 256
    assert one.progress.macs == 3 * per_epoch * batch * (macs(8) + macs(16))
    assert one.progress.beside == {"checks": STATISTICS_BATCHES * batch * macs(16)}


def test_pretraining_takes_one_size_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    differentiate = Trainer.differentiate

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        losses = differentiate(self, *args, **kwargs)
        held = next(self.state.probe.held())
        seen.append(held[0][0].shape[-1])
        return losses

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "differentiate", watched)
        whole = run(load([*SMALL, *PRETRAINING]))
    assert seen == [12] * 8 + [16] * 4
    lines = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    epochs = [line["values"]["image_size"] for line in lines if line.get("kind") == "epoch"]
    assert epochs == [12, 12, 16]
    best = checkpoint.load(whole / "checkpoints" / "best.pt")
    assert best["epoch"] == 2  # losses at 12 px do not compare with it
    network = stages.stored(whole / "checkpoints" / "best.pt", load(SMALL)).backbone.architecture
    spent = results_of(whole)["training_macs"]
    assert spent["student"] == 3 * 2 * 64 * (2 * network.macs(12) + network.macs(16))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [TUNING, PRETRAINING], ids=["finetune", "pretrain"])
def test_a_run_of_several_sizes_goes_on_bit_for_bit(
    parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(load([*SMALL, *parts]))
    tuning = parts is TUNING
    kind, name = (FineTuner, "step") if tuning else (Trainer, "step")
    step: Any = getattr(kind, name)
    for stop_at in (2, 7, 11):  # 4 steps an epoch: in the first and after the change
        taken = 0

        def stopping(self: Any, stop_at: int = stop_at) -> Any:
            nonlocal taken
            taken += 1
            if taken == stop_at:
                self.stop = lambda: True
            return step(self)

        with monkeypatch.context() as patched:
            patched.setattr(kind, name, stopping)
            with pytest.raises(Interrupted) as stopped:
                run(load([*SMALL, *parts]))
        resumed = run(load([f"resume={stopped.value.run_dir}"]))  # type: ignore[attr-defined]
        for file in ("finetune_best", "finetune_last") if tuning else ("best", "last"):
            one, other = (
                checkpoint.load(d / "checkpoints" / f"{file}.pt") for d in (resumed, whole)
            )
            for key, tensor in other["student"].items():
                assert torch.equal(one["student"][key], tensor), key
        assert results_of(resumed)["training_macs"] == results_of(whole)["training_macs"]
        assert results_of(resumed)["fewshot"] == results_of(whole)["fewshot"]


def test_a_network_of_one_size_is_refused_by_whoever_trains(tmp_path: Path) -> None:
    config = load([*SMALL, *TUNING])
    flat = load([*SMALL, *TUNING, "finetune.image_sizes=null", "backbone.embedding=flatten"])
    rigid = stages.Reached(stages.seed_backbone(flat))
    said = r"finetune\.image_sizes=\[8@0,12@0\.5\]: .* 16 px only"
    with pytest.raises(UserError, match=said):
        stages.fine_tune(config, rigid, Sink(), tmp_path)
    teacher = stages.OtherRun(rigid, Path("teacher.pt"), {})
    free = stages.Reached(stages.seed_backbone(config))
    with pytest.raises(UserError, match=f"finetune.teacher=teacher.pt with {said}"):
        stages.fine_tune(config, free, Sink(), tmp_path, teacher=teacher)
    config, flat = load([*SMALL, *PRETRAINING]), load([*SMALL, "backbone.embedding=flatten"])
    with pytest.raises(UserError, match=r"pretrain\.image_sizes=.* 16 px only"):
        trainer_of(config, [], Sink(), None, lambda: False, seed_learner(flat))

"""Fine-tuning as a stage of a run, and what becomes of its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.finetune.learner import around
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.run import run
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "finetune.epochs=2",
    "finetune.validation_episodes=10",
]
EPISODES = ["finetune.episodes_per_epoch=8", "finetune.tasks_per_step=2", "finetune.queries=3"]
ALONE = ["ssl=none", "evolution=none", "sparsity=none"]
HEADED = {
    "relation": ["evaluation.method=relation", "evaluation.normalize=none"],
    "maml": ["evaluation.method=maml", "evaluation.normalize=none", "evaluation.maml.steps=1"],
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def composed(method: str, *further: str) -> Config:
    episodes = [] if method == "linear" else EPISODES
    return load([*TINY, f"finetune={method}", *episodes, *HEADED.get(method, []), *further])


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


@pytest.mark.parametrize(
    "method",
    [
        *("prototypical", "maml", "linear"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("matching", "relation", "r2d2")),
    ],
)
def test_every_method_runs_from_scratch(method: str) -> None:
    directory = run(composed(method, *ALONE))
    results = results_of(directory)
    assert results["images_seen"]["real_labeled"] > 0
    assert results["images_seen"]["synthetic"] == 0
    assert set(results["seconds"]) == {"untrained", "finetune", "evaluate", "efficiency"}
    assert "fewshot_best" not in results
    expected = {"relation": "relation", "maml": "maml"}.get(method, "prototype")
    for result in results["fewshot"].values():
        assert result["method"].startswith(expected)
        assert result["transductive"] is (method == "maml")
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event.get("kind") == "finetune"]
    assert [event["values"]["epoch"] for event in epochs] == [0, 1]
    # The checkpoint says the same again.
    again = load(
        [
            *TINY,
            *HEADED.get(method, []),
            "task=evaluate",
            f"checkpoint={directory}/checkpoints/finetune_best.pt",
        ]
    )
    for key, result in results_of(run(again))["fewshot"].items():
        assert result["accuracy"] == pytest.approx(results["fewshot"][key]["accuracy"])


def test_a_learned_attention_is_what_classifies(tmp_path: Path) -> None:
    """Its run, its checkpoint evaluated again, and a refusal of features that it has not seen."""
    options = ["evaluation.method=matching", "evaluation.normalize=none"]
    trained = run(composed("matching", *ALONE, *options, "finetune.head=mlp"))
    results = results_of(trained)
    best = f"checkpoint={trained}/checkpoints/finetune_best.pt"
    again = results_of(run(load([*TINY, *options, "task=evaluate", best])))
    for key, result in results["fewshot"].items():
        assert result["method"] == "matching/mlp/none"
        assert results["fewshot_untrained"][key]["method"] == "matching/none"
        assert again["fewshot"][key]["accuracy"] == pytest.approx(result["accuracy"])
    with pytest.raises(UserError, match=r"evaluation\.normalize=cl2n: the attention in checkpoint"):
        run(load([*TINY, "evaluation.method=matching", "task=evaluate", best]))


def test_pretraining_and_fine_tuning_in_one_run_and_in_two() -> None:
    together = run(composed("prototypical", "ablation=A7"))
    results = results_of(together)
    assert results["images_seen"]["synthetic"] > 0
    assert results["images_seen"]["real_labeled"] == 2 * 8 * (5 * 5 + 5 * 3)
    assert set(results["fewshot_pretrained"]) == set(results["fewshot"])
    pretrained = run(load([*TINY, "ablation=A7"]))
    apart = run(composed("prototypical", f"finetune.from={pretrained}"))
    second = results_of(apart)
    assert second["images_seen"] == results["images_seen"]
    assert second["architecture"] == results["architecture"]
    assert second["mutations"] == results["mutations"]
    assert second["training_macs"] == results["training_macs"]
    per_image = results["architecture"]["macs"]
    assert results["training_macs"]["finetune"] == (
        3 * results["images_seen"]["real_labeled"] * per_image
    )
    parts = results["training_macs"].values()
    assert 2 * results["training_macs"]["total"] == sum(parts)
    for key in ("fewshot", "fewshot_pretrained"):
        assert second[key] == results[key]
    assert (apart / "checkpoints" / "last.pt").exists() is False


def tuner_of(config: Config, folder: Path, **options: Any) -> stages.Reached:
    before = stages.Reached(stages.seed_backbone(config))
    return stages.fine_tune(config, before, Sink(), folder, **options)


@pytest.mark.parametrize(
    ("method", "further"),
    [
        ("prototypical", []),
        ("relation", ["finetune.ema_decay=0.9"]),
        ("matching", ["finetune.head=mlp"]),
        ("linear", ["finetune.mixup=0.4", "finetune.label_smoothing=0.1"]),
        (
            "linear",
            [
                *("finetune.cutmix=0.7", "finetune.dropout=0.3", "finetune.clip_norm=0.5"),
                *("finetune.optimizer=adamw", "finetune.patience=1"),
            ],
        ),
    ],
)
def test_going_on_is_bit_for_bit_the_same(method: str, further: list[str], tmp_path: Path) -> None:
    config = composed(method, *ALONE, *further)
    whole = tuner_of(config, tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked in (2, 3)

    folder = tmp_path / "parts"
    state = None
    for _ in range(2):
        with pytest.raises(Interrupted):
            tuner_of(config, folder, state=state, stop=stop)
        state = checkpoint.load(folder / "checkpoints" / "finetune_last.pt")
    parts = tuner_of(config, folder, state=state)
    assert parts.images_seen == whole.images_seen
    assert parts.macs == whole.macs
    assert parts.step == whole.step
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name


def weights(trained: stages.Reached) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def test_what_is_frozen_stays_as_it_is(tmp_path: Path) -> None:
    config = composed("relation", *ALONE)
    start = stages.seed_backbone(config).state_dict()

    def changed(**options: Any) -> set[str]:
        frozen = dataclasses.replace(config.finetune, **options)
        name = "_".join(options)
        after = weights(tuner_of(dataclasses.replace(config, finetune=frozen), tmp_path / name))
        return {key for key, old in start.items() if not torch.equal(after[f"backbone.{key}"], old)}

    assert changed(frozen_blocks=0) == set(start)
    assert not changed(freeze="encoder")
    assert changed(frozen_blocks=1) == {key for key in start if not key.startswith("blocks.0.")}
    assert not {key for key in changed(freeze_norms=True) if ".norm." in key}


def test_what_was_frozen_is_told_by_the_checkpoint(tmp_path: Path) -> None:
    config = composed("maml", *ALONE, "finetune.freeze=encoder", "finetune.epochs=1")
    trained = tuner_of(config, tmp_path)
    path = tmp_path / "checkpoints" / "finetune_best.pt"
    again = stages.stored(path, composed("maml", *ALONE))
    for reached in (trained, again):
        learnt = {name for name, p in reached.network.named_parameters() if p.requires_grad}
        assert learnt == {"head.weight", "head.bias"}
    # What another stage does with it is for that stage to say.
    free = around(again.backbone, config.finetune, 5, torch.Generator())
    assert not any(p.requires_grad for p in free.backbone.parameters())
    free = around(again.backbone, composed("linear", *ALONE).finetune, 5, torch.Generator())
    assert all(p.requires_grad for p in free.parameters())


@pytest.mark.slow
def test_the_moving_average_of_the_weights_is_kept_and_changes_no_training(tmp_path: Path) -> None:
    """After step t of T the average is Σ_t w_t θ_t: decays of min(d, t / (t + 10))."""
    decay, steps = 0.3, []

    def last(folder: str, ema: float, stop_after: int | None = None) -> dict[str, Any]:
        config = composed("relation", *ALONE, "finetune.epochs=1", f"finetune.ema_decay={ema}")
        try:
            asked = iter(range(1, 100))
            tuner_of(config, tmp_path / folder, stop=lambda: next(asked) == stop_after)
        except Interrupted:
            pass
        return checkpoint.load(tmp_path / folder / "checkpoints" / "finetune_last.pt")

    for step in (1, 2, 3, 4):
        steps.append(last(f"plain{step}", 0, step)["student"])
    averaged = last("averaged", decay)
    start = composed("relation", *ALONE)
    network = stages.seed_backbone(start).state_dict()
    for name, tensor in averaged["student"].items():
        assert torch.equal(tensor, steps[-1][name])
        if name.startswith("backbone.") and tensor.is_floating_point():
            expected = network[name.removeprefix("backbone.")].double()
            for t, weights in enumerate(steps, start=1):
                d = min(decay, t / (t + 10))
                expected = d * expected + (1 - d) * weights[name].double()
            torch.testing.assert_close(averaged["average"][name].double(), expected)
    best = checkpoint.load(tmp_path / "averaged" / "checkpoints" / "finetune_best.pt")
    for name, tensor in averaged["average"].items():
        assert torch.equal(best["student"][name], tensor)


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        (["backbone=resnet12_quarter", "backbone.channels=[4,4,8,8]"], 4),
        (["backbone=resnet18"], 4),
        pytest.param(["backbone=vit_small", "backbone.patch_size=8"], 12, marks=pytest.mark.slow),
    ],
)
def test_fixed_backbones_are_fine_tuned_and_freeze_block_by_block(
    backbone: list[str], blocks: int, tmp_path: Path
) -> None:
    config = composed(
        "prototypical", *ALONE, *backbone, "finetune.epochs=1", "finetune.episodes_per_epoch=2",
        "finetune.frozen_blocks=1",
    )  # fmt: skip
    network = stages.seed_backbone(config)
    parts = network.stages()
    assert len(parts) == blocks
    frozen = {id(parameter) for parameter in parts[0].parameters()}
    held = {name for name, p in network.named_parameters() if id(p) in frozen}
    start = {name: tensor.clone() for name, tensor in network.named_parameters()}
    assert 0 < len(held) < len(start)
    after = dict(tuner_of(config, tmp_path).backbone.named_parameters())
    assert {name for name in start if torch.equal(after[name], start[name])} == held


@pytest.mark.parametrize(("method", "most"), [("prototypical", 2), ("relation", 3)])
def test_more_blocks_cannot_be_frozen_than_leave_something_to_learn(
    method: str, most: int, tmp_path: Path
) -> None:
    config = composed(method, *ALONE, f"finetune.frozen_blocks={most + 1}")
    said = f"has 3 blocks, of which finetune={method} can freeze {most}"
    with pytest.raises(UserError, match=said):
        tuner_of(config, tmp_path)


def test_the_best_network_by_val_episodes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("prototypical", *ALONE, "finetune.epochs=3")
    kept: list[dict[str, torch.Tensor]] = []
    close = FineTuner.close_epoch

    def remember(self: FineTuner) -> None:
        kept.append({k: v.clone() for k, v in self.learner.state_dict().items()})
        self.validate = lambda learner: ((60.0, 80.0, 70.0)[len(kept) - 1], 1.0)
        close(self)

    monkeypatch.setattr(FineTuner, "close_epoch", remember)
    best = weights(tuner_of(config, tmp_path))
    same = [all(torch.equal(best[k], v) for k, v in state.items()) for state in kept]
    assert same == [False, True, False]


def test_encoder_and_head_have_their_own_learning_rates(tmp_path: Path) -> None:
    config = composed("relation", *ALONE, "finetune.lr_encoder=1e-12", "finetune.lr_head=0.01")
    before = stages.seed_backbone(config)
    start = {f"backbone.{k}": v.clone() for k, v in before.named_parameters()}
    trained = tuner_of(config, tmp_path).network
    for name, tensor in trained.named_parameters():
        if name in start:
            torch.testing.assert_close(tensor, start[name], atol=1e-8, rtol=0)
    fresh = tuner_of(composed("relation", *ALONE, "finetune.lr_head=1e-12"), tmp_path / "b").network
    moved = [
        (a - b).abs().max()
        for (name, a), b in zip(trained.named_parameters(), fresh.parameters(), strict=True)
        if name.startswith("head.")
    ]
    assert max(moved) > 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune.from=RUN"], "finetune.from=RUN: it has no effect with finetune=none"),
        (["evaluation.method=relation", "evaluation.normalize=none"], "it needs what finetune=rel"),
        (["finetune=relation", "evaluation.method=relation"], "set evaluation.normalize=none"),
        (["finetune=prototypical", "finetune.freeze=encoder"], "trains nothing else"),
        (["finetune=matching", "finetune.inner_steps=3"], "choose finetune=maml or leave it out"),
        (["finetune=maml", "finetune.ways=4"], "set evaluation.ways=4 or finetune.ways=5"),
        (["finetune=linear", "finetune.queries=3"], "finetune.queries=3: it has no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load([*TINY, *overrides])


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"finetune.shots=100.*finetune.queries=100"):
        run(
            load(
                [*TINY, *ALONE, "finetune=prototypical", "finetune.shots=100",
                 "finetune.queries=100"]
            )
        )  # fmt: skip


def test_a_head_that_is_not_there_is_refused() -> None:
    directory = run(composed("prototypical", *ALONE))
    path = directory / "checkpoints" / "finetune_best.pt"
    config = load([*TINY, *HEADED["relation"], "task=evaluate", f"checkpoint={path}"])
    with pytest.raises(UserError, match=r"evaluation.method=relation: .* holds another head"):
        run(config)
    pretrained = run(load([*TINY, "ablation=A2"])) / "checkpoints" / "last.pt"
    config = load([*TINY, *HEADED["maml"], "task=evaluate", f"checkpoint={pretrained}"])
    with pytest.raises(UserError, match=r"evaluation.method=maml: .* holds no head of it"):
        run(config)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    directory = run(composed("relation", *ALONE))
    state = torch.load(directory / "checkpoints" / "finetune_best.pt", weights_only=True)
    for lacking in ("backbone.blocks.0.conv.weight", "head.fc1.weight"):
        rest = {key: value for key, value in state["student"].items() if key != lacking}
        torch.save({**state, "student": rest}, tmp_path / "part.pt")
        config = load(
            [*TINY, *HEADED["relation"], "task=evaluate", f"checkpoint={tmp_path}/part.pt"]
        )
        with pytest.raises(UserError, match="do not belong together"):
            run(config)

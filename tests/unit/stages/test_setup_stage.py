"""What a run starts from, and how pretraining is put together."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.finetune.learner import EpisodeLearner, around
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.families.resnet import ResNet
from sseg_nase.nets.heads import RelationHead
from sseg_nase.stages import (
    images_of,
    pretraining,
    seed_backbone,
    seed_learner,
    setup,
    stored,
)
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.interventions import Evolve, Sparsify

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "dataset=digits"]


@cache
def config_of(*further: str) -> Config:
    return load([*TINY, *further])


def test_images_of_every_data_set_are_as_the_run_works_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, str, Any]] = []
    monkeypatch.setattr(
        setup, "load_split", lambda dataset, split, **how: asked.append((dataset, split, how))
    )
    config = config_of("dataset.channels=1", "backbone.in_channels=1", "paths.data_dir=~/data")
    further = load(["dataset=omniglot", "dataset.image_size=99"]).dataset
    images_of(config, further, "test")
    [(dataset, split, how)] = asked
    assert (dataset.name, split) == ("omniglot", "test")
    assert (dataset.image_size, dataset.channels) == (config.dataset.image_size, 1)
    assert how["data_dir"] == Path.home() / "data"


# -- networks --------------------------------------------------------------------------------------


def test_the_untrained_network_is_the_one_that_training_begins_with() -> None:
    config = config_of()
    backbone, learner = seed_backbone(config), seed_learner(config)
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(learner.backbone.state_dict()[name], tensor)
    again, other = seed_learner(config), seed_learner(dataclasses.replace(config, seed=1))
    same = [
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in learner.state_dict().items()
    ]
    assert all(same)
    for part in ("backbone.", "head"):
        names = [n for n, p in learner.named_parameters() if n.startswith(part) and p.ndim > 1]
        assert names, [n for n, _ in learner.named_parameters()]
        assert not any(torch.equal(learner.state_dict()[n], other.state_dict()[n]) for n in names)


def test_what_is_loaded_of_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sseg_nase.nets.weights.load_weights", lambda net, name: f"all of {name}")
    config = config_of("evolution=none")
    backbone = ResNet("resnet18", in_channels=3, imports=None, weights="w.pt", stem="small")
    told: list[str] = []
    seed_backbone(dataclasses.replace(config, backbone=backbone), told.append)
    assert told == ["all of w.pt"]


def saved(folder: Path, config: Config, name: str = "finetune_best", **changed: Any) -> Path:
    """A fine-tuned checkpoint in a run's folder, whose head has seven classes or three ways."""
    learner = around(seed_backbone(config), config.finetune, 7, torch.Generator().manual_seed(3))
    state = {
        "finetune": {},
        "architecture": learner.backbone.architecture.to_dict(),
        "student": dict(learner.state_dict()),
        "options": dataclasses.asdict(config.finetune),
        "classes": 7,
        "step": 11,
        "images_seen": {"synthetic": 1, "real_unlabeled": 2, "real_labeled": 3},
        "history": [{"accepted": False, "index": 0}],
    }
    path = folder / "checkpoints" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"schema": checkpoint.SCHEMA, **state, **changed}, path)
    return path


def test_a_checkpoint_gives_back_network_head_and_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("finetune=linear")
    path = saved(tmp_path / "run", config)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (path, tmp_path / "run", Path("~/run")):
        found = stored(place, config_of())  # which fine-tunes nothing itself
        assert isinstance(found.network, EpisodeLearner)
        state = checkpoint.load(path)
        for name, tensor in found.network.state_dict().items():
            torch.testing.assert_close(tensor, state["student"][name])
        assert (found.step, found.history) == (11, state["history"])
        assert found.images_seen == state["images_seen"]
        assert found.name == f"checkpoint={path}"
        assert found.backbone is found.network.backbone
    plain = saved(tmp_path / "plain", config)
    state = {k: v for k, v in torch.load(plain, weights_only=True).items() if k != "finetune"}
    torch.save(state, plain)
    assert isinstance(stored(plain, config).network, Backbone)


def test_options_of_a_checkpoint_win_and_what_it_did_not_know_is_as_now(tmp_path: Path) -> None:
    now = config_of("finetune=prototypical")
    then = config_of("finetune=relation", "evaluation.method=relation", "evaluation.normalize=none")
    older = dataclasses.asdict(then.finetune)
    del older["ema_decay"]
    head = stored(saved(tmp_path, then, options=older), now).network
    assert isinstance(head, EpisodeLearner)
    assert isinstance(head.head, RelationHead)


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    config = config_of("finetune=linear")
    student = dict(checkpoint.load(saved(tmp_path, config))["student"])
    student["head.bias"] = torch.full_like(student["head.bias"], torch.nan)
    with pytest.raises(UserError, match=r"not finite are head\.bias, so its training diverged"):
        stored(saved(tmp_path, config, student=student), config)


# -- pretraining -----------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the loop is put together from, as it is asked for."""
    made: dict[str, Any] = {}

    def images_of(config: Config, dataset: Any, split: str) -> str:
        return f"{dataset.name}/{split}"

    def place(store: Any, drawn: int, **more: Any) -> Any:
        made["placed"] = (store, drawn)
        return "natural images", 99, ["a note"]

    def feed(curriculum: Any, **more: Any) -> Any:
        made["feed"] = more
        return "feed"

    def trainer(config: Config, **more: Any) -> Any:
        made["trainer"] = more
        made["stop"] = more["stop"]
        return SimpleNamespace(
            load_state_dict=lambda state: made.update(state=state),
            fit=lambda: made["fit"](),
            device="device",
            state=SimpleNamespace(
                networks=SimpleNamespace(architecture=more["learner"].backbone.architecture)
            ),
        )

    monkeypatch.setattr(pretraining, "images_of", images_of)
    monkeypatch.setattr(pretraining, "place", place)
    monkeypatch.setattr(pretraining, "CurriculumFeed", feed)
    monkeypatch.setattr(pretraining, "Trainer", trainer)
    monkeypatch.setattr(
        pretraining.distributed,
        "build_fabric",
        lambda accelerator, devices, precision: SimpleNamespace(
            device=torch.device("cpu"), global_rank=1
        ),
    )
    return made


class Told(Sink):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, kind: str, values: Any) -> None:
        self.texts.append(f"{kind}: {values.get('text')}")


def built(config: Config, state: Any = None) -> Told:
    sink = Told()
    pretraining.trainer_of(config, [], sink, state, lambda: False)
    return sink


def test_a_process_gets_its_share_of_the_batch_of_all(parts: dict[str, Any]) -> None:
    config = config_of("curriculum=progressive", "hardware.batch_size=6")
    config = dataclasses.replace(
        config, hardware=dataclasses.replace(config.hardware, devices=2), seed=4
    )
    sink = built(config)
    feed = parts["feed"]
    assert (feed["batch_size"], feed["part"]) == (12, (1, 2))
    assert (feed["natural"], feed["drawn_bytes"]) == ("natural images", 99)
    assert (feed["seed"], feed["epochs"]) == (4, config.pretrain.epochs)
    assert feed["images_per_epoch"] == config.pretrain.images_per_epoch
    assert sink.texts == ["message: a note"]


def test_only_images_of_levels_that_are_reached_are_placed(parts: dict[str, Any]) -> None:
    config = config_of("curriculum=progressive", "evaluation.split=test")
    curriculum = config.curriculum
    drawn = {"BASIC": 10, "TEXTURE": 20, "OBJECT": 40}
    for levels, expected in (
        (["BASIC", "OBJECT", "NATURAL"], ("digits/train", 50)),
        (["TEXTURE"], (None, 20)),
    ):
        changed = dataclasses.replace(curriculum, levels=levels, images=drawn)
        built(dataclasses.replace(config, curriculum=changed))
        assert parts["placed"] == expected


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ([], [Sparsify, Evolve]),  # what is pruned is measured before it grows
        (["evolution=none"], [Sparsify]),
        (["sparsity=none"], [Evolve]),
        (["evolution=none", "sparsity=none"], []),
    ],
)
def test_networks_are_changed_as_the_config_says(
    parts: dict[str, Any], overrides: list[str], kinds: list[type]
) -> None:
    built(config_of(*overrides))
    assert [type(one) for one in parts["trainer"]["interventions"]] == kinds


def test_a_trainer_goes_on_where_its_checkpoint_left_off(parts: dict[str, Any]) -> None:
    built(config_of())
    assert "state" not in parts
    built(config_of(), {"epoch": 3})
    assert parts["state"] == {"epoch": 3}


def test_checkpoints_hold_what_belongs_to_the_run_and_all_processes_stop_together(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        pretraining.distributed, "any_rank", lambda own: asked.append(own) or "any process"
    )
    parts["fit"] = lambda: parts.update(stopped=parts["stop"]())
    pretraining.pretrain(
        config_of(), Sink(), tmp_path, extra={"data": {"own": 1}}, stop=lambda: True
    )
    assert parts["stopped"] == "any process"
    assert asked == [True]
    [kept] = [one for one in parts["trainer"]["callbacks"] if hasattr(one, "extra")]
    assert kept.extra == {"data": {"own": 1}}


def test_a_loss_that_explodes_says_what_to_change(parts: dict[str, Any], tmp_path: Path) -> None:
    def diverge() -> None:
        raise DivergenceError("the loss is NaN.")

    parts["fit"] = diverge
    with pytest.raises(UserError, match=r"NaN\. Change one or more of: optimizer\.lr") as refused:
        pretraining.pretrain(config_of(), Sink(), tmp_path)
    assert not isinstance(refused.value, DivergenceError)


def test_another_process_keeps_its_memory_cap_and_ends_quietly(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    capped: list[Any] = []
    monkeypatch.setattr(
        pretraining, "enforce_memory_cap", lambda device, gb: capped.append((device, gb))
    )

    def interrupt() -> None:
        raise Interrupted

    parts["fit"] = interrupt
    config = config_of("hardware.max_memory_gb=3")
    pretraining._pretrain_along(1, config, None)
    assert capped == [("device", 3)]

"""Backbones and channels through the program: trained, resumed, evaluated, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

import sseg_nase
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.run_report import document
from sseg_nase.run import run
from sseg_nase.rundir.record import read_run
from sseg_nase.stages.replaying import replayed
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted, Interruption

SOURCE = str(Path(sseg_nase.__file__).parents[1])
TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
QUARTER = [
    "backbone=resnet12_quarter",
    "evolution=none",
    "sparsity=none",
    "dataset.channels=1",
    "pretrain.epochs=3",
]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(*overrides: str) -> Path:
    return run(load([*TINY, *overrides]), [*TINY, *overrides])


def results(directory: Path) -> Any:
    return json.loads((directory / "results.json").read_text())


def messages(directory: Path) -> list[str]:
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line["values"]["text"] for line in lines if line["kind"] == "message"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCLR with a quarter of ResNet-12 on grey images, never stopped."""
    return ran(*QUARTER, f"paths.output_dir={tmp_path_factory.mktemp('trained')}")


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([*[False] * steps, *[True] * 1000])
    monkeypatch.setattr(Interruption, "is_requested", lambda self: next(asked))


def test_a_fixed_backbone_is_trained_and_goes_on_as_if_never_stopped(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = checkpoint.load(trained / "checkpoints" / "last.pt")
    with monkeypatch.context() as patched:
        stop_after(6, patched)
        with pytest.raises(Interrupted):
            ran(*QUARTER)
    (stopped,) = (tmp_path / "runs" / "debug").iterdir()
    assert checkpoint.load(stopped / "checkpoints" / "last.pt")["step"] < whole["step"]
    assert ran(*QUARTER, f"resume={stopped}") == stopped
    resumed = checkpoint.load(stopped / "checkpoints" / "last.pt")
    for part in ("student", "teacher"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), name
    assert results(stopped)["fewshot"] == results(trained)["fewshot"]
    assert results(stopped)["images_seen"] == results(trained)["images_seen"]


def test_results_describe_the_network(trained: Path) -> None:
    described = ResNet12Architecture("resnet12_quarter", 16, 1, (16, 40, 80, 160))
    assert results(trained)["architecture"] == described.summary()
    stored = json.loads((trained / "architecture.json").read_text())
    assert ResNet12Architecture.from_dict(stored) == described
    costs = results(trained)["efficiency"]
    assert (costs["params"], costs["macs"]) == (described.params, described.macs())
    assert results(trained)["fewshot"] != results(trained)["fewshot_untrained"]


@pytest.mark.parametrize("asked", [[], ["backbone=resnet12_quarter"]])
def test_its_checkpoint_is_evaluated_alike(trained: Path, asked: list[str]) -> None:
    path = trained / "checkpoints" / "last.pt"
    evaluated = ran("task=evaluate", f"checkpoint={path}", "dataset.channels=1", *asked)
    assert results(evaluated)["fewshot"] == results(trained)["fewshot"]
    larger = ["dataset.channels=1", "dataset.image_size=24"]
    evaluated = ran("task=evaluate", f"checkpoint={path}", *larger, *asked)
    expected = ResNet12Architecture("resnet12_quarter", 24, 1, (16, 40, 80, 160))
    assert results(evaluated)["architecture"] == expected.summary()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ["dataset.channels=3", "in_channels=1"]),
        (["dataset.channels=1", "backbone=resnet12"], ["backbone=resnet12:", "resnet12_quarter"]),
        (["dataset.channels=1", "backbone=conv4"], ["backbone=conv4:", "resnet12_quarter"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    trained: Path, overrides: list[str], said: list[str]
) -> None:
    path = trained / "checkpoints" / "last.pt"
    with pytest.raises(UserError) as refused:
        ran("task=evaluate", f"checkpoint={path}", *overrides)
    for part in [*said, str(path)]:
        assert part in str(refused.value)


def test_what_was_not_mutated_is_replayed_as_it_began(trained: Path) -> None:
    replayed = ran("task=replay", f"run={trained}")
    events = [json.loads(line) for line in (replayed / "events.jsonl").read_text().splitlines()]
    assert not [line for line in events if line["kind"] == "mutation"]


EVOLVING = [
    "backbone=resnet12_quarter", "backbone.channels=[6,6,8,8]", "evolution=sseg", "sparsity=nase",
    "sparsity.min_channels=2", "sparsity.round_to=1", "pretrain.epochs=5",
    "sparsity.negative_path=false", "evaluation.episodes=5", "pretrain.images_per_epoch=32",
]  # fmt: skip


def test_a_family_is_widened_and_pruned_and_says_why_it_does_not_grow(tmp_path: Path) -> None:
    directory = ran(*EVOLVING)
    lines = (directory / "mutations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["kind"] for record in records if record["accepted"]} == {"WIDEN", "PRUNE"}
    why = "GROW: there is no rule for more blocks in resnet12_quarter; it can be widened"
    assert any(text.startswith(why) for text in messages(directory))
    grown = [record["trigger"] for record in records if record["kind"] == "WIDEN"]
    assert all(trigger["no_rule"].startswith(why) for trigger in grown)
    architectures = replayed(directory)[1]
    backbone = checkpoint.backbone_of(directory / "checkpoints" / "last.pt")
    assert backbone.architecture == architectures[-1]
    assert architectures[-1].axes != architectures[0].axes
    assert sum(p.numel() for p in backbone.parameters()) == architectures[-1].params
    told = results(directory)
    assert told["architecture"] == architectures[-1].summary()
    text = as_markdown(document(read_run(directory)), tmp_path)
    assert "channels removed" in text
    assert "blocks.0" in text


@pytest.mark.slow
def test_a_family_that_evolves_goes_on_as_if_never_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = checkpoint.load(ran(*EVOLVING) / "checkpoints" / "last.pt")
    known = set((tmp_path / "runs" / "debug").iterdir())
    with monkeypatch.context() as patched:
        stop_after(7, patched)
        with pytest.raises(Interrupted):
            ran(*EVOLVING)
    (stopped,) = set((tmp_path / "runs" / "debug").iterdir()) - known
    ran(*EVOLVING, f"resume={stopped}")
    resumed = checkpoint.load(stopped / "checkpoints" / "last.pt")
    assert [r["kind"] for r in resumed["history"]] == [r["kind"] for r in whole["history"]]
    for name, tensor in whole["student"].items():
        assert torch.equal(tensor, resumed["student"][name]), name


def change_name(state: dict[str, Any]) -> None:
    state["architecture"]["name"] = "resnet99"


def change_widths(state: dict[str, Any]) -> None:
    state["architecture"]["widths"] = [16, 40, 80, 161]


@pytest.mark.parametrize("change", [change_name, change_widths])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    state = checkpoint.load(trained / "checkpoints" / "last.pt")
    change(state)
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(UserError, match="do not belong together"):
        checkpoint.backbone_of(tmp_path / "changed.pt")


@pytest.mark.parametrize(
    "description",
    [
        ViTArchitecture("vit_small", 16, 3, patch_size=8, hidden=6, layers=1, heads=2, mlp=4),
        Architecture.seed((4,), resolution=16, embedding="flatten"),
    ],
)
def test_some_networks_take_one_size(description: Description, tmp_path: Path) -> None:
    student = {f"backbone.{name}": t for name, t in build(description).state_dict().items()}
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"architecture": description.to_dict(), "student": student})
    found = checkpoint.backbone_for(path, load(["dataset.image_size=16"]))
    assert found.architecture == description
    with pytest.raises(UserError, match="takes 16 px only"):
        checkpoint.backbone_for(path, load(["dataset.image_size=24"]))


def test_a_run_of_before_there_were_backbones_is_replayed(tmp_path: Path) -> None:
    directory = ran("pretrain.epochs=3")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    for key in (
        "in_channels",
        "blocks_per_stage",
        "pooled_blocks",
        "stem",
        "patch_size",
        "weights",
    ):
        config["backbone"].pop(key, None)
    del config["dataset"]["channels"]
    old = tmp_path / "old"
    shutil.copytree(directory, old)
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    replayed = ran("task=replay", f"run={old}")
    assert json.loads((replayed / "architecture.json").read_text()) == json.loads(
        (directory / "architecture.json").read_text()
    )


def test_evolution_takes_grey_images(tmp_path: Path) -> None:
    directory = ran("dataset.channels=1", "backbone=conv4", "backbone.channels=[4,4,6,6]")
    found = json.loads((directory / "architecture.json").read_text())
    assert found["in_channels"] == 1
    assert results(directory)["mutations"] > 0
    assert ran("task=replay", f"run={directory}").is_dir()


def test_the_curriculum_is_drawn_in_grey(tmp_path: Path) -> None:
    colour, grey = (ran("task=curriculum", f"dataset.channels={c}") for c in (3, 1))
    for path in sorted(colour.glob("preview_*.png")):
        with Image.open(path) as drawn, Image.open(grey / path.name) as drawn_grey:
            expected = np.asarray(drawn.convert("L").convert("RGB"))
            assert np.array_equal(np.asarray(drawn_grey), expected)
    lines = [(each / "difficulty.md").read_text().splitlines() for each in (colour, grey)]
    assert len(lines[0]) == len(lines[1])


def test_weights_of_a_file_are_told_of_and_used(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), "resnet18.pth")
    still = ["backbone=resnet18", "ssl=none", "evolution=none", "sparsity=none"]
    directory = ran(*still, "backbone.weights=resnet18.pth")
    assert any("fc.bias, fc.weight" in text for text in messages(directory))
    plain = ran(*still, "backbone.stem=imagenet")
    assert results(directory)["fewshot"] != results(plain)["fewshot"]


@pytest.mark.slow
def test_mistakes_end_with_exit_code_2(trained: Path, tmp_path: Path) -> None:
    still = ["evolution=none", "sparsity=none", "backbone.weights=imagenet"]
    for overrides, said in (
        (["backbone=resnet18", *still], "nothing is downloaded"),
        (["task=evaluate", f"checkpoint={trained / 'checkpoints' / 'best.pt'}"], "in_channels=1"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sseg_nase", *TINY, *overrides],
            env={**os.environ, "PYTHONPATH": SOURCE, "TORCH_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr

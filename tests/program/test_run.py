"""The program, run whole on tiny data."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.run import NAME_LENGTH, run, run_name
from sseg_nase.training import checkpoint
from sseg_nase.training.callbacks import MemoryWatch
from sseg_nase.training.events import Event
from sseg_nase.training.state import Pretraining

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
MUTATION_KEYS = [
    "index", "epoch", "step", "kind", "target", "trigger", "before", "after",
    "function_delta", "loss_before", "loss_after", "fitness", "seconds", "accepted", "measured",
]  # fmt: skip
TIMES = ("seconds", "latency_ms_b1", "latency_ms_b64")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(*overrides: str) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Run and return the directory, `results.json` and the lines of `mutations.jsonl`."""
    directory = run(load([*TINY, *overrides]), [*TINY, *overrides])
    results = json.loads((directory / "results.json").read_text())
    path = directory / "mutations.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return directory, results, [json.loads(line) for line in lines]


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    results = copy.deepcopy(results)
    for section in (results, results["efficiency"]):
        for key in TIMES:
            section.pop(key, None)
    return results


@pytest.mark.parametrize(
    "ablation",
    [
        *("A1", "A2", "A7"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("A3", "A4", "A5", "A6")),
    ],
)
def test_every_ablation_runs_end_to_end(ablation: str) -> None:
    directory, results, mutations = ran(f"ablation={ablation}")
    said = json.loads((directory / "status.json").read_text())
    assert said.pop("process")["pid"] == os.getpid()
    assert said == {
        "status": "FINISHED",
        "error": None,
        "directory": str(directory),
    }
    trained = set() if ablation == "A1" else {"fewshot_best", "best"}
    assert set(results) == trained | {
        "schema", "fingerprint", "status", "seconds", "architecture", "fewshot",
        "fewshot_untrained", "efficiency", "mutations", "images_seen", "training_macs", "data",
    }  # fmt: skip
    assert set(results["fewshot"]) == {"digits/val/5w1s", "digits/val/5w5s"}
    for result in results["fewshot"].values():
        assert 0 <= result["accuracy"] <= 100
        assert result["episodes"] == 20
        assert result["transductive"] is False
    kinds = {record["kind"] for record in mutations}
    assert ("PRUNE" in kinds) == (ablation in ("A6", "A7"))
    assert bool(kinds & {"GROW", "WIDEN"}) == (ablation not in ("A1", "A2"))
    config = load([*TINY, f"ablation={ablation}"])
    expected = 0 if ablation == "A1" else config.pretrain.epochs * config.pretrain.images_per_epoch
    assert results["images_seen"] == {
        "synthetic": expected,
        "real_unlabeled": 0,
        "real_labeled": 0,
    }
    if ablation == "A1":
        assert results["fewshot"] == results["fewshot_untrained"]
        assert not (directory / "checkpoints").exists()
    else:
        state = checkpoint.load(directory / "checkpoints" / "last.pt")
        assert (state["teacher"] is not None) == (ablation in ("A5", "A7"))
        assert state["fingerprint"] == results["fingerprint"]


def test_the_records_tell_how_the_architecture_came_to_be() -> None:
    directory, results, mutations = ran("curriculum.progression=false", "evolution.max_repeats=1")
    assert [record["index"] for record in mutations] == list(range(len(mutations)))
    accepted = [record for record in mutations if record["accepted"]]
    assert {record["kind"] for record in accepted} == {"GROW", "WIDEN", "PRUNE"}
    assert results["mutations"] == len(accepted)
    seed = Architecture.seed((16, 32, 64), resolution=16)
    current = {key: seed.summary()[key] for key in ("blocks", "channels", "params", "macs")}
    for record in mutations:
        assert list(record) == MUTATION_KEYS
        assert record["before"] == current
        changed = record["after"]["params"] - record["before"]["params"]
        assert changed < 0 if record["kind"] == "PRUNE" else changed > 0
        current = record["after"] if record["accepted"] else current
        if record["kind"] == "GROW":
            assert record["function_delta"] < 1e-12
    final = results["architecture"]
    assert current == {key: final[key] for key in current}
    stored = Architecture.from_dict(json.loads((directory / "architecture.json").read_text()))
    assert stored.summary() == final
    assert final["flops"] == 2 * final["macs"] == results["efficiency"]["flops"]
    assert final["params"] == results["efficiency"]["params"]


def test_the_same_command_gives_the_same_results() -> None:
    (_, first, first_mutations), (_, second, second_mutations) = ran("seed=3"), ran("seed=3")
    assert without_times(first) == without_times(second)
    for a, b in zip(first_mutations, second_mutations, strict=True):
        for one in (a, b):
            one["seconds"] = None
            (one["measured"] or {}).pop("latency", None)
        assert a == b
    assert without_times(ran("seed=4")[1])["fewshot"] != without_times(first)["fewshot"]


def test_a_checkpoint_is_evaluated_as_it_was_at_the_end_of_its_run() -> None:
    directory, results, _ = ran()
    file = directory / "checkpoints" / "last.pt"
    _, again, _ = ran("task=evaluate", f"checkpoint={file}")
    assert again["fewshot"] == results["fewshot"]
    assert again["architecture"] == results["architecture"]
    assert again["images_seen"] == results["images_seen"]
    assert again["mutations"] == results["mutations"]


def test_natural_images_are_counted_as_real() -> None:
    _, results, _ = ran(
        "curriculum=progressive",
        "pretrain.epochs=5",
        "curriculum.max_epochs_per_level=1",
        "evolution=none",  # which would put off the end of a level
        "sparsity=none",
    )
    seen = results["images_seen"]
    assert seen["real_unlabeled"] > 0
    assert seen["synthetic"] + seen["real_unlabeled"] == 5 * 64


def test_every_dataset_of_a_run_is_evaluated() -> None:
    _, results, _ = ran(
        "ablation=A1", "evaluation.datasets=[digits]", "evaluation.ways=3", "evaluation.shots=[2]"
    )
    assert list(results["fewshot"]) == ["digits/val/3w2s"]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["ssl.distillation_weight=0"], marks=pytest.mark.slow),
        ["backbone.embedding=flatten", "evolution.grow_mode=fresh"],
        ["backbone.residual=true", "backbone.activation=gelu"],
        pytest.param(["backbone.batch_norm=false", "optimizer=sgd"], marks=pytest.mark.slow),
        ["evolution.widen_mode=zero", "optimizer=adam", "scheduler=step"],
        ["hardware.gradient_accumulation_steps=3", "scheduler=constant"],
        pytest.param(
            ["hardware.gradient_checkpointing=true", "hardware.channels_last=false"],
            marks=pytest.mark.slow,
        ),
        ["curriculum.perturbation=0.05", "curriculum=mixed"],
        pytest.param(["sparsity.importance=magnitude"], marks=pytest.mark.slow),
        ["sparsity.importance=random", "evaluation.normalize=l2n", "evaluation.metric=euclidean"],
    ],
)
def test_options_run_end_to_end(overrides: list[str]) -> None:
    ran(*overrides)


def test_rolled_back_mutations_leave_everything_as_it_was() -> None:
    # Losses that rise by any amount are refused: no noise-free mutation lowers them by 90 %.
    _, results, mutations = ran(
        "evolution.rollback_tolerance=0",
        "evolution.widen_noise=1",
        "evolution.operators=[widen]",
        "sparsity.rollback_tolerance=0",
    )
    refused = [record for record in mutations if not record["accepted"]]
    assert refused
    for record in refused:
        assert record["loss_after"] > record["loss_before"]
    accepted = [record for record in mutations if record["accepted"]]
    last = accepted[-1]["after"] if accepted else mutations[0]["before"]
    assert results["architecture"]["channels"] == last["channels"]


def test_curriculum_draws_every_level() -> None:
    directory = run(load([*TINY, "task=curriculum", "dataset.image_size=32"]))
    names = {path.name for path in directory.glob("preview_*.png")}
    assert names == {f"preview_{n}.png" for n in ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")}
    table = (directory / "difficulty.md").read_text().splitlines()
    difficulties = [float(line.split("|")[-2]) for line in table[2:]]
    assert difficulties == sorted(difficulties)
    assert len(difficulties) == 4


def test_the_preview_of_real_images_shows_every_class() -> None:
    directory = run(load([*TINY, "task=curriculum", "curriculum.levels=[NATURAL]"]))
    sheet = np.asarray(Image.open(directory / "preview_NATURAL.png"))
    tiles = sheet.reshape(6, 18, 10, 18, 3)[:, 1:-1, :, 1:-1].transpose(0, 2, 1, 3, 4)
    store = stages.images_of(load(TINY), load(TINY).dataset, "train")
    pixels = store.batch(torch.arange(len(store))).permute(0, 2, 3, 1).numpy()
    shown = {
        int(store.labels[np.flatnonzero((pixels == tile).all((1, 2, 3)))[0]])
        for tile in tiles.reshape(60, 16, 16, 3)
    }
    assert shown == set(range(5))


def test_a_failure_of_ours_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(stages.pipeline, "pretrain", broken)
    with pytest.raises(ZeroDivisionError):
        run(load([*TINY, "experiment_name=broken"]))
    (status,) = Path("runs/broken").glob("*/status.json")
    recorded = json.loads(status.read_text())
    assert recorded["status"] == "FAILED"
    assert recorded["error"] == "ZeroDivisionError: on purpose"
    assert "Traceback" in recorded["traceback"]


def test_out_of_memory_names_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MemoryWatch, event: Event, state: Pretraining) -> None:
        if event is Event.AFTER_STEP and state.progress.step == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(MemoryWatch, "on", full)
    with pytest.raises(UserError) as caught:
        run(load([*TINY, "experiment_name=full"]))
    message = str(caught.value)
    assert "2.00 GiB" in message
    assert "hardware.batch_size=8 with hardware.gradient_accumulation_steps=2" in message
    assert "hardware.gradient_checkpointing=true" in message
    assert "hardware.precision=bf16-mixed" in message
    (status,) = Path("runs/full").glob("*/status.json")
    recorded = json.loads(status.read_text())
    assert recorded["status"] == "FAILED"
    assert recorded["error"] == message
    assert "OutOfMemoryError: CUDA out of memory" in recorded["traceback"]
    last = json.loads((status.parent / "events.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["values"]["status"]) == ("close", "FAILED")


def test_memory_is_recorded_and_watched() -> None:
    directory, _, mutations = ran("hardware.max_memory_gb=0.1")
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    figures = [
        (line["step"], line["values"]["hardware/memory_mb"])
        for line in lines
        if "hardware/memory_mb" in line["values"]
    ]
    epochs = sum(line["kind"] == "epoch" for line in lines)
    assert len(figures) == epochs + len(mutations) > epochs
    assert len(dict(figures)) == len(figures)
    assert all(used > 50 for _, used in figures)
    (warning,) = (line["values"]["text"] for line in lines if line["kind"] == "warning")
    assert "memory is critical" in warning
    assert "hardware.max_memory_gb=0.1" in warning


def test_an_address_that_no_tracker_has_is_recorded() -> None:
    overrides = [*TINY, "experiment_name=astray", "tracking=mlflow", "tracking.uri=ftp://x"]
    with pytest.raises(UserError, match=r"tracking\.uri=ftp://x"):
        run(load(overrides))
    (status,) = Path("runs/astray").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "FAILED"


def test_an_interrupt_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.pipeline, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(load([*TINY, "experiment_name=stopped"]))
    (status,) = Path("runs/stopped").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "INTERRUPTED"


def test_names_and_files_of_a_run() -> None:
    overrides = ["ablation=A1", "seed=1"]
    directory, _, _ = ran(*overrides)
    stored = yaml.safe_load((directory / "overrides.yaml").read_text())
    assert stored == [*TINY, *overrides, f"paths.data_dir={Path('data').absolute()}"]
    stored = yaml.safe_load((directory / "config.yaml").read_text())
    assert stored["seed"] == 1
    assert stored["hardware"]["batch_size"] == 16
    kinds = [json.loads(s)["kind"] for s in (directory / "events.jsonl").read_text().splitlines()]
    assert "stage" in kinds
    config = load(TINY)
    assert run_name(config, []) == "debug"
    assert run_name(config, ["paths.output_dir=x", "tracking.uri=y", "seed=1"]) == "seed=1"


MISTAKES = [
    (["paths.output_dir=file/runs"], "paths.output_dir"),
    (["dataset=cifar_fs", "dataset.root=nowhere"], "nowhere"),
    (["dataset=folder", "dataset.root=nowhere"], "nowhere"),
    (["evaluation.ways=6"], "evaluation.ways"),
    (["evaluation.queries=500"], "evaluation.queries"),
    (["evaluation.split=test"], "test"),
    (["task=evaluate", "checkpoint=nowhere.pt"], "nowhere.pt"),
    (["task=evaluate", "checkpoint=file"], "file"),
    (["tracking=server", "tracking.uri=http://127.0.0.1:9", "tracking.required=true"], "9"),
    (["hardware.batch_size=128"], "hardware.batch_size"),
]


@pytest.mark.parametrize(("overrides", "named"), MISTAKES)
def test_mistakes_found_at_run_time(overrides: list[str], named: str) -> None:
    Path("file").write_text("not a folder, not a checkpoint")
    with pytest.raises(UserError) as caught:
        run(load([*TINY, *overrides]))
    assert named in str(caught.value)
    for status in Path("runs").glob("*/*/status.json"):
        assert json.loads(status.read_text())["status"] == "FAILED"


@pytest.mark.parametrize("task", ["status", "report", "deliver"])
def test_a_look_at_what_is_on_disk_is_no_run(task: str) -> None:
    before = set(Path().rglob("*"))
    with pytest.raises(UserError, match=f"task={task} .* is no run"):
        run(load([f"task={task}", *(["run=x"] if task == "deliver" else [])]))
    assert set(Path().rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_profile_without_a_gpu() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        run(load([*TINY[:1], "hardware=rtx3060"]))
    config = load(["debug=tiny", "hardware=rtx3060", "hardware.accelerator=cpu", "tracking=jsonl"])
    run(config)


def test_exit_codes_of_the_program() -> None:
    def code(*overrides: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "sseg_nase", *TINY, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert code("ablation=A1")[0] == 0
    status, text = code("dataset=folder", "dataset.root=nowhere")
    assert status == 2
    assert "Traceback" not in text
    assert "nowhere" in text


def test_the_name_of_a_run_holds_no_half_override() -> None:
    config = load(["debug=tiny"])
    given = ["evaluation.batch_size=123456", *(f"seed={n}" for n in range(1000, 1030))]
    name = run_name(config, given)
    assert len(name) <= NAME_LENGTH
    assert name.endswith(" …")
    assert set(name.removesuffix(" …").split()) <= set(given)
    assert run_name(config, ["seed=3"]) == "seed=3"
    assert run_name(config, []) == config.experiment_name

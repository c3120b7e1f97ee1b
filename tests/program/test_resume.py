"""Killed, asked to stop, changed: runs of the real program that go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import continued, load
from sseg_nase.errors import UserError
from sseg_nase.run import run

TINY = [
    "debug=tiny",
    "ablation=A7",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking.interval_steps=1",
    "pretrain.epochs=8",
    "pretrain.images_per_epoch=128",
    "evolution.operators=[grow]",
    "evolution.rollback_grace_epochs=1",
]
SECONDS = 300.0
TIMES = ("seconds", "latency_ms_b1", "latency_ms_b64")
UNEVEN = ("pretrain/images_per_second", "hardware/memory_mb")  # differ from run to run
NAMES = ("arch/", "mutation/", "pretrain/")

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "sseg_nase", *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def run_dir(folder: Path) -> Path:
    (found,) = (folder / "runs" / "debug").iterdir()
    return found


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it has happened, or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while not happened() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def size(folder: Path, name: str) -> int:
    files = list(folder.glob(f"runs/debug/*/{name}"))
    return files[0].stat().st_size if files else 0


def more(folder: Path, name: str, by: int = 1) -> Callable[[], bool]:
    before = size(folder, name)
    return lambda: size(folder, name) >= before + by


def checkpoint_being_written(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob("runs/debug/*/checkpoints/.last.pt.*.tmp"))


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in results.items() if key not in TIMES}
    return {
        **kept,
        "efficiency": {k: v for k, v in results["efficiency"].items() if k not in TIMES},
    }


def mutations(directory: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "mutations.jsonl").read_text().splitlines())
    return [{**line, "seconds": None, "measured": deterministic(line)} for line in lines]


def deterministic(line: dict[str, Any]) -> Any:
    return (line["measured"] or {}).get("accuracy")


def metric_rows(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All rows of the one MLflow run, which must be FINISHED."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sseg-nase")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED"
    rows = {}
    for name in stored.data.metrics:
        history = client.get_metric_history(stored.info.run_id, name)
        rows[name] = sorted((row.step, row.value) for row in history)
        steps = [step for step, _ in rows[name]]
        assert len(steps) == len(set(steps)), f"{name} has a step twice"
    return rows


def assert_same(folder: Path, reference: Path) -> None:
    ours, theirs = run_dir(folder), run_dir(reference)
    states = [torch.load(d / "checkpoints" / "last.pt", weights_only=True) for d in (ours, theirs)]
    for part in ("student", "teacher"):
        a, b = (state[part] for state in states)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (state["moments"] for state in states)
    assert a.keys() == b.keys()
    for name in a:
        assert all(torch.equal(a[name][key], b[name][key]) for key in b[name])
    assert mutations(ours) == mutations(theirs)
    results = [json.loads((d / "results.json").read_text()) for d in (ours, theirs)]
    assert timeless(results[0]) == timeless(results[1])
    rows = [metric_rows(f) for f in (folder, reference)]
    assert rows[0].keys() == rows[1].keys()
    for name in rows[0]:
        if name.startswith(NAMES) and name not in UNEVEN:
            assert rows[0][name] == rows[1][name], name


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    code, err = finish(start(folder, *TINY))
    assert code == 0, err
    assert {"GROW", "PRUNE"} <= {m["kind"] for m in mutations(run_dir(folder))}
    return folder


def kill_again_and_again(folder: Path, moments: list[Callable[[], Callable[[], bool]]]) -> None:
    """Kill the run at each of the moments, and let it go on."""
    command = TINY
    for moment in moments:
        happened = moment()
        process = start(folder, *command)
        wait_for(happened, process)
        process.kill()
        finish(process)
        if (folder / "runs" / "debug").exists():
            command = [f"resume={run_dir(folder)}"]
    code, err = finish(start(folder, *command))
    assert code == 0, err


def test_a_run_killed_at_a_mutation_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, reference: Path
) -> None:
    kill_again_and_again(tmp_path, [lambda: more(tmp_path, "mutations.jsonl")])
    assert_same(tmp_path, reference)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_alike(
    tmp_path: Path, reference: Path
) -> None:
    moments = [
        lambda: checkpoint_being_written(tmp_path),
        lambda: more(tmp_path, "mutations.jsonl"),
    ]
    kill_again_and_again(tmp_path, moments)
    assert_same(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills_at_random_moments(seed: int, tmp_path: Path, reference: Path) -> None:
    draw = random.Random(seed)
    kinds = [
        lambda: checkpoint_being_written(tmp_path),
        lambda: more(tmp_path, "mutations.jsonl"),
        lambda: more(tmp_path, "events.jsonl", by=draw.randrange(1, 4000)),
        lambda: more(tmp_path, "events.jsonl", by=draw.randrange(1, 4000)),
    ]
    moments = [draw.choice(kinds) for _ in range(9)] + [kinds[0]]
    kill_again_and_again(tmp_path, moments)
    assert_same(tmp_path, reference)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGUSR1,
    ],
)
@pytest.mark.slow
def test_a_run_asked_to_stop_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, reference: Path
) -> None:
    process = start(tmp_path, *TINY)
    wait_for(lambda: size(tmp_path, "checkpoints/last.pt") > 0, process)
    process.send_signal(number)
    code, err = finish(process)
    directory = run_dir(tmp_path)
    assert code == 130
    assert err == f"sseg-nase: interrupted; resume with: sseg-nase resume={directory}\n"
    status = json.loads((directory / "status.json").read_text())
    assert (status["status"], status["error"]) == ("INTERRUPTED", f"interrupted ({number.name})")
    elsewhere = tmp_path / "elsewhere"
    code, err = finish(start(elsewhere, f"resume={directory}"))
    assert (code, err) == (0, "")
    assert not list(elsewhere.iterdir())  # the store is the one that the run began in
    assert_same(tmp_path, reference)


# -- in this process -----------------------------------------------------------------------------

QUICK = ["debug=tiny", "ablation=A2", "hardware=cpu", "tracking=jsonl", "pretrain.epochs=2"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return run(load(QUICK), QUICK)


def resumed(directory: Path, *overrides: str) -> Path:
    given = [f"resume={directory}", *overrides]
    whole = [*given, *continued(given)]
    return run(load(whole), whole)


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.json*")}
    assert resumed(finished) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.json*")} == before


def test_another_config_is_refused_with_the_keys_that_differ(finished: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"differs from the run's:\n  optimizer\.lr: .* -> 0\.5\n  pretrain\.epochs: 2 -> 3",
    ):
        resumed(finished, "optimizer.lr=0.5", "pretrain.epochs=3")
    assert json.loads((finished / "status.json").read_text())["status"] == "FINISHED"


def test_what_changes_only_the_name_or_the_speed_is_not_refused(finished: Path) -> None:
    assert resumed(finished, "paths.output_dir=elsewhere", "hardware.num_workers=1") == finished


def test_another_config_that_is_meant_is_recorded(finished: Path) -> None:
    resumed(finished, "pretrain.epochs=3", "resume_overrides=true")
    results = json.loads((finished / "results.json").read_text())
    assert results["images_seen"]["synthetic"] == 3 * 64
    events = (finished / "events.jsonl").read_text()
    assert "resumed with pretrain.epochs: 2 -> 3" in events
    assert "pretrain.epochs=3" in (finished / "overrides.yaml").read_text()
    assert load(continued([f"resume={finished}"])).pretrain.epochs == 3


def test_fewer_epochs_than_are_done_are_refused_and_nothing_is_touched(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"pretrain\.epochs=1: .* has trained for 2 already"):
        resumed(finished, "pretrain.epochs=1", "resume_overrides=true")
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_no_run_and_what_is_still_going_on_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    from filelock import FileLock

    with pytest.raises(UserError, match="not the directory of a run"):
        resumed(tmp_path)
    with (
        FileLock(finished / ".lock"),
        pytest.raises(UserError, match="still going on in another process"),
    ):
        resumed(finished)

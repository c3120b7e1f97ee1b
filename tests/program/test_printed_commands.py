"""Every command that a message prints is pasted into a shell, in a folder with a terrible name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase import cli as entry
from sseg_nase import run as runs
from sseg_nase.config.compose import continued, load, spelled_out
from sseg_nase.config.conf_files import groups
from sseg_nase.config.explain import mistake
from sseg_nase.config.multirun import refuse_several
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.hardware.memory import remedies
from sseg_nase.reporting import run_report
from sseg_nase.reporting.selection import named_runs
from sseg_nase.rundir.record import read_run
from sseg_nase.sweeps import deliver
from sseg_nase.sweeps.folder import SweepFolder, looked_at
from sseg_nase.sweeps.launch import launch
from sseg_nase.tracking import mlflow_sink
from sseg_nase.tracking.delivery import Undelivered

NASTY = "My Project (1), 50%/#2 it's é"
TINY = ["debug=tiny", "ablation=A1", "hardware=cpu", "hardware.threads=1", "pretrain.epochs=1"]
# A word of the shell as `shlex.quote` writes it.
WORD = r"""(?:[\w@%+=:,./-]|'[^']*'|"'")+"""

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / NASTY
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def printed(message: str) -> str:
    """The one command in a message, as one would mark it with the mouse."""
    (found,) = re.findall(rf"sseg-nase(?: (?=[\w.]+=|'[\w.]+=){WORD})+", message)
    return str(found)


def pasted(command: str, folder: Path) -> list[str]:
    """What a shell in `folder` hands to the program when the command is pasted."""
    shown = folder / "bin" / command.split()[0]
    shown.parent.mkdir(exist_ok=True)
    shown.write_text('#!/bin/sh\nfor given in "$@"; do printf \'%s\\0\' "$given"; done\n')
    shown.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd="/",
        env={**os.environ, "PATH": f"{shown.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


def understood(command: str, folder: Path) -> Config:
    """The config that a pasted command means."""
    overrides = spelled_out(pasted(command, folder))
    return load([*overrides, *continued(overrides)])


def test_of_an_interrupted_run(
    nasty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Config, overrides: Sequence[str]) -> Path:
        run = runs.RunDirectory.create(config, overrides)
        run.release()
        error = KeyboardInterrupt()
        error.run_dir = run.path  # type: ignore[attr-defined]
        raise error

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    monkeypatch.setattr(runs, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["sseg-nase", *TINY, "paths.output_dir=runs, [mine]"])
    with pytest.raises(SystemExit):
        entry.main()
    config = understood(printed(capsys.readouterr().err), tmp_path)
    (run,) = (nasty / "runs, [mine]" / "debug").iterdir()
    assert config.resume == str(run)
    assert config.paths.output_dir == "runs, [mine]"
    again = run_report.command(read_run(run))
    assert again is not None
    assert understood(again, tmp_path).paths.output_dir == "runs, [mine]"


def test_of_a_run_whose_store_and_report_fail(
    nasty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise OSError("it is away")

    monkeypatch.setattr(mlflow_sink, "open_store", broken)
    monkeypatch.setattr(run_report, "write_report", broken)
    run = runs.run(load([*TINY, "report.at_end=true"]))
    lines = capsys.readouterr().out.splitlines()
    (report,) = (line for line in lines if "the report is not written" in line)
    config = understood(printed(report), tmp_path)
    assert (config.task, config.runs) == ("report", [str(run)])
    assert named_runs(config.runs, Path("runs")) == [run]
    (away,) = (line for line in lines if "cannot be used" in line)
    config = understood(printed(away), tmp_path)
    assert (config.task, config.run) == ("deliver", str(run))
    assert not [line for line in lines if "mlflow ui" in line]  # what could not be used
    ui, _ = mlflow_sink.page_of(f"sqlite:///{nasty / 'mlflow.db'}", "1", "abc").splitlines()
    _, flag, uri, *_ = pasted(ui[ui.index("mlflow ui") :], tmp_path)
    assert flag == "--backend-store-uri"
    assert uri == f"sqlite:///{nasty / 'mlflow.db'}"


def test_of_sweeps(nasty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nasty / "runs" / "debug" / "one").mkdir(parents=True)
    (nasty / "runs" / "debug" / "one" / "status.json").write_text("{}")
    with pytest.raises(UserError) as refused:
        looked_at(None, nasty / "runs")
    assert understood(printed(str(refused.value)), tmp_path).runs == ["LAST"]
    said: list[str] = []
    given = [*TINY, "seed=0,1", "tracking=jsonl", "hydra/launcher=joblib"]
    launch(given, lambda overrides: None, said.append)
    (sweep,) = (path.parent for path in (nasty / "runs" / "sweeps").glob("*/sweep.json"))
    (status,) = (line for line in said if "task=status" in line)
    config = understood(printed(status), tmp_path)
    assert (config.task, config.sweep.dir) == ("status", str(sweep))

    def away(*arguments: Any) -> str:
        raise Undelivered("MLflow is away.")

    run = nasty / "runs" / "debug" / "one"
    (run / "status.json").write_text(json.dumps({"status": "FINISHED", "undelivered": True}))
    found = SweepFolder(sweep)
    found.jobs[0].note(run=str(run))
    monkeypatch.setattr(deliver, "deliver_run", away)
    deliver.deliver_sweep(found, said.append)
    config = understood(printed(said[-1]), tmp_path)
    assert (config.task, config.sweep.dir) == ("deliver", str(sweep))


@pytest.mark.parametrize("folder", ["runs", "sweep"])
def test_of_folders_that_are_no_run(nasty: Path, tmp_path: Path, folder: str) -> None:
    run = nasty / folder / "one"
    run.mkdir(parents=True)
    for name in ("status.json", "config.yaml"):
        (run / name).write_text("{}")
    if folder == "sweep":
        (nasty / folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError) as refused:
        named_runs([str(nasty / folder)], Path("runs"))
    advice = str(refused.value).partition(" write ")[2].partition(" with all")[0]
    advice = advice.removesuffix(" instead.")
    config = understood(f"sseg-nase task=report {advice}", tmp_path)
    if folder == "sweep":
        assert config.sweep.dir == str(nasty / folder)
    else:
        assert config.runs is not None
        assert named_runs(config.runs, Path("runs")) == [run]


def test_of_values_that_need_quotes(nasty: Path, tmp_path: Path) -> None:
    def advised(message: str) -> str:
        advice = re.search(r"write (.*?) (?:with all its quotes|for this very text)", message)
        assert advice is not None, message
        (argument,) = pasted(f"sseg-nase {advice[1]}", tmp_path)
        return load([argument]).tracking.experiment

    for value in (NASTY, "a=b", "it's", "(1)", "a#b"):
        message = mistake(f"tracking.experiment={value}", groups())
        assert advised(str(message)) == value
    with pytest.raises(UserError) as refused:
        refuse_several(["tracking.experiment=a,b"])
    assert advised(str(refused.value)) == "a,b"


def test_of_a_run_that_is_out_of_memory(nasty: Path, tmp_path: Path) -> None:
    config = load(["hardware.batch_size=64", "hardware.gradient_accumulation_steps=1"])
    small = load(
        [
            *("hardware.batch_size=3", "hardware.gradient_accumulation_steps=1", "ablation=A2"),
            *("hardware.gradient_checkpointing=true", "hardware.precision=bf16-mixed"),
        ]
    )
    advised = [text for one in (config, small) for text in remedies(one)]
    assert any("backbone.channels" in text for text in advised)
    for text in advised:
        for argument in re.findall(rf"(?:(?<=^)|(?<=with ))(?:[\w.]+=|'[\w.]+=){WORD}", text):
            (given,) = pasted(f"sseg-nase {argument}", tmp_path)
            load([given])


@pytest.mark.slow
def test_for_good(nasty: Path, tmp_path: Path) -> None:
    """The program itself, from end to end: a run, its report once more, a sweep in background."""
    program = tmp_path / "bin" / "sseg-nase"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sseg_nase "$@"\n')
    program.chmod(0o755)
    root = str(Path(entry.__file__).parents[1])
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": root, "PATH": path}

    def shell(command: str, code: int = 0, folder: Path = nasty) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    line = shlex.join(["sseg-nase", *TINY, "ablation=A2", "pretrain.epochs=5000"])
    line = line.replace("ablation=A1 ", "").replace("pretrain.epochs=1 ", "")
    stopped = f"timeout --signal=INT 25 {line} tracking=mlflow"
    said = shell(stopped, 124)
    assert "INTERRUPTED" in said
    run = next((nasty / "runs" / "debug").iterdir())
    resume = printed(said)
    done = yaml.safe_load((run / "overrides.yaml").read_text())
    assert "pretrain.epochs=5000" in done
    shell(f"{resume} resume_overrides=true pretrain.epochs=100000 seed=-1", 2, Path("/"))
    shell(f"timeout --signal=INT 20 {resume}", 124, Path("/"))
    events = (run / "events.jsonl").read_text()
    assert "resumed at epoch" in events
    shell(shlex.join(["sseg-nase", "task=report", f"runs={run}"]), 0, Path("/"))
    assert (run / "report" / "report.html").exists()
    # The store that the run has made is the one that the command for the UI names.
    ui = shlex.split(mlflow_sink.ui_command(None))
    client, _ = mlflow_sink.open_store(ui[ui.index("--backend-store-uri") + 1], "tests")
    assert {"tests", "sseg-nase"} <= {one.name for one in client.search_experiments()}
    sweep = shell(shlex.join(["sseg-nase", "-m", *TINY, "seed=0,1", "sweep.detach=true"]))
    status = [line for line in sweep.splitlines() if "task=status" in line][-1]
    shell(f"{printed(status)} sweep.watch=false", 0, Path("/"))

"""From the command to an answer, to the first training step, and a whole run's memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.suite.child import Work, scratch
from benchmarks.suite.machine import ROOT

POLL_SECONDS = 0.01
FIRST_STEP = b'"pretrain/loss"'


def help() -> Work:
    """`sseg-nase --help`."""
    return _command("-m", "sseg_nase", "--help")


def import_torch() -> Work:
    """What every program with torch needs at least."""
    return _command("-c", "import torch")


def first_step_of_lightly() -> Work:
    """A script that pretrains with lightly, ended after its first step."""
    code = "from benchmarks.suite.pretraining import lightly; lightly(size=32, steps=1)()"
    return _command("-c", code)


def _command(*arguments: str) -> Work:
    def work() -> float:
        subprocess.run(
            [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
        )
        return 1

    return work


def first_step() -> Work:
    """`sseg-nase` on the embedded digits with MLflow, until its first loss is on the disk.

    The MLflow store is there after the warm-up, as it is for everybody's second run.
    """
    store = scratch()
    command = [
        *(sys.executable, "-m", "sseg_nase", "experiment=quickstart"),
        f"tracking.uri=sqlite:///{store}/mlflow.db",
        "tracking.interval_steps=1",
    ]

    def work() -> float:
        with tempfile.TemporaryDirectory(dir=store) as folder:
            output = [f"paths.output_dir={folder}"]
            process = subprocess.Popen([*command, *output], stdout=subprocess.DEVNULL, cwd=ROOT)
            try:
                while not _stepped(Path(folder)):
                    assert process.poll() is None, "it ended before its first step"
                    time.sleep(POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
        return 1

    return work


def _stepped(folder: Path) -> bool:
    return any(FIRST_STEP in events.read_bytes() for events in folder.glob("*/*/events.jsonl"))


def whole_run(size: int, dataset: str) -> Work:
    """A short run on natural images: pretraining, evaluation, report."""
    folder = scratch()
    return _command(
        *("-m", "sseg_nase", f"dataset={dataset}", f"dataset.image_size={size}"),
        *("curriculum=natural", "pretrain.epochs=1", "pretrain.images_per_epoch=2560"),
        *(f"tracking.uri=sqlite:///{folder}/mlflow.db", f"paths.output_dir={folder}"),
    )

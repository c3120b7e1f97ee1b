"""By how many percent of itself a training step takes longer when its figures go to MLflow.

A cost this small shows only between turns that follow one another in one process: with logging
and without, in an order that is turned around from pair to pair. In a turn everything is logged
`TIMES` times as often as in a run, and one delivery of the run's sink, which is off the training
thread, falls into every turn; a run's cost is that part of what is found.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.suite.child import Work, scratch
from benchmarks.suite.setting import device
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.tracking import RunInfo, Sink, Tracker
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink

PAIRS, SECONDS_A_TURN, TIMES = 4, 1.0, 5
INTERVAL_STEPS = 10
FIGURES = {
    f"pretrain/{name}": 1.0
    for name in ("loss", "contrastive", "distillation", "lr", "level", "images_per_second")
}
Tell = Callable[[int], object]


def sink() -> Work:
    """The run's own sink: figures go in batches, from another thread."""
    folder = scratch()
    store = MlflowSink(_uri(folder), "bench", required=True, flush_seconds=0.8 * SECONDS_A_TURN)
    tracker = Tracker([JsonlSink(), store])
    directory = folder / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text("seed: 0", encoding="utf-8")
    tracker.open(RunInfo(directory, "bench", "bench", directory / "config.yaml", 1))
    import mlflow  # after ours, which makes it quiet

    client, run_id = mlflow.MlflowClient(_uri(folder)), tracker.run_id
    assert run_id is not None
    waits = 0

    def delivered() -> None:
        """Wait until nothing is on its way, so that the next delivery is a whole pause off."""
        nonlocal waits
        waits += 1
        tracker.metrics({"waits": waits}, waits)
        while client.get_run(run_id).data.metrics.get("waits") != waits:
            time.sleep(0.01)

    return _cost(lambda step: tracker.metrics(FIGURES, step), delivered)


def one_by_one() -> Work:
    """One call of MLflow's client per figure."""
    logging.disable(logging.CRITICAL)
    folder = scratch()
    import mlflow

    client = mlflow.MlflowClient(_uri(folder))
    run_id = client.create_run(client.create_experiment("bench")).info.run_id

    def tell(step: int) -> None:
        for name, value in FIGURES.items():
            client.log_metric(run_id, name, value, step=step)

    return _cost(tell, lambda: None)


def _uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def _cost(tell: Tell, settle: Callable[[], None]) -> Work:
    """Percent of a step that `tell` every `INTERVAL_STEPS` costs, the median of `PAIRS` pairs.

    `settle` is called before every turn.
    """
    generator = torch.Generator().manual_seed(0)
    net = EvolvableCNN(Architecture.seed((16, 32, 64), resolution=32), generator=generator)
    learner = Learner(net, ProjectionHead(64, generator=generator)).to(device())
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    images = torch.randn(2 * 64, 3, 32, 32, generator=generator).to(device())
    done = 0

    def seconds_a_step(tell: Tell) -> float:
        nonlocal done
        settle()
        began, first = time.perf_counter(), done
        while time.perf_counter() - began < SECONDS_A_TURN:
            z1, z2 = learner(images)[1].chunk(2)
            optimizer.zero_grad()
            nt_xent(z1, z2, 0.5).backward()
            optimizer.step()
            done += 1
            if done % (INTERVAL_STEPS // TIMES) == 0:
                tell(done)
        return (time.perf_counter() - began) / (done - first)

    untold = Sink()

    def work() -> float:
        costs = []
        for pair in range(PAIRS):
            ways: list[Tell] = [tell, lambda step: untold.metrics(FIGURES, step)]
            order = [0, 1] if pair % 2 else [1, 0]
            seconds = {way: seconds_a_step(ways[way]) for way in order}
            costs.append((seconds[0] / seconds[1] - 1) / TIMES)
        return 100 * statistics.median(costs)

    return work

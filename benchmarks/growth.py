"""Growth at equal compute: `python benchmarks/growth.py DATA OUT`, with CIFAR-FS in DATA.

Every arm trains without labels until it has spent the same multiply-accumulates (students' forward
and backward passes, three times a forward pass, at the architecture of each moment), with the same
schedule: constant, then decayed to 0. Its learning rate is the best of three by the 5-shot accuracy
on val with the first seed. All networks are evaluated on the same episodes of val. A run that was
stopped is resumed by the same command. What has finished is kept in a small file, OUT/growth.json
or `--results FILE`, and is not trained again, on another machine either.

With `--labels` every arm is a classifier of the base classes instead, from scratch, on one view of
every image. An epoch is then all of them, so an arm has as many epochs as come nearest to the
budget; its network is the one with the best accuracy on other val episodes, of those after the last
mutation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.runs import start_or_resume
from sseg_nase.config.compose import hardware_profiles, load
from sseg_nase.config.schema import Config
from sseg_nase.counting import BACKWARD
from sseg_nase.hardware.profiles import resolve
from sseg_nase.nets.building import configured
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.stages import labelled
from sseg_nase.statistics import holm, mean_t95, paired_difference
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.order import Expand
from sseg_nase.training.state import Evolving, Progress

COMMON = (
    "dataset=cifar_fs", "dataset.image_size=32", "sparsity=none", "tracking=jsonl",
    "evaluation.split=val", "evaluation.untrained_reference=false", "evaluation.method=prototype",
)  # fmt: skip
UNLABELED = (
    "curriculum=natural", "ssl.distillation_weight=0", "ssl.temperature=0.2",
    "scheduler=constant_decay",
)  # fmt: skip
LABELS = (
    "ssl=none", "finetune=linear", "finetune.optimizer=sgd", "finetune.weight_decay=0.0005",
    "finetune.scheduler=constant_decay", "finetune.warmup_epochs=1",
)  # fmt: skip
FIXED, WIDE = "evolution=none", "backbone=seed_wide"
GROWN = (WIDE, "evolution=balanced")
ARMS: Mapping[str, tuple[str, ...]] = {
    "grown": GROWN,
    "its final network": (WIDE, FIXED, "backbone.blocks_per_stage=3"),
    "grown at random": (*GROWN, "evolution.order=random"),
    "its seed network": (WIDE, FIXED),
    "ResNet-12, 10-25-50-100": (
        "backbone=resnet12_quarter", "backbone.channels=[10,25,50,100]", FIXED,
    ),
    "ResNet-12, 16-40-80-160": ("backbone=resnet12_quarter", FIXED),
    "Conv4-64": ("backbone=conv4", FIXED),
}  # fmt: skip
RATES = (0.001, 0.002, 0.004)
RATES_OF_LABELS = (0.05, 0.1, 0.2)
VIEWS, PASSES = 2, 1 + BACKWARD
LEAST_EPOCHS = 5  # with labels
KEYS = ("cifar_fs/val/5w1s", "cifar_fs/val/5w5s")


class Job(NamedTuple):
    """A training."""

    arm: str
    rate: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Where it is."""
        return out / self.arm.replace(", ", "-").replace(" ", "_") / f"{self.rate:g}-{self.seed}"


class Settings(NamedTuple):
    """Of all arms."""

    data: Path
    out: Path
    macs: float
    epochs: int
    episodes: int
    overrides: tuple[str, ...]
    labels: bool = False

    def told(self) -> dict[str, Any]:
        """What a result depends on beside its job, as the file of results has it."""
        epochs = {} if self.labels else {"epochs": self.epochs}
        return {
            "labels": self.labels, "macs": self.macs, **epochs,
            "episodes": self.episodes, "overrides": list(self.overrides),
        }  # fmt: skip


class Result(NamedTuple):
    """Of one training: accuracies in percent, the mean over all episodes; minutes of its run."""

    params: int
    macs: int
    images: int
    training_macs: int
    minutes: float
    one_shot: float
    five_shot: float

    def accuracy(self, key: str) -> float:
        """By the key of the episodes."""
        return self.one_shot if key == KEYS[0] else self.five_shot


class Results:
    """What has finished, in a file that is small enough to be kept with the code."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path, self._told = path, settings.told()
        self._lock = threading.Lock()
        self._all: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def of(self, job: Job) -> Result | None:
        """None where it has not finished with these settings."""
        for row in self._all:
            if row["job"] == job._asdict() and row["settings"] == self._told:
                return Result(**row["result"])
        return None

    def add(self, job: Job, result: Result) -> None:
        """Keep it, at once."""
        with self._lock:
            row = {"job": job._asdict(), "settings": self._told, "result": result._asdict()}
            self._all.append(row)
            lines = ",\n".join(json.dumps(each) for each in self._all)
            new = self._path.with_suffix(".new")
            new.write_text(f"[\n{lines}\n]\n")
            new.replace(self._path)


def config_of(job: Job, settings: Settings, *more: str) -> tuple[list[str], Config]:
    """What is written on the command line, and what it means."""
    arm = ARMS[job.arm]
    if settings.labels:
        rates = [f"finetune.{name}={job.rate}" for name in ("lr_encoder", "lr_head")]
        own = [*LABELS, *rates, *([] if FIXED in arm else ["finetune.evolve=true"])]
    else:
        own = [*UNLABELED, f"optimizer.lr={job.rate}", f"pretrain.epochs={settings.epochs}"]
    lines = [
        *COMMON, *arm, *own, f"seed={job.seed}", f"evaluation.episodes={settings.episodes}",
        f"paths.data_dir='{settings.data}'", f"paths.output_dir='{job.folder(settings.out)}'",
        *settings.overrides, *more,
    ]  # fmt: skip
    return lines, load(lines)


def macs_by_epoch(config: Config) -> list[int]:
    """A forward pass of one view in every epoch, as the network grows."""
    epochs, side = config.pretrain.epochs, config.dataset.image_size
    architecture = configured(config.backbone, side)
    if not config.evolution.enabled:
        return [architecture.macs(side)] * epochs
    expand, found = Expand(config.evolution, config.seed), list[int]()
    networks: Any = SimpleNamespace(architecture=architecture)
    measures: Any = None  # the order of growth asks for none
    state = Evolving("growth", epochs, Sink(), Progress(), networks, measures)
    for epoch in range(epochs):
        found.append(networks.architecture.macs(side))
        state.progress.epoch = epoch
        if epoch + 1 < epochs and (grown := expand.decide(state).mutation) is not None:
            networks.architecture = grown.after
    return found


def epochs_for(config: Config, macs: float) -> int:
    """Epochs of all labelled images that come nearest to `macs`. Raises `SystemExit` for few."""
    size, images = config.hardware.batch_size, len(labelled(config).labels)
    assert size is not None
    seen = images // min(size, images) * min(size, images)  # the last batch is left out

    def off(epochs: int) -> float:
        pretrain = dataclasses.replace(config.pretrain, epochs=epochs)
        by_epoch = macs_by_epoch(dataclasses.replace(config, pretrain=pretrain))
        return abs(PASSES * seen * sum(by_epoch) - macs)

    # No more than of the network at the start; growth at random need not cost more with more.
    start = configured(config.backbone, config.dataset.image_size).macs()
    most = max(LEAST_EPOCHS, round(macs / (PASSES * seen * start)))
    epochs = min(range(LEAST_EPOCHS, most + 1), key=off)
    if epochs == LEAST_EPOCHS:
        raise SystemExit(
            f"--macs {macs:g}: that is {LEAST_EPOCHS} epochs or fewer of {images:,} images, too "
            "few to grow in; give more."
        )
    return epochs


def train(job: Job, settings: Settings, results: Results) -> None:
    """In a process of its own, until its share of the macs is spent."""
    if results.of(job) is not None:
        return
    if (done := finished(job, settings)) is not None:
        results.add(job, done)
        return
    _, config = config_of(job, settings)
    if settings.labels:
        hardware, _ = resolve(config.hardware, hardware_profiles())
        config = dataclasses.replace(config, hardware=hardware)
        budget = f"finetune.epochs={epochs_for(config, settings.macs)}"
    else:
        images = round(settings.macs / (PASSES * VIEWS * sum(macs_by_epoch(config))))
        budget = f"pretrain.images_per_epoch={images}"
    lines, _ = config_of(job, settings, budget)
    folder = job.folder(settings.out)
    printed = start_or_resume(folder, lines)
    if (done := finished(job, settings)) is not None:
        results.add(job, done)
    ended = "done" if done is not None else f"failed, see {printed}"
    print(f"{job.arm}, learning rate {job.rate:g}, seed {job.seed}: {ended}", flush=True)


def train_all(jobs: Sequence[Job], settings: Settings, results: Results, parallel: int) -> bool:
    """Whether all of them have finished in the end."""
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda job: train(job, settings, results), jobs))
    return all(results.of(job) is not None for job in jobs)


def finished(job: Job, settings: Settings) -> Result | None:
    """Of the last network of its run; None where there is no run that has finished."""
    for path in job.folder(settings.out).glob("*/*/results.json"):
        found = json.loads(path.read_text())
        if found.get("status") != "FINISHED":
            continue
        network = found["architecture"]
        one, five = (float(read_episodes(path.parent)["last"][key].mean()) for key in KEYS)
        images = sum(found["images_seen"].values())
        minutes = round(sum(found["seconds"].values()) / 60, 2)
        return Result(
            network["params"], network["macs"], images, found["training_macs"]["total"], minutes,
            round(one, 4), round(five, 4),
        )  # fmt: skip
    return None


def best_rate(arm: str, results: Results, rates: Sequence[float], seed: int) -> float:
    """By the 5-shot accuracy."""
    return max(rates, key=lambda rate: known(results, Job(arm, rate, seed)).five_shot)


def known(results: Results, job: Job) -> Result:
    """Of a job that has finished."""
    found = results.of(job)
    assert found is not None, job
    return found


def table(
    arms: Sequence[str], chosen: Mapping[str, float], seeds: Sequence[int], results: Results
) -> Iterable[str]:
    """Markdown: accuracies, and the differences of the first arm from each of the others.

    Means and 95 % intervals over seeds (Student's t, paired), p-values adjusted by Holm.
    """
    yield (
        "| arm | learning rate | params | macs, M | images | training, T macs | minutes | "
        f"5-way 1-shot | 5-way 5-shot | {arms[0]} minus it, 1-shot | 5-shot |"
    )
    yield "|---" * 11 + "|"
    of = {arm: [known(results, Job(arm, chosen[arm], seed)) for seed in seeds] for arm in arms}
    values = {(a, key): np.array([r.accuracy(key) for r in of[a]]) for a in arms for key in KEYS}
    others = [(arm, key) for arm in arms[1:] for key in KEYS]
    p = [paired_difference(values[arms[0], key], values[arm, key]).p_value for arm, key in others]
    adjusted = dict(zip(others, holm(np.array(p)), strict=True))
    for arm in arms:
        one = of[arm][0]
        cells = [
            arm, f"{chosen[arm]:g}", f"{one.params:,}", f"{one.macs / 1e6:.1f}", f"{one.images:,}",
            f"{one.training_macs / 1e12:.2f}", f"{np.mean([r.minutes for r in of[arm]]):.1f}",
        ]  # fmt: skip
        for key in KEYS:
            mean, spread = mean_t95(values[arm, key])
            cells.append(f"{mean:.2f} ± {spread:.2f}")
        for key in KEYS:
            if arm == arms[0]:
                cells.append("")
                continue
            mean, spread = mean_t95(values[arms[0], key] - values[arm, key])
            cells.append(f"{mean:+.2f} ± {spread:.2f} (p {adjusted[arm, key]:.3f})")
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Train what is not trained, and write OUT/growth.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that has cifar_fs")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--macs", type=float, default=3e13, help="that every arm spends (3e13)")
    parser.add_argument("--epochs", type=int, default=20, help="without labels (20)")
    parser.add_argument("--labels", action="store_true", help="train a classifier of base classes")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="two or more")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--results", type=Path, help="what has finished (OUT/growth.json)")
    parser.add_argument("--episodes", type=int, default=10_000, help="per number of shots (10000)")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--also", nargs="*", default=(), help="overrides of every arm")
    given = parser.parse_args(arguments)
    data, out = given.data.resolve(), given.out.resolve()
    overrides = tuple(given.also)
    settings = Settings(
        data, out, given.macs, given.epochs, given.episodes, overrides, given.labels
    )
    out.mkdir(parents=True, exist_ok=True)
    results = Results(given.results or out / "growth.json", settings)
    rates = given.rates or (RATES_OF_LABELS if given.labels else RATES)
    first = [Job(arm, rate, given.seeds[0]) for arm in given.arms for rate in rates]
    if not train_all(first, settings, results, given.parallel):
        return 1
    chosen = {arm: best_rate(arm, results, rates, given.seeds[0]) for arm in given.arms}
    rest = [Job(arm, chosen[arm], seed) for seed in given.seeds[1:] for arm in given.arms]
    if not train_all(rest, settings, results, given.parallel):
        return 1
    lines = list(table(given.arms, chosen, given.seeds, results))
    (out / "growth.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A genetic search beside its rivals: `python benchmarks/families.py DATA OUT`, images in DATA.

`experiment=snas` searches, and trains from scratch with three seeds: its answer, what random search
finds with as many training macs, and the largest network under the caps. Beside them a ResNet and
blocks of MobileNetV2, as wide as gives them the params of the answer, are trained for as many
epochs with the learning rate that is best on val with the first seed. When all of that has ended,
test is opened, once per network: `task=evaluate evaluation.split=test`. The table is
OUT/families.md; what it was made of is added to `--results FILE`.

A search or training that was stopped is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.runs import perform
from sseg_nase.config.compose import load
from sseg_nase.files import read_json, write_json, write_text
from sseg_nase.hardware.profiles import cores
from sseg_nase.nets.building import configured
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.names import CANDIDATES
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.rundir.results import BEST, LAST
from sseg_nase.search import Log
from sseg_nase.searches.answer import ANSWER, FINAL
from sseg_nase.statistics import crossed_difference, holm, mean_t95

FIXED: Mapping[str, str] = {  # of so many steps of width
    "ResNet": "backbone=resnet_small backbone.channels=[{0},{1},{2}]",
    "MobileNetV2": "backbone=mobilenet backbone.multiplier={3}",
}
NARROWEST, WIDEST = 4, 400
RATES = (0.001, 0.003, 0.01)


class Settings(NamedTuple):
    """Of everything that is run."""

    data: Path
    out: Path
    dataset: str
    overrides: tuple[str, ...]
    parallel: int

    def lines(self, folder: str, *more: str) -> list[str]:
        """A command line of the experiment, whose output is in `folder` of OUT."""
        return [
            "experiment=snas", f"dataset={self.dataset}", "tracking=jsonl",
            f"paths.data_dir='{self.data}'", f"paths.output_dir='{self.out / folder}'",
            *self.overrides, *more,
        ]  # fmt: skip

    def training(self, folder: str, *more: str) -> list[str]:
        """One of `parallel` at a time, with its share of the cores."""
        return self.lines(folder, f"hardware.threads={max(1, cores() // self.parallel)}", *more)


class Trained(NamedTuple):
    """A network that was trained from scratch, and the run that did it."""

    role: str
    seed: int
    run: Path


# -- runs --------------------------------------------------------------------------------------


def answers(search: Path) -> list[Trained]:
    """What the search has trained from scratch. Raises `SystemExit` where that failed."""
    answer, log = read_json(search / ANSWER), Log.read(search / FINAL)
    assert answer is not None, search
    found = []
    for one in answer["contenders"]:
        for number in one["trainings"]:
            result, seed = log.result(number), int(log.candidates[number].fidelity["seed"])
            if result is None or result.run is None or result.error is not None:
                raise SystemExit(f"{search / FINAL}: training {number} has failed.")
            found.append(Trained(one["role"], seed, Path(result.run)))
    return found


def as_large(name: str, params: int, settings: Settings) -> str:
    """The overrides of the fixed network whose params come nearest to `params`."""

    def given(width: int) -> str:
        return FIXED[name].format(round(width / 4), round(width / 2), width, width / 20)

    def counted(width: int) -> int:
        config = load(settings.lines("", *given(width).split()))
        return configured(config.backbone, config.dataset.image_size).params

    first = bisect_left(range(NARROWEST, WIDEST), params, key=counted)  # that has as many
    best = min((first - 1, first), key=lambda at: abs(counted(NARROWEST + max(at, 0)) - params))
    return given(NARROWEST + max(best, 0))


def train_fixed(
    name: str, params: int, epochs: int, seeds: Sequence[int], settings: Settings
) -> list[Trained]:
    """The network as large as the answer, with each of `seeds`, at its best rate."""
    network = as_large(name, params, settings).split()

    def trained(rate: float, seed: int) -> Path:
        folder = f"{name}-{rate:g}-{seed}"
        lines = settings.training(
            folder, "task=pipeline", *network, f"finetune.epochs={epochs}", f"seed={seed}",
            f"finetune.lr_encoder={rate}", f"finetune.lr_head={rate}",
        )  # fmt: skip
        return perform(settings.out / folder, lines)

    first = {rate: trained(rate, seeds[0]) for rate in RATES}
    best = max(RATES, key=lambda rate: accuracy_of(first[rate]))
    rest = [Trained(name, seed, trained(best, seed)) for seed in seeds[1:]]
    return [Trained(name, seeds[0], first[best]), *rest]


def accuracy_of(run: Path) -> float:
    """In percent, of the network that was best on val in training, by the images of the run."""
    return float(of_images(run).mean())


def of_images(run: Path) -> np.ndarray:
    """For every image 100 where it was right, else 0."""
    known = read_episodes(run)
    (found,) = (known[BEST] or known[LAST]).values()
    return found


def on_test(trained: Trained, settings: Settings) -> Path:
    """The evaluation of a training on test."""
    folder = f"test-{trained.role.replace(' ', '_')}-{trained.seed}"
    checkpoint = trained.run / "checkpoints" / "finetune_best.pt"
    lines = settings.training(
        folder, "task=evaluate", "evaluation.split=test", f"checkpoint='{checkpoint}'"
    )
    return perform(settings.out / folder, lines)


# -- the table ---------------------------------------------------------------------------------


def row_of(role: str, of: Sequence[Trained], tests: Mapping[Trained, Path]) -> dict[str, Any]:
    """What is kept of the trainings of one network, and of their evaluations."""
    run = read_run(of[0].run)
    network = run.section("architecture")
    records: list[RunRecord] = [read_run(one.run) for one in of]
    return {
        "network": role,
        "is": str(run.setting("backbone.name")),
        "params": network["params"],
        "macs": network["macs"],
        "learning_rate": run.setting("finetune.lr_encoder"),
        "optimizer": run.setting("finetune.optimizer"),
        "epochs": run.setting("finetune.epochs"),
        "training_macs": [one.section("training_macs")["total"] for one in records],
        "minutes": [round(sum(one.section("seconds").values()) / 60, 2) for one in records],
        "seeds": [one.seed for one in of],
        "val": [round(accuracy_of(one.run), 3) for one in of],
        "test": [round(accuracy_of(tests[one]), 3) for one in of],
    }


def table(rows: Sequence[Mapping[str, Any]], right: Mapping[str, np.ndarray]) -> Iterable[str]:
    """Markdown: means with 95 % intervals over seeds, and how far each is below the first.

    `right` `[seeds, images]`: for every test image 100 where it was right. The differences have
    95 % intervals over seeds and images, and p-values that are adjusted by Holm.
    """
    yield (
        "| network | type | params | macs, M | training, T macs | minutes | val, % | test, % | "
        f"{rows[0]['network']} minus it |"
    )
    yield "|---" * 9 + "|"
    others = [row["network"] for row in rows[1:]]
    differences = [crossed_difference(right[rows[0]["network"]] - right[name]) for name in others]
    adjusted: Sequence[float] = (
        list(holm(np.array([one.p_value for one in differences]))) if differences else []
    )
    minus = [""]
    for one, p_value in zip(differences, adjusted, strict=True):
        minus.append(f"{one.mean:+.2f} ± {one.ci95:.2f} (p {p_value:.3f})")
    for row, last in zip(rows, minus, strict=True):
        val, test = (mean_t95(np.array(row[split])) for split in ("val", "test"))
        cells = [
            row["network"], row["is"], f"{row['params']:,}", f"{row['macs'] / 1e6:.2f}",
            f"{np.mean(row['training_macs']) / 1e12:.3f}", f"{np.mean(row['minutes']):.1f}",
            f"{val[0]:.2f} ± {val[1]:.2f}", f"{test[0]:.2f} ± {test[1]:.2f}", last,
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Run what has not been run, and write OUT/families.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that has the images")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--dataset", default="fashion_mnist", help="a closed set (fashion_mnist)")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time (2)")
    parser.add_argument("--results", type=Path, help="a file of all results (OUT/families.json)")
    parser.add_argument("--also", nargs="*", default=(), help="overrides of everything")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    settings = Settings(given.data.resolve(), out, given.dataset, tuple(given.also), given.parallel)
    search = perform(out / "search", settings.lines("search"), "searches")
    trained = answers(search)
    seeds = sorted({one.seed for one in trained})
    ours = read_run(trained[0].run)
    params, epochs = ours.section("architecture")["params"], ours.setting("finetune.epochs")
    with ThreadPoolExecutor(given.parallel) as pool:
        jobs = [pool.submit(train_fixed, name, params, epochs, seeds, settings) for name in FIXED]
        trained += [one for job in jobs for one in job.result()]
        evaluated = pool.map(lambda one: on_test(one, settings), trained)
        tests = dict(zip(trained, evaluated, strict=True))
    roles = list(dict.fromkeys(one.role for one in trained))
    of = {role: [one for one in trained if one.role == role] for role in roles}
    rows = [row_of(role, of[role], tests) for role in roles]
    right = {role: np.array([of_images(tests[one]) for one in of[role]]) for role in roles}
    lines = list(table(rows, right))
    write_text(out / "families.md", "\n".join(lines) + "\n")
    kept = given.results or out / "families.json"
    known = read_json(kept) or {}
    spent = Log.read(search / CANDIDATES).spent
    known[given.dataset] = {
        "overrides": list(settings.overrides),
        "search": {"training_macs": spent.training_macs, "minutes": round(spent.seconds / 60, 1)},
        "networks": rows,
    }
    write_json(kept, known)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

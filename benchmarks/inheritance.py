"""What inherited weights save a genetic search: `python benchmarks/inheritance.py OUT`.

`experiment=snas_digits` searches with inherited weights, and with `search.inherit=false` for
several numbers of epochs a candidate, each with several seeds. Compared are the final populations,
those that a further generation would come from: their mean accuracy on val, and the training macs
of all candidates. The macs that candidates from scratch would need for the accuracy of those that
inherit are interpolated between the numbers of epochs. The table is OUT/inheritance.md; what it was
made of is written to `--results FILE`.

A search that was stopped is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.runs import perform
from sseg_nase.files import write_json, write_text
from sseg_nase.hardware.profiles import cores
from sseg_nase.rundir.names import CANDIDATES
from sseg_nase.search import Log
from sseg_nase.search.strategies import Genetic
from sseg_nase.statistics import mean_t95


class Arm(NamedTuple):
    """How the candidates of a search are trained."""

    inherit: bool
    epochs: int

    def __str__(self) -> str:
        return f"{'inherited' if self.inherit else 'scratch'}-{self.epochs}"


def lines_of(arm: Arm, seed: int, folder: Path, parallel: int, also: Sequence[str]) -> list[str]:
    """The command line of a search, one of `parallel` at a time; its answer is not trained."""
    return [
        "experiment=snas_digits", "tracking=jsonl", f"paths.output_dir='{folder}'",
        f"hardware.threads={max(1, cores() // parallel)}", "search.final_seeds=0", *also,
        f"search.inherit={str(arm.inherit).lower()}", f"pretrain.epochs={arm.epochs}",
        f"seed={seed}",
    ]  # fmt: skip


def result_of(search: Path) -> dict[str, float]:
    """The accuracy of the final population, in percent, and what all candidates took."""
    log = Log.read(search / CANDIDATES)
    settings = log.about["strategy"]
    strategy = Genetic(settings["population"], settings["elites"])
    last = strategy.generation(len(strategy.born(log)) - 1)
    values = [log.value(one) for one in strategy.parents(log, last + 1)]
    if not values:
        raise SystemExit(f"{search}: its last generation has no candidate that did not fail.")
    return {
        "mean": round(float(np.mean(values)), 3),
        "best": round(max(values), 3),
        "training_macs": log.spent.training_macs,
        "minutes": round(log.spent.seconds / 60, 2),
    }


def macs_for(accuracy: float, curve: Iterable[tuple[float, float]]) -> float | None:
    """The macs where a curve of (macs, accuracy) first has so much; None where it never does.

    Between two points it is taken to be straight over the logarithm of the macs; what its first
    point already has would take fewer, so that is the most that is said.
    """
    points = sorted(curve)
    if points[0][1] >= accuracy:
        return points[0][0]
    for (before, low), (after, high) in pairwise(points):
        if high >= accuracy:
            share = (accuracy - low) / (high - low)
            return float(before * (after / before) ** share)
    return None


def table(rows: Mapping[Arm, Sequence[Mapping[str, float]]]) -> Iterable[str]:
    """Markdown: means with 95 % intervals over seeds, and then the conclusion."""
    yield (
        "| weights | epochs a candidate | final population, val % | its best, val % | "
        "training macs, T | minutes |"
    )
    yield "|---" * 6 + "|"
    for arm, found in rows.items():
        mean, best = (mean_t95(np.array([one[name] for one in found])) for name in ("mean", "best"))
        cells = [
            "inherited" if arm.inherit else "from scratch", str(arm.epochs),
            f"{mean[0]:.2f} ± {mean[1]:.2f}", f"{best[0]:.2f} ± {best[1]:.2f}",
            f"{_average(found, 'training_macs') / 1e12:.3f}", f"{_average(found, 'minutes'):.1f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    yield ""
    scratch = [found for arm, found in rows.items() if not arm.inherit]
    curve = [(_average(found, "training_macs"), _average(found, "mean")) for found in scratch]
    for arm, found in rows.items():
        if arm.inherit:
            yield conclusion(_average(found, "training_macs"), _average(found, "mean"), curve)


def conclusion(macs: float, accuracy: float, curve: Sequence[tuple[float, float]]) -> str:
    """What share of the macs from scratch the inheriting search took to the same accuracy."""
    needed = macs_for(accuracy, curve)
    if needed is None:
        most, reached = max(curve)
        return (
            f"Inherited weights reach {accuracy:.2f} % with less than {macs / most:.2f} of the "
            f"training macs from scratch: with all of those it is {reached:.2f} %."
        )
    at_least = " or more" if needed == min(curve)[0] else ""
    return (
        f"Inherited weights reach {accuracy:.2f} % with {macs / needed:.2f}{at_least} of the "
        "training macs from scratch."
    )


def _average(found: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([one[name] for one in found]))


def main(arguments: Sequence[str]) -> int:
    """Run what has not been run, and write OUT/inheritance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder of the searches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--epochs", type=int, default=2, help="of one that inherits (2)")
    parser.add_argument(
        "--scratch", type=int, nargs="+", default=[2, 4, 8], help="of one from scratch (2 4 8)"
    )
    parser.add_argument("--parallel", type=int, default=2, help="searches at a time (2)")
    parser.add_argument("--results", type=Path, help="a file of all (OUT/inheritance.json)")
    parser.add_argument("--also", nargs="*", default=(), help="overrides of every search")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    arms = [Arm(True, given.epochs), *(Arm(False, epochs) for epochs in sorted(given.scratch))]

    def searched(job: tuple[Arm, int]) -> Path:
        folder = out / f"{job[0]}-{job[1]}"
        lines = lines_of(*job, folder, given.parallel, given.also)
        return perform(folder, lines, "searches")

    jobs = [(arm, seed) for seed in given.seeds for arm in arms]
    with ThreadPoolExecutor(given.parallel) as pool:
        found = dict(zip(jobs, map(result_of, pool.map(searched, jobs)), strict=True))
    rows = {arm: [found[arm, seed] for seed in given.seeds] for arm in arms}
    lines = list(table(rows))
    write_text(out / "inheritance.md", "\n".join(lines) + "\n")
    kept: dict[str, Any] = {"overrides": list(given.also), "seeds": given.seeds}
    kept["searches"] = [
        {"inherit": arm.inherit, "epochs": arm.epochs, "results": rows[arm]} for arm in arms
    ]
    write_json(given.results or out / "inheritance.json", kept)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What inherited weights save a genetic search: `python benchmarks/inheritance.py DATA OUT`.

`experiment=snas` searches with `evaluator=inherited`, with several seeds, images in DATA. The
networks of its final population, those that a further generation would come from, are then trained
from scratch for several numbers of epochs, and evaluated on the same images of val: the epochs that
they need for the mean accuracy that they had with inherited weights are interpolated. Part of a
population are elites, chosen by that very accuracy, so the same is said of its last generation
alone, which nothing has chosen. The table is OUT/inheritance.md; what it was made of is written to
`--results FILE`.

What was stopped is resumed by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.runs import perform
from sseg_nase.config.compose import hardware_profiles, load
from sseg_nase.files import write_json, write_text
from sseg_nase.hardware.profiles import cores, resolve
from sseg_nase.rundir.names import CANDIDATES
from sseg_nase.search import Budget, Candidate, Log, Objectives, Scored, search
from sseg_nase.search.strategies import Genetic
from sseg_nase.searches.evaluators import of_networks
from sseg_nase.searches.inheriting import inherited
from sseg_nase.searches.parts import parts_of
from sseg_nase.spaces.space import Space
from sseg_nase.statistics import mean_t95


class Settings(NamedTuple):
    """Of everything that is run."""

    data: Path
    out: Path
    candidates: int
    epochs: int
    parallel: int
    overrides: Sequence[str]

    @property
    def threads(self) -> int:
        """Of each of those that run at a time."""
        return max(1, cores() // self.parallel)

    def lines(self, seed: int) -> list[str]:
        """The command line of a search; its answer is not trained."""
        return [
            "experiment=snas", "evaluator=inherited", "tracking=jsonl",
            f"paths.data_dir='{self.data}'", f"paths.output_dir='{self.folder(seed)}'",
            f"hardware.threads={self.threads}",
            "search.slots=1", "search.final_seeds=0", "search.budget.training_macs=null",
            f"search.budget.candidates={self.candidates}", "strategy.patience=null",
            *self.overrides, f"finetune.epochs={self.epochs}", f"seed={seed}",
        ]  # fmt: skip

    def folder(self, seed: int) -> Path:
        """Of a search."""
        return self.out / f"inherited-{self.epochs}-{seed}"


def strategy_of(log: Log) -> Genetic:
    """What says which generation a candidate of the log is of."""
    settings = log.about["strategy"]
    return Genetic(settings["population"], settings["elites"])


def final_population(log: Log) -> list[Scored]:
    """The results of those that a further generation of a genetic search would come from."""
    strategy = strategy_of(log)
    last = strategy.generation(len(strategy.born(log)) - 1)
    found = strategy.parents(log, last + 1)
    if not found:
        raise SystemExit("The last generation has no candidate that did not fail.")
    return found


def last_generation(path: Path) -> int:
    """How many of the final population of the search in `path` are of its last generation.

    They are the last of the population; those before are elites.
    """
    log = Log.read(path / CANDIDATES)
    strategy = strategy_of(log)
    of = {one.number: strategy.generation(at) for at, one in enumerate(strategy.born(log))}
    return sum(of[one.candidate.number] == max(of.values()) for one in final_population(log))


def population_of(path: Path) -> list[Scored]:
    """The final population of the search in `path`."""
    return final_population(Log.read(path / CANDIDATES))


def rounded(results: Sequence[Scored]) -> list[float]:
    """Their accuracies, in percent."""
    return [round(one.scores["accuracy"], 3) for one in results]


def from_scratch(found: Path, seed: int, epochs: int, settings: Settings) -> list[float]:
    """The accuracies of the final population of the search in `found`, in its order, in percent.

    In a process of its own. Raises `SystemExit` where a training fails.
    """
    torch.set_num_threads(settings.threads)
    wanted = [one.candidate for one in population_of(found)]
    folder = settings.out / f"scratch-{epochs}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*settings.lines(seed), "search.inherit=false", f"finetune.epochs={epochs}"]
    config = load(lines)
    hardware, _ = resolve(config.hardware, hardware_profiles())
    config = dataclasses.replace(config, hardware=hardware)
    space = of_networks(config, parts_of(config, lines).space, "evaluator=inherited")

    def again(space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        left = wanted[len(log.candidates) :][:count]
        return [Candidate(len(log.candidates) + n, c.point, c.key) for n, c in enumerate(left)]

    about = {"of": str(found), "epochs": epochs}
    with Log.open(folder / CANDIDATES, Objectives({"accuracy": "max"}), about) as log:
        evaluator = inherited(config, space, folder)
        search(space, again, evaluator, log, Budget(candidates=len(wanted)))
        for one in log.told:
            if one.error is not None:
                raise SystemExit(f"{folder}: candidate {one.candidate.number}: {one.error}")
        return rounded(log.told)


def by_part(
    of_seed: Mapping[int, Mapping[int, Sequence[float]]], searches: Mapping[int, Path]
) -> dict[str, dict[int, list[float]]]:
    """The means of every seed, by epochs: of final populations, and of last generations alone."""
    children = {seed: last_generation(path) for seed, path in searches.items()}
    epochs = next(iter(of_seed.values()))
    return {
        "final population": {
            number: [float(np.mean(one[number])) for one in of_seed.values()] for number in epochs
        },
        "last generation": {
            number: [float(np.mean(one[number][-children[s] :])) for s, one in of_seed.items()]
            for number in epochs
        },
    }


# -- the table ---------------------------------------------------------------------------------


def epochs_for(accuracy: float, curve: Iterable[tuple[float, float]]) -> float | None:
    """The epochs where a curve of (epochs, accuracy) first has so much; None where it never does.

    Between two points it is taken to be straight over the logarithm of the epochs; what its first
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


def conclusion(epochs: float, accuracy: float, curve: Sequence[tuple[float, float]]) -> str:
    """What share of the macs from scratch the inherited weights took to the same accuracy."""
    needed = epochs_for(accuracy, curve)
    if needed is None:
        most, reached = max(curve)
        return (
            f"Inherited weights reach {accuracy:.2f} % with less than {epochs / most:.2f} of the "
            f"training macs from scratch: with all of those it is {reached:.2f} %."
        )
    at_least = " or more" if needed == min(curve)[0] else ""
    return (
        f"Inherited weights reach {accuracy:.2f} % with {epochs / needed:.2f}{at_least} of the "
        "training macs from scratch."
    )


def table(epochs: int, found: Mapping[str, Mapping[int, Sequence[float]]]) -> Iterable[str]:
    """Markdown: means with 95 % intervals over seeds, and then the conclusions.

    `found`: the mean accuracies of networks, one for each seed, by epochs; those with inherited
    weights by 0 epochs.
    """
    yield "| weights | epochs |" + "".join(f" {n}, val % | inherited minus it |" for n in found)
    yield "|---" * (2 + 2 * len(found)) + "|"
    for number in next(iter(found.values())):
        cells = [] if number else ["inherited", str(epochs)]
        cells = cells or ["from scratch", str(number)]
        for by_epochs in found.values():
            mean, ci95 = mean_t95(np.array(by_epochs[number]))
            more, of_more = mean_t95(np.subtract(by_epochs[0], by_epochs[number]))
            cells += [f"{mean:.2f} ± {ci95:.2f}", f"{more:+.2f} ± {of_more:.2f}" if number else ""]
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, by_epochs in found.items():
        curve = [(float(n), float(np.mean(each))) for n, each in by_epochs.items() if n]
        yield f"{name}: {conclusion(epochs, float(np.mean(by_epochs[0])), curve)}"


def main(arguments: Sequence[str]) -> int:
    """Run what has not been run, and write OUT/inheritance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that has the images")
    parser.add_argument("out", type=Path, help="the folder of the searches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--candidates", type=int, default=20, help="of every search (20)")
    parser.add_argument("--epochs", type=int, default=1, help="of one that inherits (1)")
    parser.add_argument(
        "--scratch", type=int, nargs="+", default=[1, 2, 4], help="of one from scratch (1 2 4)"
    )
    parser.add_argument("--parallel", type=int, default=2, help="at a time (2)")
    parser.add_argument("--results", type=Path, help="a file of all (OUT/inheritance.json)")
    parser.add_argument("--also", nargs="*", default=(), help="overrides of everything")
    given = parser.parse_args(arguments)
    settings = Settings(
        given.data.resolve(), given.out.resolve(), given.candidates, given.epochs, given.parallel,
        tuple(given.also),
    )  # fmt: skip

    def searched(seed: int) -> Path:
        return perform(settings.folder(seed), settings.lines(seed), "searches")

    with ThreadPoolExecutor(given.parallel) as threads:
        searches = dict(zip(given.seeds, threads.map(searched, given.seeds), strict=True))
    trained = {seed: rounded(population_of(path)) for seed, path in searches.items()}
    jobs = [(seed, epochs) for epochs in sorted(given.scratch) for seed in given.seeds]
    with ProcessPoolExecutor(given.parallel, get_context("spawn")) as pool:
        begun = [pool.submit(from_scratch, searches[job[0]], *job, settings) for job in jobs]
        found = {job: one.result() for job, one in zip(jobs, begun, strict=True)}
    of_seed = {
        seed: {0: trained[seed], **{n: found[seed, n] for n in sorted(given.scratch)}}
        for seed in given.seeds
    }
    lines = list(table(given.epochs, by_part(of_seed, searches)))
    write_text(settings.out / "inheritance.md", "\n".join(lines) + "\n")
    kept: dict[str, Any] = {
        "overrides": list(given.also),
        "candidates": given.candidates,
        "epochs": given.epochs,
        "final_populations": [  # of each network, by epochs from scratch, 0 with inherited weights
            {"seed": seed, **{str(epochs): each for epochs, each in one.items()}}
            for seed, one in of_seed.items()
        ],
    }
    write_json(given.results or settings.out / "inheritance.json", kept)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

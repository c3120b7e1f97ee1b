"""A search in this process, with what the tests bring: no run is trained unless a test asks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sseg_nase.config.compose import load, spelled_out
from sseg_nase.run import run
from sseg_nase.searches.task import perform_search

CHOICES = "search.choices={optimizer.lr: loguniform(1e-4,1e-2), ssl.temperature: [0.1,0.2,0.5]}"
QUIET = ("tracking=jsonl", "hardware=cpu", "report.at_end=false", "search.final_seeds=0")
OWN = '''
import os
from dataclasses import dataclass

from sseg_nase.search.strategies.ask import Ask
from sseg_nase.spaces import choices_space


def measure(candidate):
    """A stand-in: the best learning rate is 0.001."""
    if os.environ.get("FAILS") == str(candidate.number):
        raise ValueError("it was asked to fail")
    if os.environ.get("STOPS") == str(candidate.number):
        raise KeyboardInterrupt
    rate = candidate.point.get("optimizer.lr", candidate.point.get("x", 0))
    return {"accuracy": 60 - abs(rate - 0.001) * 1000, "size": 100 * (1 + candidate.number % 3)}


@dataclass
class Slow:
    """An evaluator with settings."""

    offset: float = 0.0

    def __call__(self, candidate):
        return {"accuracy": self.offset + candidate.number}


def greedy(space, log, how_many, seed):
    """Mutate the best; begin with a random point."""
    ask, best = Ask(space, log, seed), log.best()
    if best is not None:
        parent = best.candidate
        while len(ask) < how_many:
            if not ask.try_often(
                lambda: space.mutate(parent.point, ask.rng), "mutation", [parent.number]
            ):
                break
    return ask.fill(how_many)


def line(low=0.0, high=1.0):
    """A space of one's own."""
    return choices_space({"x": f"uniform({low}, {high})"}, "line")
'''


def own(folder: Path) -> Path:
    """Write the file of the user's own, and return its path."""
    path = folder / "mine.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def measured(folder: Path) -> list[str]:
    """The overrides of an evaluator that trains nothing, in the folder of the process."""
    return ["evaluator.name=own", f"evaluator.target={own(folder).name}:measure"]


def searched(*given: str, further: Sequence[Path] = ()) -> Path:
    """Run `task=search` with these overrides, and return its folder."""
    overrides = spelled_out(given)
    config = load(overrides, *further)
    task = partial(perform_search, overrides=overrides, further=further)
    return run(config, overrides, task=task)

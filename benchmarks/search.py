"""`make bench-search`: strategies and predictors on the table of NAS-Bench-201.

    python benchmarks/search.py TABLE.csv.xz [--only PART ...] [--seeds N] [--out FOLDER]

Every row is a mean over seeds 0, 1, … that no setting was chosen on. A query is one distinct cell
(4,930 of them). Two protocols: regret on `c10_half200` compares strategies, and no figure of it is
an accuracy; the pick by `c10_val12` with its `c10_test200` is the benchmark's own way. Results of
earlier rows stay in FOLDER/search.json, and FOLDER/search.md is the table of them all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.files import write_json, write_text
from sseg_nase.search import Budget, Log, Objectives, Table, Tabular, search
from sseg_nase.search.loop import Strategy
from sseg_nase.search.objectives import front, hypervolume
from sseg_nase.search.predictors import (
    Ensemble,
    GaussianProcess,
    GradientBoosting,
    Predictor,
    Ridge,
    correlate,
    normal_scores,
)
from sseg_nase.search.strategies import (
    GP,
    NSGA2,
    Bananas,
    Evolution,
    Genetic,
    LocalSearch,
    RandomSearch,
    Reinforce,
)
from sseg_nase.spaces import NB201

AT = (10, 25, 50, 100, 150)
SIZES = (25, 50, 100, 200, 400)
REFERENCE = (20.0, 250e6)  # error in percent and macs, fixed before any search
STRATEGIES: dict[str, tuple[Strategy, int, int]] = {  # how many at once, seeds
    "random": (RandomSearch(), 1, 300),
    "local": (LocalSearch(), 1, 100),
    "evolution": (Evolution(), 1, 100),
    "evolution 30": (Evolution(30, 10), 1, 100),
    "genetic": (Genetic(), 1, 100),
    "reinforce": (Reinforce(), 1, 100),
    "gp": (GP(), 10, 100),
    "gp wl": (GP(kernel="wl"), 10, 100),
    "bananas": (Bananas(), 10, 100),
}
PREDICTORS: dict[str, tuple[Predictor, int]] = {
    "ridge": (Ridge(), 100),
    "gp": (GaussianProcess(), 50),
    "gp wl": (GaussianProcess("wl"), 3),
    "mlp": (Ensemble(), 10),
    "mlp paths": (Ensemble(encoding="paths"), 10),
    "boosting": (GradientBoosting(), 5),
}


class Bench:
    """The table, and what is measured on it. Each method is one row."""

    def __init__(self, path: Path, seeds: int | None) -> None:
        self.space = NB201()
        self.table = Table(path, self.space, "arch", self.space.from_string)
        self.seeds = seeds
        self.half = self.table.column("c10_half200")
        self.test = self.table.column("c10_test200")

    def rows(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return what is measured, by name."""
        found: dict[str, Callable[[], dict[str, Any]]] = {}
        for name in STRATEGIES:
            found[f"regret/{name}"] = lambda name=name: self.regret(name)
            found[f"pick/{name}"] = lambda name=name: self.pick(name)
        for name, strategy in (("random", RandomSearch()), ("nsga2", NSGA2())):
            found[f"front/{name}"] = lambda s=strategy: self.front(s)
        for name in PREDICTORS:
            found[f"predictor/{name}"] = lambda name=name: self.predictor(name)
        found["speed/evolution 10000"] = lambda: self.speed(Evolution(), 10_000, 1, "written")
        found["speed/gp 300"] = lambda: self.speed(GP(), 300, 10, "function")
        return found

    def regret(self, name: str) -> dict[str, Any]:
        """Return the mean distance to the best cell, in percent, after so many queries."""
        runs = [self._values(log) for log in self._logs(name, "c10_half200")]
        gaps = max(self.half.values()) - np.maximum.accumulate(runs, axis=1)
        return {str(at): _mean(gaps[:, at - 1]) for at in AT}

    def pick(self, name: str) -> dict[str, Any]:
        """Return the mean test accuracy of the cell with the best validation accuracy."""
        found = []
        for log in self._logs(name, "c10_val12"):
            values = self._values(log)
            picks = [log.candidates[int(np.argmax(values[:at]))].point for at in AT]
            found.append([self.test[self.space.to_json(point)] for point in picks])
        return {str(at): _mean(np.array(found)[:, place]) for place, at in enumerate(AT)}

    def front(self, strategy: Strategy) -> dict[str, Any]:
        """Return which share of the true hypervolume of error and macs was found."""
        macs = self.table.column("macs")
        true = np.array([[100 - self.half[cell], macs[cell]] for cell in self.half])
        whole = hypervolume(true[front(true)], REFERENCE)
        evaluator = Tabular(
            self.table,
            {"accuracy": "c10_half200", "macs": "macs"},
            protocol="compare_strategies",
        )
        shares = []
        for seed in range(self.seeds or 100):
            log = Log(Objectives({"accuracy": "max", "macs": "min"}))
            search(self.space, strategy, evaluator, log, Budget(candidates=200), seed=seed)
            losses = np.array([log.objectives.losses(s.scores) for s in log.usable()])
            losses[:, 0] += 100
            shares.append([hypervolume(losses[:at], REFERENCE) / whole for at in (100, 200)])
        return {
            "whole": whole / (REFERENCE[0] * REFERENCE[1]),
            **{str(at): _mean(np.array(shares)[:, i]) for i, at in enumerate((100, 200))},
        }

    def predictor(self, name: str) -> dict[str, Any]:
        """Return the rank correlations from n random cells to 3,000 others."""
        predictor, draws = PREDICTORS[name]
        points = list(self.space.points())
        values = np.array([self.half[self.space.to_json(point)] for point in points])
        found = {}
        for size in SIZES:
            each = []
            for seed in range(self.seeds or draws):
                order = np.random.default_rng(seed).permutation(len(points))
                rest = order[size : size + 3000]
                known = [points[at] for at in order[:size]]
                predict = predictor.fit(
                    self.space, known, normal_scores(values[order[:size]]), seed
                )
                each.append(correlate(predict([points[at] for at in rest])[0], values[rest]))
            spearman, kendall = np.mean(each, axis=0)
            found[str(size)] = {"spearman": float(spearman), "kendall": float(kendall)}
        return {**found, "draws": self.seeds or draws}

    def speed(
        self, strategy: Strategy, queries: int, at_once: int, distinct: str
    ) -> dict[str, Any]:
        """Return the seconds of one search."""
        space = NB201(distinct=distinct)
        log, evaluator = Log(Objectives({"accuracy": "max"})), self._evaluator("c10_half200")
        begin = time.perf_counter()
        search(space, strategy, evaluator, log, Budget(candidates=queries), at_once=at_once)
        assert len(log.told) == queries
        return {"queries": queries, "seconds": time.perf_counter() - begin}

    def _logs(self, name: str, column: str) -> list[Log]:
        strategy, at_once, seeds = STRATEGIES[name]
        logs = []
        for seed in range(self.seeds or seeds):
            log = Log(Objectives({"accuracy": "max"}))
            budget = Budget(candidates=AT[-1])
            evaluator = self._evaluator(column)
            search(self.space, strategy, evaluator, log, budget, seed=seed, at_once=at_once)
            logs.append(log)
        return logs

    def _evaluator(self, column: str) -> Tabular:
        return Tabular(self.table, {"accuracy": column}, protocol="compare_strategies")

    def _values(self, log: Log) -> np.ndarray:
        assert len(log.usable()) == len(log.candidates)
        return np.array([log.value(scored) for scored in log.usable()])


def _mean(values: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation of a run, and how many runs."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "runs": len(values)}


def table_of(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Searches on the table of NAS-Bench-201",
        "",
        "`make bench-search TABLE=path/to/nasbench201.csv.xz` makes this table. Means over seeds;",
        "in parentheses the standard deviation of a run. A query is one distinct cell.",
    ]
    for kind, title, columns in [
        ("regret", "Regret on c10_half200 (percent; compares strategies, is no accuracy)", AT),
        ("pick", "Search on c10_val12, c10_test200 of the pick (percent)", AT),
        ("front", "Share of the true hypervolume (error on c10_half200, macs)", (100, 200)),
    ]:
        rows = {n.split("/")[1]: r for n, r in results.items() if n.startswith(f"{kind}/")}
        if not rows:
            continue
        lines += ["", f"## {title}", "", f"| queries | {' | '.join(map(str, columns))} | runs |"]
        lines.append("|---" * (len(columns) + 2) + "|")
        for name, row in rows.items():
            cells = [row[str(at)] for at in columns]
            text = " | ".join(f"{cell['mean']:.3f} ({cell['sd']:.2f})" for cell in cells)
            lines.append(f"| {name} | {text} | {cells[0]['runs']} |")
    rows = {n.split("/")[1]: r for n, r in results.items() if n.startswith("predictor/")}
    if rows:
        lines += ["", "## Predictors: Spearman (Kendall) from n random cells to 3,000 others", ""]
        lines += [f"| n | {' | '.join(map(str, SIZES))} | draws |", "|---" * (len(SIZES) + 2) + "|"]
        for name, row in rows.items():
            cells = [row[str(size)] for size in SIZES]
            text = " | ".join(f"{c['spearman']:.2f} ({c['kendall']:.2f})" for c in cells)
            lines.append(f"| {name} | {text} | {row['draws']} |")
    rows = {n.split("/")[1]: r for n, r in results.items() if n.startswith("speed/")}
    if rows:
        lines += [
            "",
            "## Speed, on one core",
            "",
            "| search | queries | seconds |",
            "|---|---|---|",
        ]
        lines += [f"| {n} | {r['queries']:,} | {r['seconds']:.1f} |" for n, r in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure the chosen rows and keep what came out."""
    parser = argparse.ArgumentParser(prog="make bench-search", description=__doc__)
    parser.add_argument("table", type=Path, help="nasbench201.csv.xz, or the folder it is in")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART")
    parser.add_argument("--seeds", type=int, help="instead of each row's own number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "bench")
    given = parser.parse_args()
    path = given.table / "nasbench201.csv.xz" if given.table.is_dir() else given.table
    try:
        bench = Bench(path, given.seeds)
    except UserError as error:
        print(error)
        return 2
    kept = given.out / "search.json"
    rows = bench.rows()
    for name, measure in rows.items():
        if not any(part in name for part in given.only):
            continue
        begin = time.perf_counter()
        found = _rounded(measure())
        results = json.loads(kept.read_text()) if kept.exists() else {}
        results[name] = found
        results = {name: results[name] for name in rows if name in results}
        write_json(kept, results)
        write_text(given.out / "search.md", table_of(results))
        print(f"{name} ({time.perf_counter() - begin:.0f} s): {found}", flush=True)
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())

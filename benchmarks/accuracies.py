"""The table of measured accuracies in docs/results.md, from what runs have said.

    python benchmarks/accuracies.py keep RECIPE RUN [RUN …]    # what runs of one recipe found
    python benchmarks/accuracies.py                            # the table in the page

`keep` adds a few figures of finished runs to bench/accuracies.json: runs of one recipe that differ
in their seed alone are one line of the table. A run that is kept already is kept in its new state.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.commands import command
from sseg_nase.files import read_json, write_json, write_text
from sseg_nase.reporting.provenance import REGIMES, provenance
from sseg_nase.reporting.published import Published, published
from sseg_nase.rundir.config import read_overrides
from sseg_nase.rundir.record import read_run
from sseg_nase.rundir.results import LAST, episode_results
from sseg_nase.rundir.status import FINISHED
from sseg_nase.statistics import mean_t95

ROOT = Path(__file__).resolve().parent.parent
KEPT, PAGE = ROOT / "bench" / "accuracies.json", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- accuracies: begin -->", "<!-- accuracies: end -->"
VIEWS = "views"
SMALL = 1_000_000  # params: what is published of more is another kind of network
LOCAL = ("paths.", "hydra.", "tracking=", "tracking.", "seed=")  # of a command
Entry = dict[str, Any]


def entry_of(recipe: str, folder: Path) -> Entry:
    """What the table says of a run. Raises `SystemExit` for one that has not finished."""
    run = read_run(folder)
    if run.ended != FINISHED:
        raise SystemExit(f"{folder}: only what has finished can be kept; this run is {run.ended}.")
    lists = episode_results(run.results, (LAST, VIEWS))
    if not lists:
        raise SystemExit(f"{folder}: this run has evaluated no episodes.")
    origin, network = provenance(folder, run.results), run.section("architecture")
    evolved = " (evolved)" if run.mutations else ""
    overrides = read_overrides(folder)
    if overrides is None:
        raise SystemExit(f"{folder}: what it was run with is not known: no overrides.yaml.")
    kept = [word for word in overrides if not word.startswith(LOCAL)]
    minutes = sum(run.section("seconds").values()) / 60
    return {
        "recipe": recipe,
        "regime": origin.regime,
        "network": origin.shown + evolved,
        "size": run.setting("dataset.image_size"),
        "command": command(*kept),
        "seed": run.setting("seed"),
        "params": network["params"],
        "macs": network["macs"],
        "training_macs": run.section("training_macs").get("total"),
        "minutes": round(minutes, 1),
        "threads": run.setting("hardware.threads"),
        "results": [
            {
                "list": one.key, "network": one.network, "accuracy": round(one.accuracy, 3),
                "ci95": round(one.ci95 or 0.0, 3), "episodes": one.episodes,
                "method": one.method, "transductive": one.transductive,
            }
            for one in lists
        ],
    }  # fmt: skip


def keep(recipe: str, runs: Sequence[Path], path: Path = KEPT) -> None:
    """Add runs to the file."""
    entries = kept_in(path)
    for run in runs:
        new = entry_of(recipe, run)
        same = ("recipe", "network", "size", "seed", "command")
        entries = [old for old in entries if any(old[key] != new[key] for key in same)]
        entries.append(new)
    entries.sort(key=_order)
    write_json(path, {"runs": entries})


def kept_in(path: Path = KEPT) -> list[Entry]:
    """What is kept so far."""
    found: list[Entry] = (read_json(path) or {}).get("runs", [])
    return found


def _order(entry: Entry) -> tuple[Any, ...]:
    regime = tuple(REGIMES).index(entry["regime"])
    dataset = entry["results"][0]["list"].split("/")[0]
    return dataset, regime, entry["recipe"], entry["network"], entry["size"], entry["seed"]


def table(entries: Sequence[Entry]) -> Iterable[str]:
    """Markdown, a line for every recipe, and one for its mean feature of several views."""
    yield (
        "| images | recipe | network | params | MACs, M | training MACs, T | minutes | "
        "5-way 1-shot | 5-way 5-shot | seeds | published below 1 M params, test classes |"
    )
    yield "|---" * 11 + "|"
    for _, group in groupby(entries, key=lambda entry: _order(entry)[:-1]):
        runs = list(group)
        for network in (LAST, VIEWS):
            of = [{_shots(r): r for r in e["results"] if r["network"] == network} for e in runs]
            if all(of):
                yield _line(runs, of, network)


def _line(runs: Sequence[Entry], of: Sequence[Mapping[str, Any]], network: str) -> str:
    one = runs[0]
    first = next(iter(of[0].values()))
    dataset, split, _ = first["list"].split("/")
    views = network == VIEWS
    training = [entry["training_macs"] or 0 for entry in runs]
    cells = [
        f"{dataset} {split}, {one['size']} px, {REGIMES[one['regime']]}",
        one["recipe"] + (", mean of views" if views else ""),
        one["network"],
        f"{one['params']:,}",
        f"{one['macs'] / 1e6:.1f}" + (" a view" if views else ""),
        f"{np.mean(training) / 1e12:.1f}",
        f"{np.mean([entry['minutes'] for entry in runs]):.1f}",
        *(_accuracy([lists.get(shots) for lists in of]) for shots in ("1", "5")),
        f"{', '.join(str(entry['seed']) for entry in runs)}; {first['episodes']:,} episodes",
        _published(dataset, one["regime"]),
    ]
    return f"| {' | '.join(cells)} |"


def _shots(result: Mapping[str, Any]) -> str:
    """`cifar_fs/val/5w1s` → 1."""
    return str(result["list"].rsplit("w", 1)[1].removesuffix("s"))


def _accuracy(results: Sequence[Mapping[str, Any] | None]) -> str:
    """Of one run with its interval over episodes, of several with Student's over seeds."""
    found = [one for one in results if one is not None]
    if len(found) < len(results):
        return ""
    if len(found) == 1:
        return f"{found[0]['accuracy']:.2f} ± {found[0]['ci95']:.2f} %"
    mean, spread = mean_t95(np.array([one["accuracy"] for one in found]))
    return f"{mean:.2f} ± {spread:.2f} %"


def _published(dataset: str, regime: str) -> str:
    """The best of a small network on the same kind of images."""

    def fits(one: Published) -> bool:
        small = one.params is not None and one.params < SMALL
        return small and not one.transductive and (one.dataset, one.regime) == (dataset, regime)

    best = max(filter(fits, published()), key=lambda one: one.accuracy.get(5, 0.0), default=None)
    if best is None:
        return ""
    shots = " / ".join(f"{best.accuracy[k]:g}" for k in (1, 5) if k in best.accuracy)
    return f"{best.method}, {best.backbone_name}: {shots}"


def write_table(kept: Path = KEPT, page: Path = PAGE) -> None:
    """Put the table of `kept` between its marks in `page`."""
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    lines = "\n".join(table(kept_in(kept)))
    write_text(page, f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help="keep RECIPE RUN [RUN …]; nothing: the table")
    given = parser.parse_args(arguments).what
    if given:
        if given[0] != "keep" or len(given) < 3:
            parser.error("keep RECIPE RUN [RUN …], or nothing")
        keep(given[1], [Path(run) for run in given[2:]])
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

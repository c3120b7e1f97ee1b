"""What pruning buys: `python benchmarks/pruning.py DATA OUT`, with CIFAR-FS in DATA.

A network that grew and was pruned stands beside one that grew as far with fewer channels from the
start, as many as give it the same measured latency: A6 beside A3, and A7 beside A7 without pruning
(A4 and A5 together). Every PRUNE is kept that costs no more than `--tolerance` of the held loss.
Both are evaluated on the same episodes of val, last network. Latencies are those of a forward pass
of one image in one thread, of the two networks in turn. The table is OUT/pruning.md; what it was
made of is written to `--results FILE`.

A run that was stopped is resumed by the same command.
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
import torch

from benchmarks.runs import perform
from sseg_nase.config.compose import load
from sseg_nase.files import read_json, write_json, write_text
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.hardware.profiles import cores
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, configured, described
from sseg_nase.nets.description import Description
from sseg_nase.rundir.architecture import read_architecture
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.record import read_run
from sseg_nase.rundir.results import LAST
from sseg_nase.statistics import crossed_difference, holm, mean_t95

RIVALS: Mapping[str, tuple[str, ...]] = {  # of every ablation that prunes: what grew without that
    "A6": ("ablation=A3",),
    "A7": ("ablation=A7", "sparsity=none"),
}
NAMES = {"A6": "A3", "A7": "A4 and A5"}
CHANNELS = (16, 40, 80, 160)  # of backbone=seed_wide
GROWN = "backbone.blocks_per_stage=3"  # what evolution=balanced makes of one block
STEPS = 40  # widths are so many-ths of CHANNELS
RESOLUTION = 32
KEYS = ("cifar_fs/val/5w1s", "cifar_fs/val/5w5s")
BATCHES = (1, 64)  # whose latency is made equal, and is told
ROUNDS, PASSES, WARM = 9, 30, 10


class Settings(NamedTuple):
    """Of everything that is run."""

    data: Path
    out: Path
    tolerance: float
    overrides: tuple[str, ...]
    parallel: int

    def lines(self, folder: str, seed: int, *more: str) -> list[str]:
        """The command line of a run whose output is in `folder` of OUT."""
        return [
            "experiment=cifar_fs_32", "tracking=jsonl", f"paths.data_dir='{self.data}'",
            f"paths.output_dir='{self.out / folder}'", "report.at_end=false",
            f"hardware.threads={max(1, cores() // self.parallel)}", f"seed={seed}",
            *self.overrides, *more,
        ]  # fmt: skip


# -- networks and how fast they are ------------------------------------------------------------


def network(description: Description) -> Backbone:
    """As it is used after training; its weights do not matter here."""
    return build(description, generator=torch.Generator().manual_seed(0)).for_inference()


def of_run(run: Path) -> Description:
    """The last network of a run."""
    return described(read_architecture(run))


def channels(width: int) -> str:
    """`width` / STEPS of the channels, as an override."""
    counts = (max(1, round(count * width / STEPS)) for count in CHANNELS)
    return f"backbone.channels=[{','.join(map(str, counts))}]"


def grown(width: int, settings: Settings) -> Description:
    """The network that grows without pruning."""
    config = load(settings.lines("", 0, channels(width), GROWN, "evolution=none"))
    return configured(config.backbone, RESOLUTION)


def ratio(one: Backbone, other: Backbone, batch: int = BATCHES[0]) -> float:
    """How many times as long `one` takes as `other`: the median over rounds, taken in turn."""

    def taken(each: Backbone) -> float:
        found = latency_ms(each, RESOLUTION, batch, repeats=PASSES, warmup=WARM, device="cpu")
        assert found is not None
        return found

    return float(np.median([taken(one) / taken(other) for _ in range(ROUNDS)]))


def as_fast(pruned: Description, settings: Settings) -> int:
    """The width whose latency comes nearest to that of `pruned`, found by halving."""
    wanted = network(pruned)

    def slower(width: int) -> float:
        return ratio(network(grown(width, settings)), wanted)

    first = bisect_left(range(1, STEPS), 1.0, key=slower) + 1  # the narrowest that is not faster
    return min((max(1, first - 1), first), key=lambda width: abs(slower(width) - 1))


# -- runs --------------------------------------------------------------------------------------


def pruned(ablation: str, seed: int, settings: Settings) -> Path:
    """A run that prunes. Raises `SystemExit` where its PRUNE was rolled back."""
    kept = f"sparsity.rollback_tolerance={settings.tolerance:g}"
    more = (f"ablation={ablation}", "sparsity.probation=tolerance", kept)
    folder = f"{ablation}-{seed}"
    run = perform(settings.out / folder, settings.lines(folder, seed, *more))
    if of_run(run).params >= grown(STEPS, settings).params:
        raise SystemExit(
            f"{run}: no PRUNE was kept with --tolerance {settings.tolerance:g}: give more."
        )
    return run


def unpruned(ablation: str, seed: int, width: int, settings: Settings) -> Path:
    """A run of that width. Raises `SystemExit` where it has not grown as far as was reckoned."""
    folder = f"{ablation}-as-fast-{seed}"
    lines = settings.lines(folder, seed, *RIVALS[ablation], channels(width))
    run = perform(settings.out / folder, lines)
    if (found := of_run(run).params) != (params := grown(width, settings).params):
        raise SystemExit(f"{run}: it has {found:,} params, and {params:,} were reckoned with.")
    return run


def width_of(run: Path, settings: Settings) -> int:
    """The width that is as fast as the network of a run, measured once."""
    file = settings.out / "widths.json"
    known = read_json(file) or {}
    if run.name not in known:
        known[run.name] = as_fast(of_run(run), settings)
        write_json(file, known)
    return int(known[run.name])


# -- the table ---------------------------------------------------------------------------------


def figures(run: Path) -> dict[str, Any]:
    """What is kept of a run."""
    record, episodes = read_run(run), read_episodes(run)[LAST]
    architecture = of_run(run)
    return {
        "params": architecture.params,
        "macs": architecture.macs(RESOLUTION),
        "channels": list(architecture.channels),
        "training_macs": record.section("training_macs")["total"],
        "minutes": round(sum(record.section("seconds").values()) / 60, 2),
        "accuracy": [round(float(episodes[key].mean()), 3) for key in KEYS],
    }


def pair_of(asked: tuple[str, int], width: int, *runs: Path) -> dict[str, Any]:
    """A run that pruned beside one that did not, with how many times as long the first takes."""
    networks = [network(of_run(run)) for run in runs]
    return {
        "ablation": asked[0],
        "seed": asked[1],
        "channels": channels(width),
        "figures": [figures(run) for run in runs],
        "ratios": {batch: round(ratio(*networks, batch), 3) for batch in BATCHES},
        "runs": runs,
    }


def differences(pairs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Accuracy of the pruned minus that of the other, in percent, `[seeds, episodes]`."""
    of = [[read_episodes(run)[LAST][key] for run in pair["runs"]] for pair in pairs]
    return np.array([one - other for one, other in of])


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[str]:
    """Markdown: means with 95 % intervals over seeds; differences over seeds and episodes (Holm).

    `rows`: by ablation, the pairs of its seeds.
    """
    yield (
        "| | params | macs, M | latency, of one image | of 64 | training, T macs | minutes | "
        "1-shot | 5-shot | pruned minus it, 1-shot | 5-shot |"
    )
    yield "|---" * 11 + "|"
    tests = {
        (name, key): crossed_difference(differences(pairs, key))
        for name, pairs in rows.items()
        for key in KEYS
    }
    p_values = holm(np.array([test.p_value for test in tests.values()]))
    adjusted = dict(zip(tests, p_values, strict=True))
    for name, pairs in rows.items():
        for place, said in enumerate((f"{name}, pruned", f"{NAMES[name]}, as fast")):
            of = [pair["figures"][place] for pair in pairs]
            ratios = [[1, 1] if place else [*pair["ratios"].values()] for pair in pairs]
            cells = [
                said, f"{_mean(of, 'params'):,.0f}", f"{_mean(of, 'macs') / 1e6:.1f}",
                *(f"{value:.2f}" for value in np.mean(ratios, axis=0)),
                f"{_mean(of, 'training_macs') / 1e12:.1f}", f"{_mean(of, 'minutes'):.1f}",
            ]  # fmt: skip
            for shots in range(len(KEYS)):
                mean, spread = mean_t95(np.array([one["accuracy"][shots] for one in of]))
                cells.append(f"{mean:.2f} ± {spread:.2f}")
            for key in KEYS:
                test = tests[name, key]
                minus = f"{test.mean:+.2f} ± {test.ci95:.2f} (p {adjusted[name, key]:.3f})"
                cells.append(minus if place else "")
            yield f"| {' | '.join(cells)} |"


def _mean(of: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([one[name] for one in of]))


def main(arguments: Sequence[str]) -> int:
    """Run what has not been run, and write OUT/pruning.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that has cifar_fs")
    parser.add_argument("out", type=Path, help="the folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--ablations", nargs="+", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the held loss (0.1)")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time (2)")
    parser.add_argument("--results", type=Path, help="a file of all results (OUT/pruning.json)")
    parser.add_argument("--also", nargs="*", default=(), help="overrides of everything")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    settings = Settings(
        given.data.resolve(), out, given.tolerance, tuple(given.also), given.parallel
    )
    torch.set_num_threads(1)
    asked = [(name, seed) for name in given.ablations for seed in given.seeds]
    with ThreadPoolExecutor(given.parallel) as pool:
        runs = list(pool.map(lambda one: pruned(*one, settings), asked))
    # Latencies are measured while nothing is trained.
    widths = [width_of(run, settings) for run in runs]
    with ThreadPoolExecutor(given.parallel) as pool:
        jobs = [(*one, to, settings) for one, to in zip(asked, widths, strict=True)]
        rivals = list(pool.map(lambda job: unpruned(*job), jobs))
    pairs = [pair_of(*one) for one in zip(asked, widths, runs, rivals, strict=True)]
    rows = {name: [one for one in pairs if one["ablation"] == name] for name in given.ablations}
    lines = list(table(rows))
    write_text(out / "pruning.md", "\n".join(lines) + "\n")
    kept = [{k: v for k, v in pair.items() if k != "runs"} for pair in pairs]
    told = {"tolerance": settings.tolerance, "overrides": list(settings.overrides), "pairs": kept}
    write_json(given.results or out / "pruning.json", told)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Training steps of two commits in turn: `python benchmarks/commits.py OLD NEW`.

Every run is a process of its own that trains one epoch to warm up and measures the next; old and
new take turns, and what is compared is medians. The code of a commit is laid out in a temporary
folder (`git archive`). Peak memory is the process's largest resident memory in MiB. `--cpu` takes
the processor's time for the clock's: on a busy machine, with OMP_NUM_THREADS=1, it says more.
On two cores the whole table takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NETWORKS, SIZES = ("evolvable", "conv4", "resnet12_quarter"), (32, 84)
# Both commits must have the suite, whose package was `tests.bench` before: 69a87777 or later. What
# is installed has packages of these names, too: the folder's own come first, and are checked.
RUN = """
import importlib, json, os, sys, time, types
suite = "benchmarks.suite" if os.path.isdir("benchmarks/suite") else "tests.bench"
top = suite.partition(".")[0]
sys.modules[top] = types.ModuleType(top)
sys.modules[top].__path__ = [os.path.join(os.getcwd(), top)]
child = importlib.import_module(f"{suite}.child")
child.begin_as_program()
pretraining = importlib.import_module(f"{suite}.pretraining")
import sseg_nase
for module in (pretraining, sseg_nase):
    assert module.__file__.startswith(os.getcwd() + os.sep), module.__file__
epochs, trainer, peak_mb = pretraining.epochs, pretraining.trainer, child.peak_mb
network, size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
work = epochs(trainer(size, steps, f"backbone={network}"), steps)
work()
wall, cpu = time.perf_counter(), time.process_time()
work()
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall": wall / steps, "cpu": cpu / steps, "peak_mb": peak_mb(0.0)}))
"""


class Run(NamedTuple):
    """Seconds a step and MiB at most."""

    wall: float
    cpu: float
    peak_mb: float


def lay_out(commit: str, folder: Path) -> None:
    """Write the files of `commit` to `folder`."""
    folder.mkdir()
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)


def run(folder: Path, network: str, size: int, steps: int) -> Run:
    """One process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, network, str(size), str(steps)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def row(network: str, size: int, runs: Sequence[tuple[Run, Run]], *, cpu: bool) -> str:
    """A line of the table from pairs of runs, old and new. The ratio is the pairs' median."""
    pairs = [tuple(one.cpu if cpu else one.wall for one in pair) for pair in runs]
    old, new = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(before / after for before, after in pairs)
    memory = [max(one.peak_mb for one in side) for side in zip(*runs, strict=True)]
    return (
        f"| {network} | {size} px | {old:.1f} | {new:.1f} | {statistics.median(ratios):.2f} × "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {memory[0]:.0f} | {memory[1]:.0f} |"
    )


def main(arguments: Sequence[str]) -> int:
    """Print the table line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="a commit (HEAD)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of conf/backbone")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="pixels")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--steps", type=int, default=4, help="per epoch, of 256 images (4)")
    parser.add_argument("--cpu", action="store_true", help="the processor's time")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        commits = [Path(folder) / "old", Path(folder) / "new"]
        for commit, place in zip((given.old, given.new), commits, strict=True):
            lay_out(commit, place)
        unit = "ms of the processor" if given.cpu else "ms"
        print(f"| network | size | {unit} a step: old | new | old / new | peak MB: old | new |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for size in given.sizes:
            for network in given.networks:
                runs = []
                for number in range(given.rounds):
                    turn = {place: Run(0, 0, 0) for place in commits}
                    for place in commits if number % 2 else commits[::-1]:
                        turn[place] = run(place, network, size, given.steps)
                    runs.append((turn[commits[0]], turn[commits[1]]))
                print(row(network, size, runs, cpu=given.cpu), flush=True)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

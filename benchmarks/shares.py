"""What of a training step batch norm, activation and pooling take: `python benchmarks/shares.py`.

Steps with them fused and one after the other (torch's batch norm, our pooling) are trained in turn
in one process. The last column is the ratio that would come out if the fused operation took no time
at all: no better kernel can reach more. Times are the processor's, of one thread: other programs on
the machine hardly change them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.update(OMP_NUM_THREADS="1", KINETO_LOG_LEVEL="5")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
NETWORKS, SIZES = ("evolvable", "conv4", "resnet12_quarter"), (32, 84)
CONVOLUTIONS = (
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "aten::_slow_conv2d_forward",
)


class Shares(NamedTuple):
    """Milliseconds of the processor a step; `convolutions`: share of the fused step."""

    fused: float
    in_turn: float
    own: float
    convolutions: float

    def row(self, network: str, size: int) -> str:
        """A line of the table."""
        return (
            f"| {network} | {size} px | {self.fused:.1f} | {self.in_turn:.1f} | "
            f"{self.in_turn / self.fused:.2f} × | {self.own / self.fused:.0%} | "
            f"{self.convolutions:.0%} | {self.in_turn / (self.fused - self.own):.2f} × |"
        )


def shares(network: str, size: int, steps: int, rounds: int) -> Shares:
    """Medians over `rounds` epochs of each."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.suite.pretraining import epochs, trainer
    from sseg_nase.nets import fused

    work = epochs(trainer(size, steps, f"backbone={network}"), steps)
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[0] += time.thread_time() - before

        return wrapped

    def epoch() -> float:
        before = time.process_time()
        work()
        return 1000 * (time.process_time() - before) / steps

    def never(*_: object) -> bool:
        return False

    def in_turn() -> float:
        with mock.patch.object(fused, "_fits", never):
            return epoch()

    def own() -> float:
        spent[0] = 0.0
        with (
            mock.patch.object(fused, "_planned", timed(fused._planned)),
            mock.patch.object(fused, "_forward", timed(fused._forward)),
            mock.patch.object(fused._Fused, "backward", timed(fused._Fused.backward)),
        ):
            work()
        return 1000 * spent[0] / steps

    found = [(epoch(), in_turn(), own()) for _ in range(rounds + 1)][1:]  # the first warms up
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    events = profiled.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    convolved = sum(event.self_cpu_time_total for event in events if event.key in CONVOLUTIONS)
    medians = [statistics.median(one) for one in zip(*found, strict=True)]
    return Shares(*medians, convolved / whole)


def main(arguments: Sequence[str]) -> int:
    """Print the table line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of conf/backbone")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="pixels")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each (7)")
    parser.add_argument("--steps", type=int, default=3, help="per epoch, of 256 images (3)")
    given = parser.parse_args(arguments)
    from benchmarks.suite.child import begin_as_program

    begin_as_program()
    print(
        "| network | size | fused, ms | in turn, ms | ratio | fused operation | convolutions |",
        end="",
    )
    print(" ratio at most |\n| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for size in given.sizes:
        for network in given.networks:
            found = shares(network, size, given.steps, given.rounds)
            print(found.row(network, size), flush=True)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

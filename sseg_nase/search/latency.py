"""Latency of networks that are not built: of each operation, summed, and calibrated on whole ones.

A sum of operations misses what starts, fuses and moves data between them. Slope and offset are
therefore fitted on whole networks of the space, and the error of the result is part of the table.
A table holds for one device, number of threads, batch and image size, and for nothing else.
Tables of other devices are read from a csv, such as that of NAS-Bench-201, which has six.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from sseg_nase.errors import UserError, shown
from sseg_nase.files import read_json, write_json
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets import ops
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.plan import IMAGE
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.provenance.environment import describe_environment
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space

VERSION = 1
BURSTS = 3  # of whole networks that are measured before they are chosen
NETWORKS = 20  # whole ones that slope and offset are fitted on, at least
REPEATS, WARMUP = 50, 5  # the median counts
LATENCY = "latency_ms"

Describe = Callable[[Point], Description]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What a latency was measured on and with. `versions` are stored and not compared."""

    device: str
    threads: int
    batch: int
    resolution: int
    in_channels: int
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)


def this_machine(
    resolution: int, in_channels: int = 3, *, batch: int = 1, threads: int | None = None
) -> Setting:
    """Return the setting of this machine's CPU; `threads`: those of torch where None."""
    known = describe_environment()
    return Setting(
        str(known["processor"]),
        threads or torch.get_num_threads(),
        batch,
        resolution,
        in_channels,
        {"python": known["python"], **known["packages"]},
    )


@dataclass
class LatencyTable:
    """Milliseconds per operation, and how their sum becomes that of a network.

    `networks`: sum and measured milliseconds of the whole networks of the fit. `error`: of each
    from a fit to the others, the mean of the absolute errors in percent; `rank`: Spearman's
    correlation of these predictions with what was measured.
    """

    setting: Setting
    operations: dict[str, float] = field(default_factory=dict)
    slope: float = 1.0
    offset: float = 0.0
    networks: list[tuple[float, float]] = field(default_factory=list)
    error: float = float("nan")
    rank: float = float("nan")
    measured: str = ""
    path: Path | None = None
    wholes: dict[str, float] = field(default_factory=dict)  # by `_name_of` a network, in ms

    def predict(self, description: Description) -> float:
        """Return the milliseconds of a network, which is not built.

        An operation that is not known is measured, and written down where the table has a file.
        """
        return max(0.0, self.offset + self.slope * self.total(description))

    def whole(self, description: Description) -> float:
        """Return the milliseconds of a network that is built and measured, once for this table.

        The least of three medians: what else the machine does can only make it slower.
        """
        name = _name_of(description)
        if name not in self.wholes:
            module = build(description, generator=torch.Generator())  # draws nothing of others
            times = [self._time(module, self.setting.resolution) for _ in range(BURSTS)]
            self.wholes[name] = min(times)
            if self.path is not None:
                self.save(self.path)
        return self.wholes[name]

    def total(self, description: Description) -> float:
        """Return the sum over the operations, in milliseconds."""
        total, new = 0.0, False
        for key, channels, side, make in operations_of(description):
            if key not in self.operations:
                self.operations[key] = self._time(make(), side, channels)
                new = True
            total += self.operations[key]
        if new and self.path is not None:
            self.save(self.path)
        return total

    def calibrate(self, space: Space, describe: Describe, seed: int = 0) -> None:
        """Measure whole networks of the space, and fit slope and offset with relative errors.

        Raises `UserError` where the space has fewer than `NETWORKS` networks.
        """
        rng = Random(seed)
        found: dict[str, Any] = {}
        for _ in range(50 * NETWORKS):
            point = space.sample(rng)
            found.setdefault(space.key(point), point)
            if len(found) == NETWORKS:
                break
        if len(found) < NETWORKS:
            raise UserError(
                f"Space {space.name} has {len(found)} networks; {NETWORKS} are needed to calibrate "
                "a table of latencies. Use the measured latency_ms_b1 as the goal instead."
            )
        self.networks = []
        for point in found.values():
            description = describe(point)
            whole = self._time(build(description), self.setting.resolution)
            self.networks.append((self.total(description), whole))
        self._fit()

    def check(self, now: Setting) -> None:
        """Raise `UserError` where the table is of another device, or of other images."""
        if self.setting == now:
            return
        there, here = dict(vars(self.setting)), dict(vars(now))
        other = ", ".join(
            f"{name} {there[name]!r} and not {here[name]!r}"
            for name in there
            if name != "versions" and there[name] != here[name]
        )
        where = "" if self.path is None else f" in {shown(self.path)}"
        raise UserError(
            f"The table of latencies{where} was measured with {other}: it says nothing here. "
            "Name a new file, which is then measured on this machine."
        )

    @property
    def said(self) -> str:
        """Return a sentence on how good the table is."""
        return (
            f"latency = {self.offset:.3g} ms + {self.slope:.3g} × the sum of the operations; on "
            f"{len(self.networks)} whole networks, each predicted from the others, the error is "
            f"{self.error:.1f} % and the rank correlation {self.rank:.2f}"
        )

    # On disk.

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        plain = asdict(self) | {"version": VERSION}
        del plain["path"]
        write_json(path, plain)

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Return what `save` wrote. Raises `UserError`."""
        told = read_json(path)
        try:
            if not told or told.pop("version") != VERSION:
                raise ValueError
            told["setting"] = Setting(**told["setting"])
            told["networks"] = [(float(a), float(b)) for a, b in told["networks"]]
            return cls(**told, path=path)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"{shown(path)} is no table of latencies of version {VERSION}. Name another file; "
                "one that is not there is measured."
            ) from error

    # Within.

    def _time(self, module: nn.Module, side: int, channels: int | None = None) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(self.setting.threads)
        try:
            found = latency_ms(
                module.to(memory_format=torch.channels_last),
                side,
                self.setting.batch,
                repeats=REPEATS,
                warmup=WARMUP,
                device="cpu",
                in_channels=channels or self.setting.in_channels,
            )
        finally:
            torch.set_num_threads(before)
        return found or 0.0

    def _fit(self) -> None:
        totals, wholes = np.array(self.networks).T
        predicted = np.empty_like(wholes)
        for left_out in range(len(wholes)):
            kept = np.arange(len(wholes)) != left_out
            slope, offset = fitted(totals[kept], wholes[kept])
            predicted[left_out] = offset + slope * totals[left_out]
        self.slope, self.offset = fitted(totals, wholes)
        self.error = float(100 * np.mean(np.abs(predicted / wholes - 1)))
        ranks = [values.argsort().argsort() for values in (predicted, wholes)]
        self.rank = float(np.corrcoef(*ranks)[0, 1])
        self.measured = time.strftime("%Y-%m-%d")


def fitted(totals: np.ndarray, wholes: np.ndarray) -> tuple[float, float]:
    """Return slope and offset with the least squared relative errors of `wholes`, all above 0."""
    rows = np.stack([totals, np.ones_like(totals)], 1) / wholes[:, None]
    slope, offset = np.linalg.lstsq(rows, np.ones_like(wholes), rcond=None)[0]
    return float(slope), float(offset)


def measured_table(
    path: Path, space: Space, describe: Describe, now: Setting, say: Say = lambda text: None
) -> LatencyTable:
    """Return the table in a file, measured on this machine where there is none yet.

    Raises `UserError` for a table of another device, number of threads or image size.
    """
    if path.exists():
        table = LatencyTable.load(path)
        table.check(now)
        return table
    say(f"measuring latencies for {shown(path)}: operations, and {NETWORKS} whole networks")
    table = LatencyTable(now)
    table.calibrate(space, describe)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    table.path = path
    say(table.said)
    return table


def _name_of(description: Description) -> str:
    text = json.dumps(description.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def operations_of(
    description: Description,
) -> Iterator[tuple[str, int, int, Callable[[], nn.Module]]]:
    """Yield the operations of a network: key, channels and side of what each reads, how to make it.

    Raises `UserError` for a network that is none of operations or blocks one after the other.
    """
    if isinstance(description, Architecture):
        yield from _of_chain(description)
    elif isinstance(description, SearchedArchitecture):
        yield from _of_searched(description)
    else:
        raise UserError(
            f"A network of kind {type(description).__name__} has no operations to add up: a table "
            "of latencies is for chains and for the networks of a search space."
        )


def _of_searched(
    description: SearchedArchitecture,
) -> Iterator[tuple[str, int, int, Callable[[], nn.Module]]]:
    shapes = description.shapes()
    image = (description.in_channels, description.resolution)
    for node in description.nodes:
        read = [image if at == IMAGE else tuple(shapes[at]) for at in node.inputs]
        inside = sum(c for c, _ in read) if node.join == "concat" else read[0][0]
        side, options = read[0][1], dict(node.options)
        key = f"{node.op} {inside}>{node.channels} /{node.stride} @{side} {json.dumps(options)}"

        def make(op: str = node.op, given: Any = (inside, node.channels, node.stride, options)):  # type: ignore[no-untyped-def]
            return ops.build_operation(op, *given)

        yield key, inside, side, make


def _of_chain(
    description: Architecture,
) -> Iterator[tuple[str, int, int, Callable[[], nn.Module]]]:
    common = (description.kernel_size, description.activation, description.batch_norm)
    widths, sides = description.widths, description.sides()
    for at, block in enumerate(description.blocks):
        how = f"{block.pool:d}{block.residual:d}{block.routed:d}"
        key = f"block {widths[at]}>{widths[at + 1]} @{sides[at]} {how} {common}"
        yield key, widths[at], sides[at], lambda at=at: build(description).stages()[at]  # type: ignore[misc]


def csv_latencies(
    path: Path, space: Space, column: str, *, id_column: str = "arch", form: str = "string"
) -> Callable[[Point], float]:
    """Return the latency of a point from the column of a csv, plain or .xz.

    `id_column` names the points in `form`, an encoding of the space. What the table does not have
    is as slow as can be, so that no cap lets it pass. Raises `UserError`.
    """
    from sseg_nase.search.evaluators.tabular import Table, refuse_test

    refuse_test(column, "validation")
    known = Table(path, space, id_column, space.encoding(form).decode).column(column)

    return lambda point: known.get(space.to_json(point), math.inf)


class Timed:
    """What a space becomes that counts `latency_ms` among its costs: see `timed`."""

    def latency_of(self, point: Point) -> float:
        """Return the milliseconds that the table tells."""
        raise NotImplementedError

    def measured_of(self, point: Point) -> float | None:
        """Return the milliseconds of the network itself, here; None for another device's table."""
        raise NotImplementedError


def timed(
    space: Space,
    latency: Callable[[Point], float],
    measured: Callable[[Point], float] | None = None,
) -> Space:
    """Return the space with `latency_ms` among its costs, so that it can be capped.

    It is of the class of `space`, too, and has all its methods. `measured`: of a network itself.
    """
    kind: Any = type(space)
    told = latency

    @dataclass(frozen=True)
    class TimedSpace(kind, Timed):  # type: ignore[misc]  # of the space that it is given
        latency: Callable[[Point], float] = field(default=told, compare=False)

        def costs(self, point: Point) -> Mapping[str, float]:
            """Return what the space counts, and the latency."""
            return {**super().costs(point), LATENCY: self.latency_of(point)}

        def latency_of(self, point: Point) -> float:
            """Return the milliseconds that the table tells."""
            return self.latency(point)

        def measured_of(self, point: Point) -> float | None:
            """Return the milliseconds of the network itself, here."""
            return None if measured is None else measured(point)

    given = {each.name: getattr(space, each.name) for each in fields(kind) if each.init}
    made: Space = TimedSpace(**given, latency=latency)
    return made

"""Tables of latencies: of operations, calibrated on whole networks, true to one device."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sseg_nase.errors import UserError
from sseg_nase.search import latency
from sseg_nase.search.latency import (
    LatencyTable,
    Setting,
    csv_latencies,
    fitted,
    measured_table,
    operations_of,
    this_machine,
    timed,
)
from sseg_nase.spaces import NB201, Chain, Tiny, choices_space

HERE = Setting("a processor", 1, 1, 16, 3, {"torch": "2"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """In place of a clock: an operation takes what it weighs, a network twice that and 3 ms."""
    asked: list[tuple[int, int]] = []

    def time(
        self: LatencyTable, module: nn.Module, side: int, channels: int | None = None
    ) -> float:
        asked.append((side, channels or 0))
        weight = sum(p.numel() for p in module.parameters()) / 1000 + 0.01
        whole = hasattr(module, "architecture")
        parts = len(list(module.stages())) if whole else 0  # type: ignore[operator]
        return 2 * (weight - 0.01 + 0.01 * parts) + 3 if whole else weight

    monkeypatch.setattr(LatencyTable, "_time", time)
    return asked


def test_slope_and_offset_are_those_of_whole_networks(tmp_path: Path, clock: list) -> None:
    space, said = Chain(resolution=16), list[str]()
    table = measured_table(tmp_path / "a" / "t.json", space, space.describe, HERE, said.append)
    assert (table.slope, table.offset) == (pytest.approx(2), pytest.approx(3))
    assert len(table.networks) == latency.NETWORKS >= 20
    assert table.error < 1e-6
    assert table.rank == pytest.approx(1)
    assert "20 whole networks, each predicted from the others, the error is 0.0 %" in said[-1]
    point = {**next(space.points())}
    assert table.predict(space.describe(point)) > 3
    measured = len(clock)
    again = measured_table(tmp_path / "a" / "t.json", space, space.describe, HERE)
    assert again == table  # read and not measured once more
    assert again.predict(space.describe(point)) == table.predict(space.describe(point))
    assert len(clock) == measured


def test_the_error_is_that_of_networks_left_out() -> None:
    rng = np.random.default_rng(0)
    totals = np.linspace(1, 9, 24)
    wholes = 2 * totals + 1 + rng.normal(0, 0.5, 24)
    table = LatencyTable(HERE, networks=list(zip(totals, wholes, strict=True)))
    table._fit()
    slope, offset = fitted(totals, wholes)
    inside = 100 * np.mean(np.abs((offset + slope * totals) / wholes - 1))
    assert inside < table.error < 3 * inside


@pytest.mark.parametrize(
    ("field", "value"),
    [("device", "another"), ("threads", 2), ("batch", 64), ("resolution", 32), ("in_channels", 1)],
)
def test_a_table_of_another_device_or_resolution_is_refused(
    field: str, value: object, tmp_path: Path, clock: list
) -> None:
    space, path = Chain(resolution=16), tmp_path / "t.json"
    measured_table(path, space, space.describe, HERE)
    other = dataclasses.replace(HERE, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"was measured with {field} .* and not .*Name a new file"):
        measured_table(path, space, space.describe, other)
    newer = dataclasses.replace(HERE, versions={"torch": "3"})  # stored, and no other device
    assert measured_table(path, space, space.describe, newer).setting.versions == {"torch": "2"}


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match="is no table of latencies of version 1"):
        LatencyTable.load(tmp_path / "t.json")


def test_operations_are_those_of_the_network_and_are_measured_once(
    tmp_path: Path, clock: list
) -> None:
    space = Tiny(cells=2, resolution=16)
    description = space.describe(next(space.points()))
    found = list(operations_of(description))
    assert len(found) == len(description.nodes)  # type: ignore[attr-defined]
    total = sum(sum(p.numel() for p in make().parameters()) for _, _, _, make in found)
    assert total == description.params
    table = LatencyTable(HERE, path=tmp_path / "t.json")
    table.total(description)
    assert len(clock) == len({key for key, *_ in found}) < len(found)
    table.total(description)
    assert len(clock) == len(LatencyTable.load(tmp_path / "t.json").operations)
    chain = Chain(resolution=16)
    blocks = chain.describe(next(chain.points()))
    sides = [side for _, _, side, _ in operations_of(blocks)]
    assert sides[0] == 16
    assert len(sides) == len(blocks.channels)


def test_a_network_is_measured_once_and_takes_the_least_of_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, path = Tiny(cells=2, resolution=16), tmp_path / "t.json"
    one, other = (space.describe(point) for point in itertools.islice(space.points(), 2))
    times = iter([3.0, 2.0, 4.0, 9.0, 8.0, 8.5])
    monkeypatch.setattr(LatencyTable, "_time", lambda *_: next(times))
    table, before = LatencyTable(HERE, path=path), torch.get_rng_state()
    assert [table.whole(each) for each in (one, one, other)] == [2.0, 2.0, 8.0]
    assert torch.equal(torch.get_rng_state(), before)  # what is trained meanwhile stays the same
    assert LatencyTable.load(path).whole(one) == 2.0
    assert not list(times)
    assert "wholes" in path.read_text()


def test_too_few_networks_do_not_calibrate(clock: list) -> None:
    space = Chain(most=1, widths=(4, 8), resolution=16)
    with pytest.raises(UserError, match=r"20 are needed to calibrate"):
        LatencyTable(HERE).calibrate(space, space.describe)


def test_a_real_clock_tells_a_large_network_from_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "REPEATS", 5)
    # Far apart: on some processors 64 channels take no longer than 4.
    space = Chain(widths=(4, 1024), resolution=16)
    table = LatencyTable(this_machine(16, threads=1))
    small, large = (
        {c.name: c.few(2)[0] for c in space.choices} | {"depth": 1, "0.width": width}
        for width in (4, 1024)
    )
    assert table.total(space.describe(large)) > table.total(space.describe(small)) > 0
    assert table.setting.versions["torch"]


def test_latency_is_a_cost_that_can_be_capped() -> None:
    plain = NB201()
    space = timed(plain, lambda point: 1.0 + list(point.values()).count("nor_conv_3x3"))
    assert isinstance(space, NB201)
    capped = space.under({"latency_ms": 2.0, "params": 900_000})
    points = list(capped.points())
    assert 0 < len(points) < 15_625
    assert max(list(p.values()).count("nor_conv_3x3") for p in points) == 1
    assert capped.key(points[0]) == plain.key(points[0])
    assert capped.measured_of(points[0]) is None  # type: ignore[attr-defined]
    told = timed(plain, lambda point: 1.0, lambda point: 7.0).under({"latency_ms": 2.0})
    assert told.measured_of(points[0]) == 7.0  # type: ignore[attr-defined]
    assert space.text == plain.text  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="the smallest has latency_ms = 1 "):
        space.under({"latency_ms": 0.5})


def test_tables_of_other_devices_are_columns_of_a_csv(tmp_path: Path) -> None:
    space, path = NB201(), tmp_path / "cells.csv"
    point, other = list(space.points())[:2]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arch", "raspi4", "pixel3", "test200"])
        rows.writerow([space.to_string(point), 10.5, 3.25, 90])
    tell = csv_latencies(path, space, "raspi4")
    assert tell(point) == 10.5
    assert csv_latencies(path, space, "pixel3")(point) == 3.25
    assert tell(other) == math.inf  # no cap lets it pass
    with pytest.raises(UserError, match="no column 'raspi'"):
        csv_latencies(path, space, "raspi")
    with pytest.raises(UserError, match="is test accuracy"):
        csv_latencies(path, space, "test200")


def test_a_network_without_operations_is_refused() -> None:
    assert math.isnan(LatencyTable(HERE).error)
    with pytest.raises(UserError, match="has no operations to add up"):
        list(operations_of(object()))  # type: ignore[arg-type]
    assert choices_space({"x": [1]}).costs({"x": 1}) == {}

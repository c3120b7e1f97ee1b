"""Figures of a one-shot search, from what its folder has recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.oneshot.supernet import described_supernet
from sseg_nase.reporting.figures import Drawing
from sseg_nase.searches.gates import Gates, figures_of_gates, gates_of, rivals
from sseg_nase.searches.outcome import Outcome, Standing
from sseg_nase.spaces import NB201, NetworkSpace, Tiny

NB = NB201(cells=1, width=4, resolution=8)
CELLS = Tiny(cells=2, width=4, resolution=8, operations=("ds_conv", "identity", "zero"))


def recorded(folder: Path, space: NetworkSpace, choices: Sequence[int], **more: Any) -> Gates:
    """A search whose gates prefer `choices[n]` after epoch n, with the first alternative taken."""
    containing = space.containing()
    lines = []
    for epoch, choice in enumerate(choices):
        weights = {
            gate: [0.6 if n == choice else 0.4 / (len(names) - 1) for n in range(len(names))]
            for gate, names in containing.gates.items()
        }
        picks = dict.fromkeys(containing.decisions, choice)
        values = {
            "epoch": epoch,
            "weights": weights,
            "chosen": containing.operations(picks),
            "scores": {"accuracy": 50.0 + epoch, "supernet_accuracy": 70.0, "skips": 3 - epoch},
            **more,
        }
        lines.append({"time": 0.0, "kind": "gates", "values": values})
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "events.jsonl").write_text(text)
    return gates_of(folder, described_supernet(space).to_dict())


def drawn(found: Gates) -> dict[str, Drawing]:
    return {each.name: each for each in figures_of_gates(found, "accuracy")}


def test_gates_are_edges_of_a_cell(tmp_path: Path) -> None:
    one = recorded(tmp_path / "nb201", NB, [1, 3])
    assert {(g.name, g.source, g.target) for g in one.gates} == {
        (name, {"0": "in"}.get(name[0], name[0]), name[2]) for name in NB.containing().gates
    }
    other = recorded(tmp_path / "tiny", CELLS, [0])
    ends = {gate.name: (gate.source, gate.target) for gate in other.gates}
    assert ends["normal.1.2"] == ("0", "1")
    assert ends["reduction.0.0"] == ("in0", "0")
    assert {gate.kind for gate in other.gates} == {"normal", "reduction"}
    assert {gate.kind for gate in one.gates} == {"cell"}


def test_a_heat_map_per_gate_has_its_weights(tmp_path: Path) -> None:
    figure = drawn(recorded(tmp_path, NB, [1, 1, 3]))["gates"].figure
    assert figure is not None
    images = [image for axes in figure.axes for image in axes.get_images()]
    assert len(images) == 6
    shown = np.asarray(images[0].get_array())
    assert shown.shape == (5, 3)
    assert shown[:, 2].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.6, 0.1])


def test_the_cell_is_drawn_once_for_all_epochs_in_which_it_stayed(tmp_path: Path) -> None:
    figure = drawn(recorded(tmp_path, NB, [3, 3, 1, 0]))["cells"].figure
    assert figure is not None
    arcs = {
        axes.get_title(): sorted(str(patch.get_gid()) for patch in axes.patches)
        for axes in figure.axes
        if axes.get_title()
    }
    assert list(arcs) == ["epochs 1 to 2", "epoch 3", "epoch 4"]
    assert arcs["epoch 3"] == sorted(f"{gate} skip_connect" for gate in NB.containing().gates)
    assert arcs["epoch 4"] == []  # nothing is no edge


def test_edges_that_were_not_kept_are_not_drawn(tmp_path: Path) -> None:
    figure = drawn(recorded(tmp_path, CELLS, [0]))["cells"].figure
    assert figure is not None
    arcs = [str(patch.get_gid()) for axes in figure.axes for patch in axes.patches]
    assert len(arcs) == 2 * 2 * 2
    assert "normal.1.2 ds_conv" not in arcs


def test_supernet_and_derived_network_stand_beside_the_skips(tmp_path: Path) -> None:
    figure = drawn(recorded(tmp_path, NB, [1, 3]))["supernet"].figure
    assert figure is not None
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.get_lines()}
    assert list(lines["accuracy"].get_ydata()) == [50, 51]
    assert list(lines["supernet_accuracy"].get_ydata()) == [70, 70]
    assert list(lines["skips"].get_ydata()) == [3, 2]
    assert list(lines["skips"].get_xdata()) == [1, 2]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    supernet = described_supernet(NB).to_dict()
    assert all(
        each.missing == "The search has recorded no epoch of its supernet yet."
        for each in figures_of_gates(gates_of(tmp_path, supernet), "accuracy")
    )
    still = drawn(recorded(tmp_path / "still", NB, [1, 1]))["gates"]
    assert still.missing is not None
    assert "samples its networks" in still.missing
    old = drawn(recorded(tmp_path / "old", NB, [1, 3], chosen={}))["cells"]
    assert old.missing == "An older version has not recorded them."
    assert rivals(None).missing is not None


def test_the_later_line_of_an_epoch_counts(tmp_path: Path) -> None:
    recorded(tmp_path, NB, [1, 3])
    first, second = (tmp_path / "events.jsonl").read_text().splitlines()
    again = json.loads(first)
    again["values"]["scores"]["accuracy"] = 99.0
    (tmp_path / "events.jsonl").write_text("\n".join([first, second, json.dumps(again), ""]))
    found = gates_of(tmp_path, described_supernet(NB).to_dict())
    assert [epoch.scores["accuracy"] for epoch in found.epochs] == [99.0, 51.0]


def test_the_answer_stands_beside_its_rivals() -> None:
    class Costs(Standing):
        def average(self, name: str) -> float:
            return {"answer": 100.0, "random search": 200.0, "largest": 400.0}[self.role]

    standings = [
        Costs(role, 0, {}, {}, 0, mean, 1.0)
        for role, mean in (("answer", 60.0), ("random search", 55.0), ("largest", 65.0))
    ]
    figure = rivals(Outcome([1, 2, 3], 4, standings, [], [], "accuracy")).figure
    assert figure is not None
    (front,) = [line for line in figure.axes[0].get_lines() if line.get_gid() == "front"]
    assert list(front.get_ydata()) == [60, 65, 65]

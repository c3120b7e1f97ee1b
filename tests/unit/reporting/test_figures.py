"""Figures: what is drawn, that nothing overlaps, and what is said where something is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from sseg_nase.config.compose import load
from sseg_nase.reporting.aggregate import Entry, aggregate
from sseg_nase.reporting.figures import (
    Drawing,
    ablation,
    accuracy,
    costs,
    curriculum,
    embeddings,
    figures_of_run,
    figures_of_runs,
    figures_of_sweep,
    save,
    sparsity,
    style,
    training,
    trajectory,
)
from sseg_nase.rundir.embeddings import (
    MOST_CLASSES,
    MOST_IMAGES,
    Embeddings,
    chosen_images,
    read_embeddings,
    write_embeddings,
)
from sseg_nase.rundir.mutations import MUTATION_KEYS
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.stages import FewShotTask, draw_curriculum, seed_backbone
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.sink import RunInfo
from tests.support.recorded_runs import KEY, accuracies, record, sweep

LEVELS = ["BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL", "NATURAL"]
STEPS = 8  # per epoch

# kind, epoch, channels before and after, accepted, the epoch of a rollback
History = Sequence[tuple[str, int, list[int], list[int], bool, int | None]]
HISTORY: History = [
    ("WIDEN", 2, [16, 32, 64], [16, 48, 64], True, None),
    ("GROW", 5, [16, 48, 64], [16, 48, 64, 96], True, None),
    ("PRUNE", 7, [16, 48, 64, 96], [12, 48, 64, 64], True, None),
    ("PRUNE", 9, [12, 48, 64, 64], [8, 40, 64, 64], False, 11),
    ("WIDEN", 12, [12, 48, 64, 64], [18, 48, 64, 64], False, None),
]


def counts(channels: list[int]) -> dict[str, Any]:
    params = 9 * sum(a * b for a, b in zip([3, *channels], channels, strict=False))
    return {"blocks": len(channels), "channels": channels, "params": params, "macs": 100 * params}


def mutated(history: History) -> list[dict[str, Any]]:
    lines = []
    for index, (kind, epoch, before, after, accepted, rollback) in enumerate(history):
        line: dict[str, Any] = dict.fromkeys(MUTATION_KEYS)
        line |= {"index": index, "epoch": epoch, "step": STEPS * (epoch + 1), "kind": kind}
        line |= {"before": counts(before), "after": counts(after), "accepted": accepted}
        line["trigger"] = {} if rollback is None else {"rollback": {"epoch": rollback}}
        lines.append(line)
    return lines


def a_run(
    folder: Path,
    history: History = HISTORY,
    *,
    epochs: int = 16,
    levels: Sequence[str] = LEVELS,
    distillation: bool = True,
    config: dict[str, Any] | None = None,
    finetuned: int = 0,
) -> RunRecord:
    """A run as its sink and its stages leave it, with every section that figures read."""
    rng = np.random.default_rng(0)
    evaluated = {f"digits/val/5w{shots}s": 40 + 10 * shots for shots in (1, 5)}
    last = {key: accuracies(rng, rng.normal(0, 5, 50), mean) for key, mean in evaluated.items()}
    whole = {
        "seed": 0,
        "task": "pipeline",
        "paths": {"data_dir": "data", "cache_dir": "cache"},
        "curriculum": {"levels": list(levels), "progression": True},
        "ssl": {"name": "simclr", "distillation_weight": 0.5},
        "pretrain": {"epochs": epochs},
        "sparsity": {"enabled": True, "ratio": 0.3},
        **(config or {}),
    }
    channels = history[-1][3] if history and history[-1][4] else [12, 48, 64, 64]
    results = {
        "architecture": counts(channels),
        "fewshot_untrained": {key: {"accuracy": 30.0, "ci95": 0.6} for key in last},
        "images_seen": {"synthetic": 9, "real_unlabeled": 9, "real_labeled": 0},
    }
    best = {key: values - 1 for key, values in last.items()}
    record(folder, last, best, config=whole, results=results)
    (folder / "events.jsonl").unlink()
    sink = JsonlSink()
    sink.open(RunInfo(folder, "a run", "tests", folder / "config.yaml", epochs, {}, {}))
    lines = mutated(history)
    for epoch in range(epochs):
        level = levels[min(epoch // 2, len(levels) - 1)]
        sink.metrics({"arch/params": 1.0}, STEPS * epoch)
        for step in (STEPS * epoch + 4, STEPS * epoch + 8):
            loss = {"pretrain/loss": 5 - step / 100, "pretrain/contrastive": 5 - step / 100}
            if distillation:
                loss["pretrain/contrastive"] -= 0.05
                loss["pretrain/distillation"] = 0.1
            sink.metrics(loss, step)
        about = {"epoch": epoch, "level": level, "params": 5000, "loss": 5 - epoch / 10}
        sink.event("epoch", {**about, "gap": 0.1 if distillation else None})
        for line in lines:
            if line["epoch"] == epoch:
                sink.event("mutation", line)
    for epoch in range(finetuned):
        figures = {"epoch": epoch, "loss": 2 - epoch / 10, "accuracy": 50.0 + epoch}
        chosen = 60 - (epoch - 2) ** 2
        sink.event("finetune", {**figures, "val_accuracy": chosen, "val_ci95": 0.5})
    sink.close("FINISHED")
    return read_run(folder)


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return a_run(tmp_path / "run")


# -- what is asked of every figure -------------------------------------------------------------


def figure_of(drawing: Drawing) -> Figure:
    assert drawing.missing is None, drawing.missing
    assert drawing.figure is not None
    assert drawing.caption.endswith(".")
    return drawing.figure


Corners = np.ndarray  # [4, 2], in pixels


def texts(figure: Figure) -> list[tuple[str, Corners]]:
    """Every text that can be seen, with the corners of its box."""
    with style.applied():
        style.settle(figure)
    for axes in figure.axes:
        hide_unseen_ticks(axes)
    found = []
    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        seen = artist.get_visible() and artist.get_text().strip()
        if seen and (artist.axes is None or artist.axes.get_visible()):
            found.append((artist.get_text(), corners(artist)))
    return found


def corners(text: Text) -> Corners:
    """Of the box around a text, turned as it is."""
    turned = text.get_rotation()
    upright = turned % 90 == 0
    if not upright:
        text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(turned)
    points = np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
    if upright:
        return points
    anchor = text.get_transform().transform(text.get_unitless_position())
    cos, sin = np.cos(np.deg2rad(turned)), np.sin(np.deg2rad(turned))
    return (points - anchor) @ np.array([[cos, sin], [-sin, cos]]) + anchor


def apart(a: Corners, b: Corners) -> bool:
    """Whether a line parallel to a side of one lies between them; a pixel may be shared."""
    for points in (a, b):
        for side in (points[1] - points[0], points[3] - points[0]):
            axis = side / np.linalg.norm(side)
            (low, high), (least, most) = ((min(p @ axis), max(p @ axis)) for p in (a, b))
            if high <= least + 1 or most <= low + 1:
                return True
    return False


def hide_unseen_ticks(axes: Axes) -> None:
    """Matplotlib leaves them out when it draws, and keeps them."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                tick.label1.set_visible(False)
                tick.label2.set_visible(False)


def check_layout(figure: Figure) -> None:
    """No text lies on another, and none is cut off at the figure's edge."""
    found = texts(figure)
    assert found
    size = np.array([figure.bbox.width, figure.bbox.height])
    for text, box in found:
        inside = (box >= -1).all() and (box <= size + 1).all()
        assert inside, f"{text!r} is cut off: {box} of {size}"
    for (one, a), (other, b) in combinations(found, 2):
        assert apart(a, b), f"{one!r} and {other!r} overlap"


def check_axes(figure: Figure) -> None:
    """Everything with an axis has a label at it, on the panel itself or on one that it shares."""
    for axes in figure.axes:
        if not axes.get_visible() or axes.get_label() == "<colorbar>":
            continue
        assert any(other.get_xlabel() for other in axes.get_shared_x_axes().get_siblings(axes)), (
            axes
        )
        named = any(
            other.get_ylabel() or any(map(_is_name, other.get_yticklabels()))
            for other in axes.get_shared_y_axes().get_siblings(axes)
        )
        assert named, axes


def _is_name(label: Text) -> bool:
    return label.get_text()[:1].isalpha()


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def by_gid(axes: Axes, gid: str) -> list[Any]:
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def lots(folder: Path) -> RunRecord:
    """Twelve blocks, a mutation after nearly every epoch, all levels in a few epochs."""
    channels, history = [16, 32, 64], []
    for epoch in range(1, 27):
        kind = ("GROW", "WIDEN", "PRUNE")[epoch % 3]
        after = [*channels]
        if kind == "GROW" and len(channels) < 12:
            after.append(256)
        elif kind == "PRUNE":
            after = [max(8, c - 3) for c in channels]
        else:
            kind, after[epoch % len(after)] = "WIDEN", after[epoch % len(after)] + 20
        accepted = epoch % 5 != 0
        history.append((kind, epoch, channels, after, accepted, None))
        channels = after if accepted else channels
    return a_run(folder, history, epochs=28)


RUNS: dict[str, Callable[[Path], RunRecord]] = {
    "usual": a_run,
    "lots": lots,
    "one epoch": lambda folder: a_run(folder, [], epochs=1),
    "without mutations": lambda folder: a_run(folder, [], distillation=False),
    "one level": lambda folder: a_run(folder, levels=["BASIC"]),
    "fine-tuned": lambda folder: a_run(
        folder, finetuned=6, config={"finetune": {"name": "prototypical"}}
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_nothing_overlaps_and_axes_are_named(tmp_path: Path, name: str) -> None:
    run = RUNS[name](tmp_path / "run")
    drawn = []
    for drawing in (
        accuracy.accuracy(run),
        trajectory.trajectory(run),
        *([trajectory.growth(run)] if run.mutations else []),
        training.losses(run),
        training.fine_tuning(run),
        curriculum.difficulty_per_level(run),
        sparsity.pruned_channels(run),
    ):
        if drawing.figure is not None:
            check_layout(drawing.figure)
            check_axes(drawing.figure)
            drawn.append(drawing.name)
    assert {"accuracy", "losses", "curriculum"} <= set(drawn)


def test_all_figures_of_a_run_have_their_own_names(run: RunRecord) -> None:
    names = [drawing.name for drawing in figures_of_run(run)]
    assert len(set(names)) == len(names)
    assert names[:3] == ["growth", "accuracy", "trajectory"]
    assert names[-4:] == ["losses", "curriculum", "sparsity", "embeddings"]
    assert "finetuning" not in names  # the run has no such stage: nothing is missing
    tuned = dataclasses.replace(run, config={**(run.config or {}), "finetune": {"name": "linear"}})
    assert "finetuning" in [drawing.name for drawing in figures_of_run(tuned)]


def test_a_folder_without_anything_says_what_is_missing(tmp_path: Path) -> None:
    empty = read_run(tmp_path / "none")
    for drawing in [*figures_of_run(empty), *figures_of_runs([empty, empty])]:
        assert drawing.figure is None
        assert drawing.missing is not None
        assert drawing.missing.endswith(".")
        assert save(drawing, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_cut_anywhere_is_drawn(run: RunRecord) -> None:
    content = (run.folder / "events.jsonl").read_bytes()
    lines = (run.folder / "mutations.jsonl").read_bytes()
    (run.folder / "results.json").unlink()
    for share in np.linspace(0, 1, 9):
        (run.folder / "events.jsonl").write_bytes(content[: int(share * len(content))])
        (run.folder / "mutations.jsonl").write_bytes(lines[: int((1 - share) * len(lines))])
        cut = read_run(run.folder)
        for drawing in (
            trajectory.trajectory(cut),
            training.losses(cut),
            sparsity.pruned_channels(cut),
        ):
            assert (drawing.figure is None) == (drawing.missing is not None)
            if drawing.figure is not None:
                check_layout(drawing.figure)


# -- files -------------------------------------------------------------------------------------


def test_the_same_figure_gives_the_same_bytes(run: RunRecord, tmp_path: Path) -> None:
    files = [save(trajectory.trajectory(run), tmp_path / name) for name in ("a", "b")]
    assert [path.name for path in files[0]] == [f"trajectory.{s}" for s in ("png", "svg", "pdf")]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    png, svg, pdf = (path.read_bytes() for path in files[0])
    assert png[:4] == b"\x89PNG"
    assert b"<text" not in svg  # outlines
    assert b"/Type3" not in pdf
    assert int.from_bytes(png[16:20], "big") == round(200 * style.PAGE)


def test_nothing_global_changes(run: RunRecord, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save(training.losses(run), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_by_drawing_alone() -> None:
    lines = [
        "import sys, sseg_nase.cli, sseg_nase.run, sseg_nase.reporting.figures",
        "assert 'matplotlib' not in sys.modules",
        "import sseg_nase.reporting.figures.trajectory",
        "assert 'matplotlib.pyplot' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_names_in_any_script_and_with_signs_are_drawn(tmp_path: Path) -> None:
    names = ("猫 $x", "_under", "a\\b", "$\\frac")
    found = Embeddings(np.eye(8), np.arange(8) % 4, names, "own/val")
    drawing = embeddings.drawn(found, {"t-SNE": np.eye(8)[:, :2]})
    assert legend_of(figure_of(drawing)) == list(names)
    assert len(save(drawing, tmp_path)) == 3


# -- trajectory --------------------------------------------------------------------------------


def test_states_follow_the_mutations(run: RunRecord) -> None:
    path = trajectory.states(run)
    assert [(s.start, s.end, s.channels) for s in path] == [
        (0, 3, (16, 32, 64)),
        (3, 6, (16, 48, 64)),
        (6, 8, (16, 48, 64, 96)),
        (8, 10, (12, 48, 64, 64)),
        (10, 12, (8, 40, 64, 64)),  # on probation
        (12, 16, (12, 48, 64, 64)),
    ]
    assert [s.params for s in path] == [counts(list(s.channels))["params"] for s in path]


def test_the_trajectory_has_params_marks_and_levels(run: RunRecord) -> None:
    figure = figure_of(trajectory.trajectory(run))
    above, below = figure.axes[:2]
    path = trajectory.states(run)
    line = above.get_lines()[0]
    assert line.get_drawstyle() == "steps-pre"
    assert line.get_xdata().tolist() == [0, *(s.end for s in path)]
    assert line.get_ydata().tolist() == [path[0].params, *(s.params for s in path)]
    marks = by_gid(above, "mutation")
    assert len(marks) == len(HISTORY)
    for mark, (kind, epoch, _, after, accepted, _) in zip(marks, HISTORY, strict=True):
        assert mark.get_xydata().tolist() == [[epoch + 1, counts(after)["params"]]]
        assert mark.get_marker() == style.mutation_looks()[kind].marker
        assert (to_hex(mark.get_markerfacecolor()) == "#ffffff") == (not accepted)
    assert legend_of(figure) == [
        "GROW", "WIDEN", "WIDEN, rolled back", "PRUNE", "PRUNE, rolled back", "parameters",
    ]  # fmt: skip
    for axes in (above, below):
        assert [mark.get_xdata()[0] for mark in by_gid(axes, "level")] == [2, 4, 6, 8]
    assert [text.get_text() for text in above.texts] == LEVELS
    assert (above.get_ylabel(), below.get_xlabel()) == ("parameters", "epochs of pretraining")


def test_growth_is_a_first_look(run: RunRecord) -> None:
    drawing = trajectory.growth(run)
    figure = figure_of(drawing)
    assert drawing.small
    assert figure.get_figwidth() == style.COLUMN
    (axes,) = figure.axes
    assert len(by_gid(axes, "mutation")) == len(HISTORY)
    first, last = counts(HISTORY[0][2])["params"], trajectory.states(run)[-1].params
    assert f"From {first:,} to {last:,} parameters" in drawing.caption


def test_there_is_room_for_a_mutation_that_was_not_kept(run: RunRecord) -> None:
    first = run.mutations[0]
    refused = {**first, "accepted": False, "after": {**first["after"], "params": 10_000_000}}
    changed = dataclasses.replace(run, mutations=[*run.mutations, refused])
    for drawing in (trajectory.growth(changed), trajectory.trajectory(changed)):
        axes = figure_of(drawing).axes[0]
        highest = max(mark.get_ydata()[0] for mark in by_gid(axes, "mutation"))
        assert highest == 10_000_000 < axes.get_ylim()[1]


def test_the_widths_are_those_of_every_epoch(run: RunRecord) -> None:
    below = figure_of(trajectory.trajectory(run)).axes[1]
    (image,) = below.get_images()
    grid = np.ma.filled(image.get_array(), 0)
    for state in trajectory.states(run):
        for epoch in range(state.start, state.end):
            widths = [*state.channels, *[0] * (4 - len(state.channels))]
            assert grid[:, epoch].tolist() == widths
    assert {"16", "32", "96", "40"} <= {text.get_text() for text in below.texts}


def test_without_mutations_the_network_is_told(tmp_path: Path) -> None:
    drawing = trajectory.trajectory(a_run(tmp_path / "run", [], epochs=4))
    assert drawing.figure is None
    assert drawing.missing is not None
    assert "4 blocks (12-48-64-64), 5,000 parameters, for all 4 epochs" in drawing.missing


def test_trajectories_of_several_runs(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", HISTORY[:2]), read_run(tmp_path)]
    drawing = trajectory.trajectories(runs, ["one", "other", "third"])
    figure = figure_of(drawing)
    (axes,) = figure.axes
    lines = by_gid(axes, "run")
    assert [line.get_ydata()[-1] for line in lines] == [
        trajectory.states(one)[-1].params for one in runs[:2]
    ]
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in lines}) == 2
    assert axes.get_yscale() == "log"
    assert legend_of(figure) == ["one", "other"]
    assert "1 of 3 runs have trained no epoch" in drawing.caption
    check_layout(figure)
    # A run that is not shown keeps its colour: the others look as they do in the other figures.
    drawing = trajectory.trajectories([runs[2], *runs[:2]], ["third", "one", "other"])
    shown = [line.get_color() for line in by_gid(figure_of(drawing).axes[0], "run")]
    assert shown == [look.colour for look in style.looks(3)[1:]]


# -- training ----------------------------------------------------------------------------------


def test_losses_stand_at_their_epochs(run: RunRecord) -> None:
    figure = figure_of(training.losses(run))
    above, below = figure.axes
    (batches,) = by_gid(above, "total, batches")
    steps = np.array(run.series("pretrain/loss").steps)
    np.testing.assert_allclose(batches.get_xdata(), steps / STEPS)
    np.testing.assert_allclose(batches.get_ydata(), 5 - steps / 100)
    (means,) = by_gid(above, "total, epochs")
    np.testing.assert_allclose(means.get_xdata(), np.arange(16) + 0.5)
    np.testing.assert_allclose(means.get_ydata(), 5 - np.arange(16) / 10)
    assert len(by_gid(above, "contrastive, batches")) == 1
    assert len(by_gid(below, "distillation, epochs")) == 1
    for axes in (above, below):
        marks = by_gid(axes, "mutation")
        assert [mark.get_xdata()[0] for mark in marks] == [line[1] + 1 for line in HISTORY]
    assert (above.get_ylabel(), below.get_ylabel()) == (
        "loss (nats)",
        "distillation loss\n(no unit)",
    )
    assert legend_of(figure)[:3] == [
        "total (epoch mean)", "total (batches)", "contrastive (batches)",
    ]  # fmt: skip


def test_without_distillation_there_is_one_loss(tmp_path: Path) -> None:
    figure = figure_of(training.losses(a_run(tmp_path / "run", [], distillation=False)))
    assert len(figure.axes) == 1
    assert legend_of(figure) == [
        "total = contrastive (epoch mean)",
        "total = contrastive (batches)",
    ]
    assert by_gid(figure.axes[0], "mutation") == []


def test_an_interval_of_fine_tuning_stays_within_0_and_100(tmp_path: Path) -> None:
    record = a_run(tmp_path / "run", finetuned=2, config={"finetune": {"name": "linear"}})
    lines = record.events["finetune"]
    for line, value in zip(lines, (1.0, 99.0), strict=True):
        line.update(val_accuracy=value, val_ci95=5.0)  # type: ignore[attr-defined]
    _, below = figure_of(training.fine_tuning(record)).axes
    (bars,) = (one for one in below.containers if isinstance(one, ErrorbarContainer))
    ends = [y for segment in bars[2][0].get_segments() for _, y in segment]
    assert (min(ends), max(ends)) == (0.0, 100.0)


def test_fine_tuning_marks_the_epoch_that_counts(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", finetuned=6, config={"finetune": {"name": "linear"}})
    drawing = training.fine_tuning(run)
    above, below = figure_of(drawing).axes
    np.testing.assert_allclose(above.get_lines()[0].get_ydata(), 2 - np.arange(6) / 10)
    (bars,) = below.containers
    assert isinstance(bars, ErrorbarContainer)
    np.testing.assert_allclose(bars[0].get_ydata(), 60 - (np.arange(6) - 2.0) ** 2)
    assert "chosen: epoch 3" in legend_of(figure_of(drawing))
    assert "val episodes ± 95 % CI" in legend_of(figure_of(drawing))
    assert "another task" in drawing.caption
    assert training.fine_tuning(a_run(tmp_path / "other")).missing


# -- accuracy ----------------------------------------------------------------------------------


def test_accuracy_has_every_network_and_chance(run: RunRecord) -> None:
    drawing = accuracy.accuracy(run)
    figure = figure_of(drawing)
    (axes,) = figure.axes
    drawn = list(axes.containers)
    expected = []
    for key in run.section("fewshot"):
        for name in ("fewshot_untrained", "fewshot_best", "fewshot"):
            one = run.results[name][key]
            expected.append((one["accuracy"], one["ci95"]))
    assert len(drawn) == len(expected) == 6
    for bar, (mean, half) in zip(drawn, expected, strict=True):
        assert isinstance(bar, ErrorbarContainer)
        assert bar[0].get_xdata().tolist() == [mean]
        (segment,) = bar[2][0].get_segments()
        np.testing.assert_allclose(segment[:, 0], [mean - half, mean + half])
    for line in by_gid(axes, "chance"):
        assert line.get_xdata()[0] == 20
    assert len(by_gid(axes, "chance")) == 2
    assert legend_of(figure) == [
        "untrained", "best network (lowest loss)", "last network", "chance",
    ]  # fmt: skip
    assert "n = 50 episodes" in drawing.caption
    assert axes.get_xlabel() == "accuracy (%)"


# -- curriculum --------------------------------------------------------------------------------


def test_difficulty_is_that_of_task_curriculum(tmp_path: Path) -> None:
    config = load(["experiment=quickstart", "curriculum=progressive"])
    rows = draw_curriculum(config, tmp_path)
    whole = {
        "curriculum": {"levels": list(config.curriculum.levels)},
        "paths": {"data_dir": "none", "cache_dir": "none"},
    }
    run = a_run(tmp_path / "run", config=whole)
    dataset = {"name": "digits", "image_size": config.dataset.image_size, "channels": 3}
    run = RunRecord(**{**vars(run), "config": {**(run.config or {}), "dataset": dataset}})
    drawing = curriculum.difficulty_per_level(run)
    left, right = figure_of(drawing).axes
    assert [label.get_text() for label in left.get_yticklabels()] == LEVELS
    shown = [float(text.get_text()) for text in right.texts]
    np.testing.assert_allclose(shown, [row["difficulty"] for row in rows], atol=6e-4)
    for row, told in enumerate(rows):
        bars = [b for b in right.patches if abs(b.get_y() + b.get_height() / 2 - row) < 0.1]
        weighted = (0.4 * told["edge_density"], 0.3 * told["colour_variance"])
        np.testing.assert_allclose(
            [bar.get_width() for bar in bars[:2]], weighted, rtol=1e-5, atol=1e-7
        )
    images = left.get_images()
    assert len(images) == len(LEVELS) * curriculum.SAMPLES
    # As high as wide on the page.
    figure = figure_of(drawing)
    figure.draw_without_rendering()
    box = images[0].get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.03)
    assert "500 images at 32 px" in drawing.caption


def test_images_that_are_gone_are_named_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("images are read or downloaded for a report")

    monkeypatch.setattr(curriculum, "load_split", refuse)
    dataset = {"name": "cifar_fs", "image_size": 16}
    run = a_run(tmp_path / "run", levels=["BASIC", "NATURAL", "NO_LONGER"])
    run = RunRecord(**{**vars(run), "config": {**(run.config or {}), "dataset": dataset}})
    drawing = curriculum.difficulty_per_level(run)
    assert [t.get_text() for t in figure_of(drawing).axes[0].get_yticklabels()] == ["BASIC"]
    assert "Not shown: NATURAL, NO_LONGER" in drawing.caption


# -- sparsity ----------------------------------------------------------------------------------


def test_pruned_channels_per_block(run: RunRecord) -> None:
    drawing = sparsity.pruned_channels(run)
    axes = figure_of(drawing).axes[0]
    (image,) = axes.get_images()
    shares = np.ma.filled(image.get_array(), -1)
    np.testing.assert_allclose(
        shares,
        [
            [25, 0, 0, 100 / 3],
            [100 / 3, 100 / 6, 0, 0],
            [100 * 4 / 16, 0, 0, 100 * 32 / 96],  # what was rolled back does not count
        ],
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "after epoch 8", "after epoch 10\n(rolled back)", "whole run",
    ]  # fmt: skip
    assert "16→12" in {text.get_text() for text in axes.texts}
    assert "36 of 224 channels" in drawing.caption
    without = a_run(run.folder.parent / "other", [], config={"sparsity": {"enabled": False}})
    assert "switched off" in str(sparsity.pruned_channels(without).missing)


# -- embeddings --------------------------------------------------------------------------------


def blobs(classes: int = 3, per_class: int = 12) -> Embeddings:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    features = rng.normal(size=(len(labels), 16)) + 20 * np.eye(16)[labels]
    return Embeddings(features, labels, tuple(f"class {n}" for n in range(classes)), "own/val")


def test_embeddings_come_back_as_they_were_written(tmp_path: Path) -> None:
    told = blobs()
    write_embeddings(tmp_path, told)
    found = read_embeddings(tmp_path)
    np.testing.assert_allclose(found.features, told.features, rtol=1e-3, atol=1e-3)
    assert found.labels.tolist() == told.labels.tolist()
    assert (found.class_names, found.source) == (told.class_names, told.source)
    huge = Embeddings(np.full((2, 2), 1e9), np.zeros(2, int), ("one",), "own/val")
    write_embeddings(tmp_path, huge)
    assert np.isfinite(read_embeddings(tmp_path).features).all()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"nonsense"])
def test_embeddings_that_cannot_be_read(run: RunRecord, content: bytes | None) -> None:
    if content is not None:
        (run.folder / "embeddings.npz").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"embeddings\.npz"):
        read_embeddings(run.folder)
    assert "embeddings.npz" in str(embeddings.embeddings(run).missing)


def test_t_sne_keeps_classes_together(run: RunRecord) -> None:
    write_embeddings(run.folder, blobs())
    drawing = embeddings.embeddings(run)
    figure = figure_of(drawing)
    axes = figure.axes[0]
    at = [np.asarray(points.get_offsets()) for points in axes.collections]
    assert [len(points) for points in at] == [12, 12, 12]
    centres = np.stack([points.mean(axis=0) for points in at])
    spread = max(float(points.std()) for points in at)
    assert min(math.dist(a, b) for a, b in combinations(centres, 2)) > spread
    assert legend_of(figure) == ["class 0", "class 1", "class 2"]
    again = embeddings.embeddings(run)
    for a, b in zip(axes.collections, figure_of(again).axes[0].collections, strict=True):
        np.testing.assert_array_equal(a.get_offsets(), b.get_offsets())


def test_ten_classes_with_long_names_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"{index} of the classes of a long name" for index in range(MOST_CLASSES))
    found = Embeddings(rng.normal(size=(40, 8)), np.arange(40) % MOST_CLASSES, names, "own/val")
    at = rng.normal(size=(40, 2))
    for positions in ({"t-SNE": at}, {"t-SNE": at, "UMAP": at}):
        figure = figure_of(embeddings.drawn(found, positions))
        check_layout(figure)
        check_axes(figure)
        assert len(legend_of(figure)) == MOST_CLASSES


def test_umap_is_drawn_where_it_is_installed(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        def __init__(self, **_: Any) -> None:
            pass

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            return features[:, :2]

    library = ModuleType("umap")
    library.UMAP = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", library)
    monkeypatch.setattr(embeddings, "find_spec", lambda name: library)
    write_embeddings(run.folder, blobs())
    drawing = embeddings.embeddings(run)
    labels = [axes.get_xlabel() for axes in figure_of(drawing).axes]
    assert labels == ["t-SNE 1 (no unit)", "UMAP 1 (no unit)"]
    assert "t-SNE and UMAP" in drawing.caption
    check_layout(figure_of(drawing))


def test_chosen_images_are_few_and_of_few_classes() -> None:
    labels = np.repeat(np.arange(20), 100)
    chosen = chosen_images(labels)
    assert len(chosen) == MOST_CLASSES * MOST_IMAGES
    assert set(labels[chosen]) == set(range(MOST_CLASSES))
    np.testing.assert_array_equal(chosen_images(np.array([1, 0, 1])), [1, 0, 2])


@pytest.mark.parametrize("normalize", ["cl2n", "none"])
def test_evaluating_keeps_embeddings_of_the_evaluated_split(normalize: str) -> None:
    config = load(
        ["experiment=quickstart", "evaluation.episodes=5", f"evaluation.normalize={normalize}"]
    )
    task = FewShotTask(config, config.dataset)
    backbone = seed_backbone(config)
    evaluated = task.evaluate(backbone, torch.device("cpu")).embeddings
    assert evaluated is not None
    assert evaluated.source == "digits/val"
    assert evaluated.class_names == ("5", "6", "7", "8", "9")
    assert np.bincount(evaluated.labels).tolist() == [MOST_IMAGES] * 5
    unit = np.allclose(np.linalg.norm(evaluated.features, axis=1), 1, atol=1e-5)
    assert unit == (normalize == "cl2n")


# -- costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [1.2e6, 9.6e5, 3.1e5, 5e8])
def test_ticks_of_a_logarithmic_axis_have_room(high: float) -> None:
    axes = style.page(2.0).subplots()
    axes.set_xscale("log")
    axes.set_xlim(1.2e5, high)
    style.log_ticks(axes.xaxis)
    there = [tick for tick in axes.get_xticks() if 1.2e5 <= tick <= high]
    assert 2 <= len(there) <= style.MOST_TICKS


def test_the_front_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 12, (60, 2))]
    expected = {
        (x, y)
        for x, y in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    assert set(costs.pareto(points)) == expected
    assert costs.pareto([]) == []


def several(tmp_path: Path, changes: Sequence[dict[str, Any]]) -> list[RunRecord]:
    runs = []
    for number, change in enumerate(changes):
        one = a_run(tmp_path / f"run{number}", [])
        results = json.loads((one.folder / "results.json").read_text())
        results["efficiency"] |= {"params": 1000 * (number + 1), "device": "cpu"}
        results["efficiency"] |= {"macs": 10**6 * (number + 1)} | change.get("efficiency", {})
        results["training_macs"] = {"total": 10**12 * (3 - number), "student": 0}
        results["training_macs"] |= change.get("training_macs", {})
        results["images_seen"] |= change.get("images_seen", {})
        for result in results["fewshot"].values():
            result |= change.get("result", {})
        (one.folder / "results.json").write_text(json.dumps(results))
        runs.append(read_run(one.folder))
    return runs


COSTS = ["accuracy_params", "accuracy_macs", "accuracy_latency", "accuracy_training_macs"]


def test_accuracy_and_cost_of_runs(tmp_path: Path) -> None:
    better = {"result": {"accuracy": 70.0}}
    runs = several(tmp_path, [{}, better, {"result": {"accuracy": 60.0}}])
    drawings = {drawing.name: drawing for drawing in costs.of_runs(runs)}
    assert list(drawings) == COSTS
    figure = figure_of(drawings["accuracy_params"])
    one_shot = figure.axes[0]
    assert [axes.get_title() for axes in figure.axes] == ["5-way 1-shot", "5-way 5-shot"]
    assert (one_shot.get_xscale(), one_shot.get_xlabel()) == ("log", "parameters (log scale)")
    assert one_shot.get_ylabel() == "accuracy (%)"
    drawn = [bar[0].get_xydata()[0].tolist() for bar in one_shot.containers]
    first = runs[0].results["fewshot"]["digits/val/5w1s"]["accuracy"]
    assert drawn == [[1000, first], [2000, 70], [3000, 60]]
    (front,) = by_gid(one_shot, "front")
    assert front.get_xydata()[:2].tolist() == [[1000, first], [2000, 70]]
    assert legend_of(figure)[-1] == "Pareto front"
    assert len(legend_of(figure)) == 4
    axes = {name: figure_of(drawings[name]).axes[0] for name in COSTS[1:]}
    assert [one.get_xlabel() for one in axes.values()] == [
        "multiply-accumulates of one image (log scale)",
        "latency of one image (ms, cpu, log scale)",
        "multiply-accumulates of the training (log scale)",
    ]
    macs, training = (
        [bar[0].get_xydata()[0].tolist() for bar in axes[name].containers]
        for name in ("accuracy_macs", "accuracy_training_macs")
    )
    assert macs == [[1e6, first], [2e6, 70], [3e6, 60]]
    assert training == [[3e12, first], [2e12, 70], [1e12, 60]]
    (front,) = by_gid(axes["accuracy_training_macs"], "front")
    assert front.get_xydata()[:2].tolist() == [[1e12, 60], [2e12, 70]]
    for drawing in drawings.values():
        check_layout(figure_of(drawing))
        check_axes(figure_of(drawing))


@pytest.mark.parametrize(
    ("other", "named", "of"),
    [
        ({"result": {"transductive": True}}, "transductive", "params"),
        ({"images_seen": {"real_labeled": 5}}, "labels", "params"),
        ({"efficiency": {"device": "cuda"}}, "cuda", "latency"),
    ],
)
def test_what_does_not_compare_stands_apart(
    tmp_path: Path, other: dict[str, Any], named: str, of: str
) -> None:
    runs = several(tmp_path, [{}, {}, other, other])
    names = [drawing.name for drawing in costs.of_runs(runs) if of in drawing.name]
    assert len(names) == 2
    assert sum(named in name.split("_") for name in names) == 1
    few = several(tmp_path / "few", [{}, {}, other])
    shown = [drawing for drawing in costs.of_runs(few) if of in drawing.name]
    assert [drawing.name for drawing in shown] == [f"accuracy_{of}"]
    assert "Not shown" in shown[0].caption
    lonely = several(tmp_path / "lonely", [{}, other])
    assert "nothing to compare" in str(
        next(drawing for drawing in costs.of_runs(lonely) if of in drawing.name).missing
    )


def test_what_tells_no_cost_is_named(tmp_path: Path) -> None:
    runs = several(tmp_path, [{}, {}, {"training_macs": {"total": 0}}])  # the last is not trained
    drawings = {drawing.name: drawing for drawing in costs.of_runs(runs)}
    caption = drawings["accuracy_training_macs"].caption
    assert f"none or 0 of this cost: {costs.run_label(3, runs[2])}." in caption
    assert "of 2 runs ±" in caption
    assert "none or 0" not in drawings["accuracy_macs"].caption


# -- ablation ----------------------------------------------------------------------------------

MEANS = {f"ablation=A{n}": 30.0 + 4 * n for n in range(1, 8)}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    keys = (KEY, KEY.replace("1s", "5s"))
    return sweep(tmp_path_factory.mktemp("sweep") / "runs", MEANS, keys=keys, of_seed=0.1)


def test_ablation_bars(entries: list[Entry]) -> None:
    found = aggregate(entries)
    (drawing,) = ablation.configurations(found)
    figure = figure_of(drawing)
    check_layout(figure)
    check_axes(figure)
    assert drawing.name == "ablation"
    summary = found.summary[(found.summary["key"] == KEY) & (found.summary["network"] == "last")]
    axes = figure.axes[0]
    bars = by_gid(axes, "bar")
    np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in bars], summary["mean"])
    assert {bar.get_x() for bar in bars} == {20}
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"A{n}" for n in range(1, 8)]
    assert [len(dots.get_xdata()) for dots in by_gid(axes, "seeds")] == [3] * 7
    assert "Against ablation=A7 (ref.)" in drawing.caption
    assert "n = 3 seeds" in drawing.caption
    texts = [text.get_text() for text in axes.texts]
    assert texts[-1].endswith("ref.")
    for row, text in zip(summary.to_dict("records")[:-1], texts[:-1], strict=True):
        (pair,) = [
            one
            for one in found.comparisons.to_dict("records")
            if (one["key"], one["network"]) == (KEY, "last")
            and {one["a"], one["b"]} == {row["configuration"], "ablation=A7"}
        ]
        p = pair["p_seeds_episodes_holm"]
        assert text == f"{row['mean']:.2f} ± {row['ci95']:.2f}  {ablation.stars(p)}"
    assert any("*" in text for text in texts)


def test_two_seeds_are_dots_and_no_axis_leaves_0_to_100(tmp_path: Path) -> None:
    entries = sweep(tmp_path / "runs", {"lr=1": 97, "lr=2": 98.5}, seeds=2, of_seed=1)
    found = aggregate(entries)
    assert (found.summary["ci95"] > 5).any()
    (drawing,) = ablation.configurations(found)
    axes = figure_of(drawing).axes[0]
    assert not [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert [len(dots.get_xdata()) for dots in by_gid(axes, "seeds")] == [2, 2]
    assert not any("±" in text.get_text() for text in axes.texts)
    assert all(text.get_fontweight() == "normal" for text in axes.texts)
    assert axes.get_xlim()[0] >= 0
    assert axes.get_xlim()[1] <= 100
    assert "95 % CI" not in legend_of(figure_of(drawing))


def test_an_interval_ends_at_0_and_100(run: RunRecord) -> None:
    assert style.within_percent(62.7, 72.43) == [[62.7], [pytest.approx(37.3)]]
    results = {
        **run.results,
        "fewshot": {KEY: {"accuracy": 99.5, "ci95": 3.0}},
        "fewshot_untrained": {KEY: {"accuracy": 1.0, "ci95": 3.0}},
    }
    drawing = accuracy.accuracy(dataclasses.replace(run, results=results))
    low, high = figure_of(drawing).axes[0].get_xlim()
    assert low >= 0
    assert high <= 100


def test_without_a7_the_best_is_the_reference(tmp_path: Path) -> None:
    entries = sweep(tmp_path / "runs", {"lr=1": 40, "lr=2": 50}, seeds=1)
    (drawing,) = ablation.configurations(aggregate(entries))
    assert "Against lr=2 (ref.)" in drawing.caption
    assert [t.get_text().split()[-1] for t in figure_of(drawing).axes[0].texts] == ["***", "ref."]


@pytest.mark.parametrize(
    ("p", "mark"),
    [(0.0005, "***"), (0.005, "**"), (0.049, "*"), (0.05, "n.s."), (math.nan, "not compared")],
)
def test_stars(p: float, mark: str) -> None:
    assert ablation.stars(p) == mark


def test_long_names_do_not_overlap(tmp_path: Path) -> None:
    means = {f"ablation=A{n} dataset=minimagenet ssl.temperature=0.{n}": 40 + n for n in (1, 2, 7)}
    entries = sweep(tmp_path / "runs", means)
    records = [read_run(entry.run) for entry in entries]
    for drawing in figures_of_sweep(aggregate(entries), records):
        if drawing.figure is not None:
            check_layout(drawing.figure)


def test_figures_of_a_sweep(entries: list[Entry]) -> None:
    records = [read_run(entry.run) for entry in entries]
    drawings = {d.name: d for d in figures_of_sweep(aggregate(entries), records)}
    assert list(drawings) == [
        "ablation",
        *COSTS,
        "params_over_epochs",
    ]
    assert drawings["params_over_epochs"].missing == "None of the runs has trained an epoch."
    for name in COSTS:
        figure = figure_of(drawings[name])
        check_layout(figure)
        assert legend_of(figure)[:7] == [f"A{n}" for n in range(1, 8)]
        assert "Student's t" in drawings[name].caption
        dots = by_gid(figure.axes[0], "seeds")
        assert [len(seeds.get_ydata()) for seeds in dots] == [3] * 7


def test_a_sweep_without_results() -> None:
    drawings = list(figures_of_sweep(aggregate([]), []))
    assert [drawing.figure for drawing in drawings] == [None] * 6

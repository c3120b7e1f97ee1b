"""What the figures of a search show: whom they compare, what they count, what they leave out."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Candidate, Log, Objectives, Scored
from sseg_nase.search.strategies import active_diversity, diversity
from sseg_nase.searches.analysis import Importance, Share, importance, near_the_best, outer, shares
from sseg_nase.searches.descent import blocks_of, course, descent, layout, network
from sseg_nase.searches.figures import (
    best_so_far,
    coordinates,
    importances,
    shares_of,
    told_most,
)
from sseg_nase.searches.folder import Other, SearchFolder
from sseg_nase.searches.generations import generations, generations_of
from sseg_nase.searches.report import rankings
from sseg_nase.spaces import NB201, Chain, Darts, Families, choices_space
from sseg_nase.spaces.graph import Graph
from tests.support.small_search import CHOICES, QUIET, measured, searched


def log_of(*values: float, parents: dict[int, tuple[int, ...]] | None = None) -> Log:
    log = Log(Objectives({"accuracy": "max"}))
    for number, value in enumerate(values):
        line = (parents or {}).get(number, ())
        log.ask([Candidate(number, {"x": number}, str(number), parents=line, how="mutation")])
        log.tell(Scored(log.candidates[number], {"accuracy": value}))
    return log


def test_the_line_of_the_best_goes_back_to_its_first_ancestors() -> None:
    drawing = descent(log_of(50, 40, 60, 55, 70, parents={2: (0, 1), 3: (1,), 4: (2,)}))
    assert "The best, candidate 4 (70), has 3 ancestors." in drawing.caption
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    bold = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 1.4]
    assert sorted(tuple(map(int, each)) for each in bold) == [(0, 2), (1, 2), (2, 4)]
    assert descent(log_of(1, 2)).missing == "No candidate of this strategy has a parent."


def test_the_course_shows_diversity_and_with_two_goals_hypervolume() -> None:
    figure = course(log_of(*range(12))).figure
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["diversity (bits)"]
    two = Log(Objectives({"accuracy": "max", "size": "min"}))
    for number in range(12):
        two.ask([Candidate(number, {"x": number}, str(number))])
        two.tell(Scored(two.candidates[number], {"accuracy": number, "size": 100 + number}))
    figure = course(two).figure
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["hypervolume", "diversity (bits)"]
    assert course(log_of(1)).figure is None


def of_generations() -> Log:
    strategy = {"name": "genetic", "population": 4, "elites": 2}
    log = Log(Objectives({"loss": "min"}), {"strategy": strategy})
    types = ["cnn", "cnn", "mlp", "mlp", "mlp", "cnn", "vit"]
    for number, kind in enumerate(types):
        again = number == 5  # a promotion is no member of a generation
        point = {"type": kind, "width": number % 2}
        fidelity = {"epochs": 3} if again else {}
        how = "promotion" if again else ""
        log.ask([Candidate(number, point, str(number), how=how, fidelity=fidelity)])
        scores = {"loss": 10.0 - number, "inherited_share": 0.5}
        log.tell(
            Scored(
                log.candidates[number],
                scores if number != 3 else {},
                error=None if number != 3 else "no",
            )
        )
    return log


def test_generations_show_values_diversity_and_the_shares_of_types() -> None:
    log = of_generations()
    first, second = generations_of(log)
    assert (first.candidates, first.best, first.mean) == (4, 8.0, 9.0)  # the failed one aside
    assert first.shares == {"cnn": 0.5, "mlp": 0.5}
    assert first.diversity == 1.0
    assert first.inherited == 0.5
    assert (second.number, second.best, second.mean) == (1, 4.0, 5.0)
    assert second.shares == {"mlp": 0.5, "vit": 0.5}
    drawing = generations(log)
    assert drawing.figure is not None
    labels = [axes.get_ylabel() for axes in drawing.figure.axes]
    assert labels == ["loss", "diversity (bits)", "share (%)"]
    heights = [bar.get_height() for bar in drawing.figure.axes[2].patches]
    assert heights == [50, 0, 50, 50, 0, 50]
    assert generations(log_of(1, 2)).figure is None


def test_results_that_are_far_worse_do_not_press_the_others_flat() -> None:
    figure = best_so_far(log_of(*np.linspace(80, 90, 30), 10, 12)).figure
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert 75 < low < 82
    assert high > 90
    log = log_of(1)
    assert outer(log, [80, 85, 90]) == (80, 90)  # nothing is far away
    assert near_the_best(log, figure.axes[0], [90] * 30 + [10, 11]) == ""  # a flat range
    down = Log(Objectives({"loss": "min"}))
    assert outer(down, [*np.linspace(1, 2, 30), 50.0])[1] < 3


def test_the_whole_of_a_small_network_is_drawn_and_the_blocks_of_a_large_one() -> None:
    cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    (whole,) = blocks_of(NB201(), NB201().from_string(cell))
    assert whole[0] == ""
    assert whole[1].labels[0] == "input"
    space = Darts(cells=4, width=4)
    parts = blocks_of(space, space.sample(Random(0)))
    assert next(name.split(",")[0] for name, _ in parts) == "cell0"
    for _, graph in parts:
        # Nothing is left over: all is read, and only what stands before the block reads nothing.
        sources = graph.sources()
        read = {source for each in sources for source in each}
        assert read == set(range(len(graph.labels) - 1))
        first = [label for label, each in zip(graph.labels, sources, strict=True) if not each]
        assert all(label == "stem" or label.startswith("cell") for label in first)
        assert graph.labels[-1] == "output"
    with pytest.raises(UserError):
        blocks_of(choices_space({"x": [1, 2]}, "line"), {"x": 1})
    chain = Chain()
    assert len(blocks_of(chain, chain.sample(Random(1)))) == 1


def test_no_two_operations_are_drawn_in_one_place() -> None:
    row = Graph(tuple("abcdefg"), tuple((n, n + 1) for n in range(6)))
    places, size = layout(row, 3)
    assert size == (3, 3)
    assert len(set(places)) == 7
    fork = Graph(tuple("abcd"), ((0, 1), (0, 2), (1, 3), (2, 3)))
    places, size = layout(fork, 9)
    assert size == (3, 2)
    assert places[1][0] == places[2][0] == 1
    assert len(set(places)) == 4


def test_a_search_without_graphs_says_so() -> None:
    log = log_of(1, 2)
    space = choices_space({"x": "int(0, 9)"}, "line")
    assert network(log, log.usable(), space).missing == "The points of this space are no graphs."
    assert network(log, [], space).missing == "No candidate has a score within the caps yet."


def test_a_forest_finds_what_two_choices_do_together() -> None:
    """By itself neither explains anything."""
    space = choices_space({"a": [0, 1], "b": [0, 1], "c": [0, 1, 2]}, "xor")
    log = Log(Objectives({"accuracy": "max"}))
    rng = np.random.default_rng(0)
    for number in range(60):
        a, b, c = (int(rng.integers(n)) for n in (2, 2, 3))
        log.ask([Candidate(number, {"a": a, "b": b, "c": c}, str(number))])
        value = 10.0 * (a != b) + 0.1 * rng.random()
        log.tell(Scored(log.candidates[number], {"accuracy": value}))
    found = {one.name: one for one in importance(log, space.choices, log.usable())}
    assert sum(one.forest or 0 for one in found.values()) == pytest.approx(1)
    for name in ("a", "b"):
        assert (found[name].forest or 0) > 0.3
        assert (found[name].share or 0) < 0.2


TYPES = Families(types=("cnn", "mlp"), most=3, trains="finetune", edition=2)


def of_types(count: int = 40) -> Log:
    """The wider the first layer of an mlp, the better; cnns are worst, and all alike but for noise.

    What a cnn has for an mlp's layers says nothing, and follows from how good it is.
    """
    log, rng = Log(Objectives({"accuracy": "max"})), Random(0)
    for number in range(count):
        point = TYPES.sample(rng)
        point["type"], wide = ("cnn", "mlp")[number % 2], number % 4 > 1
        point["mlp.layers"], noise = 3, rng.random()
        point["mlp.0.channels"], point["mlp.1.channels"] = (1024, 256) if wide else (64, 256)
        value = 30 + noise
        if point["type"] == "mlp":
            value = 50 + 10 * wide + noise
        else:
            point["mlp.0.channels"] = 512 if noise > 0.5 else 128
        log.ask([Candidate(number, point, str(number))])
        log.tell(Scored(log.candidates[number], {"accuracy": value}))
    return log


def test_what_a_choice_explains_is_of_the_results_where_it_says_anything() -> None:
    log = of_types()
    of_mlps = [one for one in log.usable() if one.candidate.point["type"] == "mlp"]
    found, alone = (
        {one.name: one for one in importance(log, TYPES.choices, results, TYPES)}
        for results in (log.usable(), of_mlps)
    )
    assert (found["mlp.0.channels"].share or 0) > 0.7
    assert found["mlp.0.channels"].share == alone["mlp.0.channels"].share
    assert found["mlp.1.channels"].share is None  # one value where there is an mlp
    assert (found["type"].forest or 0) > 0.4
    # The forest cannot tell cnns apart by the layers of an mlp that they do not have.
    of_cnns = [one for one in log.usable() if one.candidate.point["type"] == "cnn"]
    forest = {one.name: one.forest for one in importance(log, TYPES.choices, of_cnns, TYPES)}
    assert forest["mlp.0.channels"] == 0
    blind = {one.name: one.forest for one in importance(log, TYPES.choices, of_cnns)}
    assert (blind["mlp.0.channels"] or 0) > 0.3
    few = importance(log, TYPES.choices, log.usable()[:18], TYPES)  # nine are mlps
    assert {one.name: one.share for one in few}["mlp.0.channels"] is None


def test_an_option_is_counted_where_its_choice_says_anything() -> None:
    log = of_types()
    found = {one.name: one for one in shares(log, TYPES.choices, log.usable(), TYPES)}
    assert found["type=mlp"] == Share("type=mlp", 1, 0.5)
    # Of the three layers of 20 mlps, ten of which are wide; the best quarter are these ten.
    assert found["mlp.channels=1024"].all >= 10 / 60
    assert found["mlp.channels=1024"].best >= 10 / 30
    assert found["mlp.channels=256"].all >= 20 / 60
    assert found["mlp.channels=512"].best < 0.4  # no cnn counts
    assert {"mlp.batch_norm=0", "mlp.batch_norm=1"} <= {*found}
    assert not [name for name in found if name.startswith("cnn.")]  # none of the best is one
    gaps = [one.best - one.all for one in found.values()]
    assert gaps == sorted(gaps, reverse=True)
    edges = shares(cells := Log(Objectives({"accuracy": "max"})), NB201().choices, [])
    assert edges == []
    for number in range(8):
        cells.ask([Candidate(number, NB201().sample(Random(number)), str(number))])
        cells.tell(Scored(cells.candidates[number], {"accuracy": number}))
    edges = shares(cells, NB201().choices, cells.usable(), NB201())
    assert {one.name for one in edges} == set(NB201().choices[0].values)  # type: ignore[attr-defined]
    assert sum(one.all for one in edges) == pytest.approx(1)


def test_diversity_is_that_of_the_choices_that_say_anything() -> None:
    log, rng = Log(Objectives({"accuracy": "max"})), Random(0)
    for number in range(12):  # what they have for a cnn says nothing
        log.ask([Candidate(number, {**TYPES.sample(rng), "type": "mlp"}, str(number))])
        log.tell(Scored(log.candidates[number], {"accuracy": number}))
    for space in (None, TYPES):
        figure = course(log, space).figure
        assert figure is not None
        (line,) = figure.axes[0].lines
        points = [one.candidate.point for one in log.told[-20:]]
        own = diversity(points) if space is None else active_diversity(space, points)
        assert line.get_ydata()[-1] == pytest.approx(own)
    assert diversity(points) != active_diversity(TYPES, points)


def test_only_what_differs_most_is_drawn_of_many_options() -> None:
    many = [Share(f"x={n}", 0.5, 0.5 + (n - 20) / 100) for n in range(40)]
    drawing = shares_of(many)
    assert drawing.figure is not None
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == [f"x={n}" for n in range(40) if not 15 <= n < 25]
    assert drawing.caption.endswith("Of 40 those 30 that differ most.")
    assert "Of " not in shares_of(many[:30]).caption.split("together.")[1]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_legend_covers_nothing(count: int) -> None:
    names = [f"x{n}" for n in range(count)]
    drawings = [
        importances([Importance(name, 0.98, 0.98) for name in names]),
        shares_of([Share(f"{name}=1", 0.9, 0.9) for name in names]),
        best_so_far(log_of(*range(count))),
        generations(of_generations()),
    ]
    for drawing in drawings:
        figure = drawing.figure
        assert figure is not None
        figure.draw_without_rendering()
        (legend,) = figure.legends
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
            assert axes.get_legend() is None


def test_a_line_passes_by_the_choices_that_say_nothing() -> None:
    log = of_types()
    results = log.usable()
    weights = importance(log, TYPES.choices, results, TYPES)
    shown = told_most(log, TYPES.choices, results, weights, TYPES)
    names = [choice.name for choice in shown]
    assert len(names) == 14
    assert names == [c.name for c in TYPES.choices if c.name in names]
    assert {"type", "mlp.0.channels"} <= {*names}
    drawing = coordinates(log, shown, results, TYPES, len(TYPES.choices))
    assert f"Of {len(TYPES.choices)} choices the 14 most important." in drawing.caption
    assert drawing.figure is not None
    lines = [line for line in drawing.figure.axes[0].lines if len(line.get_xdata()) > 2]
    ordered = sorted(results, key=log.value)
    for line, one in zip(lines, ordered, strict=True):
        told = {*TYPES.active(one.candidate.point)}
        passed = [at for at, name in enumerate(names) if name in told]
        assert list(line.get_xdata()) == [*passed, 14]
    few = results[:6]  # nothing is known to be important
    weights = importance(log, TYPES.choices, few, TYPES)
    shown = told_most(log, TYPES.choices, few, weights, TYPES)
    assert [choice.name for choice in shown] == TYPES.active(
        max(few, key=log.value).candidate.point
    )
    whole = coordinates(log, TYPES.choices[:2], results, None, 2)
    assert "most important" not in whole.caption


def test_predictors_are_tried_by_cross_validation_on_enough_results() -> None:
    space = choices_space({name: [0, 1, 2] for name in "abcd"}, "sum")
    log, rng = Log(Objectives({"accuracy": "max"})), Random(0)
    for number in range(24):
        point = space.sample(rng)
        log.ask([Candidate(number, point, str(number))])
        value = 10.0 * sum(map(int, point.values())) + rng.random()
        log.tell(Scored(log.candidates[number], {"accuracy": value}))
    ranked = rankings(log, space, log.usable())
    assert list(ranked) == ["ridge", "gp", "mlp", "boosting"]
    assert min(found.spearman for found in ranked.values()) > 0.5
    assert rankings(log, space, log.usable()[:19]) == {}
    assert rankings(log, None, log.usable()) == {}


def test_searches_for_the_same_are_drawn_beside_each_other(tmp_path: Path) -> None:
    given = ["task=search", CHOICES, *QUIET, *measured(tmp_path), "search.budget.candidates=3"]
    own = searched(*given, "strategy=gp")
    beside = searched(*given, "seed=3")
    searched(*given, "pretrain.epochs=3")  # candidates are measured in another way
    searched(*given, "search.objectives={accuracy: min}")
    # One of an older version, which did not have a key yet.
    text = (beside / "config.yaml").read_text(encoding="utf-8")
    older = "".join(line for line in text.splitlines(True) if "imports:" not in line)
    assert older != text
    (beside / "config.yaml").write_text(older, encoding="utf-8")
    others = SearchFolder(own).others()
    assert [other.name for other in others] == ["random"]
    assert others[0].log.about["seed"] == 3
    log = SearchFolder(own).log()
    drawing = best_so_far(log, [*others, Other("random", log)])
    assert "Beside it 2 other searches" in drawing.caption
    assert drawing.figure is not None
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels.count("random") == 1


def test_the_tracker_is_told_of_hypervolume_and_diversity(tmp_path: Path) -> None:
    goals = "search.objectives={accuracy: max, size: min}"
    given = ["task=search", CHOICES, *QUIET, *measured(tmp_path), goals]
    path = searched(*given, "search.budget.candidates=11")
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    told = [line["values"] for line in lines if "search/diversity" in line.get("values", {})]
    assert len(told) == 11
    assert ["search/hypervolume" in each for each in told] == [False] * 9 + [True] * 2

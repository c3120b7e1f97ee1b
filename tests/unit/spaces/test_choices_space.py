from __future__ import annotations

import json
import re
from random import Random

import pytest

from sseg_nase.errors import UserError
from sseg_nase.spaces import Integers, Options, Reals, Space, choices_space

GIVEN = {
    "optimizer.lr": "loguniform(1e-4, 1e-2)",
    "ssl.temperature": [0.1, 0.2, 0.5],
    "width": "int(8, 64)",
    "ratio": "uniform(0, 1)",
}


def test_every_kind_of_choice_is_read() -> None:
    assert choices_space(GIVEN).choices == (
        Reals("optimizer.lr", 1e-4, 1e-2, log=True),
        Options("ssl.temperature", (0.1, 0.2, 0.5)),
        Integers("width", 8, 64),
        Reals("ratio", 0.0, 1.0),
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": "log(1, 2)"}, "lr: 'log(1, 2)' is no choice. Accepted: a list"),
        ({"lr": 3}, "lr: 3 is no choice. Accepted"),
        ({"lr": []}, "lr has no values"),
        ({"lr": [1, True]}, "lr: True is neither a number nor a text"),
        ({"lr": [1, 1.0]}, "lr lists a value twice"),
        ({"lr": "uniform(2, 1)"}, "lr goes from 2.0 to 1.0"),
        ({"lr": "uniform(0, inf)"}, "lr goes from 0.0 to inf"),
        ({"lr": "loguniform(0, 1)"}, "lr is logarithmic and starts at 0.0"),
        ({"lr": "int(0.5, 2)"}, "must be whole numbers"),
        ({"lr": "uniform(a, 2)"}, "must be numbers"),
        ({}, "has no choices"),
    ],
)
def test_what_is_no_choice_is_refused(given: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        choices_space(given)


def test_points_are_within_bounds_and_round_trip_in_every_encoding() -> None:
    space, rng = choices_space(GIVEN), Random(0)
    for _ in range(300):
        point = space.sample(rng)
        assert space.check(point) == point
        assert space.check(space.mutate(point, rng, rate=0.5)) is not None
        assert all(space.check(near) for near in space.neighbours(point))
        for name, encoding in space.encodings.items():
            code = encoding.encode(point)
            again = encoding.encode(encoding.decode(code))
            assert again == pytest.approx(code) if name == "one_hot" else again == code


def test_a_mutation_changes_exactly_one_choice_and_a_crossover_invents_nothing() -> None:
    space, rng = choices_space(GIVEN), Random(1)
    for _ in range(200):
        one, other = space.sample(rng), space.sample(rng)
        child = space.mutate(one, rng)
        assert sum(child[name] != one[name] for name in one) == 1
        mixed = space.crossover(one, other, rng)
        assert all(mixed[name] in (one[name], other[name]) for name in one)


def test_a_logarithmic_range_has_as_many_samples_in_each_decade() -> None:
    choice, rng = Reals("lr", 1e-4, 1e-2, log=True), Random(0)
    below = sum(choice.sample(rng) < 1e-3 for _ in range(1000))
    assert 430 < below < 570


def test_the_smallest_steps_go_up_and_down() -> None:
    assert Integers("n", 1, 3).neighbours(1) == [2]
    assert Integers("n", 1, 3).neighbours(2) == [1, 3]
    assert Reals("x", 0, 1).neighbours(0.0) == pytest.approx([0.1])
    assert Reals("x", 0, 1).neighbours(0.5) == pytest.approx([0.4, 0.6])
    assert Options("o", (1, 2, 3)).neighbours(2) == [1, 3]


def test_an_option_is_told_from_what_only_looks_like_it() -> None:
    choice = Options("bn", ("1", 2))
    assert choice.check(2) == 2
    for wrong in (1, True, "2"):
        with pytest.raises(UserError, match="is none of"):
            choice.check(wrong)


def test_a_point_names_its_mistakes() -> None:
    space = choices_space({"width": "int(8, 64)", "depth": [2, 3]})
    for point, said in [
        ({"width": 8, "depth": 4}, r"depth=4 is none of \[2, 3\]"),
        ({"width": 7, "depth": 2}, "width=7 is no whole number from 8 to 64"),
        ({"width": 8.0, "depth": 2}, "width=8.0 is no whole number"),
        ({"width": 8}, "lacks depth"),
        ({"width": 8, "depth": 2, "depht": 1}, "no choice 'depht'. Did you mean 'depth'"),
    ]:
        with pytest.raises(UserError, match=said):
            space.check(point)
    with pytest.raises(UserError, match="no JSON object"):
        space.from_json("[1]")
    with pytest.raises(UserError, match=r"has encodings json, one_hot; no one-hot.*one_hot"):
        space.encoding("one-hot")


def test_points_come_in_order_from_any_start() -> None:
    space = choices_space({"a": [1, 2], "b": "int(1, 3)"})
    points = list(space.points())
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in (1, 2, 3)]
    assert [space.index(point) for point in points] == list(range(6))
    assert list(space.points(4)) == points[4:]
    with pytest.raises(UserError, match="x is a continuum"):
        list(choices_space({"x": "uniform(0, 1)"}).points())
    huge = choices_space({f"c{number}": "int(1, 1000)" for number in range(12)})
    middle = {f"c{number}": 1 + 7 * number for number in range(12)}
    assert next(huge.points(huge.index(middle))) == middle


class Priced(Space):
    """Costs what its width and depth say."""

    def costs(self, point):
        return {"params": float(point["width"] * point["depth"])}


def priced(width: str) -> Priced:
    return Priced("priced", choices_space({"width": width, "depth": [1, 2, 3]}).choices)


@pytest.mark.parametrize("width", ["int(8, 64)", "int(8, 1000000)"])
def test_nothing_above_a_cap_is_ever_given_out(width: str) -> None:
    space, rng = priced(width).under({"params": 40}), Random(0)
    for _ in range(100):
        point = space.sample(rng)
        given = [point, space.mutate(point, rng, 0.9), *space.neighbours(point)]
        given.append(space.crossover(point, space.sample(rng), rng))
        assert all(space.costs(each)["params"] <= 40 for each in given)
        assert all(space.allows(each) for each in given)
    with pytest.raises(UserError, match="params = 128; at most 40"):
        space.check({"width": 64, "depth": 2})


def test_a_space_of_which_caps_leave_next_to_nothing_is_not_walked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sseg_nase.spaces.space.WALKABLE", 30)
    points = priced("int(8, 64)").under({"params": 20}).points()
    within = [{"width": width, "depth": depth} for width in (8, 9) for depth in (1, 2)]
    assert [next(points) for _ in range(4)] == within
    with pytest.raises(UserError, match=r"of 31 in a row none is within search\.caps"):
        list(points)


@pytest.mark.parametrize("width", ["int(8, 64)", "int(8, 1000000)"])
def test_a_cap_that_nothing_meets_names_the_smallest(width: str) -> None:
    with pytest.raises(UserError, match="params ≤ 7: the smallest has params = 8") as caught:
        priced(width).under({"params": 7})
    assert '{"width":8,"depth":1}' in str(caught.value)
    assert priced(width).under({"params": 8}).sample(Random(0)) == {"width": 8, "depth": 1}


def test_a_cap_needs_a_cost_that_is_counted() -> None:
    with pytest.raises(UserError, match=r"counts params; it cannot cap param.*'params'"):
        priced("int(8, 64)").under({"param": 100})


def test_json_is_written_in_one_way() -> None:
    space = choices_space({"b": [1, 2], "a": ["ä", "x"]})
    assert space.to_json({"a": "ä", "b": 1}) == '{"b":1,"a":"ä"}'
    assert space.from_json(json.dumps({"a": "ä", "b": 1})) == {"b": 1, "a": "ä"}

from __future__ import annotations

from random import Random

import networkx
import pytest

from sseg_nase.errors import UserError
from sseg_nase.spaces import NB201
from sseg_nase.spaces.nb201 import NAMES, OPERATIONS

SPACE = NB201()
DIGITS = dict(enumerate(OPERATIONS))


def cell(digits: str) -> dict:
    """A cell from its digits in the order of the benchmark's string."""
    return {name: DIGITS[int(digit)] for name, digit in zip(NAMES, digits, strict=True)}


def test_the_space_is_the_benchmarks() -> None:
    assert SPACE.size == 15_625
    assert len({SPACE.key(point) for point in SPACE.points()}) == 4_930
    assert sum(SPACE.key(point) == "0" for point in SPACE.points()) == 341
    written = NB201(distinct="written")
    assert len({written.key(point) for point in written.points()}) == 15_625
    assert len(SPACE.neighbours(cell("333333"))) == 24


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("111111", "111111", True),
        ("300100", "030010", False),  # conv after conv is not conv
        ("300010", "030001", True),  # the same two edges through either node
        ("310010", "300010", True),  # 0→2 leads nowhere
        ("000300", "330300", True),  # neither of two edges is read on
        ("301003", "030003", True),
        ("031000", "000000", True),  # the output reads nothing
        ("100030", "000300", True),  # skip, then conv
        ("110011", "110110", True),  # two times the input, through any of the skips
        ("000100", "110011", False),  # once is not twice
    ],
)
def test_cells_of_the_same_function_share_their_key(one: str, other: str, same: bool) -> None:
    assert (SPACE.key(cell(one)) == SPACE.key(cell(other))) is same


def test_params_and_macs_are_the_benchmarks() -> None:
    assert SPACE.costs(cell("333333")) == {"params": 1_531_546, "macs": 222_860_992}
    assert SPACE.costs(cell("421211")) == {"params": 129_306, "macs": 17_958_592}
    assert SPACE.costs(cell("000000"))["params"] == 73_306


def test_every_encoding_is_exact_on_canonical_forms() -> None:
    rng = Random(0)
    assert set(SPACE.encodings) == {"json", "string", "one_hot", "adjacency", "paths"}
    for _ in range(300):
        point = SPACE.canonical(SPACE.sample(rng))
        for name, (encode, decode) in SPACE.encodings.items():
            code = encode(point)
            assert encode(decode(code)) == code
            if name != "paths":  # many cells share their paths
                assert decode(code) == point


def test_a_canonical_form_has_the_same_function_and_is_its_own() -> None:
    rng = Random(1)
    for _ in range(100):
        point = SPACE.sample(rng)
        canonical = SPACE.canonical(point)
        assert SPACE.key(canonical) == SPACE.key(point)
        assert SPACE.canonical(canonical) == canonical


def test_the_string_is_the_benchmarks() -> None:
    text = (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
        "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    assert SPACE.from_string(text) == cell("421211")
    assert SPACE.to_string(cell("421211")) == text
    for wrong in ("", "|none~0|", text.replace("avg_pool", "max_pool"), text.replace("~2", "~1")):
        with pytest.raises(UserError):
            SPACE.from_string(wrong)


def test_paths_are_those_from_input_to_output() -> None:
    code = SPACE.paths(cell("300010"))
    assert len(code) == 84
    assert sum(code) == 1
    assert sum(SPACE.paths(cell("000000"))) == 0
    with pytest.raises(UserError, match="No cell"):
        SPACE.from_paths([1.0] * 84)


def test_the_adjacency_joins_edges_that_meet() -> None:
    code = SPACE.adjacency(cell("301010"))  # 0→1 conv, 1→2 skip (leads nowhere), 1→3 skip
    assert code["operations"][1] == "nor_conv_3x3"
    ones = {(i, j) for i, row in enumerate(code["matrix"]) for j, one in enumerate(row) if one}
    assert ones == {(0, 1), (1, 3), (1, 5), (5, 7)}


def test_graphs_are_the_same_where_functions_are() -> None:
    rng, found = Random(2), []
    match = networkx.algorithms.isomorphism.categorical_node_match("label", "")
    for _ in range(150):
        point = SPACE.sample(rng)
        graph, canonical = SPACE.graph(point), SPACE.graph(SPACE.canonical(point))
        assert graph == canonical
        found.append((SPACE.key(point), graph.to_networkx()))
    for key, one in found[:30]:
        for other_key, other in found[:30]:
            assert networkx.is_isomorphic(one, other, node_match=match) is (key == other_key)
    assert SPACE.graph(cell("110011")).edges.count((0, 1)) == 2


def test_a_way_to_tell_cells_apart_must_be_known() -> None:
    with pytest.raises(UserError, match="is none of function, written"):
        NB201(distinct="iso")


def test_caps_hold_for_cells() -> None:
    capped = SPACE.under({"params": 400_000, "macs": 60_000_000})
    assert all(
        capped.costs(p)["params"] <= 400_000 and capped.costs(p)["macs"] <= 60_000_000
        for p in capped.points()
    )
    with pytest.raises(UserError, match=r"params ≤ 10,000: the smallest has params = 73,306"):
        SPACE.under({"params": 10_000})

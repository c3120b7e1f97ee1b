"""Spaces of networks: what they describe is what is built, and no network has two keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch

from sseg_nase.errors import UserError
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.building import build, described
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.search import Log, Objectives
from sseg_nase.search.strategies import RandomSearch
from sseg_nase.spaces import (
    NB201,
    PNAS,
    SPACES,
    Chain,
    Darts,
    ENASMacro,
    ENASMicro,
    Families,
    Mobile,
    NetworkSpace,
    Tiny,
    named_space,
    register_space,
)
from sseg_nase.spaces.nb201 import COUNTS

OPS = ("skip_connect", "sep_conv_3x3")
SMALL: dict[str, NetworkSpace] = {  # each with how many networks it has, below
    "darts": Darts(cells=1, width=4, steps=2, operations=OPS, kinds=("normal",)),
    "enas_micro": ENASMicro(cells=1, width=4, steps=2, operations=OPS, kinds=("normal",)),
    "pnas": PNAS(cells=1, width=4, steps=2, operations=OPS),
    "tiny": Tiny(cells=1, steps=2, operations=("ds_conv", "zero"), kinds=("normal",)),
    "enas_macro": ENASMacro(layers=3, width=4, operations=OPS),
    "mobile": Mobile(
        widths=(8, 8), depths=(3, 2), strides=(1, 2), operations=("mb3_3", "mb6_3"), multiplier=0.5
    ),
    "chain": Chain(most=2, widths=(4, 8), resolution=8),
    "families": Families(level=1, most=2, types=("mlp",), resolution=4),
}


@pytest.mark.parametrize("name", [*SPACES])
def test_what_is_described_is_what_is_built(name: str) -> None:
    settings: dict[str, int] = (
        {"cells": 3} if name in ("darts", "enas_micro", "pnas", "nb201") else {}
    )
    space, rng = named_space(name, resolution=16, in_channels=1, **settings), Random(1)
    for _ in range(1 if name != "families" else 4):
        point = space.sample(rng)
        description = space.describe(point)
        with torch.device("meta"):
            network = build(description)
        assert count_params(network) == description.params
        assert count_macs(network, 16, 1) == description.macs()
        assert described(json.loads(json.dumps(description.to_dict()))) == description
        assert network(torch.empty(2, 1, 16, 16, device="meta")).shape == (2, description.features)
        assert len(network.stages()) == len(description.channels)
        if name != "nb201":  # its costs are the benchmark's
            costs = space.costs(point)
            assert (costs["params"], costs["macs"]) == (description.params, description.macs())
            assert costs["memory"] > 4 * description.params
        if description.any_resolution:
            assert description.macs(8) == description.at(8).macs() < description.macs()


@pytest.mark.parametrize("name", [*SPACES])
def test_canonical_points_and_all_encodings_are_exact(name: str) -> None:
    space, rng = named_space(name), Random(2)
    for _ in range(4):
        point = space.canonical(space.sample(rng))
        assert space.canonical(point) == point
        for encode, decode in space.encodings.values():
            assert decode(encode(point)) == point
            assert encode(decode(encode(point))) == encode(point)
        assert space.read(space.to_json(point)) == point
        if name != "nb201":  # its moves are fast instead
            assert space.key(space.mutate(point, rng)) != space.key(point)
        for near in space.neighbours(point)[:5] if name != "nb201" else []:
            assert space.key(near) != space.key(point)
    graph = space.graph(point)
    assert all(source < target for source, target in graph.edges)


def test_canonical_points_are_the_same_network() -> None:
    rng = Random(3)
    for name in ("darts", "pnas", "enas_micro", "tiny", "mobile", "chain"):
        space = named_space(name)
        for _ in range(5):
            point = space.sample(rng)
            same = space.canonical(point)
            assert space.key(point) == space.key(same)
            one, other = space.describe(point), space.describe(same)
            assert (one.params, one.macs()) == (other.params, other.macs())


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        # 4 cells of one step, and 4·12 of two, of which some are the same with steps exchanged.
        ("darts", None),
        ("enas_micro", None),
        ("pnas", None),
        ("tiny", None),
        ("enas_macro", 8 * 2**3),
        # Per stage one operation and up to two, or one, more: (2 + 4 + 8) · (2 + 4).
        ("mobile", 14 * 6),
        ("chain", None),
        ("families", None),
    ],
)
def test_a_space_is_walked_to_its_end_without_a_duplicate(name: str, networks: int | None) -> None:
    space = SMALL[name]
    keys = {space.key(point) for point in space.points()}
    assert networks in (None, len(keys))
    log = Log(Objectives({"accuracy": "max"}))
    asked = RandomSearch()(space, log, len(keys) + 5, 0)
    assert len(asked) == len(keys) == len({candidate.key for candidate in asked})
    shown = {json.dumps(space.describe(c.point).to_dict(), sort_keys=True) for c in asked}
    assert len(shown) == len(keys)  # no two of them are written alike


def test_the_first_step_of_pnas_has_the_papers_forms() -> None:
    space = PNAS(steps=1)
    assert space.size == 3 * 8**2
    assert len({space.key(point) for point in space.points()}) == 136


def test_the_space_of_darts_is_as_large_as_the_papers() -> None:
    assert Darts().size == (1 * 3 * 6 * 10 * 7**8) ** 2  # about 10^18


def test_steps_in_another_order_are_the_same_cell() -> None:
    space = Darts(steps=3, kinds=("normal",))
    start = {choice.name: choice.values[0] for choice in space.choices}
    one = {**start, "normal.0.a": "sep_conv_3x3", "normal.1.b": "dil_conv_5x5"}
    other = {**start, "normal.1.a": "sep_conv_3x3", "normal.0.b": "dil_conv_5x5"}
    reading = {**one, "normal.2.inputs": "0,2", "normal.2.b": "sep_conv_5x5"}
    swapped = {**other, "normal.2.inputs": "0,3", "normal.2.b": "sep_conv_5x5"}
    assert space.key(one) == space.key(other)
    assert space.key(reading) == space.key(swapped)
    assert space.key(reading) != space.key({**swapped, "normal.2.inputs": "0,2"})


def test_an_edge_that_is_nothing_reads_nothing() -> None:
    space = Tiny(kinds=("normal",))
    start = {c.name: c.values[0] for c in space.choices} | {"normal.1.b": "zero"}
    one, other = ({**start, "normal.1.inputs": inputs} for inputs in ("0,1", "0,2"))
    assert space.key(one) == space.key(other)
    assert space.describe(one).params == space.describe(other).params


def test_left_out_blocks_stand_at_the_end_of_their_stage() -> None:
    space = SMALL["mobile"]
    point = {"0.0": "mb3_3", "0.1": "zero", "0.2": "mb6_3", "1.0": "mb3_3", "1.1": "zero"}
    assert space.canonical(point)["0.1"] == "mb6_3"
    kept = [node.op for node in space.plan(point).nodes if node.place.startswith("stage")]
    assert kept == ["mb3_3", "mb6_3", "mb3_3"]


def test_the_mobile_space_follows_the_resolution() -> None:
    assert Mobile().strides == (1, 2, 2, 2)
    assert Mobile(resolution=224).widths == (24, 40, 80, 96, 192, 320)
    with pytest.raises(UserError, match="one number ≥ 1 for each stage"):
        Mobile(widths=(8, 8), depths=(1,), strides=(1, 1))


@pytest.mark.parametrize("cell", ["333333", "421211", "000000"])
def test_the_network_of_nb201_is_the_benchmarks(cell: str) -> None:
    space = NB201()
    names = dict(
        enumerate(("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"))
    )
    point = {c.name: names[int(d)] for c, d in zip(space.choices, cell, strict=True)}
    counted, real = space.costs(point), space.describe(point)
    head = 64 * 10 + 10  # its classifier of ten classes
    assert real.params == counted["params"] - head
    # The benchmark counts norms, activations and pooling beside convolutions.
    per_map = 5 * 32 * 32 * (16 + 8 + 4)
    convs, pools = (sum(cell.count(d) for d in digits) for digits in ("23", "4"))
    rest = COUNTS["macs"][0] - 7_782_400
    assert real.macs() == counted["macs"] - rest - 3 * per_map * convs - 9 * per_map * pools
    assert NB201(counts="network").costs(point)["params"] == real.params
    if cell == "333333":
        network = build(real, generator=torch.Generator().manual_seed(0))
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        network(images).square().mean().backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in network.parameters())


def test_settings_of_a_space_are_part_of_its_name() -> None:
    space = named_space(
        "darts(cells=4, operations=['skip_connect', 'sep_conv_3x3'])", resolution=16
    )
    assert isinstance(space, Darts)
    assert (space.cells, space.operations, space.resolution) == (4, OPS, 16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dart", "Did you mean 'darts'"),
        ("darts(cell=4)", "Did you mean 'cells'"),
        ("darts(cells=)", "is no space"),
        ("darts(4)", "is no space"),
        ("darts(cells='x')", "another type"),
        ("darts(cells=0)", "cells=0"),
        ("darts(operations=('sep_conv_9x9',))", "There is no operation 'sep_conv_9x9'"),
        ("nb201(counts='x')", "counts='x'"),
        ("families(types=('cnm',))", "Did you mean 'cnn'"),
        ("families(edition=3)", "edition=3 is 1 or 2"),
        ("families(most=51)", "2 to 50"),
        ("families(edition=2, trains='both')", "one of pretrain, finetune, classifier"),
        ("families(edition=2, level=1, types=('simple_vit',))", "takes part at level=1"),
        ("chain(widths=(8, 4))", "rise"),
        ("enas_macro(layers=0)", "layers=0"),
    ],
)
def test_mistakes_in_a_space_are_said(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        named_space(text)


def test_a_text_that_is_no_point_is_refused() -> None:
    with pytest.raises(UserError, match="has 2 values; space tiny has 12"):
        named_space("tiny").read("a|b")


def test_caps_hold_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Tiny().under({"params": 12_000, "macs": 2_500_000})
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("built"), raising=True)
    with pytest.MonkeyPatch.context():
        rng = Random(0)
        for _ in range(20):
            costs = space.costs(space.mutate(space.sample(rng), rng))
            assert costs["params"] <= 12_000 and costs["macs"] <= 2_500_000  # noqa: PT018


def test_an_impossible_cap_names_the_smallest_network() -> None:
    with pytest.raises(UserError, match="the smallest has params = "):
        SMALL["mobile"].under({"params": 10})


def test_neighbours_of_a_chain_are_its_mutations() -> None:
    space = Chain(most=3, widths=(4, 8, 16), resolution=16)
    point = space.read(
        {c.name: c.few(2)[0] for c in space.choices} | {"depth": 2, "0.width": 8, "1.width": 4}
    )
    before = space.describe(point)
    near = [space.describe(other) for other in space.neighbours(point)]
    assert grow(before).after in near
    widths = {other.channels for other in near}
    assert widths == {(8, 4, 4), (16, 4), (4, 4), (8, 8)}
    assert space.point(before) == point


def test_genes_that_change_nothing_share_a_key() -> None:
    space = Families(types=("efficientnet",))
    start = {c.name: c.values[0] for c in space.choices}
    one, other = ({**start, "efficientnet.depth": depth} for depth in (0.8, 1.0))
    assert space.key(one) == space.key({**one})
    same = space.describe(one).to_dict()["nodes"] == space.describe(other).to_dict()["nodes"]
    assert (space.key(one) == space.key(other)) is same


def test_a_space_in_use_is_not_replaced() -> None:
    make: Callable[..., NetworkSpace] = Chain
    with pytest.raises(UserError, match="registered already"):
        register_space("darts", make)


def test_a_searched_network_says_what_is_wrong_with_it() -> None:
    plan = Plan()
    plan.add("a", "conv", IMAGE, 4, 2)
    plan.add("b", "conv", (0, IMAGE), 4)
    with pytest.raises(UserError, match="do not fit"):
        SearchedArchitecture("searched", 8, 3, tuple(plan.nodes)).count()
    with pytest.raises(UserError, match="named twice"):
        SearchedArchitecture("searched", 8, 3, (plan.nodes[0], plan.nodes[0]))
    with pytest.raises(UserError, match="none comes before it"):
        SearchedArchitecture("searched", 8, 3, (replace(plan.nodes[0], inputs=(1,)),))

"""Network types with genes of their own: all that is proposed is built, however it came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import names_with
from sseg_nase.errors import UserError
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.building import build, configured, described
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.rundir.directory import with_former_values
from sseg_nase.spaces import Families, Family, Options, named_space, register_family
from sseg_nase.spaces import family as family_module
from sseg_nase.spaces.first_families import FIRST

TYPES = names_with(Planned)
SIDES = (28, 32, 64, 96)


def check_point(space: Families, rng: Random, point: Mapping[str, Any]) -> str:
    """It is built, counted, trained for a step, mutated, crossed and written down."""
    description = space.describe(point)
    network = build(description, generator=torch.Generator().manual_seed(0))
    assert description.params == count_params(network)
    assert description.macs() == count_macs(network, space.resolution, space.in_channels)
    costs = space.costs(point)
    assert (costs["params"], costs["macs"]) == (description.params, description.macs())

    images = torch.randn(2, space.in_channels, space.resolution, space.resolution)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    network(images).square().mean().backward()
    before = [weight.detach().clone() for weight in network.parameters()]
    optimizer.step()
    assert any((w != b).any() for w, b in zip(network.parameters(), before, strict=True))

    assert json.loads(json.dumps(point)) == point == space.check(point)
    for encode, decode in space.encodings.values():
        assert decode(encode(point)) == point
    assert described(json.loads(json.dumps(description.to_dict()))) == description
    whole = space.part(3)
    for other in (
        space.mutate(point, rng),
        space.mutate(point, rng, 0.3),
        space.crossover(point, space.sample(rng), rng),
        space.crossover(point, space.mutate(point, rng, 0.3), rng),
    ):
        assert space.check(other) == other == space.canonical(other)
        assert whole.check(other) == other  # a point of a lower level is one of the whole space
        space.describe(other)
    return str(point["type"])


@pytest.mark.parametrize("kind", TYPES)
def test_a_point_of_every_type_is_whole(kind: str) -> None:
    side = SIDES[TYPES.index(kind) % 2]
    space = Families(edition=2, types=(kind,), most=2, resolution=side, in_channels=1)
    rng, least = Random(5), space.canonical({c.name: c.few(2)[0] for c in space.choices})
    assert check_point(space, rng, space.mutate(least, rng, 0.3)) == kind


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", SIDES)
def test_two_thousand_points_are_whole(side: int, channels: int) -> None:
    """250 of each size and number of channels, over the three levels and every type."""
    space, rng = Families(edition=2, resolution=side, in_channels=channels), Random(side + channels)
    seen = set()
    for number in range(250):
        level = space.part(1 + number % 3)
        seen.add(check_point(level, rng, level.sample(rng)))
    assert seen == set(TYPES)


def test_levels_hold_what_the_progressive_search_begins_with() -> None:
    whole = Families(edition=2)
    types = ({"cnn", "mlp"}, {"cnn", "mlp", "enhanced_mlp", "resnet_small", "mobilenet"}, {*TYPES})
    for level, most in ((1, 3), (2, 5), (3, 8)):
        space, rng = whole.part(level), Random(level)
        assert [c.name for c in space.choices] == [c.name for c in whole.choices]
        points = [space.sample(rng) for _ in range(60)]
        points = [space.mutate(point, rng, 0.5) for point in points]
        assert {point["type"] for point in points} == types[level - 1]
        for own in map(space.own, points):
            assert int(own.get("layers", 0)) <= most
            assert int(own["depth"]) <= most if isinstance(own.get("depth"), int) else True
            if level == 1:
                said = {v for n, v in own.items() if n.endswith(("activation", "skips", "norm"))}
                assert said <= {"relu", 0}
                assert max(int(v) for n, v in own.items() if n.endswith("channels")) <= 512


def test_one_cut_divides_all_lists_of_two_parents() -> None:
    space, rng = Families(edition=2, types=("cnn",), most=6), Random(0)
    start = {c.name: c.few(2)[0] for c in space.choices}
    one = start | {"cnn.layers": 6} | {f"cnn.{n}.channels": 32 for n in range(6)}
    one |= {f"cnn.{n}.kernel_sizes": 5 for n in range(6)}
    other = start | {"cnn.layers": 4} | {f"cnn.{n}.channels": 256 for n in range(6)}
    other |= {f"cnn.{n}.kernel_sizes": 7 for n in range(6)}
    cuts = set()
    for _ in range(30):
        own = space.own(space.crossover(one, space.canonical(other), rng))
        assert own["layers"] == 4
        rows = [(own[f"{n}.channels"], own[f"{n}.kernel_sizes"]) for n in range(4)]
        cut = rows.index((256, 7)) if (256, 7) in rows else 4
        assert rows == [(32, 5)] * cut + [(256, 7)] * (4 - cut)
        cuts.add(cut)
    assert cuts == {1, 2, 3, 4}


def test_parents_of_two_types_give_a_mutation_of_one() -> None:
    space, rng = Families(edition=2, types=("cnn", "mlp")), Random(1)
    cnn, mlp = (space.canonical({**space.sample(rng), "type": name}) for name in ("cnn", "mlp"))
    for _ in range(20):
        child = space.crossover(cnn, mlp, rng)
        parent = cnn if child["type"] == "cnn" else mlp
        if child["type"] == parent["type"] and child["type"] in ("cnn", "mlp"):
            differs = {name for name in child if child[name] != parent[name]}
            assert differs
    types = [space.mutate(cnn, rng, 0.5)["type"] for _ in range(150)]
    assert 0.03 < types.count("mlp") / len(types) < 0.22  # a fifth of the rate, 0.1


def test_a_layer_more_or_less_moves_the_lists_along() -> None:
    space, rng = Families(edition=2, types=("mlp",), most=5), Random(2)
    point = space.canonical({c.name: c.few(2)[0] for c in space.choices} | {"mlp.layers": 4})
    point |= {f"mlp.{n}.channels": wide for n, wide in enumerate((64, 128, 256, 512))}
    seen, gone = set(), set()
    for _ in range(60):
        other = dict(point)
        space._lengthen(other, "mlp.layers", rng)
        own = space.own(other)
        units = [own[f"{n}.channels"] for n in range(int(own["layers"]))]
        seen.add(len(units))
        left = [wide for wide in (64, 128, 256, 512) if wide in units]
        if len(units) == 3:
            assert units == left
            gone |= {64, 128, 256, 512} - {*units}
        else:
            assert any(units[:n] + units[n + 1 :] == [64, 128, 256, 512] for n in range(5)), units
    assert seen == {3, 5}
    assert gone == {64, 128, 256, 512}  # at any place


def test_a_point_is_a_registered_backbone_with_its_keys() -> None:
    space, rng = Families(edition=2, resolution=28, in_channels=1, most=3), Random(3)
    point = space.canonical({c.name: c.sample(rng) for c in space.choices} | {"type": "cnn"})
    config = load([*space.overrides(point), "dataset.image_size=28", "dataset.channels=1"])
    assert config.backbone.name == "cnn"
    assert configured(config.backbone, 28) == space.describe(point)
    same = named_space(space.text, resolution=28, in_channels=1)
    assert same.describe(same.read(space.to_json(point))) == space.describe(point)


def test_one_network_at_two_rates_is_two_candidates() -> None:
    space = Families(edition=2, trains="finetune", types=("cnn",))
    point = space.sample(Random(0)) | {"training.lr": 0.1, "training.optimizer": "sgd"}
    other = point | {"training.lr": 0.001}
    assert space.key(point) != space.key(other)
    assert space.network_key(point) == space.network_key(other)
    assert space.costs(point) == space.costs(other)
    another = space.trained_like(space.sample(Random(1)), other)
    assert space.training(another) == {"lr": 0.001, "optimizer": "sgd"}
    assert space.network_key(another) != space.network_key(other)
    own = ["finetune=classifier", "evaluation=classification", "dataset=mnist", "pretrain.epochs=0"]
    config = load([*own, *space.overrides(other)])
    assert (config.finetune.optimizer, config.finetune.lr_encoder) == ("sgd", 0.001)
    trained = replace(space, trains="classifier", choices=())
    _, optimizer, dropout = trained.choices[-3:]
    assert (optimizer.grid(3), dropout.grid(5)) == (
        ["sgd", "adam", "adamw"],
        [0, 0.1, 0.2, 0.3, 0.5],
    )
    dropped = {**point, "training.optimizer": "adamw", "training.dropout": 0.3}
    assert trained.key(dropped) != trained.key(dropped | {"training.dropout": 0.0})
    config = load([*own, *trained.overrides(dropped)])
    tuning: Any = config.finetune
    assert (tuning.optimizer, tuning.lr_head, tuning.dropout) == ("adamw", 0.1, 0.3)
    config = load(replace(space, trains="pretrain", choices=()).overrides(point))
    assert (config.optimizer.name, config.optimizer.lr) == ("sgd", 0.1)


def test_a_search_from_before_has_the_networks_that_it_had() -> None:
    """The texts and points of such a search are read as edition 1."""
    space = named_space("families(level=1)")
    assert isinstance(space, Families)
    assert space.types == ("cnn", "mlp")
    start: dict[str, Any] = {c.name: c.few(2)[0] for c in space.choices}
    assert space.key(start) == "cnn 3ef142178af696137937"
    assert {*Families().types} == {*FIRST}


def test_a_resumed_search_from_before_keeps_its_edition(tmp_path: Path) -> None:
    config: Any = load(["task=search", "space=families"])
    assert config.space.settings == {"edition": 2}
    tree = asdict(config)
    for stored in ({}, {"edition": 2}):
        tree["space"]["settings"] = stored
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        again: Any = with_former_values(replace(config, resume=str(tmp_path)), [])
        assert again.space.settings == {"edition": stored.get("edition", 1)}


def test_a_registered_family_joins_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "FAMILIES", {})
    monkeypatch.setattr("sseg_nase.spaces.families.FAMILIES", family_module.FAMILIES)

    def plan(plan: Plan, own: object, side: int) -> None:
        plan.add("only", "conv", IMAGE, own["width"])  # type: ignore[index]

    before = Families(edition=2)
    family = Family("own", lambda limits: (Options("width", (4, 8)),), plan, 1)
    register_family(family)
    for edition in (1, 2):
        space = Families(types=("own",), edition=edition)
        assert len({space.key(point) for point in space.points()}) == 2
        assert space.describe(space.sample(Random(0))).features in (4, 8)
        assert "own" in Families(level=1, edition=edition).types
    assert "own" not in replace(before, caps={}).types
    with pytest.raises(UserError, match="registered already"):
        register_family(replace(family, plan=FIRST["cnn"].plan))
    register_family(replace(family, from_level=2))  # its file, read once more


def test_under_caps_every_type_that_fits_is_drawn_as_often() -> None:
    """Of vision transformers a few in a hundred are below these caps, of mlps nearly all."""
    small = {"resolution": 28, "in_channels": 1, "edition": 2, "types": ("mlp", "simple_vit")}
    space = Families(**small).under({"params": 1e6, "macs": 1.2e6})  # type: ignore[arg-type]
    drawn = [space.sample(Random(seed)) for seed in range(40)]
    assert all(space.allows(point) for point in drawn)
    assert 12 <= sum(point["type"] == "simple_vit" for point in drawn) <= 28
    assert len({space.key(point) for point in drawn}) > 20


def test_a_changed_type_is_any_other_that_fits() -> None:
    small = {"resolution": 28, "in_channels": 1, "edition": 2}
    types = ("mlp", "enhanced_mlp", "simple_vit", "densenet")
    space = Families(**small, types=types).under({"params": 1e6, "macs": 1.2e6})  # type: ignore[arg-type]
    assert {*space.kinds} == {*types[:3]}
    rng, found = Random(0), []
    mlps = space.part(3, ["mlp"])
    while len(found) < 20:
        child = space.mutate(mlps.sample(rng), rng, rate=3.0)
        if child["type"] != "mlp":
            assert space.allows(child)
            found.append(child["type"])
    assert 5 <= found.count("simple_vit") <= 15
    alone = Families(**small, types=("mlp", "densenet")).under({"params": 1e6, "macs": 1.2e6})  # type: ignore[arg-type]
    assert {alone.mutate(alone.sample(rng), rng, rate=3.0)["type"] for _ in range(8)} == {"mlp"}


def test_of_two_types_the_training_is_recombined() -> None:
    space, rng = Families(edition=2, types=("mlp", "cnn"), most=3, trains="classifier"), Random(0)
    one = {**space.part(3, ["mlp"]).sample(rng), "training.lr": 0.1, "training.optimizer": "sgd"}
    other = {
        **space.part(3, ["cnn"]).sample(rng),
        "training.lr": 0.001,
        "training.optimizer": "adam",
    }
    children = [space.crossover(one, other, rng) for _ in range(60)]
    apart = [(c["type"], c["training.lr"], c["training.optimizer"]) for c in children]
    pairs = {(lr, by) for lr in (0.1, 0.001) for by in ("sgd", "adam")}
    assert {("mlp", *pair) for pair in pairs} | {("cnn", *pair) for pair in pairs} <= {*apart}
    mutated = [
        child for child in children
        for parent in (one, other)
        if child["type"] == parent["type"]
        and space.network_key(child) != space.network_key(parent)
    ]  # fmt: skip
    assert len(mutated) > 20  # one gene changes, in most of them of the network


def test_the_largest_network_under_caps_is_that_of_any_type() -> None:
    space = Families(
        edition=2, resolution=28, in_channels=1, types=("mlp", "simple_vit", "mlp_mixer"),
        caps={"params": 1e6, "macs": 5e6},
    )  # fmt: skip
    found = {kind: space.part(3, [kind]).largest() for kind in space.kinds}
    assert all(space.kind(point) == kind for kind, point in found.items())
    largest = space.largest()
    assert space.allows(largest)
    assert space.costs(largest)["params"] >= max(
        0.9e6, *(space.costs(point)["params"] for point in found.values())
    )

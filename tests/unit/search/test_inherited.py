"""Weights from the parent: exact for chains, equal places for cells, found again after a stop."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.heads import LinearHead
from sseg_nase.nets.inheritance import correspondence, share, taken
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.search import Budget, Candidate, Cost, Inherited, Log, Objectives, search
from sseg_nase.search.evaluators.inherited import Inheritance, Kept, inherit
from sseg_nase.search.strategies import Evolution, Grid
from sseg_nase.spaces import NB201, Chain, Families

CHAIN = Chain(most=4, widths=(4, 6, 8), resolution=8)
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def point(*widths: int, residual: tuple[int, ...] = (), pool: int = 1) -> dict:
    found = {choice.name: choice.few(2)[0] for choice in CHAIN.choices} | {"depth": len(widths)}
    for at, width in enumerate(widths):
        found |= {f"{at}.width": width, f"{at}.pool": pool if at not in residual else 0}
        if at:
            found[f"{at}.residual"] = int(at in residual)
    return CHAIN.canonical(CHAIN.check(found))


def classifier(description: Description, generator: torch.Generator) -> LinearHead:
    head = LinearHead(description.features, 3)
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.normal_(generator=generator)
    return head


HEAD = torch.Generator().manual_seed(7)


def child(
    parent: Backbone, after: Description, seed: int = 0, caps: dict[str, float] | None = None
) -> tuple[Inheritance, LinearHead, LinearHead]:
    """What `parent` with a classifier hands on, the new classifier, and that of the parent."""
    before = classifier(parent.architecture, HEAD)
    kept = Kept(parent.architecture, parent.state_dict(), before.state_dict())
    found = inherit(kept, after, seed, caps=caps, make_head=classifier)
    assert isinstance(found.head, LinearHead)
    return found, found.head, before


def trained(description: Architecture) -> Backbone:
    network = build(description, generator=torch.Generator().manual_seed(1)).train()
    network(IMAGES).square().mean().backward()  # moves the running statistics, too
    with torch.no_grad():
        for weight in network.parameters():
            weight -= 0.1 * weight.grad
    return network.eval()


@pytest.mark.parametrize(
    ("before", "after", "by"),
    [
        (point(4, 6), point(4, 6, 8, residual=(2,)), "GROW"),
        (point(4, 6), point(8, 6), "WIDEN"),
        (point(4, 6, 6, residual=(2,)), point(8, 8, 8, residual=(2,)), "WIDEN"),
        (point(4, 4), point(6, 8, 8, 8, residual=(2, 3)), "WIDEN"),
    ],
)
def test_a_larger_chain_begins_with_its_parents_function(
    before: dict, after: dict, by: str
) -> None:
    parent = trained(CHAIN.describe(before))
    found, head, before_it = child(parent, CHAIN.describe(after), 3)
    assert any(label.startswith(by) for label in found.mutations)
    assert found.network.architecture.channels == CHAIN.describe(after).channels
    mine, theirs = found.network.eval()(IMAGES), parent(IMAGES)
    assert torch.allclose(head(mine), before_it(theirs), atol=1e-4)
    if by == "GROW":
        assert torch.allclose(mine[:, : theirs.shape[1]], theirs, atol=1e-5)
    else:  # channels are repeated: each of the parent's is there
        gaps = (mine[:, :, None] - theirs[:, None, :]).abs().amax(0).amin(0)
        assert gaps.max() < 1e-5
    assert 0 < found.params <= sum(w.numel() for w in found.network.parameters())
    if by == "GROW":
        assert found.params >= sum(w.numel() for w in parent.parameters()) - 1


def test_a_pruned_chain_is_the_masked_one() -> None:
    parent = trained(CHAIN.describe(point(8, 6)))
    found, head, before = child(parent, CHAIN.describe(point(4, 6)))
    assert [label[:5] for label in found.mutations] == ["PRUNE"]
    norms = parent.blocks[0].conv.weight.flatten(1).norm(dim=1)
    mask = torch.zeros(8)
    mask[norms.argsort(descending=True)[:4]] = 1  # the largest filters stay
    masked = parent(IMAGES, masks=[mask, torch.ones(6)])
    assert torch.allclose(found.network.eval()(IMAGES), masked, atol=1e-5)
    assert torch.allclose(head(masked), before(masked), atol=1e-6)
    assert found.params == sum(w.numel() for w in found.network.parameters())


def test_a_chain_that_no_mutation_leads_to_takes_equal_places() -> None:
    parent = trained(CHAIN.describe(point(4, 6)))
    found, head, before = child(parent, CHAIN.describe(point(4, pool=0)), 3)
    assert found.mutations == ()
    assert torch.equal(found.network.blocks[0].conv.weight, parent.blocks[0].conv.weight)
    assert found.params == 4 * 27 + 8
    without = Kept(parent.architecture, parent.state_dict())  # as an older version kept it
    begun = inherit(without, CHAIN.describe(point(4, 6)), 3, make_head=classifier).head
    assert isinstance(begun, LinearHead)
    assert begun.bias.abs().min() > 0
    # Its features are others: the weights on them are new ones, the bias stays.
    assert head.weight.shape != before.weight.shape
    assert torch.equal(head.bias, before.bias)


def test_a_shortcut_that_would_break_a_cap_is_not_routed() -> None:
    before, after = point(4, 4, 4, residual=(1, 2)), point(8, 8, 8, residual=(1, 2))
    parent = trained(CHAIN.describe(before))
    free, *_ = child(parent, CHAIN.describe(after))
    routed = free.network.architecture
    assert isinstance(routed, Architecture)
    exact = CHAIN.describe(after).macs()
    assert routed.macs() >= exact
    if routed.macs() == exact:
        pytest.skip("nothing had to be routed")
    capped, *_ = child(parent, CHAIN.describe(after), caps={"macs": exact})
    assert capped.network.architecture == CHAIN.describe(after)


def test_cells_take_over_what_stands_at_the_same_place() -> None:
    space = NB201(cells=1, width=4, resolution=8)
    start = dict.fromkeys((choice.name for choice in space.choices), "nor_conv_3x3")
    parent = build(space.describe(start), generator=torch.Generator().manual_seed(1))
    after = space.describe({**start, "0-1": "nor_conv_1x1"})
    found, *_ = child(parent, after, 5)
    fresh = build(after, generator=torch.Generator().manual_seed(5))
    theirs, new = parent.state_dict(), fresh.state_dict()
    for name, tensor in found.network.state_dict().items():
        place = name.split(".")[2]
        assert torch.equal(tensor, new[name] if place == "0-1" else theirs[name]), name
    other = sum(w.numel() for n, w in found.network.named_parameters() if ".0-1." not in n)
    assert found.params == other
    # The same shapes in another operation are not the same.
    swapped = space.describe({**start, "0-1": "avg_pool_3x3", "0-2": "nor_conv_1x1"})
    again, *_ = child(found.network, swapped, 6)
    assert again.params < other


def steps(network: Backbone, head: nn.Module | None, seed: int) -> tuple[dict[str, float], Cost]:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01)
    for _ in range(2):
        target = torch.randn(8, network.architecture.features, generator=generator)
        loss = F.mse_loss(network(IMAGES), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}, Cost(images=16)


def searched(folder: Path, log: Log, candidates: int) -> Log:
    evaluator = Inherited(CHAIN, steps, folder)
    return search(CHAIN, Evolution(2, 1), evaluator, log, Budget(candidates=candidates))


def test_a_search_that_inherits_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    wanted = Objectives({"loss": "min"})
    whole = searched(tmp_path / "whole", Log(wanted), 8)
    with Log.open(tmp_path / "candidates.jsonl", wanted) as log:
        searched(tmp_path / "parts", log, 5)
    with Log.open(tmp_path / "candidates.jsonl", wanted) as log:
        resumed = searched(tmp_path / "parts", log, 8)
    assert resumed.lines() == whole.lines()
    assert [scored.error for scored in whole.told] == [None] * 8
    for number, scored in enumerate(whole.told):
        assert (scored.scores["inherited_from"] >= 0) is (number > 0)
        assert scored.scores["inherited_from"] < number
        assert 0 <= scored.scores["inherited_share"] <= 1
        assert (scored.scores["inherited_params"] > 0) is (number > 0)
        assert scored.cost.images == 16


def test_weights_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (tmp_path / "0.pt").write_bytes(b"no weights")
    evaluator = Inherited(CHAIN, steps, tmp_path)
    evaluator.start(Candidate(1, CHAIN.sample(Random(0)), "key", parents=(0,)))
    with pytest.raises(UserError, match="Delete it"):
        evaluator.result()


def test_a_training_that_fails_is_a_failed_candidate(tmp_path: Path) -> None:
    def broken(
        network: Backbone, head: nn.Module | None, seed: int
    ) -> tuple[dict[str, float], Cost]:
        raise ValueError("diverged")

    log = Log(Objectives({"loss": "min"}))
    search(CHAIN, Grid(), Inherited(CHAIN, broken, tmp_path), log, Budget(candidates=1))
    assert log.told[0].error == "ValueError: diverged"
    assert not list(tmp_path.iterdir())


FAMILIES = Families(edition=2, resolution=8, most=4)
SMALLEST = {c.name: c.few(2)[0] for c in FAMILIES.choices}
WIDER = {
    "cnn": {"cnn.layers": 3, "cnn.0.channels": 32, "cnn.2.channels": 64},
    "mobilenet": {"mobilenet.1.channels": 32, "mobilenet.expansion": 6},
    "densenet": {"densenet.growth": 24},
    "simple_vit": {"simple_vit.hidden": 192},
    "resnet_small": {"resnet_small.1.channels": 32},
}
DEEPER = {
    "cnn": {"cnn.layers": 4},
    "mobilenet": {"mobilenet.1.depths": 3},
    "densenet": {"densenet.1.depths": 3},
    "simple_vit": {"simple_vit.depth": 3},
    "resnet_small": {"resnet_small.0.depths": 2},
}


def network_of(kind: str, **more: int) -> SearchedArchitecture:
    start = SMALLEST | {"type": kind, "cnn.layers": 3, **more}
    found = FAMILIES.describe(FAMILIES.canonical(start))
    assert isinstance(found, SearchedArchitecture)
    return found


@pytest.mark.parametrize("kind", WIDER)
def test_what_is_wider_or_narrower_in_a_family_is_exact(kind: str) -> None:
    """A wider one gives the features of before, and others; a narrower one those of its mask."""
    small, large = network_of(kind), network_of(kind, **WIDER[kind])
    parent = trained(small)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    wide, head, before = child(parent, large, 4)
    maps = correspondence(small, large)
    assert all(each.source is not None for each in maps.values())
    found = wide.network.double().eval()(images)
    expected = parent.double()(images)
    gaps = (found[:, :, None] - expected[:, None, :]).abs().amax(0).amin(0)
    assert gaps.max() < 1e-9
    assert torch.allclose(head.double()(found), before.double()(expected), atol=1e-9)
    assert wide.params == small.params == taken(maps, large)
    assert share(small, large) == pytest.approx(small.params / large.params)

    parent = trained(large)
    state = parent.state_dict()
    narrow, head, before = child(parent, small)
    assert share(large, small) == 1.0
    assert narrow.params == small.params
    kept = correspondence(large, small, state)
    if kind == "cnn":  # of the first layer the largest filters stay
        name = "blocks.layer0.op.0.weight"
        sizes = state[name].flatten(1).norm(dim=1)
        largest = sorted(sizes.argsort(descending=True)[:16].tolist())
        assert kept[name].axes[0] is not None
        assert list(kept[name].axes[0].channels.index) == largest
    masks = []
    for axis, width in large.axes.items():
        mask = torch.zeros(width)
        for name, wires in small.wiring().items():
            for dim, one in enumerate(wires.axes):
                if one is not None and one.names == (axis,) and one.positions == 1:
                    along = kept[name].axes[dim]
                    assert along is not None
                    mask[list(along.channels.index)] = 1
        masks.append(mask if mask.any() else torch.ones(width))
    if kind != "densenet":  # what stands behind other axes in one dimension
        theirs = parent.masked(images.float(), masks)
        mine = narrow.network.eval()(images.float())
        gaps = (mine[:, :, None] - theirs[:, None, :]).abs().amax(0).amin(1)
        assert gaps.max() < 1e-5
        assert torch.allclose(head(mine), before(theirs), atol=1e-4)


@pytest.mark.parametrize("kind", DEEPER)
def test_a_deeper_network_takes_what_stands_at_the_same_stage_and_position(kind: str) -> None:
    small, deep = network_of(kind), network_of(kind, **DEEPER[kind])
    parent = trained(small)
    found, head, of_parent = child(parent, deep, 4)
    theirs = parent.state_dict()
    before = {name.split(".")[1] + name.split(".")[2] for name in theirs}
    for name, tensor in found.network.state_dict().items():
        there = name.split(".")[1] + name.split(".")[2] in before
        if there and name in theirs and theirs[name].shape == tensor.shape:
            assert torch.equal(tensor, theirs[name]), name
    if kind == "cnn":  # its head reads what another layer makes, of as many channels or not
        drawn = torch.Generator().manual_seed(4)
        build(deep, generator=drawn)
        assert torch.equal(head.weight, classifier(deep, drawn).weight)
    elif kind == "densenet":  # the new layer's channels are put beside the others
        mine, its = found.network.eval()(IMAGES), parent(IMAGES)
        assert mine.shape[1] > its.shape[1]
        assert torch.allclose(head(mine), of_parent(its), atol=1e-4)
    else:
        assert torch.equal(head.weight, of_parent.weight)
    assert torch.equal(head.bias, of_parent.bias)
    assert 0.2 < share(small, deep) < 1
    assert found.params == round(share(small, deep) * deep.params)
    assert share(small, network_of("mlp")) == 0.0
    if kind == "cnn":  # another activation reads the same weights, another kernel none
        assert share(small, network_of(kind, **{"cnn.0.activations": "elu"})) == 1.0
        assert share(small, network_of(kind, **{"cnn.0.kernel_sizes": 7})) < 1.0


def test_the_donor_is_the_closest_of_a_bounded_pool(tmp_path: Path) -> None:
    points = [
        FAMILIES.canonical(SMALLEST | more)
        for more in (
            {"type": "cnn", "cnn.layers": 3},
            {"type": "cnn", "cnn.layers": 3, "cnn.0.channels": 256},
            {"type": "mlp"},
            {"type": "cnn", "cnn.layers": 3, "cnn.2.channels": 32},
            {"type": "cnn", "cnn.layers": 3, "cnn.2.channels": 64},
        )
    ]
    candidates = [Candidate(n, p, FAMILIES.key(p)) for n, p in enumerate(points)]

    def donors(most: int, *, inherit: bool = True) -> list[int]:
        folder = tmp_path / f"{most} {inherit}"
        evaluator = Inherited(FAMILIES, steps, folder, most=most, inherit=inherit)
        told = []
        for candidate in candidates:
            evaluator.start(candidate)
            told.append(evaluator.result())
        assert len([*folder.glob("*.pt")]) <= most + 1
        return [int(one.scores["inherited_from"]) for one in told]

    assert donors(100) == [-1, 0, -1, 0, 3]
    assert donors(1) == [-1, 0, -1, -1, 3]  # an mlp is all that there is for the fourth
    assert donors(100, inherit=False) == [-1] * 5

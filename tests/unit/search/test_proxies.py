"""Zero-cost scores against slow, obvious references, and the evaluators made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.search import Budget, Candidate, Function, Log, Objectives, search
from sseg_nase.search.evaluators.proxy import Predicted, Proxy
from sseg_nase.search.predictors import Ridge
from sseg_nase.search.proxies import SCORES, headed, measure, ranks
from sseg_nase.search.strategies import Evolution, RandomSearch, Screened, SuccessiveHalving
from sseg_nase.search.strategies.screened import ScreenedByPredictor
from sseg_nase.spaces import NB201, Chain, Tiny

SPACE = NB201(cells=1, width=4, resolution=8)
CELL = SPACE.from_string(
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(6, 3, 8, 8, generator=GENERATOR)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    return measure(list(SCORES), SPACE.describe(CELL), IMAGES, LABELS)


def test_all_scores_are_finite_and_repeat(scores: dict[str, float]) -> None:
    assert all(math.isfinite(value) for value in scores.values())
    before = torch.random.get_rng_state()
    assert measure(["zen", "nwot", "snip"], SPACE.describe(CELL), IMAGES, LABELS) == {
        name: scores[name] for name in ("zen", "nwot", "snip")
    }
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scores_leave_the_network_as_it_was() -> None:
    network = headed(SPACE.describe(CELL), 3, 0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for score in SCORES.values():
        score(network, IMAGES, LABELS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_gradient_scores_are_their_formulas(scores: dict[str, float]) -> None:
    network = headed(SPACE.describe(CELL), 3, 0).train()
    weights = [p.weight for p in network.modules() if isinstance(p, nn.Conv2d | nn.Linear)]
    F.cross_entropy(network(IMAGES), LABELS).backward()
    products = [(w * w.grad) for w in weights]
    assert scores["grad_norm"] == pytest.approx(sum(w.grad.norm().item() for w in weights), 1e-4)
    assert scores["snip"] == pytest.approx(sum(p.abs().sum().item() for p in products), 1e-4)
    assert scores["plain"] == pytest.approx(sum(p.sum().item() for p in products), abs=1e-4)
    assert scores["l2_norm"] == pytest.approx(sum(w.norm().item() for w in weights), 1e-5)
    assert scores["params"] == SPACE.describe(CELL).params


def test_grasp_is_the_change_of_the_gradients_square(scores: dict[str, float]) -> None:
    """−θ·Hg is minus the change of half ‖g‖² as θ grows, here by finite differences."""
    network = headed(SPACE.describe(CELL), 3, 0).train().double()
    weights = [p.weight for p in network.modules() if isinstance(p, nn.Conv2d | nn.Linear)]

    def half_square(scale: float) -> float:
        with torch.no_grad():
            for weight in weights:
                weight.mul_(scale)
        grads = torch.autograd.grad(F.cross_entropy(network(IMAGES.double()), LABELS), weights)
        with torch.no_grad():
            for weight in weights:
                weight.div_(scale)
        return 0.5 * sum(g.square().sum().item() for g in grads)

    slope = (half_square(1 + 1e-5) - half_square(1 - 1e-5)) / 2e-5
    assert scores["grasp"] == pytest.approx(-slope, rel=1e-3)


def test_nwot_is_the_determinant_of_how_alike_patterns_are(scores: dict[str, float]) -> None:
    network = headed(SPACE.describe(CELL), 3, 0).train()
    kernel = torch.zeros(6, 6, dtype=torch.float64)

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        active = (inputs[0] > 0).flatten(1)
        for one in range(6):
            for other in range(6):
                kernel[one, other] += (active[one] == active[other]).sum()

    for part in network.modules():
        if isinstance(part, nn.ReLU):
            part.register_forward_pre_hook(count)
    network(IMAGES)
    assert scores["nwot"] == pytest.approx(torch.logdet(kernel).item(), rel=1e-9)


def test_jacov_is_that_of_the_input_gradients(scores: dict[str, float]) -> None:
    import numpy as np

    network = headed(SPACE.describe(CELL), 3, 0).train()
    x = IMAGES.clone().requires_grad_()
    network(x).sum().backward()
    values = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).double().numpy())) + 1e-5
    assert scores["jacov"] == pytest.approx(-(np.log(values) + 1 / values).sum(), rel=1e-6)


def test_synflow_counts_paths_of_absolute_weights() -> None:
    """Of a chain of plain layers it is ln(layers · R): each layer holds the whole flow once."""
    flat = Architecture.seed([4, 4], resolution=8, pooling=False, batch_norm=True)
    network = headed(flat, 3, 0)
    found = SCORES["synflow"](network, IMAGES, LABELS)
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data.abs_()
    first, second = (block.conv for block in network.backbone.blocks)
    y = F.relu(second(F.relu(first(torch.ones(1, 3, 8, 8))))).mean((2, 3))
    total = (y @ network.head.weight.T).sum().item()
    assert found == pytest.approx(math.log(3 * total), rel=1e-5)


def test_fisher_squares_what_each_channel_passes_on() -> None:
    network = headed(Architecture.seed([4], resolution=8), 3, 0).train()
    kept = []
    conv = network.backbone.blocks[0].conv

    def keep(module: nn.Module, inputs: object, out: torch.Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    conv.register_forward_hook(keep)
    logits = network(IMAGES)
    logits.retain_grad()
    F.cross_entropy(logits, LABELS).backward()
    first = (kept[0] * kept[0].grad).sum((2, 3))
    second = logits * logits.grad
    expected = sum(0.5 * part.square().mean(0).sum().item() for part in (first, second))
    conv._forward_hooks.clear()
    assert SCORES["fisher"](network, IMAGES, LABELS) == pytest.approx(expected, rel=1e-4)


def test_a_batch_that_says_nothing_is_refused() -> None:
    twice = torch.cat([IMAGES[:3], IMAGES[:3]])
    with pytest.raises(UserError, match="holds an image twice"):
        measure(["nwot"], SPACE.describe(CELL), twice, LABELS)
    with pytest.raises(UserError, match="as many of both"):
        measure(["nwot"], SPACE.describe(CELL), IMAGES, LABELS[:2])
    with pytest.raises(UserError, match="two images of a class"):
        measure(["epe_nas"], SPACE.describe(CELL), IMAGES, torch.arange(6))
    with pytest.raises(UserError, match="Did you mean 'synflow'"):
        measure(["sinflow"], SPACE.describe(CELL), IMAGES, LABELS)
    gelu = Architecture.seed([4], resolution=8, activation="gelu")
    with pytest.raises(UserError, match="has none"):
        measure(["nwot"], gelu, IMAGES, LABELS)


def test_nwot_sees_activations_that_are_no_modules() -> None:
    chain = Chain(most=2, widths=(4,), resolution=8)
    point = {c.name: c.few(2)[0] for c in chain.choices} | {"depth": 2}
    found = measure(["nwot"], chain.describe(point), IMAGES, LABELS)
    assert math.isfinite(found["nwot"])


def test_scores_do_not_depend_on_the_layout_in_memory(scores: dict[str, float]) -> None:
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    network = headed(SPACE.describe(CELL), 3, 0).to(memory_format=torch.channels_last)
    for name, score in SCORES.items():
        assert score(network, images, LABELS) == pytest.approx(scores[name], rel=1e-3), name


def test_ranks_are_a_vote() -> None:
    given = [{"a": 1.0, "b": 9.0}, {"a": 2.0, "b": 8.0}, {"a": 3.0, "b": 10.0}]
    assert ranks(given, ["a", "b"]) == [1, 1, 4]


def test_a_score_is_an_objective_of_a_search() -> None:
    space = Tiny(cells=1, resolution=8)
    wanted = Objectives({"synflow": "max", "macs": "min"})
    proxy = Proxy(space, ["synflow"], IMAGES, LABELS)
    log = search(space, RandomSearch(), proxy, Log(wanted), Budget(candidates=3))
    assert [scored.error for scored in log.told] == [None] * 3
    scored = log.told[0]
    expected = measure(["synflow"], space.describe(scored.candidate.point), IMAGES, LABELS)
    assert scored.scores == {**space.costs(scored.candidate.point), **expected}
    with pytest.raises(UserError, match="There is no score"):
        Proxy(space, ["accuracy"], IMAGES, LABELS)


def test_a_candidate_that_has_no_score_fails_with_the_reason() -> None:
    proxy = Proxy(SPACE, ["nwot"], IMAGES, LABELS)
    empty = {choice.name: "none" for choice in SPACE.choices}
    scored = proxy.measure(Candidate(0, {**empty, "0-1": "x"}, "key"))
    assert "There is no operation 'x'" in str(scored.error)


def measured(candidate: Candidate) -> dict[str, float]:
    operations = list(candidate.point.values())
    return {"error": 100.0 - operations.count("nor_conv_3x3")}


def test_a_predictor_scores_what_another_search_has_not_seen() -> None:
    log = Log(Objectives({"error": "min"}))
    search(SPACE, RandomSearch(), Function(measured), log, Budget(candidates=60))
    predicted = Predicted(SPACE, Ridge(), log)
    for digits, expected in (("none", 100.0), ("nor_conv_3x3", 94.0)):
        point = {choice.name: digits for choice in SPACE.choices}
        predicted.start(Candidate(0, point, "key"))
        found = predicted.result().scores
        assert found["error"] == pytest.approx(expected, abs=1.0)  # not turned round
    with pytest.raises(UserError, match="two results"):
        Predicted(SPACE, Ridge(), Log(Objectives({"error": "min"})))


def test_a_screen_evaluates_the_first_of_what_is_suggested() -> None:
    params = lambda point: SPACE.costs(point)["params"]  # noqa: E731
    wanted = Objectives({"error": "min"})
    log = Log(wanted)
    asked = RandomSearch()(SPACE, log, 30, 0)
    kept = Screened(RandomSearch(), params, 10)(SPACE, log, 3, 0)
    best = sorted((params(c.point) for c in asked), reverse=True)[:3]
    assert sorted((params(c.point) for c in kept), reverse=True) == best
    assert [candidate.number for candidate in kept] == [0, 1, 2]
    assert kept == Screened(RandomSearch(), params, 10)(SPACE, log, 3, 0)
    search(SPACE, Screened(Evolution(), params, 5), Function(measured), log, Budget(candidates=12))
    assert len({c.key for c in log.candidates}) == 12
    log, halving = Log(wanted), Screened(SuccessiveHalving(candidates=4), params, 3)
    search(SPACE, halving, Function(measured), log, Budget(candidates=5))
    assert log.candidates[4].key in {c.key for c in log.candidates[:4]}  # its promotion
    own = lambda *asked: RandomSearch()(*asked)  # noqa: E731
    own.proposals = ["mine"]  # type: ignore[attr-defined]
    assert Screened(own, params, 10)(SPACE, Log(wanted), 3, 0) == kept  # means nothing to us
    with pytest.raises(UserError, match="without fidelities"):
        ScreenedByPredictor(SuccessiveHalving(), Ridge())(SPACE, Log(wanted), 2, 0)
    with pytest.raises(UserError, match="factor=0"):
        Screened(RandomSearch(), params, 0)

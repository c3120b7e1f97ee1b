"""The mean embedding of several fixed views of every image."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.fewshot.fixed_views import MOST, view
from sseg_nase.run import run
from sseg_nase.stages import fewshot_tasks, seed_backbone
from sseg_nase.tracking.console import networks_of

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "ssl=none",
    "evolution=none",
    "sparsity=none",
    "evaluation.untrained_reference=false",
]


def test_views_are_mirrored_crops_at_fixed_places() -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = [view(images, number) for number in range(MOST)]
    assert torch.equal(made[0], images)
    corners = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)]  # 14 of 16 pixels
    for number, (down, right) in enumerate(corners):
        cut = images[:, :, down : down + 14, right : right + 14]
        expected = F.interpolate(cut, size=(16, 16), mode="bilinear")
        assert torch.equal(made[2 + 2 * number], expected)
    for number in range(0, MOST, 2):
        assert torch.equal(made[number + 1], made[number].flip(-1))
    assert len({one.sum((1, 2)).numpy().tobytes() for one in made}) == MOST


def test_support_queries_and_centre_are_means_over_the_views() -> None:
    config = load([*TINY, "evaluation.shots=[2]", "evaluation.episodes=4"])
    (task,) = fewshot_tasks(config)
    backbone = seed_backbone(config).eval()
    with torch.no_grad():

        def embedded(store: object) -> torch.Tensor:
            rows = []
            for index in range(len(store)):  # type: ignore[arg-type]
                image = normalize(store.batch([index]))  # type: ignore[attr-defined]
                rows.append(sum(backbone(view(image, n))[0] for n in range(3)) / 3)
            return torch.stack(rows)

        features = F.normalize(embedded(task.store) - embedded(task.base).mean(0), dim=1)
    (episodes,) = task.episodes
    expected = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        prototypes = F.normalize(features[torch.from_numpy(support.copy())].mean(1), dim=1)
        answers = (features[torch.from_numpy(query.copy())] @ prototypes.T).argmax(-1)
        truth = torch.arange(len(support))[:, None].expand(*query.shape)
        expected.append(100 * (answers == truth).float().mean().item())
    evaluated = task.evaluate(backbone, torch.device("cpu"), 3)
    assert evaluated.accuracies[episodes.key] == pytest.approx(expected, abs=1e-3)
    assert evaluated.results[episodes.key]["method"] == "prototype/cosine/cl2n/tta3"


def test_results_have_a_line_of_their_own_with_its_cost() -> None:
    directory = run(load([*TINY, "evaluation.test_views=2"]))
    results = json.loads((directory / "results.json").read_text())
    assert results["test_views"] == {"views": 2, "macs": 2 * results["architecture"]["macs"]}
    assert results["fewshot_views"].keys() == results["fewshot"].keys()
    assert all("tta" not in one["method"] for one in results["fewshot"].values())
    networks = networks_of(results)
    assert list(networks) == ["this run", "2 views"]
    assert networks["2 views"][1]["macs"] == results["test_views"]["macs"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.support_augmentations=2"], "not together"),
        (["finetune=maml", "evaluation.method=maml", "evaluation.normalize=none"], "adapts"),
        (["evaluation.test_views=13"], "at most 12"),
    ],
)
def test_views_that_cannot_be_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*TINY, "evaluation.test_views=2", *overrides])
    assert said in str(error.value)

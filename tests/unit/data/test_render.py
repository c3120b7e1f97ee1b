from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import DRAWING, perturb, render
from sseg_nase.data.curriculum.scenes import STYLES, TWIN_EDITS, Scene, scenes, twin_attributes
from sseg_nase.data.curriculum.shapes import SHAPES
from sseg_nase.data.random import derive, uniform
from sseg_nase.errors import UserError


def test_every_synthetic_level_of_the_schema_is_drawn() -> None:
    assert tuple(STYLES) == SYNTHETIC_LEVELS


@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
@pytest.mark.parametrize("size", [16, 32, 84])
def test_image_is_the_same_in_any_batch(level: str, size: int) -> None:
    indices = torch.randint(0, 20_000, (37,), generator=torch.Generator().manual_seed(0))
    batch = render(level, indices, seed=3, image_size=size)
    assert batch.shape == (37, 3, size, size)
    assert batch.dtype == torch.uint8
    alone = [render(level, index[None], seed=3, image_size=size) for index in indices]
    assert torch.equal(batch, torch.cat(alone))
    order = torch.arange(36, -1, -1)
    assert torch.equal(batch[order], render(level, indices[order], seed=3, image_size=size))


@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
def test_seed_and_index_change_the_image(level: str) -> None:
    indices = torch.arange(0, 400, 2)
    first = render(level, indices, seed=0, image_size=16)
    assert len(first.flatten(1).unique(dim=0)) == len(indices)
    other = render(level, indices, seed=1, image_size=16)
    assert not (first == other).flatten(1).all(dim=1).any()


def test_nothing_touches_the_global_generator() -> None:
    state = torch.get_rng_state()
    render("OBJECT", torch.arange(4), seed=0, image_size=32)
    assert torch.equal(state, torch.get_rng_state())


def test_an_empty_batch_gives_no_images() -> None:
    assert render("BASIC", torch.arange(0), seed=0, image_size=16).shape == (0, 3, 16, 16)


def test_unknown_level_lists_the_options() -> None:
    with pytest.raises(UserError, match=r"BASIC, TEXTURE, OBJECT, ADVERSARIAL.*'TEXTURE'"):
        render("TEXTUR", torch.arange(2), seed=0, image_size=32)


@pytest.mark.parametrize("size", [32, 84])
@pytest.mark.parametrize("seed", range(4))
def test_difficulty_rises_from_level_to_level(size: int, seed: int) -> None:
    indices = torch.arange(128)
    scores = [
        float(difficulty(render(level, indices, seed=seed, image_size=size)).score.mean())
        for level in SYNTHETIC_LEVELS
    ]
    assert all(later > earlier * 1.2 for earlier, later in pairwise(scores))
    assert all(later > earlier + 0.03 for earlier, later in pairwise(scores))


def test_basic_shows_one_plain_shape_on_a_plain_background() -> None:
    images = render("BASIC", torch.arange(64), seed=0, image_size=84)
    for image in images.flatten(2).transpose(1, 2):
        colours, counts = image.unique(dim=0, return_counts=True)
        assert len(colours) > 2, "edges are not smooth"
        two = counts.sort(descending=True).values[:2].sum()
        assert int(two) > 0.93 * 84**2, "more than one shape and a background"


def test_a_circle_covers_its_area() -> None:
    scene = scenes("BASIC", torch.arange(400), seed=0)
    circles = (scene.kind[:, 0] == list(SHAPES).index("circle")).nonzero()[:, 0]
    assert len(circles) > 10
    images = render("BASIC", circles, seed=0, image_size=84).float()
    for row, image in zip(circles, images, strict=True):
        base, colour = scene.base[row] * 256, scene.colour[row, 0] * 256
        share = (image - base[:, None, None]) / (colour - base)[:, None, None]
        radius = 0.85 * float(scene.radius[row, 0])
        inside = (share.mean(dim=0) > 0.5).float().mean()
        assert float(inside) == pytest.approx(torch.pi * radius**2, rel=0.04)


def test_shapes_are_signed_distances_within_the_unit_circle() -> None:
    cells = torch.linspace(-1.2, 1.2, 241, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1)
    for name, shape in SHAPES.items():
        distance = shape(points)
        assert (distance < 0).any(), name
        assert (distance[points.norm(dim=-1) > 1.01] > 0).all(), name
        slope = distance.diff(dim=0).abs().max() / 0.01
        assert float(slope) <= 1 + 1e-6, name


def test_every_shape_and_every_count_occurs() -> None:
    scene = scenes("OBJECT", torch.arange(2000), seed=0)
    assert set(scene.kind.unique().tolist()) == set(range(len(SHAPES)))
    assert set(scene.visible.sum(dim=1).tolist()) == {3.0, 4.0, 5.0}


def differing(scene: Scene, first: int, second: int) -> list[str]:
    return [
        f.name
        for f in fields(scene)
        if not torch.equal(getattr(scene, f.name)[first], getattr(scene, f.name)[second])
    ]


def test_twins_differ_in_one_attribute() -> None:
    indices = torch.arange(600)
    scene = scenes("ADVERSARIAL", indices, seed=0)
    attributes = twin_attributes(indices, seed=0)
    field = {
        "kind": "kind",
        "count": "visible",
        "colour": "colour",
        "rotation": "angle",
        "frequency": "texture_frequency",
        "position": "centre",
    }
    assert set(attributes.tolist()) == set(range(len(TWIN_EDITS)))
    for k in range(0, 600, 2):
        expected = field[list(TWIN_EDITS)[int(attributes[k])]]
        assert differing(scene, k, k + 1) == [expected]


def test_twins_look_different_but_alike() -> None:
    images = render("ADVERSARIAL", torch.arange(600), seed=0, image_size=32).float()
    twins = images.view(300, 2, 3, 32, 32)
    changed = (twins[:, 0] - twins[:, 1]).abs().amax(dim=1)
    share = (changed > 12).float().mean(dim=(1, 2))
    assert float(share.min()) > 0.005
    assert float(share.max()) < 0.35
    strangers = (twins[:-1, 0] - twins[1:, 0]).abs().mean(dim=(1, 2, 3))
    assert float(changed.mean()) < 0.3 * float(strangers.mean())


def test_uniform_numbers_are_uniform_and_independent() -> None:
    drawn = uniform(derive(0, "test"), torch.arange(4000), 8)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    assert float(((counts - 1600) ** 2 / 1600).sum()) < 45  # chi², 19 degrees: p < 0.001
    correlation = torch.corrcoef(torch.cat([drawn.T, drawn.roll(1, 0).T]))
    assert float((correlation - torch.eye(16)).abs().max()) < 0.07


def test_numbers_of_another_key_are_others() -> None:
    assert derive(0, "a") != derive(0, "b") != derive(1, "b")
    rows = torch.arange(100)
    first, second = uniform(derive(0, "a"), rows, 1), uniform(derive(0, "b"), rows, 1)
    # Nor are they the same numbers in another order.
    assert not set(first[:, 0].tolist()) & set(second[:, 0].tolist())


def test_perturb_steps_up_the_loss_and_leaves_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Linear(12, 1)
    images = torch.rand(5, 3, 2, 2, generator=generator)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return network(x.flatten(1)).square().sum()

    with torch.no_grad():
        moved = perturb(images, loss, 0.02)
        assert float(loss(moved)) > float(loss(images))
    sign = (network(images.flatten(1)) * network.weight).sign().view_as(images)
    expected = (images + 0.02 * sign).clamp(0, 1)
    torch.testing.assert_close(moved, expected.detach())
    assert all(p.grad is None for p in network.parameters())
    assert not moved.requires_grad
    assert not images.requires_grad


# Grey values of a quarter of the picture each, mean of its colours, of eight pictures of a level.
SEEN = {
    "BASIC": [
        [120.0, 111.6, 119.8, 110.7],
        [132.7, 131.0, 132.1, 127.5],
        [112.2, 88.5, 85.0, 85.0],
        [140.0, 139.9, 139.2, 132.8],
        [130.3, 130.3, 134.8, 131.7],
        [130.9, 130.7, 137.1, 130.9],
        [134.3, 133.1, 134.3, 126.6],
        [136.6, 136.9, 138.7, 138.8],
    ],
    "TEXTURE": [
        [107.4, 107.1, 105.6, 101.2],
        [122.3, 121.6, 124.5, 124.2],
        [78.3, 78.5, 79.8, 79.5],
        [131.4, 129.8, 131.3, 132.1],
        [95.5, 95.7, 95.4, 97.1],
        [113.0, 115.5, 111.3, 112.7],
        [97.4, 97.0, 96.1, 100.3],
        [165.7, 164.5, 166.7, 166.4],
    ],
    "OBJECT": [
        [116.9, 106.7, 105.9, 114.3],
        [132.3, 146.4, 133.1, 138.2],
        [139.1, 129.0, 142.5, 131.3],
        [140.2, 146.6, 126.3, 88.5],
        [98.7, 97.2, 114.4, 107.0],
        [112.6, 126.7, 133.2, 154.5],
        [122.5, 121.7, 126.2, 133.0],
        [173.6, 133.9, 162.4, 158.4],
    ],
    "ADVERSARIAL": [
        [139.5, 125.5, 139.6, 137.1],
        [139.5, 125.5, 140.7, 137.1],
        [122.5, 120.3, 104.9, 130.9],
        [121.6, 120.3, 104.9, 130.9],
        [117.3, 117.6, 120.1, 103.0],
        [117.3, 116.7, 120.1, 102.8],
        [127.8, 132.5, 113.1, 97.4],
        [128.3, 132.5, 113.1, 97.4],
    ],
}


@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
def test_what_is_drawn_is_what_its_version_says(level: str) -> None:
    """Where this fails and it is meant: raise DRAWING, and take the new figures."""
    images = render(level, torch.arange(8), seed=3, image_size=32).float().mean(1)
    quarters = images.view(8, 2, 16, 2, 16).mean((2, 4)).flatten(1)
    # Processors differ in the last bits, which moves a few pixels by a grey value.
    assert DRAWING == 1
    torch.testing.assert_close(quarters, torch.tensor(SEEN[level]), atol=0.1, rtol=0)

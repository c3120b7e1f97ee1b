from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.views import (
    ViewParameters,
    apply_views,
    blur_kernel_size,
    draw_parameters,
    normalize,
    two_views,
)

IDENTITY: dict[str, Any] = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "flip": 0.0,
    "jitter": 0.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.0,
    "blur": 0.0,
    "blur_sigma": [0.1, 2.0],
}
SIMCLR: dict[str, Any] = {
    **IDENTITY,
    "crop_scale": [0.2, 1.0],
    "crop_ratio": [3 / 4, 4 / 3],
    "flip": 0.5,
    "jitter": 0.8,
    "grey": 0.2,
    "blur": 0.5,
}


def config(settings: dict[str, Any] = SIMCLR, **changes: Any) -> ViewsConfig:
    return ViewsConfig(**{**settings, **changes})


def some_images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Random pixels, with smooth, grey, black and white images among them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    images[1::4] = images[1::4] // 8 + torch.randint(0, 220, (3, 1, 1), generator=generator)
    images[2] = images[2, :1]
    images[3], images[4] = 0, 255
    return images.to(torch.uint8)


def parameters(images: torch.Tensor, **changes: Any) -> ViewParameters:
    """What changes nothing, except for `changes`: a value for each image, or one for all."""
    still: dict[str, Any] = {
        "top": 0.0,
        "left": 0.0,
        "height": float(images.shape[2]),
        "width": float(images.shape[3]),
        "flip": False,
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "hue": 0.0,
        "grey": False,
        "sigma": 0.0,
    }
    values = {**still, **changes}
    return ViewParameters(**{k: torch.as_tensor(v).expand(len(images)) for k, v in values.items()})


def apply_one(images: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Views back in [0, 1], [B, 3, S, S]."""
    p = parameters(images, **changes)
    return apply_views(images, p, image_size=images.shape[-1])[0] / 2 + 0.5


@pytest.mark.parametrize("size", [28, 32, 84])
def test_identity_settings_return_the_normalised_images(size: int) -> None:
    images = some_images(20, size, size)
    for view in two_views(images, config(IDENTITY), image_size=size, seed=0):
        torch.testing.assert_close(view, normalize(images), atol=2e-5, rtol=0)


def test_normalize() -> None:
    images = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(normalize(images), (images / 255 - 0.5) / 0.5)
    assert images.dtype == torch.uint8


OPERATIONS = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_colours_equal_torchvision(name: str) -> None:
    images = some_images(24)
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    values = torch.linspace(low, high, 24)
    ours = apply_one(images, **{name: values})
    for image, value, view in zip(images, values, ours, strict=True):
        expected = OPERATIONS[name](image / 255, float(value))
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_grey_and_flip_equal_torchvision() -> None:
    images = some_images(12)
    drawn = torch.arange(12) % 3 == 0
    grey, flipped = apply_one(images, grey=drawn), apply_one(images, flip=drawn)
    for k, image in enumerate(images / 255):
        expected = TF.rgb_to_grayscale(image, 3) if drawn[k] else image
        torch.testing.assert_close(grey[k], expected, atol=1e-5, rtol=0)
        expected = TF.hflip(image) if drawn[k] else image
        torch.testing.assert_close(flipped[k], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 84])
def test_blur_equals_torchvision(size: int) -> None:
    images = some_images(8, size, size)
    sigmas = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.3, 1.7, 2.0])
    ours = apply_one(images, sigma=sigmas)
    kernel = blur_kernel_size(size)
    for image, sigma, view in zip(images / 255, sigmas.tolist(), ours, strict=True):
        expected = TF.gaussian_blur(image, [kernel] * 2, [sigma] * 2) if sigma else image
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "taps"), [(8, 3), (32, 3), (84, 9), (224, 23)])
def test_blur_kernel_is_about_a_tenth_of_the_side(size: int, taps: int) -> None:
    assert blur_kernel_size(size) == taps


@pytest.mark.parametrize("size", [24, 32, 48])
def test_resized_crop_equals_torchvision(size: int) -> None:
    images = some_images(6, 32, 40)
    boxes = [(0, 0, 32, 40), (5, 7, 20, 17), (31, 39, 1, 1), (0, 10, 32, 30), (8, 8, 9, 31)]
    boxes.append((20, 1, 12, 12))
    top, left, height, width = torch.tensor(boxes, dtype=torch.float32).T
    flip = torch.arange(6) % 2 == 1
    p = parameters(images, top=top, left=left, height=height, width=width, flip=flip)
    views = apply_views(images, p, image_size=size)[0] / 2 + 0.5
    for image, box, turned, view in zip(images / 255, boxes, flip, views, strict=True):
        expected = TF.resized_crop(image, *box, size=[size, size], antialias=False)
        expected = TF.hflip(expected) if turned else expected
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_operations_come_in_simclr_order_and_views_do_not_mix() -> None:
    images = some_images(10)
    p = draw_parameters(20, config(), height=32, width=32, seed=5)
    views = apply_views(images, p, image_size=32).flatten(0, 1) / 2 + 0.5
    for k, view in enumerate(views):
        box = [int(x[k]) for x in (p.top, p.left, p.height, p.width)]
        x = TF.resized_crop(images[k % 10] / 255, *box, size=[32, 32], antialias=False)
        x = TF.hflip(x) if p.flip[k] else x
        x = TF.adjust_brightness(x, float(p.brightness[k]))
        x = TF.adjust_contrast(x, float(p.contrast[k]))
        x = TF.adjust_saturation(x, float(p.saturation[k]))
        x = TF.adjust_hue(x, float(p.hue[k]))
        x = TF.rgb_to_grayscale(x, 3) if p.grey[k] else x
        sigma = float(p.sigma[k])
        x = TF.gaussian_blur(x, [3, 3], [sigma, sigma]) if sigma else x
        torch.testing.assert_close(view, x, atol=5e-4, rtol=0)


def test_an_image_does_not_depend_on_its_chunk() -> None:
    images = some_images(150, 84, 84)
    p = draw_parameters(300, config(), height=84, width=84, seed=1)
    whole = apply_views(images, p, image_size=84)
    for k in (0, 77, 149):
        alone = apply_views(images[k : k + 1], p[torch.tensor([k, 150 + k])], image_size=84)
        torch.testing.assert_close(whole[:, k : k + 1], alone, atol=1e-5, rtol=0)


def test_same_seed_same_views_and_no_global_state() -> None:
    images = some_images(8)
    before = images.clone()
    state = torch.get_rng_state()
    first, second = two_views(images, config(), image_size=32, seed=7)
    again = two_views(images, config(), image_size=32, seed=7)
    other, _ = two_views(images, config(), image_size=32, seed=8)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(state, torch.get_rng_state())


def test_every_image_and_view_draws_its_own() -> None:
    images = some_images(5)[:1].expand(16, 3, 32, 32)
    views = torch.cat(two_views(images, config(), image_size=32, seed=0))
    assert len(views.flatten(1).unique(dim=0)) == 32


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 28, 16), (28, 28, 84)])
def test_shape_and_range(height: int, width: int, size: int) -> None:
    images = some_images(12, height, width)
    for view in two_views(images, config(), image_size=size, seed=3):
        assert view.shape == (12, 3, size, size)
        assert view.dtype == torch.float32
        assert float(view.min()) >= -1 - 1e-5
        assert float(view.max()) <= 1 + 1e-5


def same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Two-sample Kolmogorov-Smirnov test at p = 0.001."""
    ours, theirs = ours.double().sort().values, theirs.double().sort().values
    points = torch.cat([ours, theirs]).unique()
    n, m = len(ours), len(theirs)
    first = torch.searchsorted(ours, points, right=True) / n
    second = torch.searchsorted(theirs, points, right=True) / m
    assert float((first - second).abs().max()) < 1.95 * math.sqrt((n + m) / (n * m))


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, [0.2, 1.0], [3 / 4, 4 / 3]),
        (84, 84, [0.08, 1.0], [3 / 4, 4 / 3]),
        (20, 60, [0.6, 1.0], [3 / 4, 4 / 3]),  # few attempts fit: often the central crop
        (60, 20, [0.6, 1.0], [3 / 4, 4 / 3]),
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: list[float], ratio: list[float]
) -> None:
    settings = config(crop_scale=scale, crop_ratio=ratio)
    p = draw_parameters(4000, settings, height=height, width=width, seed=0)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [T.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)]
    theirs = torch.tensor(draws, dtype=torch.float32).T
    for mine, other in zip((p.top, p.left, p.height, p.width), theirs, strict=True):
        same_distribution(mine, other)
    same_distribution(p.height * p.width, theirs[2] * theirs[3])


def test_parameters_have_the_configured_statistics() -> None:
    settings = config(brightness=0.3, contrast=0.5, saturation=0.7, hue=0.2)
    count = 20_000
    p = draw_parameters(count, settings, height=32, width=32, seed=0)
    slack = 4 * math.sqrt(0.25 / count)
    assert float(p.flip.float().mean()) == pytest.approx(0.5, abs=slack)
    assert float(p.grey.float().mean()) == pytest.approx(0.2, abs=slack)
    assert float((p.sigma > 0).float().mean()) == pytest.approx(0.5, abs=slack)
    jittered = p.brightness != 1
    assert float(jittered.float().mean()) == pytest.approx(0.8, abs=slack)
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(count, generator=generator)
    for values, low, high in (
        (p.brightness, 0.7, 1.3),
        (p.contrast, 0.5, 1.5),
        (p.saturation, 0.3, 1.7),
        (p.hue, -0.2, 0.2),
    ):
        same_distribution(values[jittered], low + uniform * (high - low))
        assert (values[~jittered] == (0 if high == 0.2 else 1)).all()
    same_distribution(p.sigma[p.sigma > 0], 0.1 + uniform * 1.9)
    drawn = torch.stack([p.brightness, p.contrast, p.saturation, p.hue])[:, jittered]
    assert float((torch.corrcoef(drawn) - torch.eye(4)).abs().max()) < 0.04

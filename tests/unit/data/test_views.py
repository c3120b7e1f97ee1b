from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.views import (
    Strokes,
    ViewParameters,
    batched,
    cpu,
    draw_parameters,
    make_views,
    normalize,
)
from sseg_nase.data.views.parameters import blur_kernel_size

WAYS = {"native": cpu.apply_views, "batched": batched.apply_views}

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
    "rotation": 0.0,
    "translation": 0.0,
    "zoom": [1.0, 1.0],
    "thickness": [0.0, 0.0],
    "erase": 0.0,
    "erase_area": [0.02, 0.2],
    "ink": "dark",
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
SKETCH: dict[str, Any] = {
    **IDENTITY,
    "rotation": 15.0,
    "translation": 0.1,
    "zoom": [0.9, 1.1],
    "thickness": [-1.5, 2.5],
    "erase": 0.5,
}
EVERYTHING = {**SIMCLR, **{key: value for key, value in SKETCH.items() if value != IDENTITY[key]}}
BOTH = {"photographs": SIMCLR, "drawings": SKETCH, "everything": EVERYTHING}


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


STROKES = {field.name for field in dataclasses.fields(Strokes)}


def parameters(images: torch.Tensor, **changes: Any) -> ViewParameters:
    """What changes nothing, except for `changes`: a value for each image, or one for all."""
    still: dict[str, Any] = {
        "top": 0.0,
        "left": 0.0,
        "height": float(images.shape[2]),
        "width": float(images.shape[3]),
        "flip": False,
        "order": torch.arange(4).expand(len(images), 4),
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "hue": 0.0,
        "grey": False,
        "sigma": 0.0,
        "angle": 0.0,
        "shift_x": 0.0,
        "shift_y": 0.0,
        "zoom": 1.0,
        "radius": 0.0,
        "erased": torch.zeros(len(images), 4),
        "paper": 1.0,
    }
    values = {**still, **changes}
    tensors = {k: torch.as_tensor(v) for k, v in values.items()}
    whole = {k: v if v.ndim else v.expand(len(images)) for k, v in tensors.items()}
    strokes = {name: whole.pop(name) for name in STROKES}
    return ViewParameters(**whole, strokes=Strokes(**strokes) if STROKES & {*changes} else None)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    """Both ways views are made: in compiled code and by batched tensor operations."""
    return WAYS[request.param]


def apply_one(
    way: Callable[..., torch.Tensor], images: torch.Tensor, **changes: Any
) -> torch.Tensor:
    """Views back in [0, 1], [B, 3, S, S]."""
    return way(images, parameters(images, **changes), images.shape[-1])[0] / 2 + 0.5


@pytest.mark.parametrize("size", [28, 32, 84])
def test_identity_settings_return_the_normalised_images(size: int) -> None:
    images = some_images(20, size, size)
    for view in make_views(images, config(IDENTITY), image_size=size, seed=0):
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
def test_colours_equal_torchvision(name: str, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(24)
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    values = torch.linspace(low, high, 24)
    ours = apply_one(way, images, **{name: values})
    for image, value, view in zip(images, values, ours, strict=True):
        expected = OPERATIONS[name](image / 255, float(value))
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


def test_grey_and_flip_equal_torchvision(way: Callable[..., torch.Tensor]) -> None:
    images = some_images(12)
    drawn = torch.arange(12) % 3 == 0
    grey, flipped = apply_one(way, images, grey=drawn), apply_one(way, images, flip=drawn)
    for k, image in enumerate(images / 255):
        expected = TF.rgb_to_grayscale(image, 3) if drawn[k] else image
        torch.testing.assert_close(grey[k], expected, atol=1e-5, rtol=0)
        expected = TF.hflip(image) if drawn[k] else image
        torch.testing.assert_close(flipped[k], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 84])
def test_blur_equals_torchvision(size: int, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(8, size, size)
    sigmas = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.3, 1.7, 2.0])
    ours = apply_one(way, images, sigma=sigmas)
    kernel = blur_kernel_size(size)
    for image, sigma, view in zip(images / 255, sigmas.tolist(), ours, strict=True):
        expected = TF.gaussian_blur(image, [kernel] * 2, [sigma] * 2) if sigma else image
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "taps"), [(8, 3), (32, 3), (84, 9), (224, 23)])
def test_blur_kernel_is_about_a_tenth_of_the_side(size: int, taps: int) -> None:
    assert blur_kernel_size(size) == taps


@pytest.mark.parametrize("size", [24, 32, 48])
def test_resized_crop_equals_torchvision(size: int, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(6, 32, 40)
    boxes = [(0, 0, 32, 40), (5, 7, 20, 17), (31, 39, 1, 1), (0, 10, 32, 30), (8, 8, 9, 31)]
    boxes.append((20, 1, 12, 12))
    top, left, height, width = torch.tensor(boxes, dtype=torch.float32).T
    flip = torch.arange(6) % 2 == 1
    p = parameters(images, top=top, left=left, height=height, width=width, flip=flip)
    views = way(images, p, size)[0] / 2 + 0.5
    for image, box, turned, view in zip(images / 255, boxes, flip, views, strict=True):
        expected = TF.resized_crop(image, *box, size=[size, size], antialias=False)
        expected = TF.hflip(expected) if turned else expected
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_turned_shifted_and_zoomed_views_equal_torchvision(
    paper: float, way: Callable[..., torch.Tensor]
) -> None:
    images, size, room = some_images(24), 32, 40
    angles = torch.linspace(-180, 180, 24)
    shifts = torch.linspace(-0.4, 0.3, 24)
    zooms = torch.linspace(0.6, 2, 24)
    changes = {"angle": angles, "shift_x": shifts, "shift_y": shifts.flip(0), "zoom": zooms}
    ours = apply_one(way, images, paper=paper, **changes)
    for k, (image, view) in enumerate(zip(images / 255, ours, strict=True)):
        # Paper on all sides first: torchvision weighs what lies half outside twice.
        expected = TF.affine(
            TF.pad(image, [room] * 4, paper),
            float(angles[k]),
            [float(shifts[k]) * size, float(shifts.flip(0)[k]) * size],
            float(zooms[k]),
            [0.0],
            TF.InterpolationMode.BILINEAR,
            [paper] * 3,
        )[:, room:-room, room:-room]
        torch.testing.assert_close(view, expected, atol=2e-4, rtol=0)


def moved(image: np.ndarray, p: ViewParameters, k: int, size: int) -> np.ndarray:
    """View `k` of `image` [3, H, W] in [0, 1], pixel by pixel and step by step backwards."""
    paper, turn = float(p.strokes.paper[k]), math.radians(float(p.strokes.angle[k]))
    view = np.zeros((3, size, size))

    def pixel(row: int, column: int) -> np.ndarray:
        inside = 0 <= row < image.shape[1] and 0 <= column < image.shape[2]
        return image[:, row, column] if inside else np.full(3, paper)

    for i in range(size):
        for j in range(size):
            x = (j + 0.5) / size - 0.5 - float(p.strokes.shift_x[k])
            y = (i + 0.5) / size - 0.5 - float(p.strokes.shift_y[k])
            x, y = (
                (x * math.cos(turn) + y * math.sin(turn)) / float(p.strokes.zoom[k]),
                (-x * math.sin(turn) + y * math.cos(turn)) / float(p.strokes.zoom[k]),
            )
            x = -x if p.flip[k] else x
            x = float(p.left[k]) + (x + 0.5) * float(p.width[k]) - 0.5
            y = float(p.top[k]) + (y + 0.5) * float(p.height[k]) - 0.5
            column, row = math.floor(x), math.floor(y)
            for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = abs(1 - down - (y - row)) * abs(1 - across - (x - column))
                view[:, i, j] += weight * pixel(row + down, column + across)
    return view


def test_a_turned_crop_is_resampled_once(way: Callable[..., torch.Tensor]) -> None:
    images, size = some_images(8, 20, 26), 12
    settings = config(EVERYTHING, rotation=60.0, zoom=[0.5, 2.0], translation=0.3)
    drawn = draw_parameters(8, settings, height=20, width=26, seed=3)
    assert 0 < int(drawn.flip.sum()) < 8
    box = {name: getattr(drawn, name) for name in ("top", "left", "height", "width", "flip")}
    turn = {name: getattr(drawn.strokes, name) for name in ("angle", "shift_x", "shift_y", "zoom")}
    p = parameters(images, **box, **turn)
    views = way(images, p, size)[0] / 2 + 0.5
    for k, view in enumerate(views):
        expected = torch.from_numpy(moved((images[k] / 255).numpy(), p, k, size))
        torch.testing.assert_close(view, expected.float(), atol=2e-4, rtol=0)


def thickened(image: torch.Tensor, radius: float, paper: float) -> torch.Tensor:
    """By scipy: whole pixels, then a mixture with the next one."""
    dark_grows, light_grows = scipy.ndimage.grey_erosion, scipy.ndimage.grey_dilation
    change = dark_grows if (radius > 0) == (paper == 1) else light_grows
    left = abs(radius)
    while left > 0:
        share = min(left, 1.0)
        planes = [torch.from_numpy(change(plane.numpy(), size=(3, 3))) for plane in image]
        image = image + share * (torch.stack(planes) - image)
        left -= 1
    return image


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_thickness_equals_scipys_morphology(paper: float, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(10)
    radii = torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 0.3, -0.3, 1.6, -2.9, 4.0])
    ours = apply_one(way, images, radius=radii, paper=paper)
    for image, radius, view in zip(images / 255, radii.tolist(), ours, strict=True):
        expected = thickened(image, radius, paper)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("ink", "paper"), [(0, 1.0), (255, 0.0)])
def test_a_stroke_grows_with_a_positive_radius_and_shrinks_with_a_negative_one(
    ink: int, paper: float, way: Callable[..., torch.Tensor]
) -> None:
    images = torch.full((3, 3, 16, 16), 255 - ink, dtype=torch.uint8)
    images[:, :, :, 6:9] = ink  # three pixels wide
    views = apply_one(way, images, radius=torch.tensor([0.0, 1.0, -1.0]), paper=paper)
    assert ((views[:, 0, 8] - paper).abs() > 0.5).sum(dim=1).tolist() == [3, 5, 1]


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_erasing_equals_torchvision(paper: float, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(6)
    # Shares of the room there is, then of the side.
    erased = [[0, 0, 0.25, 0.5], [0.999, 0.999, 0.1, 0.3], [0.5, 0.2, 1, 1], [0.3, 0.7, 0.5, 0.2]]
    erased += [[0.5, 0.5, 0, 0], [0.5, 0.5, 0.01, 0.9]]
    boxes = [(0, 0, 8, 16), (29, 22, 3, 10), (0, 0, 32, 32), (5, 18, 16, 6), None, None]
    ours = apply_one(way, images, erased=torch.tensor(erased), paper=paper)
    for image, box, view in zip(images / 255, boxes, ours, strict=True):
        expected = image if box is None else TF.erase(image, *box, v=torch.tensor(paper))
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_views_of_light_ink_are_those_of_dark_ink_inverted(
    way: Callable[..., torch.Tensor],
) -> None:
    images = some_images(16)
    dark, light = (
        draw_parameters(32, config(SKETCH, ink=ink), height=32, width=32, seed=1)
        for ink in ("dark", "light")
    )
    torch.testing.assert_close(
        way(images, dark, 32), -way(255 - images, light, 32), atol=2e-5, rtol=0
    )


def reference(image: torch.Tensor, p: ViewParameters, k: int, size: int) -> torch.Tensor:
    """View `k` of `image` by others' functions, one after the other, in [0, 1]."""
    box = [int(x[k]) for x in (p.top, p.left, p.height, p.width)]
    if p.strokes and p.strokes.moved[k]:
        x = torch.from_numpy(moved((image / 255).numpy(), p, k, size)).float()
    else:
        x = TF.resized_crop(image / 255, *box, size=[size, size], antialias=False)
        x = TF.hflip(x) if p.flip[k] else x
    if p.strokes:
        x = thickened(x, float(p.strokes.radius[k]), float(p.strokes.paper[k]))
    for number in p.order[k].tolist():
        name = list(OPERATIONS)[number]
        x = OPERATIONS[name](x, float(getattr(p, name)[k]))
    x = TF.rgb_to_grayscale(x, 3) if p.grey[k] else x
    sigma, kernel = float(p.sigma[k]), blur_kernel_size(size)
    x = TF.gaussian_blur(x, [kernel] * 2, [sigma] * 2) if sigma else x
    if p.strokes:
        x = TF.erase(x, *p.strokes.erased_boxes(size)[k].tolist(), v=p.strokes.paper[k])
    return x


@pytest.mark.parametrize("size", [32, 47, 84])
def test_whole_views_equal_torchvision(size: int, way: Callable[..., torch.Tensor]) -> None:
    images = some_images(10, size, size)
    p = draw_parameters(30, config(), height=size, width=size, seed=5)
    assert len(p.order.unique(dim=0)) > 8
    views = way(images, p, size)
    assert views.shape == (3, 10, 3, size, size)
    for k, view in enumerate(views.flatten(0, 1) / 2 + 0.5):
        # Near grey the hue is what rounding makes of it.
        torch.testing.assert_close(view, reference(images[k % 10], p, k, size), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [SKETCH, {**EVERYTHING, "hue": 0.0}])
def test_whole_views_of_drawings_equal_the_references(
    settings: dict[str, Any], way: Callable[..., torch.Tensor]
) -> None:
    images = some_images(10, 28, 28)
    p = draw_parameters(20, config(settings), height=28, width=28, seed=6)
    still = torch.arange(20) % 5 == 4  # beside views that are moved
    strokes = dataclasses.replace(
        p.strokes,
        angle=torch.where(still, 0.0, p.strokes.angle),
        shift_x=torch.where(still, 0.0, p.strokes.shift_x),
        shift_y=torch.where(still, 0.0, p.strokes.shift_y),
        zoom=torch.where(still, 1.0, p.strokes.zoom),
    )
    p = dataclasses.replace(p, strokes=strokes)
    assert strokes.moved.tolist() == (~still).tolist()
    for k, view in enumerate(way(images, p, 28).flatten(0, 1) / 2 + 0.5):
        torch.testing.assert_close(view, reference(images[k % 10], p, k, 28), atol=1e-3, rtol=0)


def test_grey_images_have_the_views_of_the_same_three_channels() -> None:
    images = some_images(12)[:, :1]
    grey, three = (
        make_views(x, config(SKETCH), image_size=28, seed=2)
        for x in (images, images.expand(-1, 3, -1, -1))
    )
    assert grey.shape == (2, 12, 1, 28, 28)
    assert torch.equal(grey, three[:, :, :1])


@pytest.mark.parametrize("settings", BOTH.values(), ids=BOTH)
def test_views_do_not_depend_on_the_number_of_threads(settings: dict[str, Any]) -> None:
    images = some_images(37)
    p = draw_parameters(74, config(settings), height=32, width=32, seed=2)
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(cpu.apply_views(images, p, 32))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize("settings", BOTH.values(), ids=BOTH)
def test_part_of_a_batch_gets_the_views_that_it_has_in_the_whole(settings: dict[str, Any]) -> None:
    images, views = some_images(12), config(settings)
    whole = make_views(images, views, image_size=32, seed=4, count=3)
    part = make_views(images[5:9], views, image_size=32, seed=4, count=3, first=5, of=12)
    assert torch.equal(part, whole[:, 5:9])


def test_views_are_channels_last(way: Callable[..., torch.Tensor]) -> None:
    images = some_images(6)
    views = way(images, draw_parameters(12, config(), height=32, width=32, seed=0), 32)
    for view in views:
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert views.flatten(0, 1).data_ptr() == views.data_ptr()


@pytest.mark.parametrize("settings", BOTH.values(), ids=BOTH)
def test_a_view_does_not_depend_on_its_batch(
    settings: dict[str, Any], way: Callable[..., torch.Tensor]
) -> None:
    images = some_images(50, 84, 84)
    p = draw_parameters(100, config(settings), height=84, width=84, seed=1)
    whole = way(images, p, 84)
    for k in (0, 27, 49):
        alone = way(images[k : k + 1], p[torch.tensor([k, 50 + k])], 84)
        torch.testing.assert_close(whole[:, k : k + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", BOTH.values(), ids=BOTH)
def test_same_seed_same_views_and_no_global_state(settings: dict[str, Any]) -> None:
    images, views = some_images(8), config(settings)
    before = images.clone()
    state = torch.get_rng_state()
    first, second = make_views(images, views, image_size=32, seed=7)
    again = make_views(images, views, image_size=32, seed=7)
    other, _ = make_views(images, views, image_size=32, seed=8)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(state, torch.get_rng_state())


def test_every_image_and_view_draws_its_own() -> None:
    images = some_images(5)[:1].expand(16, 3, 32, 32)
    views = make_views(images, config(), image_size=32, seed=0).flatten(0, 1)
    assert len(views.flatten(1).unique(dim=0)) == 32


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 28, 16), (28, 28, 84)])
def test_shape_and_range(height: int, width: int, size: int) -> None:
    images = some_images(12, height, width)
    for view in make_views(images, config(), image_size=size, seed=3):
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
    orders = p.order[jittered].unique(dim=0, return_counts=True)[1]
    expected = int(jittered.sum()) / math.factorial(4)
    assert len(orders) == 24
    assert float(((orders - expected) ** 2 / expected).sum()) < 53  # chi², 23 degrees, p < 0.0004


def test_strokes_are_drawn_with_the_configured_statistics() -> None:
    count, size = 20_000, 100
    settings = config(EVERYTHING, rotation=20.0, translation=0.3, zoom=[0.5, 2.0])
    p = draw_parameters(count, settings, height=32, width=32, seed=0).strokes
    assert p is not None
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1))
    for values, low, high in (
        (p.angle, -20, 20),
        (p.shift_x, -0.3, 0.3),
        (p.shift_y, -0.3, 0.3),
        (p.zoom, 0.5, 2),
        (p.radius, -1.5, 2.5),
    ):
        same_distribution(values, low + uniform * (high - low))
    boxes = p.erased_boxes(size)
    erased = (boxes[:, 2:] > 0).all(dim=1)
    slack = 4 * math.sqrt(0.25 / count)
    assert float(erased.float().mean()) == pytest.approx(0.5, abs=slack)
    top, left, height, width = boxes[erased].double().T
    share = p.erased[erased, 2] * p.erased[erased, 3]
    same_distribution(share, 0.02 + uniform * 0.18)
    ratio = (p.erased[erased, 2] / p.erased[erased, 3]).log()
    same_distribution(ratio, math.log(0.3) + uniform * (math.log(3.3) - math.log(0.3)))
    assert ((top >= 0) & (left >= 0) & (top + height <= size) & (left + width <= size)).all()
    assert (top == 0).any()
    assert (top + height == size).any()
    drawn = torch.stack([p.angle, p.shift_x, p.shift_y, p.zoom, p.radius, *p.erased[:, :2].T])
    assert float((torch.corrcoef(drawn) - torch.eye(7)).abs().max()) < 0.04


def test_what_is_drawn_for_photographs_does_not_depend_on_what_drawings_need() -> None:
    plain, all_of_it = (
        draw_parameters(50, config(settings), height=32, width=32, seed=9)
        for settings in (SIMCLR, EVERYTHING)
    )
    assert plain.strokes is None
    assert all_of_it.strokes is not None
    for field in dataclasses.fields(ViewParameters):
        if field.name != "strokes":
            same = torch.equal(getattr(plain, field.name), getattr(all_of_it, field.name))
            assert same, field.name


def test_strokes_that_change_nothing_leave_the_views_of_photographs(
    way: Callable[..., torch.Tensor],
) -> None:
    images = some_images(12)
    plain = draw_parameters(24, config(), height=32, width=32, seed=8)
    still = dataclasses.replace(plain, strokes=parameters(images[:1], paper=0.0).strokes)
    still = dataclasses.replace(still, strokes=still.strokes[torch.zeros(24, dtype=torch.int64)])
    torch.testing.assert_close(way(images, plain, 32), way(images, still, 32), atol=1e-6, rtol=0)


def test_views_are_distributed_as_those_of_torchvisions_transforms() -> None:
    """Statistics of whole views, each over thousands of draws of the same images."""
    size, each = 32, 1500
    images = some_images(8, size, size)[5:8]
    colours = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
    theirs = T.Compose(
        [
            T.RandomResizedCrop(size, (0.2, 1.0), antialias=False),
            T.RandomHorizontalFlip(),
            T.RandomApply([colours], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(blur_kernel_size(size), (0.1, 2.0))], 0.5),
        ]
    )
    ours = make_views(images, config(), image_size=size, seed=3, count=each) / 2 + 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        others = [torch.stack([theirs(image / 255) for _ in range(each)]) for image in images]
    for k, other in enumerate(others):
        for measure in STATISTICS.values():
            same_distribution(measure(ours[:, k]), measure(other))


STATISTICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "brightness": lambda x: x.mean(dim=(1, 2, 3)),
    "contrast": lambda x: x.mean(dim=1).flatten(1).std(dim=1),
    "red against green": lambda x: (x[:, 0] - x[:, 1]).mean(dim=(1, 2)),
    "colourfulness": lambda x: (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
    "detail": lambda x: x.diff(dim=-1).abs().mean(dim=(1, 2, 3)),
    "left against right": lambda x: (x[..., :16] - x[..., 16:]).mean(dim=(1, 2, 3)),
    "a corner": lambda x: x[:, 0, 0, 0],
}

"""Procedural images of the synthetic levels, drawn as batched tensor code.

A picture is a `Scene`: the numbers that describe its layers, a pure function of (seed, level,
index). `paint` turns scenes into pixels back to front: every shape is a signed distance field
read from an atlas with a one-pixel smooth edge, every texture is a sum of two sinusoidal
gratings cut off at [-1, 1] (stripes, checkers, plaids), and one matrix product per image mixes
all layers into colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch

from sseg_nase.data.random import derive, uniform
from sseg_nase.errors import UserError, did_you_mean

_TAU = 2 * math.pi
_ATLAS_EXTENT = 1.2  # the atlas covers [-extent, extent]²; a shape lies in the unit circle
# Floats of one temporary: on a CPU they stay in the L2 cache, on a GPU they fill it with work.
_CPU_CHUNK, _GPU_CHUNK = 1 << 17, 1 << 25


# --- Shapes -------------------------------------------------------------------------------------


def _regular(corners: int, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon in the unit circle, or of a star with an inner radius."""
    count = corners if inner is None else 2 * corners
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [_TAU * i / count for i in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


def _cross(arm: float, length: float) -> list[tuple[float, float]]:
    """Corners of a plus sign: arms of half-width `arm` that reach to `length`."""
    corners = []
    for turn in range(4):
        for x, y in ((arm, -length), (arm, -arm), (length, -arm)):
            for _ in range(turn):
                x, y = -y, x
            corners.append((x, y))
    return corners


def _polygon(points: torch.Tensor, corners: list[tuple[float, float]]) -> torch.Tensor:
    """Signed distance of `points` [..., 2] to a simple polygon, negative inside."""
    distance = torch.full(points.shape[:-1], math.inf, dtype=points.dtype)
    inside = torch.zeros(points.shape[:-1], dtype=torch.bool)
    x, y = points.unbind(-1)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        crosses = (ay > y) != (by > y)
        if ay != by:
            inside ^= crosses & (x < ex * (y - ay) / ey + ax)
    return torch.where(inside, -distance, distance)


def _ellipse(points: torch.Tensor) -> torch.Tensor:
    turns = [_TAU * i / 96 for i in range(96)]
    return _polygon(points, [(0.98 * math.cos(t), 0.52 * math.sin(t)) for t in turns])


def _crescent(points: torch.Tensor) -> torch.Tensor:
    shifted = points - torch.tensor([0.5, 0.0], dtype=points.dtype)
    return torch.maximum(points.norm(dim=-1) - 0.92, 0.68 - shifted.norm(dim=-1))


# Radii are chosen so that the areas are alike: size must not give the shape away.
SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "circle": lambda p: p.norm(dim=-1) - 0.85,
    "square": lambda p: _polygon(p, _regular(4)),
    "triangle": lambda p: _polygon(p, _regular(3)),
    "pentagon": lambda p: _polygon(p, _regular(5)),
    "star": lambda p: _polygon(p, _regular(5, inner=0.45)),
    "ring": lambda p: (p.norm(dim=-1) - 0.74).abs() - 0.22,
    "cross": lambda p: _polygon(p, _cross(0.3, 0.92)),
    "ellipse": _ellipse,
    "crescent": _crescent,
}


@lru_cache(maxsize=8)
def _shape_atlas(resolution: int, device: torch.device) -> torch.Tensor:
    """Signed distances of all shapes, flat float32 [shapes · resolution²], in unit radii."""
    cells = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    cells = (2 * cells - 1) * _ATLAS_EXTENT
    points = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1)
    atlas = torch.stack([distance(points) for distance in SHAPES.values()])
    return atlas.to(torch.float32).flatten().to(device)


@lru_cache(maxsize=8)
def _noise_tile(size: int, device: torch.device) -> torch.Tensor:
    """White noise in [-1, 1), float32 [size, size]; images read random windows of it."""
    rows = torch.arange(size, dtype=torch.int64)
    return (2 * uniform(derive(0, "noise"), rows, size) - 1).to(device)


# --- Scenes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """The numbers of B pictures with R background textures and K shapes, back to front.

    Lengths are shares of the image side, angles radians, frequencies cycles per image side,
    colours RGB in [0, 1]. Textures [B, R + K, ...] list the background's first; those of shapes
    turn and move with their shape.
    """

    base: torch.Tensor  # [B, 3] background colour
    texture_colour: torch.Tensor  # [B, R + K, 3] colour swing: the texture times this is added
    texture_amplitude: torch.Tensor  # [B, R + K, 2] of the two gratings; over 1 is cut off: hard
    texture_frequency: torch.Tensor  # [B, R + K, 2]
    texture_angle: torch.Tensor  # [B, R + K, 2]
    texture_phase: torch.Tensor  # [B, R + K, 2]
    rings: torch.Tensor  # [B, 7] radial waves: RGB swing, frequency, phase, centre x, y
    noise: torch.Tensor  # [B, 5] RGB swing, window x, y in [0, 1)
    kind: torch.Tensor  # [B, K] number of the shape in SHAPES
    visible: torch.Tensor  # [B, K] 1 or 0
    colour: torch.Tensor  # [B, K, 3]
    centre: torch.Tensor  # [B, K, 2]
    radius: torch.Tensor  # [B, K]
    angle: torch.Tensor  # [B, K]
    shade: torch.Tensor  # [B, K, 2] brightness slope in x and y across a radius

    def __getitem__(self, rows: slice) -> Scene:
        return Scene(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class LevelStyle:
    """What the scenes of one level are made of; ranges are (low, high) of uniform draws."""

    shapes: int = 0
    fewest: int = 0
    radius: tuple[float, float] = (0.2, 0.36)
    spread: float = 0.2  # shape centres lie within 0.5 ± spread
    swing: tuple[float, float] = (0.0, 0.0)  # colour swing of a shape's texture
    frequency: tuple[float, float] = (2.0, 6.0)  # of shapes' textures, cycles per image side
    backgrounds: int = 0
    background_swing: tuple[float, float] = (0.0, 0.0)
    background_frequency: tuple[float, float] = (1.0, 4.0)
    rings_swing: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.0, 0.0)
    shade: float = 0.0
    twins: bool = False


STYLES: dict[str, LevelStyle] = {
    "BASIC": LevelStyle(shapes=1, fewest=1, radius=(0.14, 0.3), spread=0.22),
    "TEXTURE": LevelStyle(
        backgrounds=2,
        background_swing=(0.08, 0.2),
        background_frequency=(2.0, 7.0),
        rings_swing=(0.0, 0.12),
        noise=(0.04, 0.1),
    ),
    "OBJECT": LevelStyle(
        shapes=5,
        fewest=3,
        radius=(0.18, 0.34),
        spread=0.32,
        swing=(0.12, 0.3),
        frequency=(3.0, 9.0),
        backgrounds=1,
        background_swing=(0.12, 0.25),
        background_frequency=(2.0, 8.0),
        noise=(0.08, 0.14),
        shade=0.25,
    ),
    "ADVERSARIAL": LevelStyle(
        shapes=7,
        fewest=7,
        radius=(0.13, 0.26),
        spread=0.36,
        swing=(0.2, 0.4),
        frequency=(5.0, 11.0),
        backgrounds=2,
        background_swing=(0.15, 0.3),
        background_frequency=(5.0, 11.0),
        noise=(0.16, 0.24),
        shade=0.3,
        twins=True,
    ),
}


class _Draws:
    """Hands out the uniform numbers of a batch, column after column."""

    def __init__(self, key: int, indices: torch.Tensor, count: int) -> None:
        self._values = uniform(key, indices, count)
        self._used = 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        count = math.prod(shape)
        values = self._values[:, self._used : self._used + count]
        assert values.shape[1] == count, "not enough random numbers were drawn"
        self._used += count
        return values.reshape(len(values), *shape) * (high - low) + low


def _textures(draw: _Draws, count: int, frequency: tuple[float, float]) -> list[torch.Tensor]:
    """Amplitude, frequency, angle and phase [B, count, 2] of stripes, checkers and waves."""
    # A checker is cos(a - b) - cos(a + b): two equal gratings at a right angle. Stripes have
    # one grating. The gain makes edges hard (over 1) or leaves a soft wave.
    style = draw(count, 1)
    gain = 0.8 + 1.6 * draw(count, 1)
    second = torch.where(style < 0.4, 0.0, torch.where(style < 0.8, 1.0, 0.5))
    amplitude = torch.cat([torch.ones_like(second), second], dim=-1) * gain
    low, high = frequency
    first = draw(count, 1, low=low, high=high)
    cycles = torch.cat([first, torch.where(style < 0.8, first, low + high - first)], dim=-1)
    turn = draw(count, 1, high=_TAU)
    across = torch.where(style < 0.8, 0.25 * _TAU, draw(count, 1, low=0.1 * _TAU, high=0.4 * _TAU))
    return [amplitude, cycles, torch.cat([turn, turn + across], -1), draw(count, 2, high=_TAU)]


def _signs(draw: _Draws, *shape: int) -> torch.Tensor:
    return torch.where(draw(*shape) < 0.5, -1.0, 1.0)


def _draw_scene(style: LevelStyle, key: int, indices: torch.Tensor) -> Scene:
    """Draw the scenes of `indices` [B] from their numbers alone."""
    K, R = style.shapes, style.backgrounds
    draw = _Draws(key, indices, 16 + 13 * R + 24 * K)
    base = draw(3, low=0.2, high=0.8)
    swing = torch.cat(
        [
            draw(R, 3, low=style.background_swing[0], high=style.background_swing[1])
            * _signs(draw, R, 3),
            draw(K, 3, low=style.swing[0], high=style.swing[1]) * _signs(draw, K, 3),
        ],
        dim=1,
    )
    back = _textures(draw, R, style.background_frequency)
    front = _textures(draw, K, style.frequency)
    amplitude, cycles, turn, phase = (
        torch.cat(parts, dim=1) for parts in zip(back, front, strict=True)
    )
    rings = torch.cat(
        [
            draw(3, low=style.rings_swing[0], high=style.rings_swing[1]),
            draw(1, low=style.background_frequency[0], high=style.background_frequency[1]),
            draw(1, high=_TAU),
            draw(2),
        ],
        dim=1,
    )
    noise = torch.cat([draw(3, low=style.noise[0], high=style.noise[1]), draw(2)], dim=1)
    # The front `count` shapes are shown, so the last layer, which twins edit, always is.
    count = style.fewest + (draw(1) * (style.shapes - style.fewest + 1)).floor()
    place = torch.arange(K, 0, -1, device=indices.device, dtype=torch.float32)
    # Colours keep at least 0.3 from the background in each channel, around the colour circle.
    colour = 0.1 + 0.8 * ((base[:, None] - 0.1) / 0.8 + draw(K, 3, low=0.35, high=0.65)).frac()
    return Scene(
        base=base,
        texture_colour=swing,
        texture_amplitude=amplitude,
        texture_frequency=cycles,
        texture_angle=turn,
        texture_phase=phase,
        rings=rings,
        noise=noise,
        kind=(draw(K) * len(SHAPES)).floor(),
        visible=(place <= count).to(torch.float32),
        colour=colour,
        centre=draw(K, 2, low=0.5 - style.spread, high=0.5 + style.spread),
        radius=draw(K, low=style.radius[0], high=style.radius[1]),
        angle=draw(K, high=_TAU),
        shade=draw(K, 2, low=-style.shade, high=style.shade),
    )


# --- Near-twins ---------------------------------------------------------------------------------


def _front(values: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """Replace the front layer's row in `values` [B, layers, ...] by `edited` [B, ...]."""
    return torch.cat([values[:, :-1], edited[:, None]], dim=1)


def _twin_kind(scene: Scene, amount: torch.Tensor) -> Scene:
    step = 1 + (amount * (len(SHAPES) - 1)).floor()
    return replace(scene, kind=_front(scene.kind, (scene.kind[:, -1] + step) % len(SHAPES)))


def _twin_count(scene: Scene, amount: torch.Tensor) -> Scene:
    return replace(scene, visible=_front(scene.visible, torch.zeros_like(amount)))


def _twin_colour(scene: Scene, amount: torch.Tensor) -> Scene:
    moved = (scene.colour[:, -1] + 0.35 + 0.3 * amount[:, None]).frac()
    return replace(scene, colour=_front(scene.colour, moved))


def _twin_rotation(scene: Scene, amount: torch.Tensor) -> Scene:
    # 30° to 42° maps none of the shapes, nor a checker, onto itself.
    turn = torch.deg2rad(30 + 12 * amount)
    return replace(scene, angle=_front(scene.angle, scene.angle[:, -1] + turn))


def _twin_frequency(scene: Scene, amount: torch.Tensor) -> Scene:
    factor = 0.45 + 0.15 * amount[:, None]
    slower = scene.texture_frequency[:, -1] * factor
    return replace(scene, texture_frequency=_front(scene.texture_frequency, slower))


def _twin_position(scene: Scene, amount: torch.Tensor) -> Scene:
    # Towards the middle, so that the shape stays inside.
    inwards = torch.where(scene.centre[:, -1] < 0.5, 1.0, -1.0)
    moved = scene.centre[:, -1] + inwards * (0.12 + 0.1 * amount[:, None])
    return replace(scene, centre=_front(scene.centre, moved))


TWIN_EDITS: dict[str, Callable[[Scene, torch.Tensor], Scene]] = {
    "kind": _twin_kind,
    "count": _twin_count,
    "colour": _twin_colour,
    "rotation": _twin_rotation,
    "frequency": _twin_frequency,
    "position": _twin_position,
}


def twin_attributes(indices: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Number in TWIN_EDITS of the attribute that tells index 2k from 2k + 1, int64 [B]."""
    drawn = uniform(derive(seed, "twin"), indices >> 1, 1)[:, 0]
    return (drawn * len(TWIN_EDITS)).long()


def _edit_twins(scene: Scene, indices: torch.Tensor, seed: int) -> Scene:
    """Edit one attribute of the front shape in the scenes of odd `indices`."""
    attribute = twin_attributes(indices, seed=seed)
    amount = uniform(derive(seed, "twin amount"), indices >> 1, 1)[:, 0]
    edited = scene
    for number, edit in enumerate(TWIN_EDITS.values()):
        rows = (attribute == number) & (indices % 2 == 1)
        changed = edit(scene, amount)
        edited = Scene(
            **{
                f.name: getattr(edited, f.name)
                if getattr(changed, f.name) is getattr(scene, f.name)
                else torch.where(
                    rows.view(-1, *[1] * (getattr(scene, f.name).ndim - 1)),
                    getattr(changed, f.name),
                    getattr(edited, f.name),
                )
                for f in fields(Scene)
            }
        )
    return edited


def scenes(level: str, indices: torch.Tensor, *, seed: int) -> Scene:
    """Describe the pictures `indices` [B] (int64) of a level, without drawing them.

    Raises:
        UserError: the level is unknown.
    """
    if level not in STYLES:
        raise UserError(
            f"curriculum.levels: unknown synthetic level '{level}'. "
            f"Accepted: {', '.join(STYLES)}.{did_you_mean(level, STYLES)}"
        )
    style = STYLES[level]
    key = derive(seed, level)
    if not style.twins:
        return _draw_scene(style, key, indices)
    return _edit_twins(_draw_scene(style, key, indices >> 1), indices, seed)


# --- Painting -----------------------------------------------------------------------------------


def _cover(scene: Scene, grid: torch.Tensor) -> torch.Tensor:
    """Share of each pixel that each shape covers, [B, K, S, S] in [0, 1]."""
    size = len(grid)
    # Three cells a pixel keep the nearest cell's distance within a sixth of a pixel.
    resolution = 3 * max(size, 16)
    atlas = _shape_atlas(resolution, grid.device)
    half = 0.5 * resolution
    scale = half / (_ATLAS_EXTENT * scene.radius)
    cos, sin = scene.angle.cos() * scale, scene.angle.sin() * scale
    x = grid - scene.centre[..., :1]
    y = grid - scene.centre[..., 1:]
    column = (x * cos[..., None])[..., None, :] + (y * sin[..., None] + half)[..., None]
    row = (x * -sin[..., None])[..., None, :] + (y * cos[..., None] + half)[..., None]
    column.clamp_(0, resolution - 1)
    row.clamp_(0, resolution - 1).floor_().mul_(resolution).add_(column)
    row.add_(scene.kind[..., None, None] * resolution**2)
    distance = atlas.index_select(0, row.to(torch.int32).flatten()).view(row.shape)
    distance.mul_(-size * scene.radius[..., None, None]).add_(0.5).clamp_(0, 1)
    return distance.mul_(scene.visible[..., None, None])


def _texture(scene: Scene, grid: torch.Tensor, backgrounds: int) -> torch.Tensor:
    """Textures in [-1, 1], [B, R + K, S, S]."""
    # sin(x + y) = sin x cos y + cos x sin y: each grating is a product of rank two.
    B, T = scene.texture_angle.shape[:2]
    origin = torch.cat([grid.new_full((B, backgrounds, 2), 0.5), scene.centre], dim=1)
    own_turn = torch.cat([grid.new_zeros(B, backgrounds), scene.angle], dim=1)
    turn = scene.texture_angle + own_turn[..., None]
    across = _TAU * scene.texture_frequency * turn.cos()
    down = _TAU * scene.texture_frequency * turn.sin()
    x = across[..., None] * (grid - origin[..., :1])[:, :, None] + scene.texture_phase[..., None]
    y = down[..., None] * (grid - origin[..., 1:])[:, :, None]
    amplitude = scene.texture_amplitude[..., None]
    left = torch.cat([y.cos(), y.sin()], dim=2).flatten(0, 1).transpose(1, 2)
    right = torch.cat([amplitude * x.sin(), amplitude * x.cos()], dim=2).flatten(0, 1)
    return torch.bmm(left, right).clamp_(-1, 1).view(B, T, len(grid), len(grid))


def _rings(scene: Scene, grid: torch.Tensor) -> torch.Tensor:
    """Radial waves in [-1, 1], [B, S, S]."""
    frequency, phase, cx, cy = (column[:, None, None] for column in scene.rings[:, 3:].unbind(1))
    radius = ((grid - cx) ** 2 + (grid[:, None] - cy) ** 2).sqrt_()
    return radius.mul_(_TAU * frequency).add_(phase).sin_()


def _noise(scene: Scene, size: int) -> torch.Tensor:
    """Windows of the noise tile, [B, S, S] in [-1, 1)."""
    windows = _noise_tile(2 * size, scene.noise.device).unfold(0, size, 1).unfold(1, size, 1)
    left, top = (scene.noise[:, 3:] * size).long().unbind(1)
    return windows[top, left]


def _paint(scene: Scene, style: LevelStyle, size: int) -> torch.Tensor:
    """Draw scenes as uint8 [B, 3, S, S]."""
    B, R, K = len(scene.base), style.backgrounds, style.shapes
    grid = (torch.arange(size, device=scene.base.device) + 0.5) / size
    colours = [scene.colour, scene.texture_colour[:, R:], scene.base[:, None]]
    colours += [scene.texture_colour[:, :R], scene.rings[:, None, :3], scene.noise[:, None, :3]]
    # Each colour has a plane of weights; the image is the sum of their products.
    mix = torch.cat(colours, dim=1).mul_(256)
    planes = torch.empty(B, mix.shape[1], size, size, device=grid.device)
    lengths = [colour.shape[1] for colour in colours]
    shapes, coats, free, backs, rings, noise = planes.split(lengths, dim=1)

    free.fill_(1)  # the share of each pixel that the shapes drawn so far, front first, leave free
    if K:
        cover = _cover(scene, grid)
        for k in reversed(range(K)):
            torch.mul(cover[:, k], free[:, 0], out=shapes[:, k])
            free[:, 0].sub_(shapes[:, k])
    if style.shade:
        slope = scene.shade / scene.radius[..., None]
        lit = 1 + slope[..., None] * (grid - scene.centre[..., None])
        shapes.mul_(lit[:, :, 0, None, :]).mul_(lit[:, :, 1, :, None])
    if max(style.swing) > 0 or R:
        texture = _texture(scene, grid, R)
        torch.mul(texture[:, R:], shapes, out=coats)
        torch.mul(texture[:, :R], free, out=backs)
    else:
        coats.zero_()
    if max(style.rings_swing) > 0:
        torch.mul(_rings(scene, grid)[:, None], free, out=rings)
    else:
        rings.zero_()
    if max(style.noise) > 0:
        noise.copy_(_noise(scene, size)[:, None])
    else:
        noise.zero_()
    # 256 equal bins and truncation: one operation less than rounding, without a bias.
    image = torch.bmm(mix.transpose(1, 2), planes.flatten(2))
    return image.clamp_(0, 255).to(torch.uint8).view(B, 3, size, size)


@torch.no_grad()
def render(
    level: str,
    indices: torch.Tensor,
    *,
    seed: int,
    image_size: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw the images `indices` [B] (int64) of a synthetic level: uint8 [B, 3, S, S].

    An image depends on (seed, level, index, image_size) alone, not on its batch. In ADVERSARIAL
    the indices 2k and 2k + 1 are near-twins: one scene, one attribute of TWIN_EDITS changed.

    Raises:
        UserError: the level is unknown.
    """
    device = torch.device(device)
    indices = indices.to(device)
    everything = scenes(level, indices, seed=seed)
    style = STYLES[level]
    budget = _GPU_CHUNK if device.type == "cuda" else _CPU_CHUNK
    step = max(1, budget // (image_size**2 * max(1, style.shapes)))
    images = torch.empty(
        (len(indices), 3, image_size, image_size), dtype=torch.uint8, device=device
    )
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(indices), step):
            rows = slice(start, start + step)
            images[rows] = _paint(everything[rows], style, image_size)
    return images


def perturb(
    images: torch.Tensor,
    loss_fn: Callable[[torch.Tensor], torch.Tensor],
    epsilon: float,
) -> torch.Tensor:
    """Move images a small step up the loss: x' = clamp(x + ε · sign ∂L/∂x, 0, 1).

    The fast gradient sign method (Goodfellow et al. 2015). `images` are floats [B, C, H, W] in
    [0, 1], `loss_fn` maps them to a scalar. No gradient reaches the network's parameters.
    """
    inputs = images.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss_fn(inputs), inputs)
    return (images.detach() + epsilon * gradient.sign()).clamp_(0, 1)

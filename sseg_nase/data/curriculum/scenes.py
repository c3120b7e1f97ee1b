"""What is in the pictures of the synthetic levels: the numbers a picture is painted from.

A picture is a `Scene`, a pure function of (seed, level, index).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

from sseg_nase.data import random
from sseg_nase.data.curriculum.shapes import SHAPES
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError, did_you_mean

_TAU = 2 * math.pi


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


def _uniform(key: int, indices: torch.Tensor, count: int) -> torch.Tensor:
    """As `sseg_nase.data.random.uniform`, the fastest way."""
    if indices.device.type == "cpu":
        from sseg_nase.data.curriculum import drawing  # here, because it loads a compiler

        return drawing.uniform(key, indices, count)
    return random.uniform(key, indices, count)


class _Draws:
    """Hands out the uniform numbers of a batch, column after column."""

    def __init__(self, key: int, indices: torch.Tensor, count: int) -> None:
        self._values = _uniform(key, indices, count)
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
    drawn = _uniform(derive(seed, "twin"), indices >> 1, 1)[:, 0]
    return (drawn * len(TWIN_EDITS)).long()


def _edit_twins(scene: Scene, indices: torch.Tensor, seed: int) -> Scene:
    """Edit one attribute of the front shape in the scenes of odd `indices`."""
    attribute = twin_attributes(indices, seed=seed)
    amount = _uniform(derive(seed, "twin amount"), indices >> 1, 1)[:, 0]
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

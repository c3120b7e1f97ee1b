"""The shapes of the synthetic levels, as signed distances."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

_TAU = 2 * math.pi


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
    # A quarter of it, which runs on to where no point of that quarter is nearer to it.
    turns = [_TAU * i / 96 for i in range(25)]
    quarter = [(0.98 * math.cos(t), 0.52 * math.sin(t)) for t in turns]
    return _polygon(points.abs(), [*quarter, (-9.0, 0.52), (-9.0, -9.0), (0.98, -9.0)])


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

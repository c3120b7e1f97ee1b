"""Procedural images of the synthetic levels.

`scenes` says what is in a picture: the numbers that describe its layers. A painter turns scenes
into pixels: every shape is a signed distance field read from an atlas with a one-pixel smooth edge,
every texture is a sum of two sinusoidal gratings cut off at [-1, 1] (stripes, checkers, plaids). On
a CPU `cpu` does it in compiled code, one picture after the other; elsewhere `batched` does it
with few, large tensor operations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sseg_nase.data.curriculum import batched
from sseg_nase.data.curriculum.scenes import STYLES, scenes

# Raised by whoever changes what is drawn for a (seed, level, index, size): runs record it, and one
# that began with other pictures is not resumed unnoticed. A checksum of pictures would not do:
# their last bits differ between processors.
DRAWING = 1


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
    scene = scenes(level, indices.to(device), seed=seed)
    if device.type == "cpu":
        from sseg_nase.data.curriculum import cpu  # here, because it loads a compiler

        return cpu.paint(scene, image_size)
    return batched.paint(scene, STYLES[level], image_size)


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

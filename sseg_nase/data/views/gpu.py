"""The way views are made on a GPU: by `kernels` where they work, else by `batched`."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from sseg_nase.data.views import batched
from sseg_nase.data.views.parameters import ViewParameters

KERNELS = "sseg_nase.data.views.kernels"
FURTHEST = 1e-3  # between the views of both ways, which are in [-1, 1]
_TRIED = 8  # views of a try

logger = logging.getLogger("sseg_nase")


def apply_views(images: Tensor, p: ViewParameters, size: int) -> Tensor:
    """As `sseg_nase.data.views.apply_views`, on a GPU."""
    if p.strokes is None and kernels_work(images.device, size):
        return import_module(KERNELS).apply_views(images, p, size)
    return batched.apply_views(images, p, size)


@lru_cache(maxsize=64)
def kernels_work(device: torch.device, size: int) -> bool:
    """Whether they can be compiled here and make the views that torch's operators make.

    Tried once. Which way is faster is not measured: the choice would change from run to run, and
    with it the last bits of all that follows.
    """
    images, p = _trial(size)
    try:
        made = import_module(KERNELS).apply_views(images.to(device), p, size)
        apart = (made - batched.apply_views(images.to(device), p, size)).abs().max().item()
        if not apart <= FURTHEST:
            raise RuntimeError(f"they differ by {apart:.2g} from those of torch's operators")
    except Exception as error:  # of Triton, of a compiler, of the driver
        logger.warning(
            "Views of %d px are made by torch's operators, in nearly 200 launches instead of 3, "
            "because the kernels in Triton do not work here (%s: %s). They need Triton, which "
            "comes with torch for CUDA on Linux, and a C compiler. All else goes on as usual.",
            size,
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return False
    return True


def _trial(size: int) -> tuple[Tensor, ViewParameters]:
    """Images and what is done to them: all there is."""
    generator = torch.Generator().manual_seed(0)
    side, N = size + 2, _TRIED
    images = torch.randint(0, 256, (N // 2, 3, side, side), dtype=torch.uint8, generator=generator)
    u = torch.rand(10, N, generator=generator)
    turns = torch.arange(N) % 2 == 1
    corner, sides = torch.floor(2 * u[:2]), torch.floor(1 + u[2:4] * size)
    return images, ViewParameters(
        top=corner[0],
        left=corner[1],
        height=sides[0],
        width=sides[1],
        flip=turns,
        order=torch.rand(N, 4, generator=generator).argsort(dim=1),
        brightness=0.5 + u[4],
        contrast=0.5 + u[5],
        saturation=0.5 + u[6],
        hue=u[7] - 0.5,
        grey=u[8] > 0.8,
        sigma=torch.where(turns, 0.1 + 2 * u[9], 0.0),
        strokes=None,
    )

"""Random views of every image of a batch, made in one go.

The operations are SimCLR's (Chen et al. 2020): random resized crop with flip, colour jitter
(brightness, contrast, saturation and hue, in random order), grey, blur. Each equals its counterpart
in `torchvision.transforms.functional` on floats, with parameters drawn per view. Drawings are also
rotated, shifted and zoomed with the crop, in one resampling; their strokes grow (dilation) and
shrink (erosion) before the colours; a box is erased at last. Ink is dark on white paper or light on
black paper (`views.ink`): dark ink is dilated by the minimum of neighbours, light ink by the
maximum.

`parameters` samples what is done to each view. On a CPU `cpu` does it in compiled code, one view
after the other while it lies in the cache; on a GPU `kernels` does it in three launches, and where
they do not work, and for drawings, `batched` with few, large tensor operations.
"""

from __future__ import annotations

import torch

from sseg_nase.config.schema import ViewsConfig
from sseg_nase.data.views import gpu
from sseg_nase.data.views.parameters import Strokes, ViewParameters, draw_parameters

__all__ = ["Strokes", "ViewParameters", "apply_views", "draw_parameters", "make_views", "normalize"]


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 images to float32 in [-1, 1]: (x / 255 - 0.5) / 0.5. Any shape."""
    return images.to(torch.float32).mul_(2 / 255).sub_(1)


@torch.no_grad()
def apply_views(images: torch.Tensor, p: ViewParameters, *, image_size: int) -> torch.Tensor:
    """Make views of uint8 images [B, C, H, W]: normalised float32 [V, B, C, S, S].

    `p` holds V · B views: the first view of every image, then the second of every image, ... Every
    view is channels-last in memory. One channel is treated as the same three, which stay the same.
    """
    if images.shape[1] == 1:
        views = apply_views(images.expand(-1, 3, -1, -1), p, image_size=image_size)
        return views[:, :, :1].contiguous()
    if images.device.type == "cpu":
        from sseg_nase.data.views import cpu  # here, because it loads a compiler

        return cpu.apply_views(images, p, image_size)
    return gpu.apply_views(images, p, image_size)


def make_views(
    images: torch.Tensor,
    views: ViewsConfig,
    *,
    image_size: int,
    seed: int,
    count: int = 2,
    first: int = 0,
    of: int | None = None,
) -> torch.Tensor:
    """Make V = `count` random views of each uint8 image [B, C, H, W]: float32 [V, B, C, S, S].

    The output is normalised as by `normalize` and channels-last in memory. The same (images, views,
    seed) give the same views; each of the V · B has parameters of its own. Where `images` are only
    the rows `first`, `first` + 1, ... of a batch of `of` images, they get the views they have in
    the whole batch.
    """
    H, W = images.shape[2:]
    whole = len(images) if of is None else of
    p = draw_parameters(count * whole, views, height=H, width=W, seed=seed)
    if len(images) < whole:
        rows = torch.arange(count * whole).view(count, whole)
        p = p[rows[:, first : first + len(images)].flatten()]
    return apply_views(images, p, image_size=image_size)

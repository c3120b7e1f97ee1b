"""Fixed views of an image, whose embeddings are averaged in a test."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

CROP = 7 / 8  # of the side
PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of a crop: down, right
MOST = 2 + 2 * len(PLACES)


def view(images: Tensor, number: int) -> Tensor:
    """View `number` of images `[B, C, S, S]`, the same for every image and at every call.

    0 is the image, 1 its mirror image; then come, alternately plain and mirrored, crops of 7/8 of
    the side from the middle and the four corners, back at the full size (bilinear).
    """
    assert 0 <= number < MOST
    size = images.shape[-1]
    if number >= 2:
        side = round(CROP * size)
        down, right = (round(share * (size - side)) for share in PLACES[number // 2 - 1])
        cut = images[..., down : down + side, right : right + side]
        images = F.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False)
    return images.flip(-1) if number % 2 else images

"""The network as a graph that other programs run: images in, features out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.export.subject import Subject
from sseg_nase.runtime.embedder import as_floats
from sseg_nase.runtime.metadata import Metadata

BATCHES = (1, 5, 64)  # at which a file is compared with torch
TOLERANCE = 1e-5  # of the largest output
LARGEST_BATCH = 4096
INPUT, OUTPUT = "images", "features"


class Embed(nn.Module):
    """uint8 `[B, S, S, C]` → features `[B, D]`: normalisation and network in one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images`."""
        floats = images.to(torch.float32) * (2 / 255) - 1
        features: Tensor = self.network(floats.permute(0, 3, 1, 2))
        return features


def module_of(subject: Subject) -> nn.Module:
    """What is exported: from uint8 with the normalisation inside, or from floats without."""
    network = subject.network.eval()
    return Embed(network) if subject.metadata.input == "uint8" else network


def random_images(metadata: Metadata, batch: int) -> np.ndarray:
    """uint8 `[batch, S, S, C]`, the same each time."""
    size = (batch, metadata.image_size, metadata.image_size, metadata.channels)
    return np.random.default_rng(batch).integers(0, 256, size, dtype=np.uint8)


def given(metadata: Metadata, pixels: np.ndarray) -> np.ndarray:
    """`pixels` uint8 `[B, S, S, C]` as the exported graph takes them."""
    return pixels if metadata.input == "uint8" else as_floats(pixels)


def example(metadata: Metadata) -> Tensor:
    """Images to trace with; of a batch of 1 the exporter would take the 1 for granted."""
    return torch.from_numpy(given(metadata, random_images(metadata, 2)))


def expected(subject: Subject, pixels: np.ndarray) -> np.ndarray:
    """What torch computes: features of uint8 `[B, S, S, C]`, normalised as in training."""
    with torch.inference_mode():
        images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return np.asarray(subject.network(images).float())


def check_parity(name: str, found: dict[int, np.ndarray], subject: Subject) -> float:
    """The largest difference from torch relative to the largest output, over `BATCHES`.

    Raises `UserError` where it is more than `TOLERANCE`: the file is then not written.
    """
    worst = 0.0
    for batch, features in found.items():
        ours = expected(subject, random_images(subject.metadata, batch))
        largest = float(np.abs(ours).max()) or 1.0
        difference = float(np.abs(features - ours).max()) / largest
        if not difference <= TOLERANCE:  # NaN, too
            raise UserError(
                f"export.formats={name}: its features differ from the network's by "
                f"{difference:.1e} of the largest at a batch of {batch}, where {TOLERANCE:.0e} is "
                "allowed; nothing is written. Another format may do: "
                "export.formats=[onnx], [pt2] or [python]."
            )
        worst = max(worst, difference)
    return worst


@contextmanager
def exporting(name: str) -> Iterator[None]:
    """What torch or onnx cannot do with a network, such as an operation of the user's own.

    It becomes a `UserError` that names the format.
    """
    try:
        with quietly(), torch.no_grad():
            yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # exporters raise whatever they meet
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"export.formats={name}: this network cannot be exported so ({why})."
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters warn of their own workings, which nobody can act on."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._export", "root")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)

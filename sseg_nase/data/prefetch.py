"""From RAM to a GPU beside the training: page-locked memory, copies that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

ALIGNED = 16  # bytes: where a tensor of any type may begin


class HasImages(Protocol):
    """A batch, as far as it lies on the device."""

    @property
    def images(self) -> Tensor:
        """Its images."""


B = TypeVar("B", bound=HasImages)


def one_ahead(batches: Iterator[B], stream: torch.cuda.Stream) -> Iterator[B]:
    """The same batches, each made on `stream` while the one before it is trained on."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))

    def made() -> tuple[B | None, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return next(batches, None), stream.record_event()

    batch, done = made()
    while batch is not None:
        following = made()
        trained_on = torch.cuda.current_stream(stream.device)
        trained_on.wait_event(done)
        # Its memory is of `stream`: nothing there may take it before the training is done with it.
        batch.images.record_stream(trained_on)
        yield batch
        batch, done = following


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values`, which lie in RAM, on `device`; a GPU is not waited for."""
    if device.type != "cuda":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def sent_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """`sent` for many small tensors, as parts of one: one copy takes as long as each would."""
    flat = {name: t.contiguous().view(-1).view(torch.uint8) for name, t in tensors.items()}
    lengths = [-(-len(part) // ALIGNED) * ALIGNED for part in flat.values()]
    packed = torch.empty(sum(lengths), dtype=torch.uint8)
    for part, room in zip(flat.values(), packed.split(lengths), strict=True):
        room[: len(part)] = part
    there = sent(packed, device).split(lengths)
    return {
        name: room[: len(flat[name])].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), room in zip(tensors.items(), there, strict=True)
    }

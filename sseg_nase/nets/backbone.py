"""What every network that gives embeddings has in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sseg_nase.nets.description import Description

Network = TypeVar("Network", bound="Backbone")


class Backbone(nn.Module):
    """Embeds images `[B, C, S, S]` as `[B, features]`; `architecture` describes it fully.

    With `gradient_checkpointing` the activations inside of blocks are computed again for their
    gradients instead of being kept.
    """

    architecture: Description
    gradient_checkpointing = False

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """`block(x)`, keeping no activations inside where they are to be computed again."""
        if not (self.gradient_checkpointing and self.training):
            return block(x)
        contexts = partial(_checkpoint_contexts, block)
        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)

    def stages(self) -> list[nn.Module]:
        """The blocks in order, the first one with all that stands before it."""
        raise NotImplementedError

    def for_inference(self: Network) -> Network:
        """A copy in eval mode that computes the same, made for speed where there is a way."""
        return copy.deepcopy(self).eval().to(memory_format=torch.channels_last)

    def get_architecture_summary(self) -> dict[str, Any]:
        """Blocks, channels, params, macs, flops and the resolution they hold at."""
        return self.architecture.summary()


class _Recomputation(AbstractContextManager[None]):
    """A block that runs again for its gradients does not count its batch statistics twice."""

    def __init__(self, block: nn.Module) -> None:
        self.norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, kept in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = kept


def _checkpoint_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Recomputation(block)


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let layers that know only torch's own generator draw from `generator`.

    None: they draw as ever. Otherwise torch's own generator is left as it was.
    """
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        seed = torch.randint(2**63 - 1, (), generator=generator).item()
        torch.default_generator.manual_seed(int(seed))
        yield

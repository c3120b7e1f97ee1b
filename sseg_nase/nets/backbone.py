"""What every network that gives embeddings has in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import IMAGES, Axis
from sseg_nase.nets.mutation import Mutation, carry_network

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

    def masked(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Embed images with the channels of every named axis multiplied by its mask `[C]`.

        `masks`: in the order of `architecture.axes`. By the weights that read the channels, so that
        it is the same whatever makes them.
        """
        of = dict(zip(self.architecture.axes, masks, strict=True))

        def along(axis: Axis) -> Tensor:
            return torch.cat([of[name] for name in axis.names]).repeat_interleave(axis.positions)

        state = dict(self.state_dict())
        for name, wires in self.architecture.wiring().items():
            for dim, axis in enumerate(wires.axes):
                if axis is not None and axis.reads and axis.names != (IMAGES,):
                    shape = [-1 if d == dim else 1 for d in range(state[name].dim())]
                    state[name] = state[name] * along(axis).to(state[name]).reshape(shape)
        features = functional_call(self, state, (x,))
        axis = self.architecture.embedding_axis
        return features if axis is None else features * along(axis).to(features)

    def shortcuts(self) -> Mapping[str, tuple[str | None, Tensor]]:
        """Per named axis, which other axis a sum adds to it, and by which matrix `[C, C']`.

        None of those that share a name: they are one axis. The other axis is None for the images.
        """
        return {}

    def stages(self) -> list[nn.Module]:
        """The blocks in order, the first one with all that stands before it."""
        raise NotImplementedError

    def become(self, change: Mutation) -> None:
        """Apply `change` to this network in place: same device, dtype, mode and `requires_grad`."""
        like, training = next(self.parameters()), self.training
        state = carry_network(change, self.state_dict())
        with torch.random.fork_rng(devices=[]):
            new = change.after.network(None)
        assert isinstance(new, Backbone), type(new)
        new.to(device=like.device, dtype=like.dtype).train(training)
        new.load_state_dict(state)
        new.requires_grad_(like.requires_grad)
        self.architecture = new.architecture
        self._modules, self._buffers = new._modules, new._buffers
        self._parameters = new._parameters

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

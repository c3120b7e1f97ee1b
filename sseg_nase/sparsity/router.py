"""NASE by hand: score, mask, look at both paths, then remove."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.sparsity.importance import channel_importance
from sseg_nase.sparsity.masks import ComplementaryMasks, complementary_masks


@dataclass(frozen=True)
class SparsityStatistics:
    """Channels per named axis, and the share that the positive masks leave out, in [0, 1].

    Of a chain the axes are its blocks.
    `*_before`: parameters and macs of the network as it is, masked or not; `*_after`: what
    `prune_permanently` would make of them. Macs at the architecture's resolution.
    """

    channels: tuple[int, ...]
    kept: tuple[int, ...]
    sparsity: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


class SparseRouter:
    """Complementary masks over a backbone's channels.

    `ratio`: share of all channels to leave out; see `complementary_masks` for the rest.
    """

    def __init__(
        self,
        ratio: float,
        *,
        importance: str = "taylor",
        min_channels: int = 8,
        round_to: int = 1,
        seed: int = 0,
    ) -> None:
        self.ratio, self.importance, self.seed = ratio, importance, seed
        self.min_channels, self.round_to = min_channels, round_to
        self.masks: ComplementaryMasks | None = None
        self.architecture: Description | None = None  # that the masks are for

    def update_masks(
        self, model: Backbone, losses: Iterable[Tensor], *, remove: int | None = None
    ) -> ComplementaryMasks:
        """Score the channels on `losses` (see `channel_importance`) and make new masks."""
        scores = channel_importance(model, losses, kind=self.importance, seed=self.seed)
        width = sum(model.architecture.axes.values())
        remove = round(self.ratio * width) if remove is None else remove
        self.masks = complementary_masks(
            scores, remove, min_channels=self.min_channels, round_to=self.round_to
        )
        self.architecture = model.architecture
        return self.masks

    def apply_sparse_forward(
        self, model: Backbone, x: Tensor, use_negative_path: bool = False
    ) -> Tensor:
        """Embed `[B, 3, H, W]` with the kept channels only, or with the left-out ones only.

        Of a block that loses nothing, the negative path uses all channels.
        """
        masks = self._masks(model)
        chosen = masks.complement if use_negative_path else masks.positive
        return model.masked(x, [mask.to(x.device) for mask in chosen])

    def prune_permanently(self, model: Backbone) -> Mutation:
        """Remove the left-out channels from `model` in place; returns the mutation it was.

        It then computes what `apply_sparse_forward` did, in train and in eval mode. Running
        statistics of BN are those of the dense network: `recalibrate` recomputes them.
        """
        mutation = prune(model.architecture, self._masks(model).kept)
        model.become(mutation)
        self.masks = self.architecture = None
        return mutation

    def get_statistics(self) -> SparsityStatistics:
        """What the current masks leave out, and what removing it would save."""
        masks = self._masks()
        assert self.architecture is not None
        before, after = self.architecture, prune(self.architecture, masks.kept).after
        return SparsityStatistics(
            channels=tuple(before.axes.values()),
            kept=tuple(after.axes.values()),
            sparsity=1 - sum(after.axes.values()) / sum(before.axes.values()),
            params_before=before.params,
            params_after=after.params,
            macs_before=before.macs(),
            macs_after=after.macs(),
        )

    def _masks(self, model: Backbone | None = None) -> ComplementaryMasks:
        if self.masks is None:
            raise RuntimeError("call update_masks first: there are no masks yet")
        if model is not None and model.architecture != self.architecture:
            raise RuntimeError("call update_masks again: the network has changed since")
        return self.masks

"""Zero-cost scores and inherited weights on CUDA, without a GPU: see `fake_cuda`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.heads import LinearHead
from sseg_nase.search import Candidate, Cost, Inherited
from sseg_nase.search.proxies import SCORES, measure
from sseg_nase.spaces import NB201, Chain
from tests.support.fake_cuda import CUDA, fake_cuda

CELLS = NB201(cells=1, width=4, resolution=8)
CELL = CELLS.from_string(
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
)
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_scores_are_those_of_a_cpu() -> None:
    description = CELLS.describe(CELL)
    here = measure(list(SCORES), description, IMAGES, LABELS)
    with fake_cuda():
        there = measure(list(SCORES), description, IMAGES.to(CUDA), LABELS.to(CUDA))
    assert there == pytest.approx(here, rel=1e-4)


def test_weights_that_are_kept_are_found_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search may be resumed where there is no GPU."""
    space = Chain(most=2, widths=(4, 6), resolution=8)
    point = space.canonical(next(iter(space.points())))
    candidates = [Candidate(0, point, "a"), Candidate(1, point, "b", parents=(0,))]

    def trained(
        network: Backbone, head: nn.Module | None, seed: int
    ) -> tuple[dict[str, float], Cost]:
        assert head is not None
        network.to(CUDA)
        head.to(CUDA)
        return {"accuracy": 50.0}, Cost()

    written: list[torch.Tensor] = []
    save = torch.save

    def seen(what: Any, path: Path) -> None:
        written.extend([*what["state"].values(), *what["head"].values()])
        save(what, path)

    monkeypatch.setattr(torch, "save", seen)
    one = Inherited(space, trained, tmp_path, make_head=lambda d, _: LinearHead(d.features, 2))
    with fake_cuda():
        one.start(candidates[0])
        assert one.result().error is None
    assert written
    assert not any(tensor.is_cuda for tensor in written)
    parent, found = one.begin(candidates[1])
    assert parent == 0
    assert found.params == sum(p.numel() for p in found.network.parameters())

"""Views by kernels in Triton: what they compute when interpreted, and when they are used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.data.views import batched, draw_parameters, gpu

CPU = torch.device("cpu")
EVERYTHING = ["hardware=cpu", "views.grey=0.3", "views.blur=0.6", "views.jitter=0.9"]

# In a process of its own: Triton decides when it is imported whether it interprets.
COMPUTED = """
import sys
import torch
from sseg_nase.config.compose import load
from sseg_nase.data.views import batched, draw_parameters, gpu, kernels

asked = load(sys.argv[1:]).views
for size, (height, width), count in ((32, (32, 32), 2), (20, (33, 40), 3), (84, (84, 84), 1)):
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    for given in (images, images[:, :1].expand(-1, 3, -1, -1))[: 1 + (size < 32)]:
        p = draw_parameters(2 * count, asked, height=height, width=width, seed=size)
        made, expected = (way.apply_views(given, p, size) for way in (kernels, batched))
        torch.testing.assert_close(made, expected, atol=5e-5, rtol=0)
        assert made.stride() == expected.stride()
still = load([*sys.argv[1:], "views.blur=0", "views.jitter=0"]).views
p = draw_parameters(2, still, height=84, width=84, seed=0)
made, expected = (way.apply_views(images, p, 32) for way in (kernels, batched))
torch.testing.assert_close(made, expected, atol=5e-5, rtol=0)
assert gpu.kernels_work(torch.device("cpu"), 16)
print("the same")
"""


def test_kernels_make_the_views_that_torchs_operators_make() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", COMPUTED, *EVERYTHING],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 86, 90])
def test_kernels_compile_for_cards(
    capability: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to machine code, which no card is needed for."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sseg_nase.data.views import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"images": "*u8", "rows": "*i64", "BLOCK": "constexpr", "AXIS": "constexpr"}
    types |= dict.fromkeys(("figures", "out", "source", "target"), "*fp32")
    options = {name: value for name, value in kernels.OPTIONS.items() if name != "BLOCK"}
    for kernel, axes in ((kernels._views, ({},)), (kernels._blurred, ({"AXIS": 0}, {"AXIS": 1}))):
        signature = {name: types.get(name, "i32") for name in kernel.arg_names}
        for axis in axes:
            source = ASTSource(kernel, signature, {"BLOCK": kernels.BLOCK, **axis})
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert len(made.asm["cubin"]) > 1000


class Kernels:
    """In the place of those of Triton."""

    def __init__(self, error: Exception | None = None, *, apart: float = 0.0) -> None:
        self.error, self.apart, self.calls = error, apart, 0

    def apply_views(self, images: Tensor, p: Any, size: int) -> Tensor:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return batched.apply_views(images, p, size) + self.apart


@pytest.fixture(autouse=True)
def _untried() -> Iterator[None]:
    gpu.kernels_work.cache_clear()
    yield
    gpu.kernels_work.cache_clear()


def views_by(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[Tensor, Any]:
    """Views that were made twice, and the rest of what made them."""
    monkeypatch.setattr(gpu, "import_module", lambda name: kernels)
    asked = load([*EVERYTHING, *more]).views
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    p = draw_parameters(6, asked, height=16, width=16, seed=1)
    first, second = (gpu.apply_views(images, p, 16) for _ in range(2))
    assert torch.equal(first, second)
    return first, SimpleNamespace(images=images, p=p)


def test_kernels_that_work_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = Kernels(apart=gpu.FURTHEST / 2)
    views, given = views_by(kernels, monkeypatch)
    assert kernels.calls == 3  # one of them a trial
    assert not torch.equal(views, batched.apply_views(given.images, given.p, 16))
    assert not caplog.records


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (Kernels(ImportError("No module named 'triton'")), "No module named 'triton'"),
        (Kernels(RuntimeError("no C compiler\nlong")), "RuntimeError: no C compiler)"),
        (Kernels(apart=2 * gpu.FURTHEST), "they differ by 0.002 from"),
        (Kernels(apart=float("nan")), "they differ by nan from"),
    ],
)
def test_others_are_named_once_and_left(
    kernels: Kernels,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="sseg_nase"):
        views, given = views_by(kernels, monkeypatch)
    assert torch.equal(views, batched.apply_views(given.images, given.p, 16))
    assert kernels.calls == 1
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_drawings_take_torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    views_by(kernels, monkeypatch, "views=sketch")
    assert kernels.calls == 0


def test_a_trial_has_all_there_is() -> None:
    images, p = gpu._trial(16)
    assert len(images) < len(p.top)
    assert 0 < p.grey.sum() < len(p.grey)
    assert 0 < (p.sigma > 0).sum() < len(p.sigma)
    assert 0 < p.flip.sum() < len(p.flip)
    assert len({tuple(order) for order in p.order.tolist()}) > 3
    assert (p.top + p.height <= images.shape[2]).all()
    assert (p.left + p.width <= images.shape[3]).all()
    assert min(p.hue.abs().min(), (p.contrast - 1).abs().min()) > 0

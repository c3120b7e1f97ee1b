"""A self-supervised method, an optimizer, a schedule and a figure of docs/extending/."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.config import options
from sseg_nase.config.compose import load, stored
from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.groups.scheduler import SchedulerConfig
from sseg_nase.config.groups.ssl import SSLConfig
from sseg_nase.errors import UserError
from sseg_nase.evolution.operators import named_moments
from sseg_nase.nets.building import build, configured
from sseg_nase.reporting.figures import Drawing, figures_of_run
from sseg_nase.reporting.pictures import drawn
from sseg_nase.run import run
from sseg_nase.rundir.record import read_run
from sseg_nase.ssl.methods import make_learner, method_of
from sseg_nase.training.optim import build_optimizer, course, lr_ratio, stepping
from tests.support.examples import installed, page

GIVEN = ["ssl=vicreg", "optimizer=lion", "scheduler=inverse_sqrt"]
TINY = [
    *["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"],
    *["pretrain.epochs=3", "evaluation.episodes=2", "sparsity=none", *GIVEN],
]
FIGURE = """
```toml
[project.entry-points."sseg_nase.figures"]
odd = "odd:figure"
```
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the YAML of these pages, which are installed."""
    pages = (page(f"extending/{name}.md") for name in ("ssl-method", "optimizer", "figure"))
    with installed("".join(pages), tmp_path / "installed", monkeypatch) as folder:
        yield folder


def test_they_train_through_mutations_and_the_figure_shows_it(conf: Path) -> None:
    directory = run(load(TINY, conf), TINY)
    record = read_run(directory)
    assert any(mutation["accepted"] for mutation in record.mutations)
    last = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    assert {key for state in last["moments"].values() for key in state} == {"exp_avg"}
    *_, figure = figures_of_run(record)
    (picture,) = drawn([figure], directory)
    assert picture.title == "Learning rate"
    assert picture.caption.endswith("dotted: accepted mutations.")
    assert picture.files["svg"].stat().st_size > 1000
    # A run that is read again, without a word about the folder of configs.
    assert stored(directory / "config.yaml").optimizer == load(TINY, conf).optimizer


def slow_vicreg(a: Tensor, b: Tensor, variance_weight: float, covariance_weight: float) -> float:
    """Bardes et al. 2022, eq. 1 to 6, entry by entry."""
    images, size = a.shape
    apart = sum(float((a[i, j] - b[i, j]) ** 2) for i in range(images) for j in range(size))
    total = apart / (images * size)
    for z in (a, b):
        means = [sum(float(z[i, j]) for i in range(images)) / images for j in range(size)]

        def covariance(j: int, k: int, z: Tensor = z, means: list[float] = means) -> float:
            return sum(
                (float(z[i, j]) - means[j]) * (float(z[i, k]) - means[k]) for i in range(images)
            ) / (images - 1)

        for j in range(size):
            total += variance_weight * max(0, 1 - math.sqrt(covariance(j, j) + 1e-4)) / size
            others = (covariance(j, k) ** 2 for k in range(size) if k != j)
            total += covariance_weight * sum(others) / size
    return total


def test_the_loss_is_the_papers(conf: Path) -> None:
    ssl = load(TINY, conf).ssl
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 5, generator=generator) * torch.tensor([0.2, 0.5, 1, 2, 0.1])
    loss: Any = method_of(ssl).loss
    found = loss.objective([a, b], ssl).item()
    assert found == pytest.approx(slow_vicreg(a, b, 1, 0.04), rel=1e-4)


def test_the_step_is_the_papers_and_its_state_follows_mutations(conf: Path) -> None:
    config = load([*TINY, "optimizer.lr=0.1", "optimizer.weight_decay=0.5"], conf)
    learner = make_learner(build(configured(config.backbone, 16)), config.ssl)
    optimizer = build_optimizer(learner, config.optimizer)
    weight, bias = learner.backbone.blocks[0].conv.weight, learner.backbone.blocks[0].norm.bias
    gradients = [torch.randn_like(weight), torch.randn_like(weight)]
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for gradient in gradients:
        weight.grad, bias.grad = gradient.clone(), torch.zeros_like(bias)
        optimizer.step()
        expected -= 0.1 * 0.5 * expected
        expected -= 0.1 * (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(weight.detach(), expected)
    assert named_moments(optimizer, learner)["backbone.blocks.0.conv.weight"].keys() == {"exp_avg"}


def test_the_rate_follows_the_schedule_behind_the_warm_up(conf: Path) -> None:
    scheduler = load([*TINY, "scheduler.full_epochs=2"], conf).scheduler
    rates = [lr_ratio(10 * epoch, 10, 12, scheduler) for epoch in (1, 2, 3, 9)]
    assert rates == pytest.approx([1, 1, 1, 0.5])
    assert lr_ratio(4, 10, 12, scheduler) == pytest.approx(5 / 11)  # the warm-up of any schedule


@pytest.mark.parametrize(
    ("group", "kind", "make"),
    [
        ("ssl", SSLConfig, method_of),
        ("optimizer", OptimizerConfig, lambda one: stepping(one, [])),
        ("scheduler", SchedulerConfig, lambda one: course(one, 1, 2)),
    ],
)
def test_an_option_that_nothing_makes_says_what_is_missing(
    conf: Path, group: str, kind: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = getattr(load(TINY, conf), group)
    monkeypatch.setattr(type(one), "made_by", "")
    with pytest.raises(TypeError, match=rf"^{group}={one.name}: nothing .*{type(one).__name__}\."):
        make(one)


def test_a_maker_that_is_gone_is_named(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssl = load(TINY, conf).ssl
    monkeypatch.setattr(type(ssl), "made_by", "vicreg:nothing")
    with pytest.raises(UserError, match=r"^vicreg:nothing: an option is made by this"):
        method_of(ssl)


def test_those_of_this_package_name_no_maker() -> None:
    # Of an option that inherits from one of them the maker counts, not the one of the base.
    for kind in (SSLConfig, OptimizerConfig, SchedulerConfig):
        assert {cls.made_by for cls in options.options_of(kind).values()} == {""}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", "^somebodys: this package has figures .*of_that_name"),
        ("figure = 3", "somebodys could not draw it: TypeError: odd:figure is no function"),
        ("def figure(record): return 3", "TypeError: odd:figure returned int instead of a Drawing"),
        ("def figure(record): return record.nothing", "somebodys could not draw it: AttributeErr"),
        (
            "from sseg_nase.reporting.figures import absent\n"
            "def figure(record): return absent('accuracy', 'A', 'B.')",
            "ValueError: there is a figure named 'accuracy' already",
        ),
    ],
)
def test_what_is_wrong_with_a_figure_stands_in_its_stead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    home = tmp_path / "installed"
    own = [drawing.name for drawing in figures_of_run(read_run(tmp_path))]
    with installed(FIGURE, home, monkeypatch):
        (home / "odd.py").write_text(code + "\n")
        *others, odd = figures_of_run(read_run(tmp_path))
    assert [drawing.name for drawing in others] == own
    assert isinstance(odd, Drawing)
    assert odd.figure is None
    (picture,) = drawn([odd], tmp_path)
    assert picture.title == "odd"
    assert picture.missing is not None
    assert re.search(said, picture.missing)

"""A point of a search space as the backbone of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import configured, described
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.run import run
from sseg_nase.spaces import Chain
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted, Interruption

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
STILL = ["backbone=searched", "evolution=none", "sparsity=none"]
SPACE = 'backbone.space="nb201(cells=1, width=4)"'
CELL = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
SEARCHED = [*STILL, SPACE, f'backbone.point="{CELL}"', "dataset.channels=1"]


def described_by(*overrides: str) -> Any:
    config = load([*TINY, *overrides])
    return configured(config.backbone, config.dataset.image_size)


def test_a_point_is_described_for_the_images_of_the_run() -> None:
    found = described_by(*SEARCHED)
    assert isinstance(found, SearchedArchitecture)
    assert (found.in_channels, found.space) == (1, "nb201")
    assert described(json.loads(json.dumps(found.to_dict()))) == found
    point = json.dumps(json.loads(found.point)).replace('"', '\\"')
    again = described_by(*STILL, SPACE, f'backbone.point="{point}"', "dataset.channels=1")
    assert again == found  # JSON says the same


def test_a_chain_of_a_space_is_the_evolvable_network() -> None:
    space = Chain(most=2, widths=(4, 8))
    text = space.to_string({c.name: c.few(2)[0] for c in space.choices} | {"depth": 2})
    chain = described_by(
        *STILL, 'backbone.space="chain(most=2, widths=(4, 8))"', f'backbone.point="{text}"'
    )
    assert isinstance(chain, Architecture)
    assert chain.channels == (4, 4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["backbone.space=nb21"], "backbone.space=nb21 .*Did you mean 'nb201'"),
        (['backbone.point="|x~0|"'], "backbone.point=.*is no cell such as"),
        (["backbone.space=darts", "backbone.point=x"], "has 1 values; space darts has 24"),
        (["backbone.space=null"], "backbone.space=null"),
        (["backbone.channels=[4]"], "backbone.channels.*no effect"),
    ],
)
def test_mistakes_are_said(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        described_by(*STILL, *overrides)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_goes_on_as_if_never_stopped_and_is_evaluated_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ran(*overrides: str) -> Path:
        return run(load([*TINY, *overrides]), [*TINY, *overrides])

    whole = ran(*SEARCHED, f"paths.output_dir={tmp_path / 'whole'}")
    asked = iter([*[False] * 6, *[True] * 1000])
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "is_requested", lambda self: next(asked))
        with pytest.raises(Interrupted):
            ran(*SEARCHED, f"paths.output_dir={tmp_path / 'stopped'}")
    (stopped,) = (tmp_path / "stopped" / "debug").iterdir()
    ran(*SEARCHED, f"resume={stopped}")
    first, second = (
        checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (whole, stopped)
    )
    assert first["step"] == second["step"]
    states = [checkpoint.backbone_of(f / "checkpoints" / "last.pt") for f in (whole, stopped)]
    for name, tensor in states[0].state_dict().items():
        assert torch.equal(tensor, states[1].state_dict()[name]), name
    path = whole / "checkpoints" / "last.pt"
    evaluated = ran(*SEARCHED, "task=evaluate", f"checkpoint={path}")
    assert (evaluated / "results.json").exists()
    other = [part.replace("avg_pool_3x3~1", "nor_conv_3x3~1") for part in SEARCHED]
    with pytest.raises(UserError, match="holds another network"):
        ran(*other, "task=evaluate", f"checkpoint={path}")

"""A sweep with a strategy is a search over the same values."""

from __future__ import annotations

import shlex

import pytest

from sseg_nase import cli
from sseg_nase.config.compose import load
from sseg_nase.config.rounds import as_search
from sseg_nase.errors import UserError
from sseg_nase.spaces.overrides import overrides_space


def test_ranges_and_several_values_become_choices() -> None:
    given = [
        "strategy=tpe",
        "optimizer.lr=loguniform(1e-4,1e-1)",
        "ssl=simclr,byol",
        "backbone.channels=[16,32],[32,64]",
        "pretrain.epochs=range(1,4)",
        "ssl.temperature=interval(0.1,0.5)",
        "evolution=none",
        "sparsity=none",
        "search.budget.candidates=50",
        "strategy.starts=4",
    ]
    search = as_search(given)
    assert search is not None
    config = load(search)
    assert (config.task, config.space.name, config.strategy.name) == ("search", "overrides", "tpe")
    assert config.search.budget.candidates == 50
    assert dict(config.search.choices) == {
        "optimizer.lr": "loguniform(1e-4,1e-1)",
        "ssl": ["simclr", "byol"],
        "backbone.channels": [[16, 32], [32, 64]],
        "pretrain.epochs": [1, 2, 3],
        "ssl.temperature": "uniform(0.1,0.5)",
    }
    assert len(overrides_space(config.search.choices).choices) == 5


def test_a_sweep_without_a_strategy_stays_one() -> None:
    assert as_search(["ssl=simclr,byol", "seed=0,1"]) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["strategy=tpe"], r"-m strategy=tpe: what is to be chosen\?"),
        (["strategy=tpe", "seed=0"], r"-m strategy=tpe: what is to be chosen\?"),
        (["strategy=tpe", "seed=0,1", "space=nb201"], "space=nb201: it has no effect with -m"),
        (["strategy=tpe", "seed=0,1", "sweep.parallel=2"], "sweep.parallel=2: .*search.slots=2"),
    ],
)
def test_what_makes_no_search_is_refused(given: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        as_search(given)


def test_the_command_line_is_that_of_the_search_and_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    composed: list[list[str]] = []
    monkeypatch.setattr(cli, "_hydra", lambda flag, overrides: composed.append(list(overrides)))
    typed = ["sseg-nase", "-m", "strategy=random", "optimizer.lr=loguniform(1e-4,1e-1)"]
    monkeypatch.setattr("sys.argv", typed)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    [overrides] = composed
    assert load(overrides).search.choices == {"optimizer.lr": "loguniform(1e-4,1e-1)"}
    [line] = [one for one in capsys.readouterr().err.splitlines() if "by rounds" in one]
    shown = shlex.split(line.partition("by rounds: ")[2])
    assert load(shown[1:]).search.choices == {"optimizer.lr": "loguniform(1e-4,1e-1)"}

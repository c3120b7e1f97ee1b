from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.compose import load, overrides_of, spelled_out
from sseg_nase.config.conf_files import group_option, groups
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import ONE_SHOT, EvaluatorConfig, StrategyConfig
from sseg_nase.errors import UserError
from sseg_nase.oneshot.rules import RULES
from sseg_nase.searches import parts
from sseg_nase.searches.own import imported
from sseg_nase.searches.task import EVALUATORS
from sseg_nase.spaces import SPACES, named
from sseg_nase.spaces.overrides import overrides_space
from tests.support.small_search import CHOICES, own

OWN = "own"  # of the user's, from a file of theirs

MISTAKES = [
    ([], "space=overrides: which keys"),
    ([CHOICES, "strategy=gp", "strategy.population=3"], "it has no effect with strategy=gp"),
    ([CHOICES, "strategy=asha", "strategy.least=30"], "strategy.least=30: it must be at most"),
    ([CHOICES, "evaluation.split=test"], "a search must not see test classes"),
    ([CHOICES, "search.objectives={accuracy: up}"], "choose one of max, min"),
    ([CHOICES, "space=nb201", "evaluator=tabular", "evaluator.table=x.csv"], "has no effect with"),
    (["space=nb201", "evaluator=tabular"], "evaluator.table=null"),
    ([CHOICES, "evaluator.seconds=x"], "choose evaluator=tabular or leave it out"),
    (
        [CHOICES, "strategy.name=own"],
        "strategy.target=null: strategy=own needs a value, FILE.py:NAME",
    ),
    ([CHOICES, "strategy.target=a.py:b"], "choose strategy=own or leave it out"),
    ([CHOICES, "search=runs/searches/x"], "it has no effect with task=search"),
    ([CHOICES, "search.choices.seed=[1]", "search.cap={a: 1}"], "Did you mean 'search.caps'"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES)
def test_a_mistake_is_said_in_one_message(given: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        load(["task=search", *given])
    assert said in str(refused.value)


@pytest.mark.parametrize("task", ["status", "report"])
def test_a_search_and_a_sweep_are_not_looked_at_together(task: str) -> None:
    with pytest.raises(UserError, match="not together with search=a"):
        load([f"task={task}", "search=a", "sweep=b"])


def test_ranges_are_written_without_quotes_and_composed_again() -> None:
    given = ["task=search", CHOICES, "search.caps={params: 1e5}", "search.objectives.accuracy=max"]
    config = load(given)
    rate = config.search.choices["optimizer.lr"]
    assert rate == "loguniform(1e-4,1e-2)"
    assert config.search.caps == {"params": 1e5}
    assert load(overrides_of(config)) == config
    (quoted,) = spelled_out(['search.choices={optimizer.lr: "loguniform(1e-4,1e-2)"}'])
    assert quoted == '++search.choices={optimizer.lr: "loguniform(1e-4,1e-2)"}'


def test_what_is_searched_does_not_change_what_a_run_is() -> None:
    plain = fingerprint(load())
    assert fingerprint(load(["strategy=gp", "space=nb201", "search.slots=2", CHOICES])) == plain


def test_every_file_of_a_group_names_itself() -> None:
    named_in = groups()
    strategies, evaluators = options_of(StrategyConfig), options_of(EvaluatorConfig)
    assert set(named_in["strategy"]) == set(strategies) - {OWN}
    assert set(named_in["evaluator"]) == set(evaluators) - {OWN}
    supernets = {strategies[name] for name in ONE_SHOT}
    assert set(RULES) == supernets
    assert set(parts.STRATEGIES) == {strategies[name] for name in {*strategies} - {OWN}} - supernets
    assert set(EVALUATORS) == {
        kind for name, kind in evaluators.items() if name not in (OWN, "run")
    }
    assert set(named_in["space"]) == {"overrides", *SPACES}
    for group in ("strategy", "evaluator", "space"):
        assert all(group_option(group, name)["name"] == name for name in named_in[group])


@pytest.mark.parametrize("name", [n for n in groups()["strategy"] if n not in ONE_SHOT])
def test_the_values_of_conf_are_those_of_the_classes(name: str) -> None:
    kind: Any = parts.STRATEGIES[options_of(StrategyConfig)[name]]
    made = parts.strategy_of(load([f"strategy={name}"]).strategy)
    assert made == kind()
    values = {key for key, value in group_option("strategy", name).items() if value is not None}
    rungs = set(parts.RUNGS) if hasattr(made, "rungs") else set()
    known = {field.name for field in dataclasses.fields(kind)} - {"rungs"} | rungs
    assert values - {"name", "settings"} <= known
    written = {*group_option("strategy", name), *rungs}  # null: as the class has it
    assert known - written <= {"mutation", "size", "proposals"}  # the last by search.screen


def test_a_changed_value_reaches_the_strategy() -> None:
    given = ["strategy=asha", "strategy.fidelity=images", "strategy.most=9"]
    rungs = parts.strategy_of(load(given).strategy).rungs  # type: ignore[attr-defined]
    assert (rungs.name, rungs.values) == ("images", [1, 3, 9])


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"optimizer.lrr": [1]}, "Did you mean 'optimizer.lr'"),
        ({"optimizer.lr": ["high"]}, "optimizer.lr=high: a number (float) is needed"),
        ({"optimizer": ["adam", "adamm"]}, "choose one of adam"),
        ({"evaluation.split": ["val", "test"]}, "it decides how candidates are evaluated"),
        ({"paths.output_dir": ["a", "b"]}, "cannot be searched over"),
        ({"search.slots": [1, 2]}, "cannot be searched over"),
        ({"optimizer.lr": "normal(0, 1)"}, "is no choice"),
        ({"optimizer.lr": 3}, "is no choice"),
    ],
)
def test_keys_and_values_that_no_run_takes_are_refused(choices: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        overrides_space(choices)
    assert said in str(refused.value)


def test_a_point_is_what_a_run_is_started_with() -> None:
    space = overrides_space(
        {
            "optimizer": ["adam", "sgd"],
            "backbone.channels": [[16, 32], [8, 16, 32]],
            "backbone.residual": [True, False],
            "ssl.temperature": [0.2],
        }
    )
    point = {
        "optimizer": "sgd",
        "backbone.channels": "[8,16,32]",
        "backbone.residual": "true",
        "ssl.temperature": 0.2,
    }
    given = space.overrides(space.check(point))
    assert given[:2] == ["optimizer=sgd", "backbone.channels=[8,16,32]"]
    config = load(given)
    assert config.backbone.channels == [8, 16, 32]
    assert config.backbone.residual is True
    assert config.optimizer.name == "sgd"


def test_an_unknown_space_or_setting_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'nb201'"):
        named("nb202")
    with pytest.raises(UserError, match=r"Space nb201 has no setting 'cell'. Did you mean 'cells'"):
        named("nb201", cell=3)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine.py", "write FILE.py:NAME"),
        ("nothere.py:greedy", "there is no file nothere.py"),
        ("mine.py:gredy", "Did you mean 'greedy'"),
        ("no_module:greedy", "cannot be imported"),
    ],
)
def test_a_target_that_is_not_there_is_named(target: str, said: str, tmp_path: Path) -> None:
    own(tmp_path)
    with pytest.raises(UserError) as refused:
        imported("strategy.target", target)
    assert said in str(refused.value)

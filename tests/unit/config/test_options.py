"""A section is the class of its option: merged, refused, stored, upgraded and registered so."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase.config import options
from sseg_nase.config.compose import _checked, load, overrides_of, stored
from sseg_nase.config.conf_files import group_option, groups
from sseg_nase.config.explain import PLACED
from sseg_nase.config.fingerprint import LATER, decisive, fingerprint, flatten
from sseg_nase.config.groups.optimizer import SGD, AdamW
from sseg_nase.config.layout import key_types
from sseg_nase.config.members import chosen, upgraded
from sseg_nase.config.options import fields_of, load_packages, options_of, register, told_by
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from tests.support.other_options import GROUPS, having
from tests.support.somebodys import Lion

BEFORE: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "stored_before.yaml").read_text(encoding="utf-8")
)
PLAIN = load()


@pytest.mark.parametrize("before", BEFORE, ids=lambda before: " ".join(before["overrides"]))
def test_a_config_stored_with_nulls_is_that_of_the_same_run_now(
    before: dict[str, Any], tmp_path: Path
) -> None:
    now = load(before["overrides"])
    tree = dataclasses.asdict(now)
    for section in GROUPS.keys() & before.keys():
        old = before[section]
        # A key that has come since stands in no old file: it is not what this is about.
        tree[section] |= {key: value for key, value in old.items() if key != "own"}
    for name, old in before.get("finetune", {}).get("own", {}).items():
        tree["finetune"]["own"][name] |= old
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    again = stored(tmp_path / "config.yaml")
    assert again == now
    # What sweeps and MLflow have kept of the run before was a hash with these nulls.
    full = {f"{group}.{key}": None for group, kind in GROUPS.items() for key in _of_some(kind)}
    tuning = _of_some(GROUPS["finetune"])
    full |= {f"finetune.own.{stage}.{key}": None for stage in now.finetune.own for key in tuning}
    kept = decisive({**full, **flatten(tree)})
    own = re.compile(r"finetune\.own\.\w+\.")  # of a stage, what `finetune` has
    kept = {key: value for key, value in kept.items() if own.sub("finetune.", key) not in LATER}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    hashed = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert fingerprint(again) == fingerprint(now) == hashed


def _of_some(kind: Any) -> list[str]:
    """The keys that not all options of a group had then, dictionaries left out."""
    then = [cls for cls in options_of(kind).values() if cls.once_null]
    names = [{name for name, *_ in fields_of(cls)} for cls in then]
    optional = set.union(*names) - set.intersection(*names)
    return [
        name for name, inner, _ in fields_of(kind) if name in optional and "dict" not in str(inner)
    ]


def test_an_upgrade_drops_nothing_but_keys_of_other_options() -> None:
    tree = {"seed": 1, "seeed": 2, "optimizer": {"name": "sgd", "betas": [1], "beta": 3, "lr": 4}}
    kept = {"seed": 1, "seeed": 2, "optimizer": {"name": "sgd", "beta": 3, "lr": 4}}
    assert upgraded(tree) == kept
    unknown = {"optimizer": {"name": "lion", "betas": [1]}}
    assert upgraded(unknown) == unknown


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_in_conf_has_exactly_the_keys_of_its_class(group: str) -> None:
    placed = {place.rpartition(".")[2] for place in PLACED if f"@{group}." in place}
    for option in groups()[group]:
        values = group_option(group, option)
        cls = chosen(GROUPS[group], values)
        assert set(values) | placed == {name for name, *_ in fields_of(cls)}, option


@pytest.mark.parametrize("group", GROUPS)
def test_a_key_of_another_option_is_refused_with_those_that_have_it(group: str) -> None:
    """Of every key that only some options of a group have."""
    section, teller = getattr(PLAIN, group), told_by(GROUPS[group])
    choice = group if teller == "name" else f"{group}.{teller}"
    own = sorted(key for key in key_types() if key.startswith(f"{group}."))
    for key in (key for key in own if having(PLAIN, key) is not PLAIN):
        name = key.partition(".")[2]
        value = getattr(getattr(having(PLAIN, key), group), name)
        tree = dataclasses.asdict(section) | {name: "x" if value in (None, "???") else value}
        with pytest.raises(UserError, match=f"^{key}=.*: it has no effect with {choice}=") as said:
            _checked(GROUPS[group], tree, f"{group}.")
        names = options.having(GROUPS[group], name)
        remedy = f"; choose {choice}={' or '.join(names)} or leave it out."
        assert str(said.value).endswith(remedy)


def test_a_section_is_of_the_class_of_its_option() -> None:
    adamw, sgd = PLAIN.optimizer, load(["optimizer=sgd"]).optimizer
    assert isinstance(adamw, AdamW)
    assert isinstance(sgd, SGD)
    assert not hasattr(adamw, "momentum")
    assert not hasattr(sgd, "betas")


def test_a_null_of_another_option_is_no_value_of_it() -> None:
    assert load(["optimizer.momentum=null"]) == PLAIN


@pytest.fixture
def registered() -> Iterator[None]:
    """What is registered meanwhile is forgotten afterwards."""
    base = GROUPS["optimizer"]
    known = dict(options._OPTIONS[base])
    yield
    options._OPTIONS[base] = known
    for each in (*options._CACHES, load_packages):
        each.cache_clear()


@pytest.fixture
def lion(registered: None) -> type[Lion]:
    """An option of somebody else's."""
    return register("optimizer", "lion")(Lion)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: None) -> Path:
    """The module that a package with an entry point `sseg_nase.options` names."""
    about = tmp_path / "lions-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: lions\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sseg_nase.options]\nlions = lions_of_somebody\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lions_of_somebody", raising=False)
    load_packages.cache_clear()
    return tmp_path / "lions_of_somebody.py"


def test_an_installed_package_registers_its_options(installed: Path) -> None:
    installed.write_text(
        "from tests.support.somebodys import Lion\n"
        "from sseg_nase.config.options import register\n"
        "register('optimizer', 'lion')(Lion)\n"
    )
    load_packages()
    assert options_of(GROUPS["optimizer"])["lion"] is Lion
    assert "optimizer.mixing" in key_types()


def test_a_package_whose_options_cannot_be_imported_is_named(installed: Path) -> None:
    installed.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"^lions: this package has options .*nothing_of_that_name"):
        load_packages()


def test_an_option_is_registered_from_outside(lion: type[Lion], tmp_path: Path) -> None:
    before = fingerprint(PLAIN)
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "lion.yaml").write_text(
        "defaults: [_shared, _self_]\nname: lion\nmixing: [0.9, 0.99]\n"
    )
    config = load(["optimizer=lion", "optimizer.lr=0.01"], tmp_path)
    assert config.optimizer == lion(
        name="lion",
        lr=0.01,
        gamma_lr_ratio=1,
        weight_decay=1e-4,
        clip_norm=None,
        mixing=[0.9, 0.99],
    )
    assert load(overrides_of(config)) == config
    with pytest.raises(UserError, match=r"mixing=.*choose optimizer=lion or leave it out"):
        load(["optimizer.mixing=[1,2]"])
    with pytest.raises(UserError, match=r"mixing=3: a list of numbers"):
        load(["optimizer=lion", "optimizer.mixing=3"], tmp_path)
    with pytest.raises(UserError, match=r"^optimizer\.mixing=\[\]: two"):
        load(["optimizer=lion", "optimizer.mixing=[]"], tmp_path)
    assert "optimizer.mixing" in key_types()
    assert fingerprint(load()) == before  # of runs that know nothing of it
    with pytest.raises(ValueError, match="there is an option of that name"):
        register("optimizer", "sgd")(lion)


def test_what_is_no_option_is_not_registered() -> None:
    with pytest.raises(
        ValueError, match=r"optimiser: there is no such group; there are .*optimizer"
    ):
        register("optimiser", "lion")(SGD)
    with pytest.raises(ValueError, match="Config: an option of optimizer is a OptimizerConfig"):
        register("optimizer", "lion")(Config)

"""What a form is told of every key."""

from __future__ import annotations

from typing import Any

import pytest

from sseg_nase.config.compose import load, unchecked
from sseg_nase.config.fingerprint import flat
from sseg_nase.config.keys import Key, first_comment, keys_of
from sseg_nase.config.layout import WRITTEN_AS
from sseg_nase.errors import UserError


def named(*overrides: str) -> dict[str, Key]:
    return {key.name: key for key in keys_of(unchecked(overrides))}


def test_a_form_has_every_key_of_a_config_with_its_value() -> None:
    keys = named("optimizer=sgd", "ssl=byol", "task=search", "search.choices={seed: [1,2]}")
    config = flat(
        load(["optimizer=sgd", "ssl=byol", "search.choices={seed: [1,2]}", "task=search"])
    )
    told = {WRITTEN_AS.get(key, key): value for key, value in config.items()}
    for name, key in keys.items():
        if name in told and not isinstance(key.value, list | dict) and told[name] is not None:
            assert key.value == told[name], name
    lacking = {n for n in told if n not in keys and not any(n.startswith(f"{k}.") for k in keys)}
    chosen = {n for n in lacking if n.endswith(".name")}
    assert lacking - chosen == {"task", "ablation", "resume_overrides"}


def test_keys_tell_their_bounds_their_comment_and_their_section() -> None:
    keys = named()
    lr = keys["optimizer.lr"]
    assert (lr.kind, lr.value, lr.section, lr.nullable) == (float, 0.001, "optimizer", False)
    assert dict(lr.accepted) == {"above": 0}
    # From a file that the option inherits, from conf/config.yaml, and from a group without names.
    assert keys["optimizer.clip_norm"].comment.startswith("longest gradient of a step")
    assert keys["pretrain.keep_checkpoints"].comment.startswith("above 0: so many of those")
    assert keys["evaluation.metric"].comment == "of method=prototype"
    assert keys["views.rotation"].comment.startswith("degrees at most")
    assert keys["finetune.from"].section == "finetune"
    assert (keys["seed"].section, keys["hardware.threads"].nullable) == ("", True)
    assert "optimizer.momentum" not in keys
    assert "optimizer.momentum" in named("optimizer=sgd")


def test_what_lacks_a_value_has_keys_all_the_same() -> None:
    with pytest.raises(UserError, match="which images"):
        load(["dataset=folder"])
    assert named("dataset=folder")["dataset.root"].value is None


@pytest.mark.parametrize(
    ("group", "option", "begins"),
    [
        ("ablation", "A4", "SSEG + curriculum."),
        ("experiment", "quickstart", "The whole method on real images"),
        ("ablation", "of a package", ""),
    ],
)
def test_an_option_says_in_its_file_what_it_is(group: str, option: str, begins: Any) -> None:
    said = first_comment(group, option)
    assert said.startswith(begins)
    assert bool(said) == bool(begins)

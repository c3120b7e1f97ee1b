from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sseg_nase.config.commands import argument, command, override
from sseg_nase.config.compose import continued, load, spelled_out
from sseg_nase.config.layout import path_keys
from sseg_nase.config.multirun import expand

# What shells, Hydra's grammar and OmegaConf give a meaning to, beside everything else.
SPECIAL = " ,=()[]{}'\"#%$~\\\n\t-:;&|<>!*?`^@+é"
TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.text(st.sampled_from(SPECIAL + "a1."), min_size=1),
    st.lists(
        st.sampled_from(["${", "}", "\\", '"', "'", "${x}", "null", "1e3", "true", " ", "a"]),
        min_size=1,
    ).map("".join),
    st.sampled_from(["null", "TRUE", "nan", "inf", "1e3", "007", "-m", "--", "a,b", "LAST", "~"]),
).filter(lambda text: text != "???" and text.strip())
NO_SHRINKING = (Phase.explicit, Phase.generate)  # an example takes half a second
NASTY = "My Project (1), 50%/#2 it's é"


def read(shown: str) -> object:
    """What the shell, Hydra's parser and OmegaConf make of a printed `key=value`."""
    (text,) = shlex.split(shown)
    parsed = OverridesParser.create().parse_override(text)
    composed = OmegaConf.create({"before": None, "x": 1})
    OmegaConf.update(composed, "before", parsed.value(), merge=True)
    container = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(container, dict)
    return container["before"]


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_back_as_it_is(text: str) -> None:
    assert read(argument("key", text)) == text


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=150, deadline=None)
def test_so_is_any_list_of_texts(texts: list[str]) -> None:
    assert read(argument("key", texts)) == texts


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_sweep_hands_it_to_its_jobs(text: str) -> None:
    parsed = OverridesParser.create().parse_overrides([override("key", text), "seed=0,1"])
    for job in BasicSweeper.split_arguments(parsed, None)[0]:
        assert read(shlex.quote(job[0])) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "key=null"),
        (True, "key=true"),
        (3, "key=3"),
        (0.5, "key=0.5"),
        ("/runs/a-1/best.pt", "key=/runs/a-1/best.pt"),
        ("null", "'key=\"null\"'"),
        ([8, 16], "'key=[8,16]'"),
    ],
)
def test_what_needs_no_quotes_has_none(value: object, shown: str) -> None:
    assert argument("key", value) == shown  # type: ignore[arg-type]


def test_a_path_is_made_absolute(tmp_path: Path) -> None:
    assert command(resume=Path("~runs")) == f"sseg-nase 'resume=\"{tmp_path}/~runs\"'"


@given(st.lists(TEXTS, min_size=13, max_size=13))
@settings(max_examples=4, deadline=None, phases=NO_SHRINKING)
def test_the_program_reads_back_any_path(texts: list[str]) -> None:
    """All at once, for a composition takes a third of a second."""
    folder = "/no/such"
    paths = [f"{folder}/{text.replace('/', '_')}" for text in texts]
    single = sorted(path_keys() - {"runs", "sweep.dir"})
    groups = ["finetune=prototypical", "backbone=vit_small", "backbone.patch_size=4"]
    groups += ["evolution=none", "sparsity=none", "task=report", "dataset=folder"]
    asked = {"dataset.root", "backbone.weights", "finetune.start", "report.output"}
    asked |= {key for key in single if key.startswith("paths.")}
    values = dict(zip(sorted(asked), paths, strict=False))
    line = command(*groups, *(override(k, v) for k, v in values.items()), runs=paths)
    config = load(shlex.split(line)[1:])
    for key, value in values.items():
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) == str(Path(value))
    assert config.runs == paths


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """We stand in a folder whose path has something of everything."""
    folder = tmp_path / NASTY
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


# What names something that is there is taken as it is


def understood(text: str) -> object:
    """What the program makes of one argument of its command line."""
    (spelled,) = spelled_out([text])
    return read(shlex.quote(spelled))


@pytest.mark.parametrize("name", [NASTY, "a,b", "[a]", "1e3", "null,x", "it's", "${x}", "~a", "é"])
def test_what_exists_needs_no_quotes(name: str, tmp_path: Path) -> None:
    for folder in (Path(name), tmp_path / name):
        folder.mkdir(parents=True, exist_ok=True)
        for key in path_keys() - {"runs"}:
            assert understood(f"{key}={folder}") == str(folder)
        assert understood(f"runs={folder},x,LAST") == [str(folder), "x", "LAST"]
    shown = [f"{key}={name}" for key in ("dataset.root", "paths.output_dir", "sweep", "runs")]
    config = load(["dataset=folder", "task=report", *shown[:2], shown[3]])
    as_it_is = name if name != "~a" else str(Path(name).absolute())  # no user's home is looked for
    assert (config.dataset.root, config.paths.output_dir) == (as_it_is, as_it_is)
    assert config.runs == [name]


@pytest.mark.parametrize("name", ["My runs (1)", "it's", "a=b", "#2", "a,b", "1e3", "~/r (2)"])
def test_a_folder_that_is_to_be_made_needs_none_where_hydra_cannot_read_it(name: str) -> None:
    assert understood(f"paths.output_dir={name}") == name


def test_of_names_with_commas_the_longest_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "a,b", "a,b,c", "c", "home/a,b"):
        Path(name).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert understood("runs=~/a,b") == ["~/a,b"]
    assert understood("runs=a,b,c,x,c") == ["a,b,c", "x", "c"]
    assert understood("runs=a,b,x") == ["a,b", "x"]
    assert understood("runs=null") is None


def test_hydras_own_words_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOM", "there")
    assert load(["paths.output_dir=${oc.env:ROOM}/runs"]).paths.output_dir == "there/runs"
    assert understood('paths.output_dir="a,b"') == "a,b"
    assert understood("report.output=null") is None
    assert spelled_out(["dataset.root=a,b"], multirun=True) == ["dataset.root=a,b"]
    assert spelled_out(["++resume=a b(c"]) == ['++resume="a b(c"']


def test_in_a_sweep_commas_mean_several_unless_the_whole_text_exists(tmp_path: Path) -> None:
    for name in ("a", "b", "a,c", "d (1)", "d (2)"):
        Path(name).mkdir()

    def roots(text: str) -> list[str]:
        lines = spelled_out(["dataset=folder", f"dataset.root={text}", "seed=0"], multirun=True)
        return [str(load(job).dataset.root) for job in expand(lines)]

    assert roots("a,b") == ["a", "b"]
    assert roots("a,c") == ["a,c"]
    assert roots("d (1),d (2)") == ["d (1)", "d (2)"]
    assert roots("d (1)") == ["d (1)"]


def test_what_a_run_stores_is_read_back_when_it_is_resumed(nasty: Path) -> None:
    """`overrides.yaml` holds what the program made of the command line."""
    import yaml

    run = nasty / "run"
    run.mkdir()
    images = nasty / "${images}, [1]"
    images.mkdir()
    given = spelled_out(["dataset=folder", f"dataset.root={images}", "paths.output_dir=r (1)"])
    (run / "overrides.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    resumed = spelled_out(shlex.split(command(resume=run))[1:])
    config = load([*resumed, *continued(resumed)])
    assert config.resume == str(run)
    assert config.dataset.root == os.fspath(images)
    assert config.paths.output_dir == "r (1)"

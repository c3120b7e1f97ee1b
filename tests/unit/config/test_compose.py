from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Optional, Union

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import sseg_nase
from sseg_nase.config import ablations as defined
from sseg_nase.config import compose as module
from sseg_nase.config.compose import (
    dataset_choice,
    defaults,
    hardware_profiles,
    load,
    overrides_of,
    register,
    stored,
)
from sseg_nase.config.conf_files import _merged_file, conf_dir, groups
from sseg_nase.config.explain import has_type
from sseg_nase.config.groups.backbone import BackboneConfig, Chain
from sseg_nase.config.groups.dataset import OwnImages
from sseg_nase.config.layout import key_types
from sseg_nase.config.options import names_with, options_of
from sseg_nase.config.schema import Config, DatasetConfig, HardwareConfig
from sseg_nase.config.validation import cautions, switches
from sseg_nase.errors import UserError

ABLATIONS = {name: one.switches for name, one in defined.ablations().items()}

# What an option cannot do without.
STILL = ["evolution=none", "sparsity=none"]
NEEDED = {
    ("dataset", "folder"): ["dataset.root=images"],
    ("dataset", "sketch"): ["dataset.root=images"],
    ("dataset", "csv"): ["dataset.root=images.csv"],
    ("evaluation", "classification"): ["dataset=cifar10", "finetune=classifier"],
    ("evaluation", "linear_probe"): ["dataset=cifar10"],
    ("evaluation", "knn"): ["dataset=cifar10"],
    ("finetune", "classifier"): ["dataset=cifar10"],
    ("evaluator", "tabular"): ["evaluator.table=x.csv"],
    ("evaluator", "predicted"): ["evaluator.learnt_from=runs/searches/x"],
    ("task", "evaluate"): ["checkpoint=best.pt"],
    ("task", "search"): ["search.choices={optimizer.lr: [0.001]}"],
    ("task", "replay"): ["run=runs/one"],
    ("task", "deliver"): ["run=runs/one"],
    ("task", "export"): ["checkpoint=best.pt"],
    ("task", "predict"): ["checkpoint=best.pt", "support=photos", "images=photo.jpg"],
    ("ssl", "none"): STILL,
    ("backbone", "sketch_cnn"): ["evolution.max_channels=512", "evolution.max_params=4000000"],
    **{
        ("backbone", name): STILL
        for name in names_with(BackboneConfig)
        if name not in names_with(Chain)
    },
    ("backbone", "vit_small"): [*STILL, "backbone.patch_size=4"],
}
INHERITING = (
    "hardware",
    "dataset",
    "curriculum",
    "backbone",
    "finetune",
    "ssl",
    "evolution",
    "sparsity",
    "tracking",
    "space",
    "optimizer",
    "scheduler",
)
PLAIN = load()


def choose(**choices: str) -> Config:
    overrides = [f"{group}={option}" for group, option in choices.items()]
    for choice in choices.items():
        overrides += NEEDED.get(choice, [])
    return load(overrides)


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in groups().items() for option in options],
)
def test_every_option_of_every_group_composes_and_validates(group: str, option: str) -> None:
    config = choose(**{group: option})
    section: Any = getattr(config, group, None)
    if hasattr(section, "name"):
        assert section.name == option or (group, option) in {
            ("views", "simclr"),
        }


@cache
def experiment_alone(experiment: str) -> Config:
    return choose(experiment=experiment)


def check_ablation(ablation: str, dataset: str, hardware: str) -> None:
    config = choose(ablation=ablation, dataset=dataset, hardware=hardware)
    chosen = (config.ablation, config.dataset.name, config.hardware.name)
    assert chosen == (ablation, dataset, hardware)
    assert switches(config) == ABLATIONS[ablation]
    assert cautions(config) == []


@pytest.mark.parametrize("ablation", groups()["ablation"])
def test_every_ablation_with_every_dataset_and_every_profile(ablation: str) -> None:
    datasets, profiles = groups()["dataset"], groups()["hardware"]
    # Each of them once over all ablations; the slow test has every combination.
    pairs = list(zip(datasets, itertools.cycle(profiles), strict=False))
    names = groups()["ablation"]
    for dataset, hardware in pairs[names.index(ablation) :: len(names)]:
        check_ablation(ablation, dataset, hardware)


@pytest.mark.slow
def test_every_ablation_composes_with_every_dataset_on_every_profile() -> None:
    options = [groups()[name] for name in ("ablation", "dataset", "hardware")]
    for ablation, dataset, hardware in itertools.product(*options):
        check_ablation(ablation, dataset, hardware)


OWN_RECIPES = (
    "sketch_fewshot", "search_digits", "snas", "snas_digits",
    "sseg_nase_labels", "sseg_nase_labels_gpu",
)  # fmt: skip
WITHOUT_ABLATIONS = (*OWN_RECIPES, "sseg_nase_unlabeled", "sseg_nase_unlabeled_gpu")


@pytest.mark.parametrize("ablation", groups()["ablation"])
@pytest.mark.parametrize(
    "experiment",
    [
        name
        for name in groups()["experiment"]
        # of fixed networks, and recipes whose switches are their own
        if not name.startswith(("baseline/", "autossl_tiny")) and name not in WITHOUT_ABLATIONS
    ],
)
def test_an_ablation_keeps_its_switches_in_every_experiment(ablation: str, experiment: str) -> None:
    config = choose(experiment=experiment, ablation=ablation)
    assert config.ablation == ablation
    meant, levels = ABLATIONS[ablation], config.curriculum.levels
    assert switches(config) == (meant if len(levels) > 1 else meant._replace(progression=False))
    assert cautions(config) == []
    full = experiment_alone(experiment)
    assert config.pretrain == full.pretrain
    assert config.curriculum.levels == full.curriculum.levels
    assert config.curriculum.images == full.curriculum.images


@pytest.mark.parametrize("curriculum", ["synthetic", "natural", "progressive"])
def test_the_full_method_keeps_the_chosen_curriculum(curriculum: str) -> None:
    config = choose(ablation="A7", curriculum=curriculum)
    assert config.curriculum == choose(curriculum=curriculum).curriculum
    assert cautions(config) == []


def test_nothing_chosen_is_the_full_method_on_the_embedded_digits() -> None:
    assert PLAIN.ablation is None
    assert switches(PLAIN) == ABLATIONS["A7"]
    assert PLAIN.dataset.name == "digits"
    assert PLAIN.evaluation.datasets == ["digits"]
    assert dataclasses.replace(load(["ablation=A7"]), ablation=None) == PLAIN


def test_the_values_that_the_method_is_defined_by() -> None:
    evolution, ssl, evaluation = PLAIN.evolution, PLAIN.ssl, PLAIN.evaluation
    assert PLAIN.backbone.channels == [16, 32, 64]
    assert (evolution.max_blocks, evolution.max_channels) == (12, 256)
    assert (evolution.max_params, evolution.max_flops) == (1_000_000, 1_000_000_000)
    assert evolution.channel_expansion_ratio == 1.5
    assert (ssl.temperature, ssl.distillation_weight, ssl.ema_decay) == (0.5, 0.5, 0.999)
    assert PLAIN.sparsity.ratio == 0.3
    assert list(PLAIN.curriculum.images.values()) == [5000, 10000, 20000, 10000]
    assert (evaluation.ways, evaluation.shots, evaluation.queries) == (5, [1, 5], 15)
    assert (evaluation.episodes, evaluation.split) == (600, "val")
    for name, size in {"cifar_fs": 84, "minimagenet": 84, "omniglot": 28}.items():
        assert dataset_choice(name).image_size == size
    for name, batch, accumulation, workers in (("rtx3050", 24, 4, 2), ("rtx3060", 48, 3, 4)):
        profile = hardware_profiles()[name]
        assert profile["batch_size"] == batch
        assert profile["gradient_accumulation_steps"] == accumulation
        assert profile["num_workers"] == workers
        assert profile["precision"] == "16-mixed"
        assert profile["accumulate"] == "exact"


def test_debug_shrinks_but_switches_nothing() -> None:
    for ablation in ("A1", "A4", "A7"):
        tiny = choose(ablation=ablation, experiment="quickstart", debug="tiny")
        assert switches(tiny) == ABLATIONS[ablation]
        assert tiny.ablation == ablation
        assert tiny.pretrain.epochs * tiny.pretrain.images_per_epoch < 1000


def test_the_command_line_wins_over_debug_over_experiment() -> None:
    quick = choose(experiment="quickstart")
    assert quick.pretrain.epochs != PLAIN.pretrain.epochs
    tiny = choose(experiment="quickstart", debug="tiny")
    assert tiny.pretrain.epochs == choose(debug="tiny").pretrain.epochs != quick.pretrain.epochs
    last = load(["experiment=quickstart", "debug=tiny", "pretrain.epochs=77"])
    assert last.pretrain.epochs == 77


def test_an_ablation_wins_over_the_groups_and_values_of_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /evolution: sseg\n  - override /sparsity: nase\n"
        "ssl:\n  distillation_weight: 0.7\n"
        "curriculum:\n  progression: true\n"
        "pretrain:\n  epochs: 3\n"
    )
    config = load(["ablation=A2", "experiment=mine"], tmp_path)
    assert switches(config) == ABLATIONS["A2"]
    assert config.pretrain.epochs == 3


def test_a_choice_on_the_command_line_wins_over_an_ablation_and_is_said() -> None:
    config = load(["ablation=A2", "evolution=sseg"])
    assert config.evolution.enabled
    (caution,) = cautions(config)
    assert "A2" in caution
    assert "evolution" in caution


def test_paths_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSEG_NASE_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("SSEG_NASE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    paths = load().paths
    assert paths.data_dir == str(tmp_path)
    assert paths.cache_dir == "/home/someone/.cache/sseg-nase"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert load().paths.cache_dir == "/xdg/sseg-nase"
    monkeypatch.setenv("SSEG_NASE_CACHE", "/mine")
    assert load().paths.cache_dir == "/mine"
    assert load(["paths.data_dir='~/d'"]).paths.data_dir == "/home/someone/d"


def test_the_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.ssl.temperature = 1.0  # type: ignore[misc]


def test_profiles_and_datasets_are_read_as_hydra_composes_them() -> None:
    for name, profile in hardware_profiles().items():
        assert HardwareConfig(**profile) == load([f"hardware={name}"]).hardware
    known = options_of(DatasetConfig)
    for name in groups()["dataset"]:
        composed = choose(dataset=name).dataset
        if issubclass(known[name], OwnImages):
            with pytest.raises(UserError, match=f"^dataset={name}: which images"):
                dataset_choice(name)
        else:
            assert dataset_choice(name) == composed
        assert type(composed) is known[name]


def test_an_unknown_dataset_choice_lists_the_options() -> None:
    with pytest.raises(UserError, match=r"dataset=cifar_f: .*cifar_fs.*Did you mean 'cifar_fs'"):
        dataset_choice("cifar_f")


@pytest.mark.parametrize("group", INHERITING)
def test_a_group_file_states_only_what_differs(group: str) -> None:
    for option in groups()[group]:
        own: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
        for parent in own.pop("defaults", []):
            if isinstance(parent, str) and parent != "_self_":  # else another group's
                inherited = _merged_file(group, parent)
                repeated = [k for k, v in own.items() if k in inherited and inherited[k] == v]
                assert repeated == [], f"{group}/{option}.yaml repeats {repeated} of {parent}"


def test_every_key_that_others_rely_on_is_there() -> None:
    relied_on = """experiment_name seed task checkpoint paths.data_dir paths.output_dir
        dataset.name dataset.image_size pretrain.epochs pretrain.images_per_epoch
        hardware.accelerator hardware.devices hardware.batch_size
        hardware.gradient_accumulation_steps hardware.precision hardware.num_workers
        hardware.max_memory_gb hardware.gradient_checkpointing curriculum.levels
        curriculum.gradual_mixing_ratio ssl.temperature ssl.distillation_weight ssl.ema_decay
        evolution.max_blocks evolution.max_channels evolution.max_params evolution.max_flops
        evolution.channel_expansion_ratio evolution.plateau_threshold
        evolution.plateau_window_size evolution.distillation_gap_threshold
        evolution.cooldown_epochs sparsity.ratio sparsity.importance
        sparsity.pruning_interval_epochs sparsity.min_channels evaluation.split evaluation.ways
        evaluation.shots evaluation.queries evaluation.episodes evaluation.seed
        evaluation.datasets tracking.uri tracking.experiment"""
    assert set(relied_on.split()) <= set(key_types())


def test_an_installed_package_carries_its_own_conf(tmp_path: Path) -> None:
    package = Path(sseg_nase.__file__).parent
    installed = tmp_path / "sseg_nase"
    shutil.copytree(package, installed, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_dir(), installed / "conf")
    done = subprocess.run(
        [sys.executable, "-m", "sseg_nase", "--cfg", "job", "ablation=A3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert OmegaConf.create(done.stdout).ablation == "A3"
    shutil.rmtree(installed / "conf")
    place = "from sseg_nase.config.conf_files import conf_dir; print(conf_dir())"
    broken = subprocess.run(
        [sys.executable, "-c", place], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert broken.returncode == 1
    assert "installation is incomplete" in broken.stderr


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["ablation=A3", "sparsity.enabled=true"],  # a value of conf/ that the ablation changes
        ["dataset=folder", "dataset.root=a b, (c)", "evaluation.ways=5"],  # one that was given
        ["dataset=omniglot", "finetune=maml", "optimizer=sgd", "optimizer.lr=1e-7"],
        ["experiment=quickstart", "backbone=vit_small", "evolution=none", "sparsity=none"],
        ["ssl=dino", "experiment_name=1e3", "tracking.uri=null", "curriculum.images.BASIC=7"],
    ],
)
def test_overrides_of_a_config_compose_it(given: list[str]) -> None:
    config = load(given)
    assert load(overrides_of(config)) == config


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        (["optimizer.lr=1000"], "optimizer.lr=1000 is very high"),
        (["optimizer.lr=1e-9"], "optimizer.lr=1e-09 is very low"),
        (["optimizer=sgd", "optimizer.lr=100"], "optimizer.lr=100 is very high"),
        (["optimizer=sgd", "optimizer.lr=50"], None),
        # What the momentum makes of it.
        (
            ["optimizer=sgd", "optimizer.lr=5", "optimizer.momentum=0.999"],
            "= 5000, which is very ",
        ),
        (["optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.999"], None),
        (["ssl.temperature=1e-6"], "ssl.temperature=1e-06 is very low"),
        (["finetune=maml", "finetune.inner_lr=100"], "finetune.inner_lr=100 is very high"),
    ],
)
def test_absurd_values_are_doubted_beforehand(given: list[str], doubt: str | None) -> None:
    said = [text for text in cautions(load(given)) if " very " in text]
    assert len(said) == (doubt is not None)
    assert doubt is None or doubt in said[0]


def test_the_defaults_leave_hydra_at_its_work() -> None:
    register()
    GlobalHydra.instance().clear()
    assert defaults() == PLAIN
    assert GlobalHydra.instance().hydra is None
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        at_work = GlobalHydra.instance().hydra
        assert at_work is not None
        assert defaults() == PLAIN
        assert GlobalHydra.instance().hydra is at_work


def test_a_stored_config_is_read_as_it_is(tmp_path: Path) -> None:
    paths = dataclasses.replace(PLAIN.paths, data_dir="/${images}", output_dir="/\\${x}")
    config = dataclasses.replace(PLAIN, paths=paths, runs=["/${one}", "/two"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert stored(path) == config


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "this config cannot be read"),
        ("{", "this config cannot be read"),
        ("- 1", "does not fit this version of sseg-nase"),
        ("seed: 1", "does not fit this version of sseg-nase"),
        ("seeed: 1", "does not fit .*: seeed: there is no such key"),
        ("seed: x", "does not fit .*: seed=x: a whole number"),
        ("pretrain: 3", "does not fit .*: pretrain=3: this is a section"),
    ],
)
def test_a_stored_config_that_does_not_fit(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"^{path}: .*{said}"):
        stored(path)


def test_half_the_cores_are_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (None, 1, 3, 16):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        found.append(module._half_the_cores())
    assert found == [1, 1, 1, 8]


def test_minutes_of_a_job_are_whole_and_enough() -> None:
    assert [module._minutes(given, 60) for given in (None, 0.1, 1.0, 1.5)] == [60, 1, 1, 2]


def test_what_depends_on_the_images_is_left_open_for_ones_own() -> None:
    own, known = load(["dataset=folder", "dataset.root=x"]), load(["dataset=cifar_fs"])
    of = [(c.evaluation.ways, c.evaluation.shots, c.evaluation.queries) for c in (own, known)]
    assert of == [(None, None, None), (5, [1, 5], 15)]
    assert (own.evaluation.datasets, known.evaluation.datasets) == (["folder"], ["cifar_fs"])


def test_what_composition_left_missing_is_named() -> None:
    tree = dataclasses.asdict(PLAIN)
    for section, key in (("pretrain", "epochs"), ("ssl", "name")):
        lacking = {**tree, section: {k: v for k, v in tree[section].items() if k != key}}
        with pytest.raises(UserError, match=rf"^{section}\.{key}=null: "):
            module.to_config(OmegaConf.create(lacking))


def test_what_is_remembered_of_composing_is_as_it_was(tmp_path: Path) -> None:
    first, other = load(["optimizer=sgd", "optimizer.lr=0.5"]), load(["optimizer=sgd"])
    assert (first.optimizer.lr, other.optimizer.lr) == (0.5, load(["optimizer=sgd"]).optimizer.lr)
    assert other.optimizer.lr != 0.5
    file = tmp_path / "backbone" / "own.yaml"
    file.parent.mkdir()
    for channels in ("[8]", "[8, 16]"):  # one that is edited between two runs of a notebook
        file.write_text(f"name: evolvable\ndefaults: [evolvable, _self_]\nchannels: {channels}\n")
        found = load(["backbone=own"], tmp_path).backbone
        assert isinstance(found, Chain)
        assert found.channels == yaml.safe_load(channels)
        searching = load(["backbone=own", f"hydra.searchpath=[{tmp_path}]"]).backbone
        assert searching == found


def test_composing_remembers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPOSITIONS", 2)
    monkeypatch.setattr(module, "_compositions", {})
    for seed, name in enumerate(["sgd", "adamw", "sgd", "adam", "sgd"]):
        load([f"optimizer={name}", f"seed={seed}"])
    remembered = [key[0] for key in module._compositions]
    assert remembered == [("optimizer=adam",), ("optimizer=sgd",)]


def test_what_needs_no_conversion_is_what_omegaconf_makes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ["optimizer.lr=1", "+seed=1"], ["optimizer.lr=1", "seed='3'"], ["hardware.threads=2"]
    quick = [_or_message(one) for one in given]
    monkeypatch.setattr(module, "_as_given", lambda kinds, given: None)
    assert quick == [_or_message(one) for one in given]


def _or_message(overrides: list[str]) -> Any:
    try:
        return load(overrides)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "of_it", "others"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [1.0, float("inf")], [1, "1.0", True, None]),
        (bool, [True], [1, "true", None]),
        (str, ["", "a"], ["???", "${seed}", 1, None]),
        (Optional[float], [None, 0.5], [1, "x"]),
        (Union[bool, str], [False, "auto"], [1, None]),
        (list[int], [[], [1, 2]], [[1, 2.0], (1,), None, {}]),
        (dict[str, float], [{}, {"a": 1.0}], [{"a": 1}, {1: 1.0}, [1.0], None]),
        (dict[str, Any], [{}], [{"a": 1}]),
    ],
)
def test_a_value_has_a_type_when_nothing_is_to_be_converted(
    kind: Any, of_it: list[Any], others: list[Any]
) -> None:
    assert [has_type(kind, value) for value in of_it] == [True] * len(of_it)
    assert [has_type(kind, value) for value in others] == [False] * len(others)


def test_threads_compose_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra is one object of the whole process, and says so where it is begun twice."""
    monkeypatch.setattr(module, "_compositions", {})
    within = module.compose

    def slowly(*given: Any, **more: Any) -> Any:
        time.sleep(0.02)
        return within(*given, **more)

    monkeypatch.setattr(module, "compose", slowly)
    lines = [
        [f"seed={seed}", f"backbone={name}"] for seed, name in enumerate(("evolvable", "seed_wide"))
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, lines * 2))
    assert [config.seed for config in found] == [0, 1, 0, 1]

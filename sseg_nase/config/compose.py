"""From overrides to one frozen `Config`: where Hydra ends and the program begins.

Composition works on a mutable twin of the schema, because OmegaConf refuses to merge into frozen
dataclasses. The composed tree is checked and converted exactly once.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import re
import threading
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from sseg_nase.config.commands import literal, override, quoted
from sseg_nase.config.conf_files import conf_dir, group_option, groups, usual_of
from sseg_nase.config.explain import (
    explaining,
    fits,
    has_type,
    listed,
    one_line,
    unknown_key,
    wrong_type,
)
from sseg_nase.config.groups.dataset import OwnImages
from sseg_nase.config.layout import WRITTEN_AS, is_section, key_types, open_keys, path_keys
from sseg_nase.config.members import chosen, of_others, upgraded, without_unset
from sseg_nase.config.options import Option, fields_of, is_group, load_packages, until_registered
from sseg_nase.config.places import still_there
from sseg_nase.config.schema import Config, DatasetConfig, FinetuneConfig
from sseg_nase.config.sequence import OF_THE_RUN, abridged, completed, trained
from sseg_nase.config.validation import validate
from sseg_nase.errors import UserError
from sseg_nase.home import expanded, find_home

CONFIG_NAME = "config"
LAUNCHERS = {
    "joblib": JobLibLauncherConf,
    "submitit_local": LocalQueueConf,
    "submitit_slurm": SlurmQueueConf,
}

# A range of a search, which Hydra would take for a call of one of its functions; not in quotes.
_RANGE = re.compile(r"""(?<!["'\w])((?:uniform|loguniform|int)\([^()"']*\))(?!["'])""")
# Stages of fine-tuning, one after the other.
_STAGES = re.compile(r"""(["']?)\[\s*([^\[\]{}:]*?)\s*\]\1""")
OWN_KEYS = "finetune.own."
_KEYS_OF = {written: key for key, written in WRITTEN_AS.items()}

T = TypeVar("T")
_stored: dict[str, type] = {}  # what Hydra knows as our schema

logger = logging.getLogger("sseg_nase")

__all__ = [
    "CONFIG_NAME",
    "conf_dir",
    "continued",
    "dataset_choice",
    "dataset_of",
    "defaults",
    "hardware_profiles",
    "load",
    "register",
    "shown_as_chosen",
    "spelled_out",
    "stored",
    "to_config",
]


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra; calling it again is harmless."""
    if (note := find_home()) is not None:  # a process that is not the command's own
        logger.warning(note)
    load_packages()
    store = ConfigStore.instance()
    if _stored.get("schema") is not _twin(Config):  # it takes a tenth of the time of composing
        store.store(name="schema", node=_twin(Config), provider="sseg_nase")
        _stored["schema"] = _twin(Config)
    Plugins.instance()  # registers the launchers' options, each time that it loads them
    known = store.repo["hydra"]["launcher"]
    for launcher, options in LAUNCHERS.items():
        # Under another name, or Hydra would take it for the schema of our file of that name.
        known.pop(f"{launcher}.yaml", None)
        if f"{launcher}_schema.yaml" not in known:
            store.store(group="hydra/launcher", name=f"{launcher}_schema", node=options)
    OmegaConf.register_new_resolver("half_the_cores", _half_the_cores, replace=True)
    OmegaConf.register_new_resolver("minutes", _minutes, replace=True)
    OmegaConf.register_new_resolver("fitted", _fitted, replace=True)


HYDRA = threading.RLock()  # whose state is of the whole process: one thread composes at a time

# What Hydra composed of options of groups alone, by these, the files of the configuration and the
# schema; the last used at the end.
_compositions: dict[Any, DictConfig] = {}
COMPOSITIONS = 32


def load(overrides: Sequence[str] = (), *further: Path) -> Config:
    """Compose `conf/` with `overrides`, exactly as the command line does, and check the result.

    With `resume=RUN_DIR` the run's own overrides come with it. `further` are config folders that
    are searched too. Raises `UserError`.
    """
    with HYDRA:
        register()
        GlobalHydra.instance().clear()
        overrides = spelled_out(overrides)
        overrides = [*overrides, *continued(overrides)]
        with explaining(overrides, *further):
            composed = _composed_in_parts(overrides, *further)
            return to_config(composed or _composed([*overrides, *searched(*further)]))


def _composed_in_parts(overrides: Sequence[str], *further: Path) -> DictConfig | None:
    """As `_composed`, options of groups first; None where Hydra does not take it.

    Hydra itself puts the values of keys into what it has composed of the options, which takes most
    of the time and is remembered, being the same for many jobs of a sweep.
    """
    if any("hydra.searchpath" in each for each in overrides):
        return None  # the files of these folders are not watched
    options, overrides = groups(*further), [*overrides, *searched(*further)]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [
            one
            for one in parsed
            if one.key_or_group in key_types() and one.key_or_group not in options
        ]
        chosen = tuple(str(one.input_line) for one in parsed if one not in values)
        composed = _remembered(chosen, *further)
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    except (HydraException, OmegaConfBaseException, ValueError, OverflowError):
        return None  # what is wrong is said where it is composed as a whole
    return composed


def _remembered(chosen: tuple[str, ...], *further: Path) -> DictConfig:
    roots = [root.absolute() for root in (conf_dir(), *further)]
    files = [file for root in roots for file in sorted(root.rglob("*.yaml"))]
    states = ((file, file.stat()) for file in files)
    of = (chosen, _twin(Config), *((str(f), s.st_mtime_ns, s.st_size) for f, s in states))
    found = _compositions.pop(of, None) or _composed(chosen)
    if len(_compositions) >= COMPOSITIONS:
        del _compositions[next(iter(_compositions))]
    _compositions[of] = found
    return copy.deepcopy(found)


def _composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=list(overrides))


def unchecked(overrides: Sequence[str] = (), *further: Path) -> dict[str, Any]:
    """Return what `conf/` gives with `overrides`, as plain data: what `load` would check.

    A key that its option has and nobody gives a value is missing. Raises `UserError` for what
    cannot be composed.
    """
    with beside_hydra():
        overrides = spelled_out(overrides)
        with explaining(overrides, *further):
            composed = _composed_in_parts(overrides, *further)
            composed = composed or _composed([*overrides, *searched(*further)])
            tree = OmegaConf.to_container(composed, resolve=True)
    return without_unset(cast(dict[str, Any], tree))


def overrides_of(config: Config) -> list[str]:
    """Return overrides with which `load` composes this very config, but for `resume` and `sweep`.

    They name every key that differs from `conf/`, and no option of a group.
    """
    usual = partial(_usual_tuning, {"name": config.dataset.name})
    config = abridged(config, usual, _checked_stage)
    wanted, found = _leaves(dataclasses.asdict(config)), dict[str, str]()
    # A key that has the value of `conf/` may have another one beside those that are named.
    with beside_hydra():
        while True:
            tree = OmegaConf.to_container(_composed(list(found.values())), resolve=True)
            composed = _leaves(without_unset(cast(dict[str, Any], tree)))
            others = dict.fromkeys(composed.keys() - wanted.keys() - open_keys())  # other options'
            differing = {
                key: ("++" if key in open_keys() or key.startswith(OWN_KEYS) else "")
                + override(key, value)
                for key, value in (wanted | others).items()
                if value != composed.get(key) and key not in found
            }
            if not differing:
                return list(found.values())
            found |= differing


def _leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by their dotted keys, without those that say where a process begins."""
    found = _flat(values, "")
    return {k: v for k, v in found.items() if not k.startswith(("resume", "sweep."))}


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values by their dotted keys; a dictionary whose keys anybody may choose is one value.

    But for those of stages, of which one may be given again without the others.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        whole = key in open_keys() and not (f"{key}." == OWN_KEYS and value)
        opened = isinstance(value, dict) and not whole
        found |= _flat(value, f"{key}.") if opened else {key: value}
    return found


@contextmanager
def shown_as_chosen(*, resolve: bool = False) -> Iterator[None]:
    """Hydra shows within what it composes, without the keys that only other options have.

    `resolve`: it will be asked for the values of interpolations, which lists without the schema's
    types cannot be given later.
    """
    composing = ConfigLoaderImpl.load_configuration

    def load_configuration(*args: Any, **kwargs: Any) -> DictConfig:
        composed = composing(*args, **kwargs)
        ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        tree = cast(dict[str, Any], OmegaConf.to_container(ours, resolve=resolve))
        shown = OmegaConf.create(without_unset(tree))
        if "hydra" in composed:
            shown["hydra"] = composed.hydra
        return shown

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = composing  # type: ignore[method-assign]


def searched(*further: Path) -> list[str]:
    """Return the overrides that let Hydra search `further` config folders, too."""
    return [override("hydra.searchpath", further)] if further else []


def defaults() -> Config:
    """Return `conf/` without any override."""
    with beside_hydra():
        return load()


@contextmanager
def beside_hydra() -> Iterator[None]:
    """Compose within; what Hydra is doing meanwhile is left as it was."""
    with HYDRA:
        register()
        at_work = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().clear()
            if at_work is not None:
                GlobalHydra.instance().initialize(at_work)


def stored(path: Path) -> Config:
    """Return the config that a file holds: config.yaml of a run, or of a job that waits.

    Raises `UserError` when it cannot be read or is not of this version's schema.
    """
    load_packages()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: this config cannot be read ({one_line(error)}).") from error
    try:
        return _checked(Config, upgraded(literal(tree)) if isinstance(tree, Mapping) else {})
    except (UserError, KeyError) as error:
        raise UserError(
            f"{path}: this config does not fit this version of sseg-nase: {error}"
        ) from error


def spelled_out(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Return the overrides with those that are short for, or another word for, a key in its words.

    `sweep=DIR` is `sweep.dir=DIR`, `finetune.from=` is `finetune.start=`, and `runs=A,B` is a list.
    `finetune=[A,B]` are the stages of a sequence, and `finetune.A.epochs=` is a key of one of them.
    The text of a key that names a file or a folder is taken as it is where that exists, or where
    Hydra cannot read it: folders have commas, brackets and blanks in their names. With `multirun`,
    commas outside of what exists mean a sweep.
    """
    return [_spelled_out(line, multirun) for text in overrides for line in _in_stages(text)]


def _in_stages(text: str) -> list[str]:
    """`finetune=[A,B]` as the method of the last stage and all of them in their order."""
    name, _, value = text.partition("=")
    listed = _STAGES.fullmatch(value) if name == "finetune" else None
    if listed is None:
        return [text]
    names = [each.strip(" '\"") for each in listed[2].split(",")]
    if len(names) == 1:
        return [f"finetune={names[0]}"] if names[0] else [text]
    return [f"finetune={names[-1]}", override("finetune.sequence", names)]


def _spelled_out(text: str, multirun: bool) -> str:
    name, equals, value = text.partition("=")
    key = name.lstrip("+")
    plus, key = name[: len(name) - len(key)], _KEYS_OF.get(key, key)
    group, _, of_stage = key.partition(".")
    if group == "finetune" and of_stage.startswith(tuple(f"{name}." for name in trained())):
        plus, key = "++", f"{OWN_KEYS}{of_stage}"
    elif key in ("runs", "images"):
        value = _listed_runs(value)
    elif key in open_keys() or key.rpartition(".")[0] in open_keys():
        value = _RANGE.sub(lambda found: quoted(found[1]), value)
        plus = "++"  # Hydra takes new entries of a dictionary with it alone
    elif key in path_keys():
        value = _as_it_is(key, value, multirun)
    return f"{plus}{key}{equals}{value}"


def _as_it_is(key: str, value: str, multirun: bool) -> str:
    """The value of a path key for Hydra: quoted, unless it is a text in Hydra's own words."""
    if not value.strip():
        return value
    if _exists(value):
        return quoted(value)
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        if "${" in value or value[0] in "'\"":  # meant for Hydra, which says what is wrong with it
            return value
        pieces = _pieces(value) if multirun else []
        several = len(pieces) > 1 and all(map(_exists, pieces))
        return ",".join(map(quoted, pieces)) if several else quoted(value)
    if parsed.is_sweep_override():
        return value if multirun else quoted(value)
    understood = parsed.value() is None or isinstance(parsed.value(), str)
    return value if understood else quoted(value)


def _listed_runs(value: str) -> str:
    """`A,B` as the list that it means; what is a list, quoted or null is left as it is."""
    if value == "null" or _reads_as_list(value):
        return value
    if value[:1] in ("'", '"') and _reads_as_list(f"[{value}]"):
        return f"[{value}]"
    return "[" + ",".join(map(quoted, _pieces(value))) + "]"


def _reads_as_list(value: str) -> bool:
    if _exists(value):
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"runs={value}").value(), list)
    except HydraException:
        return False


def _pieces(value: str) -> list[str]:
    """What stands between the commas; the longest that exists where commas are part of a name."""
    parts, pieces = value.split(","), list[str]()
    while parts:
        lengths = range(len(parts), 1, -1)
        count = next((n for n in lengths if _exists(",".join(parts[:n]).strip())), 1)
        pieces.append(",".join(parts[:count]).strip())
        parts = parts[count:]
    return pieces


def _exists(text: str) -> bool:
    return bool(text) and os.path.exists(os.path.expanduser(text))


def to_config(composed: DictConfig) -> Config:
    """Check a composed config against the schema and freeze it.

    The tree is merged into the schema once more, because Hydra lets `+key` and `++key` add keys
    that no schema knows. Raises `UserError`.
    """
    try:
        tree = literal(OmegaConf.to_container(composed, resolve=True))
    except InterpolationToMissingValueError:
        tree = OmegaConf.to_container(composed)  # what is missing is then named by its own key
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    tree = without_unset(cast(dict[str, Any], tree))
    if isinstance(tree.get("finetune"), Mapping):
        usual = partial(_usual_tuning, tree.get("dataset"))
        tree["finetune"] = completed(tree["finetune"], usual, _checked_stage)
    config = _checked(Config, tree)
    validate(config)
    return config


def _usual_tuning(dataset: Any, name: str) -> Mapping[str, Any]:
    """What `conf/finetune` says of a method, for images of the section `dataset`."""
    given = {"dataset": dataset, "finetune": usual_of("finetune", name)}
    tree = OmegaConf.to_container(OmegaConf.create(given).finetune, resolve=True)
    return cast(dict[str, Any], tree)


def _checked_stage(name: str, values: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return _checked(FinetuneConfig, {**literal(values), **OF_THE_RUN}, "finetune.")
    except UserError as error:
        raise UserError(str(error).replace("finetune.", f"finetune.{name}.")) from error


def continued(overrides: Sequence[str]) -> list[str]:
    """Return what `resume=RUN_DIR` among `overrides` stands for: the overrides of that run.

    Those whose key is given again are left out, and folders for data that are there no more.
    Where its overrides.yaml cannot be read, or names an option that is not in `conf/` (it came from
    `--config-dir`), they are what its config.yaml differs in from `conf/`.
    Without `resume`, or where the folder has neither, there are none. Raises `UserError` for an
    override that is no override.
    """
    with explaining(overrides):
        given = {
            o.key_or_group: o for o in OverridesParser.create().parse_overrides(list(overrides))
        }
    resume = given.get("resume")
    where = None if resume is None else resume.value()
    if not isinstance(where, str):
        return []
    lines = _overrides_in(expanded("resume", where))
    parsed = OverridesParser.create().parse_overrides(lines)
    return [
        line
        for line, o in zip(lines, parsed, strict=True)
        if o.key_or_group not in given and still_there(line, o.value())
    ]


def _overrides_in(run: Path) -> list[str]:
    """What a run was begun with."""
    try:
        lines = yaml.safe_load((run / "overrides.yaml").read_text(encoding="utf-8"))
        if isinstance(lines, list):
            parsed = OverridesParser.create().parse_overrides([str(line) for line in lines])
            options = groups()
            if all(one.value() in options.get(one.key_or_group, [one.value()]) for one in parsed):
                return [str(line) for line in lines]
    except (OSError, ValueError, yaml.YAMLError, HydraException):
        pass
    try:
        return overrides_of(stored(run / "config.yaml"))
    except UserError:  # whoever opens the folder says what is wrong with it
        return []


def hardware_profiles() -> dict[str, dict[str, Any]]:
    """Return the values of every profile in `conf/hardware`, by name."""
    return {name: group_option("hardware", name) for name in groups()["hardware"]}


def dataset_choice(name: str) -> DatasetConfig:
    """Return the settings of `conf/dataset/<name>.yaml` as they stand there.

    Raises `UserError` when there is no such file, and for images of the user's own, whose place it
    does not tell.
    """
    return dataset_of(group_option("dataset", name))


def dataset_of(values: Mapping[str, Any]) -> DatasetConfig:
    """Return the data set that plain data, such as a run has stored, are of.

    Keys that only other data sets have are left out. Raises `UserError` for what is none.
    """
    tree = upgraded(literal(values), DatasetConfig)
    return _checked(DatasetConfig, tree, "dataset.")


def _half_the_cores() -> int:
    """Jobs at once where they share the machine: a small network gains little from a third core."""
    return max(1, (os.cpu_count() or 1) // 2)


def _fitted(usual: Any, *, _root_: Any) -> Any:
    """`usual`; with images of the user's own None, which is fitted to them when the run starts."""
    own = issubclass(chosen(DatasetConfig, _root_.dataset), OwnImages)
    return None if own else usual


def _minutes(given: float | None, otherwise: int) -> int:
    return otherwise if given is None else math.ceil(given)


def _checked(kind: type[T], tree: Mapping[str, Any], prefix: str = "") -> T:
    """Refuse unknown keys and wrong types in `tree`, then build the frozen dataclass.

    A section of a group becomes the class of its option, told by its `name`.
    """
    _refuse_unknown(kind, tree, prefix)
    if mistakes := list(of_others(kind, tree, prefix)):
        raise UserError(listed(mistakes))
    return cast(T, _built(kind, tree, prefix))


def _built(kind: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    kind = chosen(kind, tree) if is_group(kind) else kind
    fields = fields_of(kind)
    sections = {name: inner for name, inner, _ in fields if is_section(inner)}
    kinds = {name: inner for name, inner, _ in fields if name not in sections}
    given = {key: value for key, value in tree.items() if key in kinds}
    values = _as_given(kinds, given) or _converted(kind, given, tree, prefix)
    for name, inner in sections.items():
        values[name] = _built(inner, tree.get(name, {}), f"{prefix}{name}.")
    return _at_home(kind, values, prefix)


def _as_given(kinds: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values where each key has one of its very type; None where OmegaConf has to convert.

    That is what it takes most of the time of checking to find out.
    """
    if given.keys() != kinds.keys() or not all(has_type(kinds[key], given[key]) for key in given):
        return None
    return {key: copy.deepcopy(value) for key, value in given.items()}


def _converted(
    kind: Any, given: Mapping[str, Any], tree: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(_plain_twin(kind)), given)
        OmegaConf.to_container(merged, throw_on_missing=True)
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, OverflowError) as error:
        found = list(_unfit(kind, tree, prefix))
        found.sort(key=lambda one: one[1] is None)  # what is wrong before what is missing
        raise UserError(wrong_type(*found[0]) if found else one_line(error)) from error


def _unfit(kind: Any, tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The values in `tree` that their keys do not take; OmegaConf does not always name the key."""
    kind = chosen(kind, tree) if is_group(kind) else kind
    for name, inner, _ in fields_of(kind):
        value, key = tree.get(name, MISSING), f"{prefix}{name}"
        if is_section(inner):
            yield from _unfit(inner, value if isinstance(value, Mapping) else {}, f"{key}.")
        elif value == MISSING:
            if _unset(kind, inner).default == MISSING:
                yield key, None
        elif not fits(inner, value):
            yield key, value


def _refuse_unknown(kind: Any, tree: Mapping[str, Any], prefix: str) -> None:
    known = {name: inner for name, inner, _ in fields_of(kind)}
    for name, value in tree.items():
        if name not in known:
            raise UserError(unknown_key(f"{prefix}{name}", tuple(groups())))
        if is_section(known[name]):
            if not isinstance(value, Mapping):
                raise UserError(wrong_type(f"{prefix}{name}", value))
            _refuse_unknown(known[name], value, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and typing.get_origin(known[name]) is dict:
            # OmegaConf lets a list in the place of a number pass.
            for entry, item in value.items():
                if not fits(typing.get_args(known[name])[1], item):
                    raise UserError(wrong_type(f"{prefix}{name}.{entry}", item))


@until_registered
def _plain_twin(frozen: Any) -> type:
    """Return the mutable twin of a frozen dataclass without its nested dataclasses."""
    fields = ((n, kind) for n, kind, _ in fields_of(frozen) if not is_section(kind))
    lacking = [(name, kind, _unset(frozen, kind)) for name, kind in fields]
    return dataclasses.make_dataclass(f"{frozen.__name__}PlainTwin", lacking)


def _unset(frozen: Any, kind: Any) -> Any:
    """Where nothing is said: missing, but of an option's dictionary, or one of settings: empty."""
    of_option = issubclass(frozen, Option) and typing.get_origin(kind) is dict
    if of_option or kind == dict[str, Any]:
        return dataclasses.field(default_factory=dict)
    return dataclasses.field(default=MISSING)


@until_registered
def _twin(frozen: Any) -> type:
    """Return the mutable twin of a frozen dataclass, nested dataclasses included.

    That of a group has the keys of all of its options; those that the chosen one does not have stay
    missing.
    """
    twins: list[Any] = []
    for name, kind, _ in fields_of(frozen):
        if is_section(kind):
            nested = _twin(kind)
            twins.append((name, nested, dataclasses.field(default_factory=nested)))
        else:
            twins.append((name, kind, _unset(frozen, kind)))
    twin = dataclasses.make_dataclass(f"{frozen.__name__}Twin", twins)
    # An attribute of this module, so that launchers pickle it by name: a class that is pickled by
    # value overwrites its own fields when it comes back.
    twin.__module__ = __name__
    globals()[twin.__name__] = twin
    return twin


def _at_home(frozen: Any, values: dict[str, Any], prefix: str) -> Any:
    """Build the frozen dataclass from its values; `~` in a path becomes the home folder."""
    for name, _, accepted in fields_of(frozen):
        value = values[name]
        if "path" in accepted and isinstance(value, str) and value:
            values[name] = _expanded(f"{prefix}{name}", value)
    return frozen(**values)


def _expanded(name: str, path: str) -> str:
    """With the home folder for `~`, where nothing of that very name is there."""
    try:
        return str(expanded(name, path))
    except UserError:
        if not os.path.exists(path):
            raise
        return os.path.abspath(path)  # or it would be taken for a user's again


_twin(Config)

"""The data set and the episodes that a network was evaluated on, taken from its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sseg_nase.config.compose import dataset_of
from sseg_nase.config.conf_files import group_option, groups
from sseg_nase.config.options import fields_of, filled
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.config.validation import validate
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.names import CONFIG
from sseg_nase.rundir.results import section
from sseg_nase.rundir.status import read_status

# What sets data set and episodes as a whole; where one is given, the run's are not taken.
WHOLE = ("experiment", "debug", "ablation")


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that `checkpoint`, a folder or a file, is of; None where there is none.

    A file stands in RUN/checkpoints/ or in RUN/export/.
    """
    run = checkpoint if checkpoint.is_dir() else checkpoint.absolute().parent.parent
    return run if (run / CONFIG).is_file() else None


def run_id(run: Path | None) -> str | None:
    """The id that the run has in its tracker; None where it has none."""
    status = None if run is None else read_status(run)
    said = None if status is None else status.get("tracker_run_id")
    return said if isinstance(said, str) else None


def as_trained(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with data set and evaluation of its checkpoint's run, but for what is overridden.

    So `task=export checkpoint=RUN` needs no further key. Raises `UserError` for what then does not
    agree.
    """
    run = run_of(Path(filled(config.checkpoint, "checkpoint")).expanduser())
    given = {text.lstrip("+~").partition("=")[0] for text in overrides}
    if run is None or given & set(WHOLE):
        return config
    known = config_of(run) or {}
    if "dataset" not in given:
        dataset = _dataset(config.dataset, section(known, "dataset"), given)
        config = dataclasses.replace(config, dataset=dataset)
    evaluation = _overlaid(config.evaluation, section(known, "evaluation"), given, "evaluation")
    evaluation = dataclasses.replace(evaluation, datasets=[config.dataset.name])
    backbone = config.backbone
    if "backbone.imports" not in given:
        imports = section(known, "backbone").get("imports")
        backbone = dataclasses.replace(backbone, imports=imports)
    paths, data_dir = config.paths, section(known, "paths").get("data_dir")
    if "paths.data_dir" not in given and isinstance(data_dir, str) and Path(data_dir).is_dir():
        paths = dataclasses.replace(paths, data_dir=data_dir)
    config = dataclasses.replace(config, evaluation=evaluation, backbone=backbone, paths=paths)
    validate(config)
    return config


def _dataset(own: DatasetConfig, known: Mapping[str, Any], given: set[str]) -> DatasetConfig:
    """The run's, but for the keys that are given; what it has not stored is as usual."""
    name = known.get("name", own.name)
    usual = group_option("dataset", name) if name in groups()["dataset"] else {}
    keys = {key for key, *_ in fields_of(DatasetConfig) if f"dataset.{key}" not in given}
    taken = {key: value for key, value in known.items() if key in keys}
    return dataset_of({**usual, **dataclasses.asdict(own), **taken})


def _overlaid(own: Any, known: Mapping[str, Any], given: set[str], prefix: str) -> Any:
    """`own` with the values of the run, but for the keys that are given; sections stay `own`."""
    taken = {
        field.name: known[field.name]
        for field in dataclasses.fields(own)
        if field.name in known
        and f"{prefix}.{field.name}" not in given
        and not dataclasses.is_dataclass(getattr(own, field.name))
    }
    return dataclasses.replace(own, **taken)

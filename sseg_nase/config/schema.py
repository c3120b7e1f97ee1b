"""The typed schema of a run: every config group, and the keys beside them.

The fields have no defaults: the values stand in `conf/`, and only there. `option` adds what a
type cannot say (choices, bounds); `sseg_nase.config.validation` reads it. The options of a group
are classes of their own in `sseg_nase.config.groups`; the base class stands for all of them.
Nothing here imports torch, so that `--help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Optional

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.groups.curriculum import CurriculumConfig
from sseg_nase.config.groups.dataset import DatasetConfig
from sseg_nase.config.groups.evaluation import EvaluationConfig
from sseg_nase.config.groups.evaluator import EvaluatorConfig
from sseg_nase.config.groups.evolution import EvolutionConfig
from sseg_nase.config.groups.finetune import FinetuneConfig
from sseg_nase.config.groups.hardware import HardwareConfig
from sseg_nase.config.groups.oneshot import OneShot
from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.groups.scheduler import SchedulerConfig
from sseg_nase.config.groups.space import SpaceConfig
from sseg_nase.config.groups.sparsity import SparsityConfig
from sseg_nase.config.groups.ssl import SSLConfig
from sseg_nase.config.groups.strategy import StrategyConfig
from sseg_nase.config.groups.tracking import TrackingConfig
from sseg_nase.config.groups.views import ViewsConfig
from sseg_nase.config.options import names_with, option

OF_SWEEPS = ("status", "report", "deliver")  # what can be asked about a sweep
INSPECTIONS = (*OF_SWEEPS, "ui")  # of what is on disk: no run of their own
TAKEN_HOME = ("export", "predict")  # use a trained network, or make it usable: no runs either
TASKS = ("pipeline", "evaluate", "curriculum", "replay", "search", *INSPECTIONS, *TAKEN_HOME)
RESUMED = ("pipeline", "search")  # tasks that can be resumed
EXPORTS = ("onnx", "onnx_int8", "pt2", "python", "html")  # forms of a network for use elsewhere
REFUSED_EXPORTS = ("torchscript", "executorch")  # asked for, and refused with the reason
ONE_SHOT = names_with(OneShot)  # strategies that train one network that contains all others


@dataclass(frozen=True)
class PathsConfig:
    data_dir: Annotated[str, option(path="the folder of the datasets (SSEG_NASE_DATA)")]
    output_dir: Annotated[str, option(path="the folder of the runs")]
    cache_dir: Annotated[str, option(path="the folder of the image stores (SSEG_NASE_CACHE)")]


@dataclass(frozen=True)
class DataConfig:
    """Where the images of the training lie. None of it changes a result."""

    placement: Annotated[str, option(choices=("auto", "disk", "ram", "device"))]
    memory_gb: Annotated[float, option(least=0)]


@dataclass(frozen=True)
class PretrainConfig:
    epochs: Annotated[int, option(least=0)]
    images_per_epoch: Annotated[int, option(least=1)]
    image_sizes: Annotated[Optional[list[str]], option(text="SIZE@SHARE, such as 24@0,")]
    checkpoint_interval_epochs: Annotated[int, option(least=1)]
    keep_checkpoints: Annotated[int, option(least=0)]


@dataclass(frozen=True)
class SweepConfig:
    """What `-m` does with its jobs, and which sweep `task=status|report|deliver` inspect.

    None of it changes a result. `dir` and `job` are also how a launcher's process is told which
    job is its own.
    """

    dir: Annotated[Optional[str], option(path="the folder of a sweep")]
    job: Annotated[Optional[int], option(least=0)]
    dry_run: bool
    rerun: bool
    on_failure: Annotated[str, option(choices=("continue", "stop"))]
    retries: Annotated[int, option(least=0)]
    timeout_min: Annotated[Optional[float], option(above=0)]
    parallel: Annotated[int, option(least=1)]
    gpu_free_gb: Annotated[Optional[float], option(above=0)]
    detach: bool
    watch: bool


@dataclass(frozen=True)
class BudgetConfig:
    """Limits of a search; `None` is no limit. The first that is reached ends it."""

    candidates: Annotated[Optional[int], option(least=1)]
    images: Annotated[Optional[float], option(above=0)]
    training_macs: Annotated[Optional[float], option(above=0)]
    seconds: Annotated[Optional[float], option(above=0)]


@dataclass(frozen=True)
class PoolConfig:
    """The trained candidates whose weights `evaluator=inherited` keeps for later ones."""

    max_models: Annotated[int, option(least=1)]


@dataclass(frozen=True)
class SearchConfig:
    """What `task=search` looks for; `dir`: the search that `task=status|report` inspect."""

    dir: Annotated[Optional[str], option(path="the folder of a search")]
    objectives: Annotated[dict[str, str], option(choices=("max", "min"))]
    caps: Annotated[dict[str, float], option(least=0)]
    budget: BudgetConfig
    at_once: Annotated[int, option(least=1)]
    slots: Annotated[int, option(least=1)]
    final_seeds: Annotated[Optional[int], option(least=0)]
    final_overrides: dict[str, Any]
    latency: Annotated[Optional[str], option(path="a table of latencies, .json or .csv")]
    latency_column: Annotated[Optional[str], option(text="a column of that csv")]
    choices: dict[str, Any]
    screen: Annotated[Optional[str], option(text="a zero-cost score or a predictor")]
    screen_factor: Annotated[int, option(least=2)]
    inherit: bool
    pool: PoolConfig


@dataclass(frozen=True)
class ReportConfig:
    """What reports hold, and where they go. None of it changes a result."""

    output: Annotated[Optional[str], option(path="the folder of the report")]
    published: bool
    at_end: bool
    control: bool


@dataclass(frozen=True)
class ExportConfig:
    """What `task=export` writes. None of it changes a result."""

    formats: Annotated[list[str], option(choices=(*EXPORTS, *REFUSED_EXPORTS))]
    output: Annotated[Optional[str], option(path="the folder of the exported files")]
    input: Annotated[str, option(choices=("uint8", "float"))]
    keep: Annotated[str, option(choices=("all", "fastest"))]


@dataclass(frozen=True)
class PredictConfig:
    """How `task=predict` tells what it found. None of it changes a result."""

    output: Annotated[Optional[str], option(path="a file for the predictions, .csv or .json,")]
    threshold: Annotated[float, option(least=0, most=1)]


@dataclass(frozen=True)
class PageConfig:
    """Where `task=ui` serves its page, and to whom. None of it changes a result."""

    address: Annotated[str, option(text="an address of this machine, such as 127.0.0.1,")]
    port: Annotated[int, option(least=1, most=65535)]
    remote: bool
    upload_gb: Annotated[float, option(above=0)]


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    experiment_name: Annotated[str, option(text="a name")]
    seed: Annotated[int, option(least=0)]
    task: Annotated[str, option(choices=TASKS)]
    ablation: Annotated[Optional[str], option(text="the name of a file in conf/ablation")]
    checkpoint: Annotated[Optional[str], option(path="the file of a checkpoint")]
    run: Annotated[Optional[str], option(path="the folder of a run")]
    runs: Annotated[Optional[list[str]], option(path="the folder of a run")]
    support: Annotated[Optional[str], option(path="a folder with a folder of images per class")]
    images: Annotated[Optional[list[str]], option(text="a file, a folder or a pattern")]
    resume: Annotated[Optional[str], option(path="the folder of a run")]
    resume_overrides: bool
    paths: PathsConfig
    hardware: HardwareConfig
    dataset: DatasetConfig
    data: DataConfig
    curriculum: CurriculumConfig
    views: ViewsConfig
    backbone: BackboneConfig
    ssl: SSLConfig
    pretrain: PretrainConfig
    evolution: EvolutionConfig
    sparsity: SparsityConfig
    finetune: FinetuneConfig
    evaluation: EvaluationConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    tracking: TrackingConfig
    sweep: SweepConfig
    search: SearchConfig
    space: SpaceConfig
    strategy: StrategyConfig
    evaluator: EvaluatorConfig
    report: ReportConfig
    export: ExportConfig
    predict: PredictConfig
    ui: PageConfig

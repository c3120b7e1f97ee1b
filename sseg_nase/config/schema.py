"""The typed schema of a run: every config group, and the keys beside them.

The fields have no defaults: the values stand in `conf/`, and only there. `option` adds what a
type cannot say (choices, bounds); `sseg_nase.config.validation` reads it. The options of a group
are classes of their own in `sseg_nase.config.groups`; the base class stands for all of them.
Nothing here imports torch, so that `--help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Optional, Union

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.groups.evaluator import EvaluatorConfig
from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.groups.scheduler import SchedulerConfig
from sseg_nase.config.groups.ssl import SSLConfig
from sseg_nase.config.groups.strategy import StrategyConfig
from sseg_nase.config.options import option

DATASETS = ("cifar_fs", "minimagenet", "omniglot", "digits", "folder", "sketch", "csv")
ROOTED = ("folder", "sketch", "csv")  # datasets of the user's own, in dataset.root
SPLITS = ("train", "val", "test")
SYNTHETIC_LEVELS = ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")
LEVELS = (*SYNTHETIC_LEVELS, "NATURAL")
METHODS = ("prototype", "matching", "ridge", "logistic", "linear", "sinkhorn", "relation", "maml")
HEADED = ("relation", "maml")  # methods that need what finetune of that name trains
FINETUNING = ("none", "prototypical", "matching", "relation", "r2d2", "maml", "linear")
LOOKS = ("status", "report", "deliver")  # at what is on disk: no run of their own
TAKEN_HOME = ("export", "predict")  # use a trained network, or make it usable: no runs either
TASKS = ("pipeline", "evaluate", "curriculum", "replay", "search", *LOOKS, *TAKEN_HOME)
RESUMED = ("pipeline", "search")  # tasks that can be resumed
EXPORTS = ("onnx", "onnx_int8", "pt2", "python", "html")  # forms of a network for use elsewhere
REFUSED_EXPORTS = ("torchscript", "executorch")  # asked for, and refused with the reason
OWN = "own"  # a strategy, a space, an evaluator of the user's, from a file of theirs


@dataclass(frozen=True)
class PathsConfig:
    data_dir: Annotated[str, option(path="the folder of the datasets (SSEG_NASE_DATA)")]
    output_dir: Annotated[str, option(path="the folder of the runs")]
    cache_dir: Annotated[str, option(path="the folder of the image stores (SSEG_NASE_CACHE)")]


@dataclass(frozen=True)
class HardwareConfig:
    """What the machine gives. `None` and `auto` are filled in when the run starts."""

    name: Annotated[str, option(choices=("auto", "cpu", "rtx3050", "rtx3060"))]
    accelerator: Annotated[str, option(choices=("auto", "cpu", "cuda"))]
    devices: Annotated[int, option(least=1)]
    batch_size: Annotated[Optional[int], option(least=2)]
    gradient_accumulation_steps: Annotated[Optional[int], option(least=1)]
    accumulate: Annotated[str, option(choices=("auto", "plain", "exact"))]
    precision: Annotated[str, option(choices=("auto", "32-true", "16-mixed", "bf16-mixed"))]
    num_workers: Annotated[Optional[int], option(least=0)]
    max_memory_gb: Annotated[Optional[float], option(above=0)]
    gradient_checkpointing: bool
    channels_last: bool
    compile: Annotated[Union[bool, str], option(choices=(True, False, "auto"))]
    cuda_graphs: bool
    deterministic: bool
    threads: Annotated[Optional[int], option(least=1)]


@dataclass(frozen=True)
class DatasetConfig:
    """`None` marks what the chosen dataset does not have; of `split_fractions`: as fits."""

    name: Annotated[str, option(choices=DATASETS)]
    image_size: Annotated[int, option(least=8, most=512)]
    channels: Annotated[int, option(choices=(1, 3))]
    root: Annotated[Optional[str], option(path="the folder, or CSV file, of the images")]
    split_by: Annotated[str, option(choices=("auto", "folder", "classes", "alphabets", "vinyals"))]
    split_fractions: Annotated[Optional[list[float]], option(least=0, most=1)]
    split_seed: int
    background: Annotated[list[int], option(least=0, most=255)]
    value_range: Optional[list[float]]
    duplicates: Annotated[str, option(choices=("drop", "keep", "refuse"))]
    overlap: Annotated[str, option(choices=("refuse", "keep"))]
    rotations: Optional[bool]
    invert: Optional[bool]


@dataclass(frozen=True)
class DataConfig:
    """Where the images of the training lie. None of it changes a result."""

    placement: Annotated[str, option(choices=("auto", "disk", "ram", "device"))]
    memory_gb: Annotated[float, option(least=0)]


@dataclass(frozen=True)
class CurriculumConfig:
    name: Annotated[str, option(choices=("synthetic", "natural", "progressive", "mixed"))]
    levels: Annotated[list[str], option(choices=LEVELS)]
    images: Annotated[dict[str, int], option(least=1, keys=SYNTHETIC_LEVELS)]
    progression: bool
    gradual_mixing_ratio: Annotated[float, option(least=0, most=0.9)]
    max_epochs_per_level: Annotated[Optional[int], option(least=1)]
    plateau_threshold: Annotated[float, option(least=0)]
    plateau_window_size: Annotated[int, option(least=1)]
    gap_threshold: Annotated[float, option(least=0)]
    perturbation: Annotated[float, option(least=0, most=0.5)]


@dataclass(frozen=True)
class ViewsConfig:
    """Two random views of an image; probabilities and ranges as in SimCLR, then for drawings."""

    crop_scale: Annotated[list[float], option(above=0, most=1)]
    crop_ratio: Annotated[list[float], option(above=0)]
    flip: Annotated[float, option(least=0, most=1)]
    jitter: Annotated[float, option(least=0, most=1)]
    brightness: Annotated[float, option(least=0, most=1)]
    contrast: Annotated[float, option(least=0, most=1)]
    saturation: Annotated[float, option(least=0, most=1)]
    hue: Annotated[float, option(least=0, most=0.5)]
    grey: Annotated[float, option(least=0, most=1)]
    blur: Annotated[float, option(least=0, most=1)]
    blur_sigma: Annotated[list[float], option(above=0)]
    rotation: Annotated[float, option(least=0, most=180)]
    translation: Annotated[float, option(least=0, most=1)]
    zoom: Annotated[list[float], option(least=0.1, most=10)]
    thickness: Annotated[list[float], option(least=-4, most=4)]
    erase: Annotated[float, option(least=0, most=1)]
    erase_area: Annotated[list[float], option(least=0, most=1)]
    ink: Annotated[str, option(choices=("dark", "light"))]

    @property
    def strokes(self) -> bool:
        """Whether anything is done to the views beside what photographs get."""
        moved = self.rotation > 0 or self.translation > 0 or set(self.zoom) != {1.0}
        return moved or any(self.thickness) or self.erase > 0


@dataclass(frozen=True)
class FinetuneConfig:
    """`None` marks what the chosen method does not have; of ways, shots and queries: as fits.

    `sequence`: the methods that train one after the other, the last one being `name`; empty where
    it trains alone. `own`: the settings of each of them, by its name; see `config.sequence`.
    """

    name: Annotated[str, option(choices=FINETUNING)]
    sequence: Annotated[list[str], option(choices=FINETUNING[1:])]
    own: dict[str, Any]
    start: Annotated[Optional[str], option(path="the folder of a run, or a checkpoint,")]
    ways: Annotated[Optional[int], option(least=2)]
    shots: Annotated[Optional[int], option(least=1)]
    queries: Annotated[Optional[int], option(least=1)]
    episodes_per_epoch: Annotated[Optional[int], option(least=1)]
    tasks_per_step: Annotated[Optional[int], option(least=1)]
    epochs: Annotated[int, option(least=1)]
    optimizer: Annotated[str, option(choices=("adam", "sgd"))]
    lr_encoder: Annotated[float, option(above=0)]
    lr_head: Annotated[float, option(above=0)]
    weight_decay: Annotated[float, option(least=0)]
    scheduler: Annotated[str, option(choices=("step", "cosine", "constant", "constant_decay"))]
    warmup_epochs: Annotated[float, option(least=0)]
    step_size: Annotated[int, option(least=1)]
    gamma: Annotated[float, option(above=0, most=1)]
    decay_share: Annotated[float, option(above=0, most=1)]
    evolve: bool
    gamma_lr_ratio: Annotated[float, option(above=0)]
    freeze: Annotated[str, option(choices=("none", "encoder"))]
    frozen_blocks: Annotated[int, option(least=0)]
    freeze_norms: bool
    ema_decay: Annotated[float, option(least=0, most=0.9999)]
    image_sizes: Annotated[Optional[list[str]], option(text="SIZE@SHARE, such as 24@0,")]
    validation_episodes: Annotated[int, option(least=2)]
    metric: Annotated[Optional[str], option(choices=("cosine", "euclidean"))]
    scale: Annotated[Optional[float], option(above=0)]
    label_smoothing: Annotated[Optional[float], option(least=0, most=0.9)]
    mixup: Annotated[Optional[float], option(least=0)]
    rotation: Annotated[Optional[float], option(least=0)]
    teacher: Annotated[Optional[str], option(path="the folder of a run, or a checkpoint,")]
    distillation_weight: Annotated[Optional[float], option(least=0, most=1)]
    distillation_temperature: Annotated[Optional[float], option(above=0)]
    feature_weight: Annotated[Optional[float], option(least=0)]
    inner_lr: Annotated[Optional[float], option(above=0)]
    inner_steps: Annotated[Optional[int], option(least=1)]
    first_order: Optional[bool]
    views: ViewsConfig


LATEST_EXPANSION = 0.6  # of all epochs: what is new then is trained for the rest of them


@dataclass(frozen=True)
class EvolutionConfig:
    """`None` marks what the chosen order does not have."""

    enabled: bool
    order: Annotated[str, option(choices=("trials", "balanced", "random"))]
    expand_at: Annotated[Optional[list[float]], option(above=0, most=LATEST_EXPANSION)]
    blocks_per_stage: Annotated[Optional[int], option(least=2)]
    operators: Annotated[list[str], option(choices=("grow", "widen", "widen_all"))]
    max_blocks: Annotated[int, option(least=1)]
    max_channels: Annotated[int, option(least=1)]
    max_params: Annotated[int, option(least=1)]
    max_flops: Annotated[int, option(least=1)]
    cap_resolution: Annotated[int, option(least=8)]
    channel_expansion_ratio: Annotated[float, option(above=1)]
    detector: Annotated[str, option(choices=("window", "slope"))]
    plateau_threshold: Annotated[float, option(least=0)]
    plateau_window_size: Annotated[int, option(least=1)]
    patience_epochs: Annotated[int, option(least=1)]
    smoothing: Annotated[float, option(least=0, most=0.999)]
    distillation_gap_threshold: Annotated[float, option(least=0)]
    burn_in_epochs: Annotated[int, option(least=0)]
    cooldown_epochs: Annotated[int, option(least=0)]
    fitness_alpha: Annotated[float, option(least=0)]
    trial_steps: Annotated[int, option(least=0)]
    trial_margin: Annotated[Optional[float], option(least=0)]
    trial_new_lr_ratio: Annotated[float, option(least=1)]
    max_repeats: Annotated[int, option(least=1)]
    grow_mode: Annotated[str, option(choices=("preserve", "fresh"))]
    grow_positions: Annotated[str, option(choices=("last", "stages", "all"))]
    widen_mode: Annotated[str, option(choices=("duplicate", "zero", "pairs"))]
    widen_noise: Annotated[float, option(least=0, most=1)]
    probation: Annotated[str, option(choices=("control", "tolerance"))]
    rollback_tolerance: Annotated[float, option(least=-1)]
    rollback_grace_epochs: Annotated[int, option(least=0)]


@dataclass(frozen=True)
class SparsityConfig:
    enabled: bool
    ratio: Annotated[float, option(least=0, most=0.95)]
    importance: Annotated[str, option(choices=("taylor", "magnitude", "random"))]
    importance_batches: Annotated[int, option(least=1)]
    pruning_interval_epochs: Annotated[int, option(least=1)]
    start_epoch: Annotated[Optional[int], option(least=0)]
    min_channels: Annotated[int, option(least=1)]
    round_to: Annotated[int, option(least=1)]
    recalibration_batches: Annotated[int, option(least=0)]
    negative_path: bool
    probation: Annotated[str, option(choices=("control", "tolerance"))]
    rollback_tolerance: Annotated[float, option(least=-1)]
    rollback_grace_epochs: Annotated[int, option(least=0)]


@dataclass(frozen=True)
class MatchingConfig:
    temperature: Annotated[float, option(least=0.001)]


@dataclass(frozen=True)
class RidgeConfig:
    regularization: Annotated[float, option(least=1e-6)]


@dataclass(frozen=True)
class LogisticConfig:
    regularization: Annotated[float, option(least=1e-6)]


@dataclass(frozen=True)
class LinearConfig:
    steps: Annotated[int, option(least=1)]
    lr: Annotated[float, option(above=0)]
    momentum: Annotated[float, option(least=0, most=0.999)]
    weight_decay: Annotated[float, option(least=0)]


@dataclass(frozen=True)
class SinkhornConfig:
    marginal: Annotated[str, option(choices=("auto", "uniform", "free"))]
    power: Annotated[float, option(above=0)]
    entropy: Annotated[float, option(least=0.01)]
    scalings: Annotated[int, option(least=1)]
    updates: Annotated[int, option(least=0)]
    update_rate: Annotated[float, option(above=0, most=1)]


@dataclass(frozen=True)
class MamlConfig:
    steps: Annotated[int, option(least=0)]
    lr: Annotated[float, option(above=0)]


@dataclass(frozen=True)
class EvaluationConfig:
    """The sections are options of the methods of their names; the others have no effect.

    Ways, shots and queries that are `None` are fitted to the images when the run starts.
    """

    split: Annotated[str, option(choices=SPLITS)]
    ways: Annotated[Optional[int], option(least=2)]
    shots: Annotated[Optional[list[int]], option(least=1)]
    queries: Annotated[Optional[int], option(least=1)]
    query_balance: Annotated[str, option(choices=("balanced", "dirichlet"))]
    dirichlet_alpha: Annotated[float, option(least=0.1)]
    episodes: Annotated[int, option(least=2)]
    seed: int
    datasets: Annotated[list[str], option(choices=DATASETS)]
    method: Annotated[str, option(choices=METHODS)]
    metric: Annotated[str, option(choices=("cosine", "euclidean"))]
    normalize: Annotated[str, option(choices=("cl2n", "l2n", "none"))]
    support_augmentations: Annotated[int, option(least=0)]
    test_views: Annotated[int, option(least=1, most=12)]
    top_k: Annotated[list[int], option(least=2)]
    matching: MatchingConfig
    ridge: RidgeConfig
    logistic: LogisticConfig
    linear: LinearConfig
    sinkhorn: SinkhornConfig
    maml: MamlConfig
    batch_size: Annotated[int, option(least=1)]
    memory_mb: Annotated[float, option(above=0)]
    untrained_reference: bool


@dataclass(frozen=True)
class TrackingConfig:
    name: Annotated[str, option(choices=("mlflow", "server", "jsonl"))]
    uri: Annotated[Optional[str], option(text="the address of a store")]
    experiment: Annotated[str, option(text="the name of an experiment in MLflow")]
    required: bool
    interval_steps: Annotated[int, option(least=1)]
    model: bool = True
    checkpoints: bool = False


@dataclass(frozen=True)
class PretrainConfig:
    epochs: Annotated[int, option(least=0)]
    images_per_epoch: Annotated[int, option(least=1)]
    image_sizes: Annotated[Optional[list[str]], option(text="SIZE@SHARE, such as 24@0,")]
    checkpoint_interval_epochs: Annotated[int, option(least=1)]
    keep_checkpoints: Annotated[int, option(least=0)]


@dataclass(frozen=True)
class SweepConfig:
    """What `-m` does with its jobs, and which sweep `task=status|report|deliver` look at.

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
class SearchConfig:
    """What `task=search` looks for; `dir`: the search that `task=status|report` look at."""

    dir: Annotated[Optional[str], option(path="the folder of a search")]
    objectives: Annotated[dict[str, str], option(choices=("max", "min"))]
    caps: Annotated[dict[str, float], option(least=0)]
    budget: BudgetConfig
    at_once: Annotated[int, option(least=1)]
    slots: Annotated[int, option(least=1)]
    final_seeds: Annotated[Optional[int], option(least=0)]
    latency: Annotated[Optional[str], option(path="a table of latencies, .json or .csv")]
    latency_column: Annotated[Optional[str], option(text="a column of that csv")]
    choices: dict[str, Any]
    screen: Annotated[Optional[str], option(text="a zero-cost score or a predictor")]
    screen_factor: Annotated[int, option(least=2)]


@dataclass(frozen=True)
class SpaceConfig:
    """`settings`: what the space of that name takes; `target` only for `space=own`.

    `imports` is what a run gets as `backbone.imports`, which tells it of the same operations.
    """

    name: Annotated[str, option(text="the name of a space")]
    target: Annotated[Optional[str], option(text="FILE.py:NAME or MODULE:NAME")]
    imports: Annotated[Optional[str], option(path="a file that registers operations of your own")]
    settings: dict[str, Any]


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

"""The typed schema of every config group.

The fields have no defaults: the values stand in `conf/`, and only there. `option` adds what a
type cannot say (choices, bounds); `sseg_nase.config.validation` reads it. Nothing here imports
torch, so that `--help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional


def option(
    *,
    choices: tuple[Any, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A field without default that carries its accepted values: bounds hold for list items too."""
    accepted = {"choices": choices, "least": least, "above": above, "most": most}
    return field(metadata={key: value for key, value in accepted.items() if value is not None})


DATASETS = ("cifar_fs", "minimagenet", "omniglot", "digits", "folder", "csv")
SPLITS = ("train", "val", "test")
SYNTHETIC_LEVELS = ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")
LEVELS = (*SYNTHETIC_LEVELS, "NATURAL")


@dataclass(frozen=True)
class PathsConfig:
    data_dir: str
    output_dir: str
    cache_dir: str


@dataclass(frozen=True)
class HardwareConfig:
    """What the machine gives. `None` and `auto` are filled in when the run starts."""

    name: str = option(choices=("auto", "cpu", "rtx3050", "rtx3060"))
    accelerator: str = option(choices=("auto", "cpu", "cuda"))
    devices: int = option(least=1, most=1)
    batch_size: Optional[int] = option(least=2)
    gradient_accumulation_steps: Optional[int] = option(least=1)
    precision: str = option(choices=("auto", "32-true", "16-mixed", "bf16-mixed"))
    num_workers: Optional[int] = option(least=0)
    max_memory_gb: Optional[float] = option(above=0)
    gradient_checkpointing: bool
    channels_last: bool
    threads: Optional[int] = option(least=1)


@dataclass(frozen=True)
class DatasetConfig:
    name: str = option(choices=DATASETS)
    image_size: int = option(least=8, most=512)
    root: Optional[str]
    split_by: str = option(choices=("folder", "classes"))
    split_fractions: list[float] = option(least=0, most=1)
    split_seed: int


@dataclass(frozen=True)
class CurriculumConfig:
    name: str = option(choices=("synthetic", "natural", "progressive", "mixed"))
    levels: list[str] = option(choices=LEVELS)
    images: dict[str, int] = option(least=1)
    progression: bool
    gradual_mixing_ratio: float = option(least=0, most=0.9)
    max_epochs_per_level: Optional[int] = option(least=1)
    plateau_threshold: float = option(least=0)
    plateau_window_size: int = option(least=1)
    gap_threshold: float = option(least=0)
    perturbation: float = option(least=0, most=0.5)


@dataclass(frozen=True)
class ViewsConfig:
    """Two random views of an image; probabilities and ranges as in SimCLR."""

    crop_scale: list[float] = option(above=0, most=1)
    crop_ratio: list[float] = option(above=0)
    flip: float = option(least=0, most=1)
    jitter: float = option(least=0, most=1)
    brightness: float = option(least=0, most=1)
    contrast: float = option(least=0, most=1)
    saturation: float = option(least=0, most=1)
    hue: float = option(least=0, most=0.5)
    grey: float = option(least=0, most=1)
    blur: float = option(least=0, most=1)
    blur_sigma: list[float] = option(above=0)


@dataclass(frozen=True)
class BackboneConfig:
    name: str = option(choices=("evolvable",))
    channels: list[int] = option(least=1)
    kernel_size: int = option(choices=(1, 3, 5, 7))
    activation: str = option(choices=("relu", "gelu"))
    batch_norm: bool
    pooling: bool
    residual: bool
    embedding: str = option(choices=("average", "flatten"))


@dataclass(frozen=True)
class SSLConfig:
    name: str = option(choices=("simclr", "none"))
    temperature: float = option(above=0)
    distillation_weight: float = option(least=0)
    ema_decay: float = option(least=0, most=1)
    projection_hidden: int = option(least=1)
    projection_dim: int = option(least=1)


@dataclass(frozen=True)
class EvolutionConfig:
    enabled: bool
    operators: list[str] = option(choices=("grow", "widen"))
    max_blocks: int = option(least=1)
    max_channels: int = option(least=1)
    max_params: int = option(least=1)
    max_flops: int = option(least=1)
    cap_resolution: int = option(least=8)
    channel_expansion_ratio: float = option(above=1)
    plateau_threshold: float = option(least=0)
    plateau_window_size: int = option(least=1)
    smoothing: float = option(least=0, most=0.999)
    distillation_gap_threshold: float = option(least=0)
    burn_in_epochs: int = option(least=0)
    cooldown_epochs: int = option(least=0)
    fitness_alpha: float = option(least=0)
    trial_steps: int = option(least=0)
    max_repeats: int = option(least=1)
    grow_mode: str = option(choices=("preserve", "fresh"))
    widen_mode: str = option(choices=("duplicate", "zero"))
    widen_noise: float = option(least=0, most=1)
    rollback_tolerance: float = option(least=0)


@dataclass(frozen=True)
class SparsityConfig:
    enabled: bool
    ratio: float = option(least=0, most=0.95)
    importance: str = option(choices=("taylor", "magnitude", "random"))
    importance_batches: int = option(least=1)
    pruning_interval_epochs: int = option(least=1)
    start_epoch: int = option(least=0)
    min_channels: int = option(least=1)
    round_to: int = option(least=1)


@dataclass(frozen=True)
class EvaluationConfig:
    split: str = option(choices=SPLITS)
    ways: int = option(least=2)
    shots: list[int] = option(least=1)
    queries: int = option(least=1)
    episodes: int = option(least=2)
    seed: int
    datasets: list[str] = option(choices=DATASETS)
    method: str = option(choices=("prototype",))
    metric: str = option(choices=("cosine", "euclidean"))
    normalize: str = option(choices=("cl2n", "l2n", "none"))
    batch_size: int = option(least=1)
    untrained_reference: bool


@dataclass(frozen=True)
class OptimizerConfig:
    """`None` marks what the chosen optimizer does not have."""

    name: str = option(choices=("adamw", "adam", "sgd"))
    lr: float = option(above=0)
    weight_decay: float = option(least=0)
    betas: Optional[list[float]] = option(least=0, most=0.99999)
    momentum: Optional[float] = option(least=0, most=1)
    nesterov: Optional[bool]


@dataclass(frozen=True)
class SchedulerConfig:
    """`None` marks what the chosen schedule does not have."""

    name: str = option(choices=("cosine", "step", "constant"))
    warmup_epochs: float = option(least=0)
    final_ratio: Optional[float] = option(least=0, most=1)
    step_size: Optional[int] = option(least=1)
    gamma: Optional[float] = option(above=0, most=1)


@dataclass(frozen=True)
class TrackingConfig:
    name: str = option(choices=("mlflow", "server", "jsonl"))
    uri: Optional[str]
    experiment: str
    required: bool
    interval_steps: int = option(least=1)


@dataclass(frozen=True)
class PretrainConfig:
    epochs: int = option(least=0)
    images_per_epoch: int = option(least=1)
    checkpoint_interval_epochs: int = option(least=1)


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    experiment_name: str
    seed: int = option(least=0)
    task: str = option(choices=("pipeline", "evaluate", "curriculum"))
    ablation: Optional[str] = option(choices=("A1", "A2", "A3", "A4", "A5", "A6", "A7"))
    checkpoint: Optional[str]
    paths: PathsConfig
    hardware: HardwareConfig
    dataset: DatasetConfig
    curriculum: CurriculumConfig
    views: ViewsConfig
    backbone: BackboneConfig
    ssl: SSLConfig
    pretrain: PretrainConfig
    evolution: EvolutionConfig
    sparsity: SparsityConfig
    evaluation: EvaluationConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    tracking: TrackingConfig

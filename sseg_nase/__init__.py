"""sseg-nase: grow, sparsify and evaluate small neural networks for few-shot learning.

What a notebook needs is importable from here: `from sseg_nase import EvolvableCNN, grow`. A name is
loaded when it is asked for, so that `import sseg_nase` itself loads nothing but the version.
"""

from sseg_nase.version import __version__ as __version__

# Names of the last version, which go with the next minor one.
_RENAMED = {"judge": "evaluate"}

TYPE_CHECKING = False  # for type checkers true; `typing` itself would take its time to load
if TYPE_CHECKING:
    from sseg_nase.config.compose import load as load_config
    from sseg_nase.config.compose import stored as stored_config
    from sseg_nase.data.episodes import EpisodeList, sample_episodes
    from sseg_nase.data.store import ImageStore
    from sseg_nase.data.views import make_views, normalize
    from sseg_nase.errors import UserError
    from sseg_nase.evolution.functional import Evolved, grow, grow_stages, prune, widen
    from sseg_nase.evolution.replay import replay
    from sseg_nase.export.teaching import teach
    from sseg_nase.fewshot.evaluation import embed
    from sseg_nase.nets.architecture import Architecture
    from sseg_nase.nets.evolvable import EvolvableCNN
    from sseg_nase.reporting.figures.architecture import draw_architecture
    from sseg_nase.reporting.selection import latest_run
    from sseg_nase.run import run as run_config
    from sseg_nase.rundir.record import RunRecord, read_run
    from sseg_nase.runtime.classifier import FewShotClassifier
    from sseg_nase.sparsity.importance import channel_importance
    from sseg_nase.sparsity.masks import ComplementaryMasks, complementary_masks
    from sseg_nase.sparsity.recalibration import recalibrate
    from sseg_nase.ssl.objectives import nt_xent
    from sseg_nase.ssl.teacher import batch_statistics, ema_update, make_teacher
    from sseg_nase.stages.interactive import evaluate, open_dataset, open_image
    from sseg_nase.statistics import crossed_difference, mean_ci95, mean_t95, paired_difference
    from sseg_nase.training.checkpoint import load_network

    judge = evaluate

__all__ = [  # noqa: RUF022  # in the order of docs/reference/python.md
    "Architecture",
    "EvolvableCNN",
    "load_network",
    "grow",
    "grow_stages",
    "widen",
    "prune",
    "Evolved",
    "replay",
    "draw_architecture",
    "channel_importance",
    "complementary_masks",
    "ComplementaryMasks",
    "recalibrate",
    "nt_xent",
    "make_teacher",
    "ema_update",
    "batch_statistics",
    "load_config",
    "stored_config",
    "run_config",
    "latest_run",
    "read_run",
    "RunRecord",
    "open_dataset",
    "ImageStore",
    "open_image",
    "make_views",
    "normalize",
    "embed",
    "sample_episodes",
    "EpisodeList",
    "evaluate",
    "teach",
    "FewShotClassifier",
    "mean_ci95",
    "mean_t95",
    "paired_difference",
    "crossed_difference",
    "UserError",
]

# Where a name is: a module, and after a colon what it is called there, where that differs.
_HOMES = {
    "Architecture": "nets.architecture",
    "EvolvableCNN": "nets.evolvable",
    "load_network": "training.checkpoint",
    "grow": "evolution.functional",
    "grow_stages": "evolution.functional",
    "widen": "evolution.functional",
    "prune": "evolution.functional",
    "Evolved": "evolution.functional",
    "replay": "evolution.replay",
    "draw_architecture": "reporting.figures.architecture",
    "channel_importance": "sparsity.importance",
    "complementary_masks": "sparsity.masks",
    "ComplementaryMasks": "sparsity.masks",
    "recalibrate": "sparsity.recalibration",
    "nt_xent": "ssl.objectives",
    "make_teacher": "ssl.teacher",
    "ema_update": "ssl.teacher",
    "batch_statistics": "ssl.teacher",
    "load_config": "config.compose:load",
    "stored_config": "config.compose:stored",
    "run_config": "run:run",
    "latest_run": "reporting.selection",
    "read_run": "rundir.record",
    "RunRecord": "rundir.record",
    "open_dataset": "stages.interactive",
    "ImageStore": "data.store",
    "open_image": "stages.interactive",
    "make_views": "data.views",
    "normalize": "data.views",
    "embed": "fewshot.evaluation",
    "sample_episodes": "data.episodes",
    "EpisodeList": "data.episodes",
    "evaluate": "stages.interactive",
    "teach": "export.teaching",
    "FewShotClassifier": "runtime.classifier",
    "mean_ci95": "statistics",
    "mean_t95": "statistics",
    "paired_difference": "statistics",
    "crossed_difference": "statistics",
    "UserError": "errors",
}


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        import warnings

        new = _RENAMED[name]
        message = f"sseg_nase.{name} is called {new}; the old name goes with the next minor version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return globals().get(new) or __getattr__(new)
    if name not in _HOMES:
        raise AttributeError(f"module 'sseg_nase' has no attribute {name!r}")
    from importlib import import_module

    module, _, called = _HOMES[name].partition(":")
    value: object = getattr(import_module(f"sseg_nase.{module}"), called or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

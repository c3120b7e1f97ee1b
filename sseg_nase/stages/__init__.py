"""One run: its tasks (`tasks`), and the stages that they consist of."""

from sseg_nase.stages.classifying import ClosedTask, check_classifier, tasks_of
from sseg_nase.stages.controlling import compared
from sseg_nase.stages.drawing import draw_curriculum
from sseg_nase.stages.evaluating import (
    Evaluation,
    FewShotTask,
    check_head,
    doubted,
    efficiency,
    evaluate,
    evaluate_before_tuning,
    evaluate_best,
    fewshot_tasks,
)
from sseg_nase.stages.finetuning import fine_tune, labelled
from sseg_nase.stages.fitting import fitted
from sseg_nase.stages.pretraining import pretrain
from sseg_nase.stages.replaying import replayed
from sseg_nase.stages.setup import Reached, images_of, seed_backbone, seed_learner, stored
from sseg_nase.stages.teaching import OtherRun, classifier_of, guide_of

__all__ = [
    "ClosedTask",
    "Evaluation",
    "FewShotTask",
    "OtherRun",
    "Reached",
    "check_classifier",
    "check_head",
    "classifier_of",
    "compared",
    "doubted",
    "draw_curriculum",
    "efficiency",
    "evaluate",
    "evaluate_before_tuning",
    "evaluate_best",
    "fewshot_tasks",
    "fine_tune",
    "fitted",
    "guide_of",
    "images_of",
    "labelled",
    "pretrain",
    "replayed",
    "seed_backbone",
    "seed_learner",
    "stored",
    "tasks_of",
]

"""The steps of a run: pretrain, fine-tune, evaluate; a curriculum as images, a run replayed."""

from sseg_nase.stages.classifying import ClosedTask, check_classifier, is_closed, tasks_of
from sseg_nase.stages.controlling import compared, train_control
from sseg_nase.stages.curriculum_images import TABLE as EXPORT_TABLE
from sseg_nase.stages.curriculum_images import check_export, export_curriculum
from sseg_nase.stages.drawing import draw_curriculum
from sseg_nase.stages.evaluating import (
    Evaluation,
    FewShotTask,
    Task,
    check_head,
    doubted,
    efficiency,
    evaluate,
    evaluate_before_tuning,
    evaluate_best,
    fewshot_tasks,
)
from sseg_nase.stages.finetuning import (
    TuningStage,
    fine_tune,
    labelled,
    reached_by,
    stage_reached,
    tuning_stages,
)
from sseg_nase.stages.fitting import fitted, unused_images
from sseg_nase.stages.pretraining import pretrain
from sseg_nase.stages.replaying import replayed
from sseg_nase.stages.setup import Reached, images_of, seed_backbone, seed_learner, stored
from sseg_nase.stages.teaching import OtherRun, classifier_of, guide_of

__all__ = [
    "EXPORT_TABLE",
    "ClosedTask",
    "Evaluation",
    "FewShotTask",
    "OtherRun",
    "Reached",
    "Task",
    "TuningStage",
    "check_classifier",
    "check_export",
    "check_head",
    "classifier_of",
    "compared",
    "doubted",
    "draw_curriculum",
    "efficiency",
    "evaluate",
    "evaluate_before_tuning",
    "evaluate_best",
    "export_curriculum",
    "fewshot_tasks",
    "fine_tune",
    "fitted",
    "guide_of",
    "images_of",
    "is_closed",
    "labelled",
    "pretrain",
    "reached_by",
    "replayed",
    "seed_backbone",
    "seed_learner",
    "stage_reached",
    "stored",
    "tasks_of",
    "train_control",
    "tuning_stages",
    "unused_images",
]

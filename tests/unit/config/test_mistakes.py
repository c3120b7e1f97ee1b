from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Optional, cast

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sseg_nase.config.compose import load, to_config
from sseg_nase.config.conf_files import group_option, groups
from sseg_nase.config.explain import explaining, fits, mistake, one_line
from sseg_nase.config.layout import WRITTEN_AS, is_section, key_types
from sseg_nase.config.options import fields_of
from sseg_nase.config.schema import Config
from sseg_nase.config.validation import LARGEST, cautions, validate
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from tests.support.other_options import having, type_of

PLAIN = load()

# Overrides, and what the message must contain.
MISTAKES = [
    ("++pretrain.lrr=1", ["pretrain.lrr", "epochs, images_per_epoch", "'optimizer.lr'"]),
    ("pretrain.lrr=1", ["pretrain.lrr", "epochs, images_per_epoch", "'optimizer.lr'"]),
    ("pretrain.epoch=1", ["pretrain.epoch", "'pretrain.epochs'"]),
    ("pretrian.epochs=1", ["pretrian.epochs", "'pretrain.epochs'"]),
    ("+seeed=3", ["seeed", "'seed'"]),
    ("ablatoin=A7", ["ablatoin", "'ablation'"]),
    ("ablation=A9", ["ablation=A9", "A1, A2, A3, A4, A5, A6, A7"]),
    ("dataset=cifr_fs", ["dataset=cifr_fs", "omniglot", "'cifar_fs'"]),
    ("dataset=null", ["dataset=null", "cifar_fs, csv"]),
    ("+ablation=A3", ["+ablation=A3", "without a plus"]),
    ("+seed=3", ["+seed=3", "exists already"]),
    ("++ablation=A3", ["++ablation=A3", "without a plus"]),
    ("debug=[tiny,nope]", ["debug=[tiny,nope]", "would mix several"]),
    ("~seed", ["~seed", "seed cannot be taken away", "seed=..."]),
    ("~task", ["~task", "task cannot be taken away"]),
    ("~pretrain.epochs=3", ["~pretrain.epochs=3", "pretrain.epochs cannot be taken away"]),
    ("~curriculum.images", ["~curriculum.images", "cannot be taken away"]),
    ("~curriculum.images.BASIC=3", ["curriculum.images.BASIC", "5000"]),
    ("~curriculum.images.BASIC", ["curriculum.images.BASIC: the level is used"]),
    ("~seeed", ["seeed", "no such key", "'seed'"]),
    ("pretrain.epochs=ten", ["pretrain.epochs=ten", "a whole number (int)"]),
    ("pretrain.epochs=2.5", ["pretrain.epochs=2.5", "a whole number (int)"]),
    ("optimizer.lr=fast", ["optimizer.lr=fast", "a number (float)"]),
    ("hardware.batch_size=many", ["hardware.batch_size=many", "a whole number (int) or null"]),
    ("hardware.compile=perhaps", ["hardware.compile=perhaps", "true", "false", "auto"]),
    ("hardware.compile=3", ["hardware.compile=3", "true or false", "text"]),
    ("hardware.compile=null", ["hardware.compile=null"]),
    ("evolution.enabled=perhaps", ["evolution.enabled=perhaps", "true or false"]),
    ("search.caps.params=few", ["search.caps.params=few", "a number (float)"]),
    ("evaluation.shots=[1,x]", ["evaluation.shots", "a list of whole numbers"]),
    ("evaluation.shots=5", ["evaluation.shots=5", "a list of whole numbers"]),
    ("seed=null", ["seed=null", "a whole number"]),
    ("pretrain=3", ["pretrain=3", "section", "epochs"]),
    ("tracking.experiment=a=b", ["""'tracking.experiment="a=b"'"""]),
    ("evaluation.shots=[1,5", ["evaluation.shots", "brackets"]),
    ("evaluate", ["evaluate", "key=value"]),
    ("=[1", ["=[1", "key=value"]),
    ("seed=${nothing}", ["seed", "nothing"]),
    ("seed=1,2", ["seed=1,2", "--multirun"]),
    ("seed=-1", ["seed=-1", "at least 0"]),
    ("evolution.max_blocks=0", ["evolution.max_blocks=0", "at least 1"]),
    ("evolution.channel_expansion_ratio=1", ["channel_expansion_ratio=1.0", "more than 1"]),
    ("sparsity.ratio=0.99", ["sparsity.ratio=0.99", "at most 0.95"]),
    ("evaluation.shots=[1,0]", ["evaluation.shots=0", "at least 1"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
    ("evolution.plateau_threshold=inf", ["plateau_threshold=inf", "finite"]),
    ("sparsity.importance=tailor", ["sparsity.importance=tailor", "'taylor'"]),
    ("curriculum.levels=[BASIC,TEXTUR]", ["curriculum.levels=TEXTUR", "'TEXTURE'"]),
    ("curriculum.images.OBJEKT=3", ["curriculum.images.OBJEKT", "'curriculum.images.OBJECT'"]),
    ("++curriculum.images.OBJEKT=3", ["curriculum.images.OBJEKT", "'OBJECT'"]),
    ("curriculum.images.BASIC=0", ["curriculum.images.BASIC=0", "at least 1"]),
    ("curriculum.levels=[BASIC,BASIC]", ["curriculum.levels", "twice"]),
    ("curriculum.levels=[]", ["curriculum.levels=[]", "at least one"]),
    ("curriculum.export=here", ["curriculum.export=here", "no effect", "add task=curriculum"]),
    ("task=curriculum curriculum.export=", ["curriculum.export= is empty", "a folder"]),
    ("task=evaluate", ["task=evaluate", "checkpoint=FILE"]),
    ("checkpoint=best.pt", ["checkpoint=best.pt", "task=evaluate"]),
    ("task=replay", ["task=replay", "run=RUN_DIR"]),
    ("run=runs/one", ["run=runs/one", "no effect", "task=replay"]),
    ("dataset=folder", ["dataset=folder", "dataset.root=PATH"]),
    ("dataset=csv", ["dataset=csv", "dataset.root=PATH"]),
    ("dataset.root=here", ["dataset.root=here", "no effect"]),
    ("dataset.split_fractions=[0.5,0.5]", ["dataset.split_fractions", "three numbers"]),
    ("dataset.split_fractions=[0.5,0.5,0.5]", ["dataset.split_fractions", "sum 1"]),
    ("views.crop_scale=[1.0,0.2]", ["views.crop_scale", "[low, high]"]),
    ("views.blur_sigma=[1.0]", ["views.blur_sigma", "[low, high]"]),
    ("views.zoom=[1.1,0.9]", ["views.zoom", "[low, high]"]),
    ("finetune.views.thickness=[1,-1]", ["finetune.views.thickness", "[low, high]"]),
    ("views.rotation=200", ["views.rotation=200", "at most 180"]),
    ("views.ink=blue", ["views.ink=blue", "dark, light"]),
    (
        "dataset=omniglot views=sketch dataset.invert=true",
        ["views.ink=dark", "light", "set views.ink=light"],
    ),
    ("dataset=omniglot views=sketch views.ink=light", ["views.ink=light", "set views.ink=dark"]),
    ("dataset=sketch", ["dataset=sketch", "dataset.root=PATH"]),
    ("dataset.rotations=true", ["dataset.rotations=true", "no effect", "dataset=omniglot"]),
    ("dataset.invert=true", ["dataset.invert=true", "no effect", "omniglot or sketch"]),
    ("dataset.invert=false", ["dataset.invert=false", "no effect"]),
    ("ssl.local_views=0", ["ssl.local_views=0", "no effect with ssl=simclr"]),
    ("dataset=omniglot dataset.rotations=null", ["dataset.rotations=null", "needs a value"]),
    ("dataset=omniglot dataset.split_by=folder", ["split_by=folder", "alphabets, classes"]),
    ("dataset.split_by=vinyals", ["dataset.split_by=vinyals", "folder, classes"]),
    ("evaluation.datasets=[digits,sketch]", ["evaluation.datasets", "dataset=sketch"]),
    ("backbone.channels=[]", ["backbone.channels=[]", "at least one"]),
    ("backbone=resnet_18", ["backbone=resnet_18", "Did you mean 'resnet18'"]),
    ("backbone=resnet18 evolution=balanced", ["evolution.order=balanced", "no rule for more"]),
    ("backbone=vit_small evolution.operators=[grow]", ["[widen]", "or add evolution=none"]),
    ("backbone=resnet12 ablation=A2 backbone.channels=[4,5]", ["[4, 5]", "four blocks"]),
    ("backbone=resnet18 ablation=A2 backbone.channels=[64]", ["backbone.channels", "no effect"]),
    ("backbone=resnet18 ablation=A2 backbone.stem=null", ["backbone.stem=null", "needs a value"]),
    ("backbone=vit_small ablation=A2 dataset.image_size=84", ["backbone.patch_size=16", "14"]),
    ("backbone.stem=small", ["backbone.stem=small", "no effect", "resnet18 or resnet34"]),
    ("backbone.weights=imagenet", ["backbone.weights=imagenet", "no effect", "resnet18"]),
    (
        "backbone=vit_small ablation=A2 backbone.weights=imagenet",
        ["backbone.weights=imagenet", "torchvision has none", "FILE"],
    ),
    (
        "backbone=resnet18 ablation=A2 backbone.weights=imagenet backbone.stem=small",
        ["backbone.stem=small", "backbone.weights=imagenet"],
    ),
    ("backbone.in_channels=1", ["backbone.in_channels=1", "dataset.channels=3"]),
    ("dataset.channels=2 backbone.in_channels=3", ["dataset.channels=2", "1, 3"]),
    ("backbone.pooled_blocks=4", ["backbone.pooled_blocks=4", "only 3 blocks"]),
    ("backbone.pooled_blocks=1 backbone.pooling=false", ["pooled_blocks=1", "no effect"]),
    (
        "backbone=resnet12 ablation=A2 backbone.pooled_blocks=1",
        ["pooled_blocks=1", "no effect with backbone=resnet12"],
    ),
    ("evolution.max_blocks=2", ["evolution.max_blocks=2", "more blocks"]),
    (
        "backbone=seed_wide backbone.blocks_per_stage=3 evolution.max_blocks=11",
        ["evolution.max_blocks=11", "backbone.blocks_per_stage=3 starts with more blocks"],
    ),
    (
        "backbone=seed_wide backbone.blocks_per_stage=3 evolution.max_params=761376",
        ["backbone.blocks_per_stage=3, has 761,376 parameters"],
    ),
    (
        "backbone=resnet12 ablation=A2 backbone.blocks_per_stage=2",
        ["blocks_per_stage=2", "no effect with backbone=resnet12"],
    ),
    ("scheduler.decay_share=0.3", ["scheduler.decay_share=0.3", "scheduler=constant_decay"]),
    ("scheduler=constant_decay scheduler.decay_share=null", ["decay_share=null", "needs a value"]),
    ("evolution.expand_at=[0.3]", ["expand_at=[0.3]", "choose evolution.order=balanced or random"]),
    ("evolution.blocks_per_stage=3", ["blocks_per_stage=3", "choose evolution.order=balanced"]),
    ("evolution=balanced evolution.expand_at=[]", ["expand_at=[]", "needs a value"]),
    ("evolution=balanced evolution.blocks_per_stage=null", ["=null", "needs a value, such as"]),
    ("evolution=balanced evolution.expand_at=[0.5,0.4]", ["each share once", "early to late"]),
    ("evolution=balanced evolution.expand_at=[0.7]", ["expand_at=0.7", "at most 0.6"]),
    (
        "evolution=balanced evolution.max_blocks=8",
        ["evolution.max_blocks=8", "blocks_per_stage=3 the network grows to 9 blocks"],
    ),
    (
        "evolution=balanced backbone=seed_wide evolution.max_params=761376",
        ["evolution.max_params=761376", "the network grows to 761,376 parameters"],
    ),
    ("evolution.max_channels=32", ["evolution.max_channels=32", "more channels"]),
    (
        "evolution.grow_positions=all evolution.grow_mode=fresh",
        ["evolution.grow_positions=all", "evolution.grow_mode=preserve"],
    ),
    ("evolution.operators=[]", ["evolution.operators", "at least one"]),
    ("ssl=moco", ["ssl=moco", "byol"]),
    ("ssl.views=4", ["ssl.views=4", "no effect with ssl=simclr", "ssl=prototype_pairs"]),
    ("ssl=byol ssl.projection_dim=null", ["ssl.projection_dim=null", "ssl=byol needs a value"]),
    ("ssl=prototype_pairs ssl.projection_dim=8", ["ssl.projection_dim=8", "no effect"]),
    ("ssl=prototype_pairs ssl.views=1", ["ssl.views=1", "at least 2"]),
    ("ssl=dino ssl.local_scale=[0.4,0.1]", ["ssl.local_scale", "[low, high]"]),
    ("ssl=dino ssl.teacher_temperature=[0.04]", ["ssl.teacher_temperature", "[first, last]"]),
    (
        "ssl=dino backbone.embedding=flatten",
        ["ssl.local_size=0.5", "ssl.local_size=1 or backbone.embedding=average"],
    ),
    ("ssl=none", ["ssl=none", "evolution=none sparsity=none", "A1"]),
    ("evaluation.datasets=[digits,folder]", ["evaluation.datasets", "dataset=folder"]),
    ("evaluation.datasets=[digits,digits]", ["evaluation.datasets", "twice"]),
    ("evaluation.method=protoype", ["evaluation.method=protoype", "'prototype'"]),
    ("evaluation.ridge.regularization=-1", ["evaluation.ridge.regularization=-1", "at least"]),
    ("evaluation.ridge.regularisation=1", ["'evaluation.ridge.regularization'"]),
    ("evaluation.top_k=[2,5]", ["evaluation.top_k=[2, 5]", "evaluation.ways=5", "less than 5"]),
    ("evaluation.top_k=[2,2]", ["evaluation.top_k", "twice"]),
    ("evaluation.top_k=[1]", ["evaluation.top_k=1", "at least 2"]),
    ("evaluation.method=sinkhorn evaluation.queries=1", ["evaluation.queries=1", "sinkhorn"]),
    ("evaluation.sinkhorn.entropy=0", ["evaluation.sinkhorn.entropy=0.0", "at least 0.01"]),
    ("evaluation.support_augmentations=-1", ["support_augmentations=-1", "at least 0"]),
    (
        "finetune=prototypical finetune.min_delta=1",
        ["finetune.min_delta=1", "no effect without finetune.patience"],
    ),
    (
        "finetune=linear finetune.patience=3 finetune.monitor=val_loss",
        ["finetune.monitor=val_loss", "set val_accuracy or loss"],
    ),
    (
        "finetune=linear finetune.mixup=0.2 finetune.cutmix=1",
        ["finetune.cutmix=1", "finetune.mixup=0.2", "leave one of them out"],
    ),
    ("finetune=prototypical finetune.dropout=0.1", ["finetune.dropout", "linear or classifier"]),
    ("optimizer=sgd optimizer.betas=[0.9,0.9]", ["optimizer.betas", "no effect", "adamw or adam"]),
    ("optimizer.betas=null", ["optimizer.betas=null", "needs a value"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas", "two numbers"]),
    ("optimizer.momentum=0.9", ["optimizer.momentum=0.9", "no effect", "sgd"]),
    ("optimizer=sgd optimizer.nesterov=true optimizer.momentum=0", ["nesterov", "momentum"]),
    ("seed=0,", ["seed=0,", "cannot be read", "one comma, such as seed=0,1"]),
    ("ablation=A1,,A2", ["ablation=A1,,A2", "cannot be read", "such as ablation=A1,A2"]),
    ("optimizer=sgd optimizer.momentum=1", ["optimizer.momentum=1.0", "at most 0.999"]),
    ("scheduler.gamma=0.5", ["scheduler.gamma=0.5", "no effect", "scheduler=step"]),
    ("scheduler=step scheduler.step_size=null", ["scheduler.step_size=null", "needs a value"]),
    ("tracking=jsonl tracking.uri=x", ["tracking.uri=x", "no effect"]),
    ("tracking=jsonl tracking.checkpoints=true", ["tracking.checkpoints=true", "no effect"]),
    ("tracking=server tracking.uri=null", ["tracking=server", "tracking.uri=http"]),
    ("tracking.experiment=''", ["tracking.experiment", "empty"]),
    ("experiment_name=a/b", ["experiment_name=a/b", "slashes"]),
    ("paths.data_dir=", ["paths.data_dir", "empty"]),
    ("task=curriculum resume=x", ["resume=x", "only task=pipeline"]),
    ("resume_overrides=true", ["resume_overrides=true", "no effect without resume=RUN_DIR"]),
    ("runs=a", ["runs=a", "no effect with task=pipeline", "task=report"]),
    ("task=report runs=[]", ["runs=[]", "name at least one"]),
    ("task=report runs=a sweep=b", ["runs=a", "not together with sweep=b"]),
    ("task=report report.output=x", ["report.output=x", "without task=report runs="]),
    ("report.at_end=false report.published=false", ["report.published=false", "no effect without"]),
    ("task=status run=a", ["run=a", "no effect with task=status"]),
    ("task=export", ["task=export", "which network?", "checkpoint=RUN"]),
    ("task=predict checkpoint=x images=a", ["which classes?", "support=FOLDER"]),
    ("task=predict checkpoint=x support=a", ["which images?", "images=FILE"]),
    ("support=a", ["support=a", "no effect with task=pipeline", "task=predict"]),
    ("images=a,b", ["images=a,b", "no effect", "task=predict"]),
    ("export.output=a", ["export.output=a", "no effect", "task=export"]),
    ("predict.threshold=0.5", ["predict.threshold=0.5", "no effect", "task=predict"]),
    ("task=export checkpoint=x export.formats=[torchscript]", ["torchscript", "is pt2"]),
    ("task=export checkpoint=x export.formats=[executorch]", ["executorch", "cannot lower"]),
    ("task=export checkpoint=x export.formats=[]", ["export.formats=[]", "at least one"]),
    ("task=export checkpoint=x export.keep=fastest", ["export.keep=fastest", "export both"]),
    ("task=export checkpoint=x evaluation.method=ridge", ["method=ridge", "by prototypes"]),
    ("task=predict checkpoint=x support=a images=b evaluation.test_views=2", ["test_views=2"]),
    (
        "task=predict checkpoint=x support=a images=b predict.output=c.txt",
        ["predict.output=c.txt", ".csv or .json"],
    ),
    ("dataset.background=[1,2]", ["dataset.background=[1, 2]", "three numbers"]),
    (
        "dataset=csv dataset.root=x dataset.value_range=[5,5]",
        ["value_range=[5.0, 5.0]", "[low,high]"],
    ),
    ("dataset=csv dataset.root=x dataset.value_range=[1]", ["value_range=[1.0]", "two numbers"]),
    ("dataset.value_range=[0,5]", ["value_range=[0.0, 5.0]", "no effect with dataset=digits"]),
    ("dataset.split_fractions=null", ["split_fractions=null: dataset=digits needs a value, three"]),
    ("dataset.name=miniimagenet", ["cifar_fs, minimagenet", "Did you mean 'minimagenet'"]),
    ("evolution.operators=[grow,grow]", ["evolution.operators", "none twice"]),
    ("evaluation.shots=[]", ["evaluation.shots=[]", "at least one"]),
    ("evaluation.shots=[5,5]", ["evaluation.shots=[5, 5]", "none twice"]),
    (
        "finetune.views.ink=light dataset=omniglot finetune.views.rotation=5",
        ["finetune.views.ink=dark"],
    ),
    (
        "backbone=vit_small ablation=A2 backbone.patch_size=4 ssl=dino",
        ["ssl.local_size=0.5", "backbone=vit_small", "set ssl.local_size=1."],
    ),
    ("ssl=dino ssl.local_scale=[0.1]", ["ssl.local_scale=[0.1]", "[low, high]"]),
    (
        "finetune=relation evaluation.method=relation",
        ["evaluation.normalize=cl2n", "set evaluation.normalize=none"],
    ),
    (
        "finetune=maml evaluation.method=maml evaluation.normalize=none "
        "evaluation.support_augmentations=2",
        ["evaluation.support_augmentations=2", "evaluation.method=maml adapts"],
    ),
    ("evaluation.method=maml evaluation.normalize=none", ["it needs what finetune=maml trains"]),
    ("dataset=cifar10 evaluation=fewshot", ["evaluation=fewshot", "the same", "evaluation=knn"]),
    ("evaluation=knn", ["evaluation=knn", "dataset=digits", "cifar10, cifar100"]),
    ("dataset=cifar10 evaluation.datasets=[digits]", ["evaluation.datasets", "evaluated alone"]),
    ("evaluation.datasets=[cifar_fs,mnist]", ["evaluation.datasets", "evaluated alone"]),
    ("dataset=cifar10 finetune=linear", ["finetune=linear", "choose finetune=classifier"]),
    ("finetune=classifier", ["finetune=classifier", "choose finetune=linear"]),
    ("dataset=cifar10 evaluation=classification", ["it needs what finetune=classifier trains"]),
    (
        "dataset=cifar10 finetune=classifier finetune.fraction=0.1 finetune.samples=200",
        ["finetune.samples=200", "finetune.fraction=0.1", "leave one"],
    ),
    ("dataset=cifar10 finetune=classifier finetune.fraction=0", ["fraction=0", "more than 0"]),
    ("dataset=cifar10 finetune=classifier finetune.fraction=1.5", ["fraction=1.5", "at most 1"]),
    ("finetune=prototypical finetune.samples=200", ["samples=200", "finetune=classifier"]),
    ("dataset.validation=0.1", ["dataset.validation=0.1", "no effect with dataset=digits"]),
    ("dataset=cifar10 dataset.validation=0.9", ["dataset.validation=0.9", "at most 0.5"]),
    ("dataset=cifar10 dataset.variant=letters", ["variant=letters", "choose dataset=emnist"]),
    ("dataset=emnist dataset.variant=greek", ["variant=greek", "balanced, byclass"]),
    ("dataset=cifar10 evaluation.knn.neighbours=0", ["knn.neighbours=0", "at least 1"]),
    (
        "dataset=cifar10 evaluation=linear_probe evaluation.linear_probe.regularization=[]",
        ["linear_probe.regularization=[]", "at least one"],
    ),
    ("finetune=matching finetune.head=maps", ["finetune.head=maps", "cosine, mlp"]),
    ("finetune=relation finetune.head=cosine", ["finetune.head=cosine", "maps, mlp"]),
    ("finetune=linear finetune.head=mlp", ["finetune.head=mlp", "matching or relation"]),
    ("finetune=matching finetune.head_width=8", ["head_width=8", "finetune.head=mlp"]),
    ("finetune=matching finetune.head=mlp finetune.scale=3", ["scale=3", "finetune.head=cosine"]),
    ("finetune=matching finetune.head=mlp finetune.head_width=0", ["head_width=0", "at least 1"]),
    (
        "finetune=matching finetune.head=mlp evaluation.method=matching",
        ["evaluation.normalize=cl2n", "set evaluation.normalize=none"],
    ),
    ("finetune.from=x", ["finetune.from=x", "no effect with finetune=none", "finetune=r2d2"]),
    ("tracking=mlflow task=report runs=a checkpoint=b", ["checkpoint=b", "task=evaluate"]),
    ("hydra/launcher=slrum", ["hydra/launcher=slrum", "basic, joblib, submitit_local, submitit_s"]),
    ("hydra/launcher=joblib_schema", ["no such option", "Did you mean 'joblib'"]),
    ("+hydra/launcher=joblib", ["without a plus sign, hydra/launcher=joblib"]),
    ("~seed=0", ["~seed=0", "cannot be taken away"]),
    ("~optimizer.lr", ["~optimizer.lr", "cannot be taken away"]),
    ("ablation=[A7,A1]", ["ablation=[A7,A1]", "would mix several"]),
    ("optimizer=[sgd,adam]", ["optimizer=[sgd,adam]", "choose one of adam, adamw, sgd"]),
    ("optimizer@x=sgd", ["optimizer@x=sgd", "write optimizer=..."]),
    ("+views@nope=none", ["+views@nope=none", "views=... or views@finetune.views=..."]),
    ("experiment_name=..", ["experiment_name=..", "names a folder"]),
    ("experiment_name=" + 201 * "x", ["experiment_name=xxx", "200 bytes"]),
    (f'experiment_name="{101 * "é"}"', ["experiment_name=ééé", "200 bytes"]),
    ('experiment_name="a\x07b"', [r"'a\x07b'", "control characters"]),
    ("~dataset", ["~dataset: every run has dataset.*", "; choose one of cifar10"]),
]


@pytest.mark.parametrize(("overrides", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_refused_in_one_clear_message(overrides: str, said: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load(overrides.split())
    message = str(refused.value)
    for part in said:
        assert part in message
    assert "full_key" not in message
    assert "\n" not in message
    assert len(message) < 450


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(UserError) as refused:
        load(["pretrain.epochs=ten", "dataset=cifr_fs", "seeed=4", "ablation=A3"])
    first, *lines = str(refused.value).splitlines()
    assert first == "3 mistakes:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "pretrain.epochs=ten",
        "dataset=cifr_fs",
        "seeed",
    ]
    with pytest.raises(UserError, match=r"(?s)2 mistakes.*seed=-1.*sparsity\.ratio=2"):
        load(["seed=-1", "sparsity.ratio=2"])


def test_a_wrong_choice_inside_a_sweep_is_found() -> None:
    options = groups()
    assert "A9" in str(mistake("ablation=A1,A9", options))
    assert "ten" in str(mistake("pretrain.epochs=2,ten", options))
    assert mistake("ablation=A1,A2", options) is None
    assert mistake("seed=range(3)", options) is None


@pytest.mark.parametrize(
    "fine",
    [
        "seed=3",
        "++seed=3",
        "~experiment",
        "debug=[tiny]",
        "dataset.root='a b'",
        "hardware.batch_size=null",
        "hardware.compile=auto",
        "hardware.compile=true",
        "curriculum.images={BASIC: 3}",
        "curriculum.images.BASIC=3",
        "~ablation",
        "~curriculum.images.BASIC",
        "++search.caps.latency_ms=3",
        "~search.caps.latency_ms",
        "++search.choices.seed=[1,2]",
        "++finetune.own.linear.epochs=3",
        "evaluation.shots=[1,5]",
        "hydra.verbose=true",
        "optimizer.lr=1",
        """checkpoint="epoch=3.pt" """.strip(),
    ],
)
def test_what_is_fine_is_not_called_a_mistake(fine: str) -> None:
    assert mistake(fine, groups()) is None


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("pretrain: {epoch: 1}", r"pretrain\.epoch.*'pretrain\.epochs'"),
        ("pretrain: {epochs: ten}", r"pretrain\.epochs=ten.*whole number"),
        ("pretrain: 3", r"pretrain=3.*section"),
        (
            "evaluation: {name: fewshot, shots: [1, x]}",
            r"evaluation\.shots=.*: a list of whole numbers",
        ),
        ("seed: 1", r"experiment_name"),
    ],
)
def test_a_tree_that_hydra_let_pass_is_checked_once_more(yaml: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        to_config(cast(DictConfig, OmegaConf.create(yaml)))
    assert re.search(said, str(refused.value))


def text_fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every key that takes any text, and whether it takes a list of them."""
    for name, inner, accepted in fields_of(kind):
        if is_section(inner):
            yield from text_fields(inner, f"{prefix}{name}.")
        elif "choices" not in accepted and inner in (str, Optional[str], Optional[list[str]]):
            yield prefix + name, inner == Optional[list[str]]


def with_value(section: Any, key: str, value: Any) -> Any:
    section = having(section, key) if isinstance(section, Config) else section
    name, _, rest = key.partition(".")
    inner = with_value(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: inner})


@pytest.mark.parametrize(("key", "several"), list(text_fields(Config)))
@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_no_text_is_empty(key: str, several: bool, blank: str) -> None:
    """An unset variable of a script is not a wish for the default."""
    said = WRITTEN_AS.get(key, key)
    for value in [[blank], ["runs/x", blank]] if several else [blank]:
        with pytest.raises(UserError, match=f"^{re.escape(said)}= is empty: .* is needed\\.$"):
            validate(with_value(PLAIN, key, value))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resume=", "resume= is empty: the folder of a run is needed."),
        ("finetune.from=", "finetune.from= is empty: the folder of a run, or a checkpoint,"),
        ("runs=", "runs= is empty: the folder of a run is needed."),
        ("sweep=", "sweep= is empty: the folder of a sweep is needed."),
        ("tracking.uri=' '", "tracking.uri= is empty: the address of a store is needed."),
    ],
)
def test_an_empty_path_on_the_command_line(given: str, said: str) -> None:
    for line in ([given], ["task=report", given], ["finetune=linear", given]):
        with pytest.raises(UserError) as refused:
            load(line)
        assert said in str(refused.value)


@given(
    channels=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    kernel=st.sampled_from([1, 3, 5]),
    norm=st.booleans(),
    pooling=st.booleans(),
    resolution=st.sampled_from([8, 28, 84]),
    grey=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_caps_below_the_seed_network_are_refused_with_its_figures(
    channels: list[int],
    kernel: int,
    norm: bool,
    pooling: bool,
    resolution: int,
    grey: bool,
) -> None:
    network = Architecture.seed(
        channels,
        resolution=32,
        in_channels=1 if grey else 3,
        kernel_size=kernel,
        batch_norm=norm,
        pooling=pooling,
    )
    params, flops = network.params, 2 * network.macs(resolution)
    config = with_value(PLAIN, "backbone.channels", channels)
    for key, value in (
        ("backbone.kernel_size", kernel),
        ("backbone.batch_norm", norm),
        ("backbone.pooling", pooling),
        ("backbone.in_channels", 1 if grey else 3),
        ("dataset.channels", 1 if grey else 3),
        ("evolution.cap_resolution", resolution),
        ("evolution.max_params", params + 1),
        ("evolution.max_flops", flops + 1),
        ("sparsity.enabled", False),
    ):
        config = with_value(config, key, value)
    validate(config)
    with pytest.raises(UserError, match=f"max_params={params}: .* has {params:,} parameters"):
        validate(with_value(config, "evolution.max_params", params))
    with pytest.raises(
        UserError, match=f"max_flops={flops}: .* has {flops:,} flops .*={resolution} "
    ):
        validate(with_value(config, "evolution.max_flops", flops))
    validate(with_value(with_value(config, "evolution.max_flops", 1), "evolution.enabled", False))


def test_a_least_width_that_leaves_nothing_to_prune_is_refused() -> None:
    fixed = with_value(PLAIN, "evolution.enabled", False)
    validate(with_value(fixed, "sparsity.min_channels", 60))
    for config, key, value, said in (
        (fixed, "min_channels", 61, "wider than 64 .backbone.channels"),  # 64, in fours
        (fixed, "round_to", 64, "wider than 64 .backbone.channels"),
        (PLAIN, "min_channels", 253, "wider than 256 .evolution.max_channels"),
    ):
        with pytest.raises(UserError, match=said):
            validate(with_value(config, f"sparsity.{key}", value))
    validate(with_value(PLAIN, "sparsity.min_channels", 252))


def bounds(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, Any]]:
    """Every key with a limit, its type, and which limit."""
    for name, inner, accepted in fields_of(kind):
        if is_section(inner):
            yield from bounds(inner, f"{prefix}{name}.")
        for limit in {"least", "above", "most"} & accepted.keys():
            yield prefix + name, inner, limit, accepted[limit]


@pytest.mark.parametrize("limit", ["least", "above", "most"])
def test_a_limit_itself_is_accepted_where_it_may_be_reached(limit: str) -> None:
    found = [(key, kind, bound) for key, kind, which, bound in bounds(Config) if which == limit]
    assert found
    for key, kind, bound in found:
        beyond = bound + 1 if limit == "most" else bound - 1
        for value, refused in ((bound, limit == "above"), (beyond, True)):
            tried: Any = [value] if "list" in str(kind) else value
            tried = {"BASIC": value} if "dict" in str(kind) else tried
            text = ""
            try:
                validate(with_value(PLAIN, key, tried))
            except UserError as error:
                text = str(error)
            assert (f"={value}: it must be " in text) == refused, (key, value, text)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("optimizer.lr=0.1", []),
        ("optimizer.lr=0.11", ["optimizer.lr=0.11 is very high: 1e-07 to 0.1", "diverge"]),
        ("optimizer.lr=1e-8", ["optimizer.lr=1e-08 is very low", "hardly learn"]),
        ("optimizer=sgd optimizer.lr=40", []),
        ("optimizer=sgd optimizer.lr=60", ["optimizer.lr=60 is very high: 1e-06 to 50"]),
        ("optimizer.lr=5 task=curriculum", []),
        ("optimizer.lr=5 ablation=A1", []),  # nothing is trained
        ("optimizer.lr=5 pretrain.epochs=0", []),
        ("optimizer.lr=5 finetune=prototypical finetune.from=x", []),
        ("ssl.temperature=20", ["ssl.temperature=20 is very high", "hardly tell images apart"]),
        ("ssl=byol ssl.temperature=20", []),
        (
            "ssl=dino ssl.student_temperature=0.001",
            ["ssl.student_temperature=0.001 is very low"],
        ),
        ("finetune=prototypical finetune.lr_encoder=3", ["finetune.lr_encoder=3 is very high"]),
        ("finetune=linear finetune.lr_encoder=3 finetune.freeze=encoder", []),
        ("finetune=linear finetune.lr_head=3 finetune.optimizer=sgd", []),
        ("finetune=linear finetune.lr_head=3", ["finetune.lr_head=3 is very high"]),
        (
            "finetune=maml finetune.inner_lr=11 evaluation.method=maml evaluation.normalize=none",
            ["finetune.inner_lr=11 is very high: 1e-05 to 10"],
        ),
        (
            "finetune=r2d2",
            ["evaluation.method=prototype: finetune=r2d2 trains for", "=ridge (with"],
        ),
        ("finetune=r2d2 evaluation.method=ridge", []),
        ("finetune=r2d2 task=evaluate checkpoint=x", []),
        ("ablation=A7 curriculum=natural", []),  # one level has no order
        ("ablation=A7 curriculum=mixed", ["ablation=A7 is defined with progression"]),
        ("ablation=A2 evolution=sseg", ["ablation=A2 is defined without evolution", "run is with"]),
        ("ablation=A7 ssl.distillation_weight=0", ["with distillation, but this run is without"]),
        ("ssl.distillation_weight=0", []),
        ("ablation=A1 ssl.distillation_weight=0.5", []),  # nothing is trained that could be
        ("data.placement=ram", ["data.placement=ram: it has no effect"]),
        ("data.placement=ram curriculum=natural", []),
        ("dataset=stl10 dataset.unlabeled=true", []),
        (
            "dataset=stl10 dataset.unlabeled=true curriculum=synthetic",
            ["dataset.unlabeled=true", "curriculum=natural"],
        ),
    ],
)
def test_what_is_possible_but_hardly_meant_is_said(overrides: str, said: list[str]) -> None:
    found = cautions(load(overrides.split()))
    assert len(found) == bool(said), found
    for part in said:
        assert part in found[0]


@pytest.mark.parametrize(
    ("overrides", "key", "value", "said"),
    [
        # What the files of conf/ do not allow to be said, a composed or a stored tree may hold.
        ("", "curriculum.images", {"BASIC": 3}, r"curriculum\.images\.TEXTURE: the level is used"),
        ("", "curriculum.images", {"x": 3}, r"curriculum\.images\.x: choose one of BASIC"),
        ("", "backbone.channels", [], "at least one block is needed"),
    ],
)
def test_what_a_tree_may_hold_is_checked(overrides: str, key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(with_value(load(overrides.split()), key, value))


@pytest.mark.parametrize(
    "fine",
    [
        "evolution.max_blocks=3",
        "evolution.max_channels=64 evolution.max_params=50000 sparsity=none",
        "backbone.pooled_blocks=3",
        "evolution=balanced evolution.max_blocks=9",
        "evolution=balanced backbone.channels=[8,8,8,8,8] backbone.pooled_blocks=1",
        "evolution=balanced backbone=seed_wide evolution.max_params=761377",
        "evolution=none sparsity=none backbone.channels=[300]",
        "views.zoom=[0.9,0.9]",
        "dataset=omniglot views.ink=light",  # of views that do nothing to strokes
        "dataset=omniglot views=sketch dataset.invert=true views.ink=light",
        "ssl=dino ssl.local_size=1 backbone.embedding=flatten",
        "ssl=dino ssl.local_views=0 backbone.embedding=flatten",
        "evaluation.top_k=[2,4]",
        "dataset=folder dataset.root=x evaluation.datasets=[digits,folder]",
        "dataset=csv dataset.root=x dataset.split_fractions=null",
        "optimizer=sgd optimizer.nesterov=true",
        "backbone=resnet18 ablation=A2 backbone.weights=imagenet",
        "backbone=vit_small ablation=A2 backbone.patch_size=4 backbone.weights=file.pt",
        "backbone=resnet12 task=evaluate checkpoint=x",
        "task=report report.published=false runs=[a]",
        "report.published=false",
        "task=report sweep=a",
        "task=deliver sweep=a",
        "task=status sweep.watch=true",
        "evaluation.method=relation evaluation.normalize=none task=evaluate checkpoint=x",
        "finetune=maml finetune.ways=5 evaluation.method=maml evaluation.normalize=none",
        "evaluation.method=sinkhorn evaluation.queries=2",
        "~ablation",
        "~curriculum.images.BASIC curriculum.levels=[TEXTURE]",
    ],
)
def test_what_fits_together_is_accepted(fine: str) -> None:
    load(fine.split())


def test_an_error_that_is_no_mistake_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="ours") as raised, explaining(["seed=1"]):
        raise ValueError("ours")
    assert not isinstance(raised.value, UserError)
    with pytest.raises(UserError, match=r"^seed=x: a whole number"), explaining(["seed=x"]):
        raise ValueError("Hydra's")
    with pytest.raises(UserError, match="of the user"), explaining(["seed=x"]):
        raise UserError("of the user")


def test_what_hydra_says_is_one_line_with_its_cause() -> None:
    error = HydraException("it is\n  wrong. Config search path: a\n b")
    error.__cause__ = ValueError("because\nof this")
    assert one_line(error) == "it is wrong. because of this"
    with pytest.raises(OmegaConfBaseException) as raised:
        OmegaConf.create({"a": {"b": "${nothing}"}}).a.b  # noqa: B018 - it is looked up here
    assert one_line(raised.value).startswith("a.b: ")
    assert "\n" not in one_line(raised.value)


def test_the_values_of_a_group_are_each_caller_s_own() -> None:
    first = group_option("hardware", "cpu")
    first["name"] = "spoiled"
    assert group_option("hardware", "cpu")["name"] == "cpu"
    with pytest.raises(UserError, match="hardware=gpu: there is no such option"):
        group_option("hardware", "gpu")
    assert "hydra" not in groups()
    assert "curriculum.images.BASIC" in key_types()


# -- absurd values -------------------------------------------------------------------------------

ABSURD = ["-1", "0", "1e-300", "1e300", "nan", "inf", "-inf", '""', "null", "[1]", "[]", "1.5"]
ABSURD += [str(2**63), str(10**400), "true", "{a:1}", "abc"]


def numeric_keys(kind: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a number, or several, with its type."""
    for name, inner, _ in fields_of(kind):
        if is_section(inner):
            yield from numeric_keys(inner, f"{prefix}{name}.")
        elif re.search(r"\b(int|float)\b", str(inner)):
            yield prefix + name, inner


@pytest.mark.parametrize("text", ABSURD, ids=lambda text: text[:24])
def test_an_absurd_number_is_refused_by_its_key_or_accepted(text: str) -> None:
    value = OverridesParser.create().parse_override(f"x={text}").value()
    closed = load(["dataset=cifar10", "evaluation=classification", "finetune=classifier"])
    for key, _ in numeric_keys():
        plain = closed if key in ("finetune.fraction", "finetune.samples") else PLAIN
        kind = type_of(having(plain, key), key)
        several = [[value]] if "list[" in str(kind) else []
        if "dict[" in str(kind):
            several = [{"BASIC": value}]
        for each in (value, *several):
            if not fits(kind, each):
                continue
            refused = ""
            try:
                validate(with_value(plain, key, each))
            except UserError as error:
                refused = str(error)
            assert key in refused or (not refused and _sensible(each)), (key, text, refused)


@pytest.mark.parametrize("text", ["[1]", "{a:1}", str(10**400)], ids=lambda text: text[:24])
def test_a_number_of_the_wrong_type_is_refused_by_its_key(text: str) -> None:
    value = OverridesParser.create().parse_override(f"x={text}").value()
    for key, kind in numeric_keys():
        said = mistake(f"{key}={text}", {})
        assert "dict" in str(kind) or (said is None) == fits(kind, value), (key, text)
        assert said is None or said.startswith(f"{key}=")


def _sensible(value: Any) -> bool:
    """What is accepted can be computed with."""
    several = value.values() if isinstance(value, dict) else value
    numbers = several if isinstance(value, (list, dict)) else [value]
    return all(n is None or isinstance(n, (bool, str)) or abs(n) <= LARGEST for n in numbers)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("views: {crop_scale: {a: 1}}", r"views\.crop_scale=.*: a list of numbers"),
        ("curriculum: {images: [1]}", r"curriculum\.images=\[1\]: \{name: value\}"),
        ("curriculum: {images: {BASIC: [1]}}", r"curriculum\.images\.BASIC=\[1\]: a whole number"),
        (f"optimizer: {{lr: {10**400}}}", r"optimizer\.lr=10{79}…: a number"),
    ],
)
def test_a_value_that_omegaconf_does_not_refuse_by_its_key(yaml: str, said: str) -> None:
    section = yaml.partition(":")[0]
    tree = dataclasses.asdict(PLAIN)
    tree[section] |= cast(Any, OmegaConf.to_container(OmegaConf.create(yaml)))[section]
    with pytest.raises(UserError) as refused:
        to_config(OmegaConf.create(tree))
    assert re.match(said, str(refused.value))
    assert len(str(refused.value)) < 200


def test_a_number_too_large_for_a_float_is_refused_on_the_command_line() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.lr=10{79}…: a number \(float\) is needed"):
        load([f"optimizer.lr={10**400}"])

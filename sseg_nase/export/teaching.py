"""From a run, a checkpoint or an exported file to a classifier that can be taught."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.home import expanded
from sseg_nase.runtime.classifier import FewShotClassifier
from sseg_nase.runtime.embedder import OnnxEmbedder


def teach(checkpoint: Path | str, overrides: Sequence[str] = ()) -> FewShotClassifier:
    """A classifier on the network of `checkpoint`: a run's folder, one of its files, or FILE.onnx.

    `classifier.add("cat", ["cat1.jpg", "cat2.jpg"])` teaches it a class, `classifier.predict(
    ["what.jpg"])` asks it. With a checkpoint the mean of the base images and the temperature are
    computed first, on the run's data set, or the one that `overrides` name, as on the command line.
    An exported file has them in it. Raises `UserError`.
    """
    from sseg_nase.config.compose import load

    given = list(overrides)
    # The checkpoint is no text for Hydra to read.
    config = dataclasses.replace(load(given), task="export", checkpoint=os.fspath(checkpoint))
    return classifier_of(config, given)


def classifier_of(config: Config, overrides: Sequence[str]) -> FewShotClassifier:
    """`teach` with `config.checkpoint`, and a config that was composed with `overrides`."""
    path = expanded("checkpoint", filled(config.checkpoint, "checkpoint"))
    if path.suffix.lower() == ".onnx":
        return FewShotClassifier(OnnxEmbedder(path, threads=config.hardware.threads))
    from sseg_nase.export.subject import prepared  # here, because of torch
    from sseg_nase.stages.served import TorchEmbedder

    subject = prepared(config, overrides, evaluated=False)
    return FewShotClassifier(TorchEmbedder(subject.network, subject.metadata))

"""ONNX with weights and activations of 8 bits: a quarter of the size, not always faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.export import onnx_file
from sseg_nase.export.formats import register
from sseg_nase.export.graph import INPUT, exporting, given
from sseg_nase.export.subject import Subject
from sseg_nase.runtime.embedder import OnnxEmbedder
from sseg_nase.statistics import paired_difference

CALIBRATION_IMAGES = 64
BATCH = 16


@register("onnx_int8", ".int8.onnx")
def write(subject: Subject, path: Path, threads: int) -> dict[str, Any]:
    """Quantize statically, calibrated on base images, and evaluate it on the same episodes.

    Per channel, QDQ, unsigned activations, signed weights. `accuracy_difference`: int8 minus
    float32 in points, paired over the episodes, with its interval.
    """
    onnx = onnx_file.package()
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    whole, ready = path.with_name("float32.onnx"), path.with_name("ready.onnx")
    try:
        onnx_file.write_graph(subject, whole)
        with exporting("onnx_int8"):
            quant_pre_process(str(whole), str(ready))
            quantize_static(
                str(ready),
                str(path),
                _Reader(calibration_images(subject), subject),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        float_bytes = whole.stat().st_size
    finally:
        whole.unlink(missing_ok=True)
        ready.unlink(missing_ok=True)
    model = onnx.load(str(path))
    onnx_file.add_metadata(model, subject, "onnx_int8")
    onnx.save(model, str(path))
    differences = accuracy_differences(subject, OnnxEmbedder(path, threads=threads))
    # Once more, now that it is known: what is printed is what the file says of itself.
    onnx_file.add_metadata(model, subject, "onnx_int8", accuracy_difference=differences)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    embedder = OnnxEmbedder(path, threads=threads)
    return {
        "accuracy_difference": differences,
        "size_ratio": path.stat().st_size / float_bytes,
        **onnx_file.latencies(embedder),
        "threads": threads,
    }


def calibration_images(subject: Subject) -> np.ndarray:
    """uint8 `[n, S, S, C]`: base images, as many of each class as there is room for."""
    base = subject.base
    each = -(-CALIBRATION_IMAGES // len(base.class_names))
    turns = [indices[:each] for indices in base.class_indices]
    chosen = np.sort(np.concatenate(turns)[:CALIBRATION_IMAGES])
    return np.asarray(base.images[chosen])


def accuracy_differences(subject: Subject, embedder: OnnxEmbedder) -> dict[str, Any]:
    """Accuracy of `embedder` minus the network's, in points, paired, by list of episodes."""
    evaluated = subject.evaluate(embedder(np.asarray(subject.store.images)))
    return {
        key: paired_difference(accuracies, subject.accuracies[key])._asdict()
        for key, accuracies in evaluated.items()
    }


class _Reader:
    """Gives onnxruntime the calibration images, batch by batch."""

    def __init__(self, images: np.ndarray, subject: Subject) -> None:
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        self._batches = iter([{INPUT: given(subject.metadata, part)} for part in parts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)

"""A network in an ONNX file, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.errors import UserError, shown
from sseg_nase.runtime.metadata import KEY, Metadata

BATCH = 64  # images embedded at once


class OnnxEmbedder:
    """The network in the file at `path`, which `task=export` wrote.

    `threads` of the CPU are used, onnxruntime's own choice without it. Raises `UserError` where the
    file is missing, damaged or of another program, and where onnxruntime is not installed.
    """

    def __init__(self, path: Path | str, *, threads: int | None = None) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(
                f"{shown(self.path)}: there is no such file. Exported networks are at "
                "RUN/export/network.onnx."
            )
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
            found = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime's own kinds share no base
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"{shown(self.path)}: onnxruntime cannot read it, so it is damaged or no ONNX file "
                f"({why}). Export the network again."
            ) from error
        self.metadata = Metadata.from_json(found.get(KEY), self.path)
        self._input = self.session.get_inputs()[0].name

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Embed uint8 `[B, S, S, C]` as float32 `[B, features]`."""
        if not len(pixels):
            return np.zeros((0, self.metadata.features), np.float32)
        batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
        return np.concatenate([self._embedded(batch) for batch in batches])

    def _embedded(self, pixels: np.ndarray) -> np.ndarray:
        given = np.ascontiguousarray(pixels)
        if self.metadata.input == "float":
            given = as_floats(given)
        [features] = self.session.run(None, {self._input: given})
        return np.asarray(features, dtype=np.float32)


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """uint8 `[B, S, S, C]` as a network without normalisation takes it: `[B, C, S, S]`."""
    scaled = pixels.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def onnxruntime() -> Any:
    """The module of that name. Raises `UserError` where it is not installed."""
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise UserError(
            "onnxruntime is needed for ONNX files and cannot be imported "
            f"({error}): pip install onnxruntime"
        ) from error
    return runtime

"""Use an exported ONNX file with onnxruntime, NumPy and Pillow, without sseg-nase.

    python onnx_file.py network.onnx support/ photo1.jpg photo2.jpg

`support/` has a folder of images per class. An image is cut square and resized as in training.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, support, *photos = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["sseg_nase"])
size, channels = about["image_size"], about["channels"]


def pixels(path: str | Path) -> np.ndarray:
    """uint8 `[size, size, channels]`."""
    """uint8 `[size, size, channels]`."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB" if channels == 3 else "L")
    width, height = image.size
    scale = size / min(width, height)
    image = image.resize(
        (max(size, int(width * scale)), max(size, int(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels)


def features(paths: list[str] | list[Path]) -> np.ndarray:
    """As the classes are told apart: `[n, features]`, normalised."""
    images = np.stack([pixels(path) for path in paths])
    if about["input"] == "float":  # else the file itself does it
        images = (images.astype(np.float32) * 2 / 255 - 1).transpose(0, 3, 1, 2)
    [found] = session.run(None, {"images": np.ascontiguousarray(images)})
    found = found.astype(np.float64)
    if about["normalize"] == "cl2n":
        found = found - np.array(about["base_mean"])
    if about["normalize"] != "none":
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return found


folders = sorted(folder for folder in Path(support).iterdir() if folder.is_dir())
means = np.stack([features(sorted(folder.iterdir())).mean(axis=0) for folder in folders])
asked = features(photos)
if about["metric"] == "cosine":
    scores = asked @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    scores = scores / np.linalg.norm(asked, axis=1, keepdims=True)
else:
    scores = -np.square(asked[:, None] - means[None]).sum(axis=2)
raised = np.exp((scores - scores.max(axis=1, keepdims=True)) / about["temperature"])
probabilities = raised / raised.sum(axis=1, keepdims=True)
for photo, row in zip(photos, probabilities, strict=True):
    print(f"{photo}: {folders[row.argmax()].name} ({100 * row.max():.1f} %)")

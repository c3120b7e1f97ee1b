"""Use an exported Python file with NumPy alone, without sseg-nase.

    python python_file.py network.py

Here two classes of noise are told apart; a photo is cut square and resized as in onnx_file.py.
"""

import importlib.util
import sys

import numpy as np

spec = importlib.util.spec_from_file_location("network", sys.argv[1])
network = importlib.util.module_from_spec(spec)
spec.loader.exec_module(network)

about = network.METADATA
size, channels = about["image_size"], about["channels"]
rng = np.random.default_rng(0)
dark = rng.integers(0, 60, (8, size, size, channels), dtype=np.uint8)
light = rng.integers(180, 256, (8, size, size, channels), dtype=np.uint8)
images = np.concatenate([dark, light])
if about["input"] == "float":
    images = (images.astype(np.float32) * 2 / 255 - 1).transpose(0, 3, 1, 2)
taught = [0, 1, 2, 8, 9, 10]
asked = [3, 4, 11, 12]
names, probabilities = network.classify(
    images[taught], ["dark", "dark", "dark", "light", "light", "light"], images[asked]
)
print(", ".join(f"{name} {p.max():.2f}" for name, p in zip(names, probabilities, strict=True)))

"""Teach an exported network classes with sseg_nase.runtime: onnxruntime, no torch.

    python runtime.py network.onnx support/ photo1.jpg photo2.jpg

`support/` has a folder of images per class.
"""

import sys
from pathlib import Path

from sseg_nase.runtime import FewShotClassifier, OnnxEmbedder

model, support, *photos = sys.argv[1:]
classifier = FewShotClassifier(OnnxEmbedder(model))
for folder in sorted(folder for folder in Path(support).iterdir() if folder.is_dir()):
    classifier.add(folder.name, sorted(folder.iterdir()))
classifier.save("classes.json")  # what it has learnt; load() brings it back, add() goes on

found = classifier.predict(photos, threshold=0.3)
for photo, name, row in zip(photos, found.names, found.probabilities, strict=True):
    print(f"{photo}: {name} ({100 * row.max():.1f} %)")

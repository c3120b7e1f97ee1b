"""An exported network at work: embed images, learn classes from a few photos, predict.

Needs NumPy, Pillow and onnxruntime; nothing here loads torch.
"""

from sseg_nase.runtime.classifier import UNKNOWN, FewShotClassifier, Prediction
from sseg_nase.runtime.embedder import OnnxEmbedder
from sseg_nase.runtime.metadata import Metadata

__all__ = ["UNKNOWN", "FewShotClassifier", "Metadata", "OnnxEmbedder", "Prediction"]

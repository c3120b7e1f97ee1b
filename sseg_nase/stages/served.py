"""The network of a finished run as a model of MLflow's pyfunc flavour, written without MLflow.

`mlflow.pyfunc.load_model("runs:/RUN_ID/model")` loads it by `_load_pyfunc`. Its input is a table
with the columns `image` (the bytes of an image file) and, where classes are to be told apart,
`label`: rows with a label are the support, rows without are named after it. Without labels it
gives features.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image

from sseg_nase.config.groups.dataset import Drawings, OnDisk
from sseg_nase.config.schema import Config
from sseg_nase.data.opening import PLAIN
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.files import write_json, write_text, writing
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.own import registered_by
from sseg_nase.rundir.names import MODEL
from sseg_nase.runtime.classifier import FewShotClassifier
from sseg_nase.runtime.metadata import Metadata
from sseg_nase.training import checkpoint
from sseg_nase.version import __version__

if TYPE_CHECKING:
    import pandas as pd

NETWORK, RULE = "network.pt", "rule.json"
EXAMPLE = "input_example.json"
COLUMNS = [
    {"type": "binary", "name": "image", "required": True},
    {"type": "string", "name": "label", "required": False},
]


class TorchEmbedder:
    """A checkpoint's network as the runtime uses one: uint8 `[B, S, S, C]` → `[B, features]`."""

    def __init__(self, network: Backbone, metadata: Metadata) -> None:
        self.network = network
        self.metadata = metadata

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Embed uint8 `[B, S, S, C]` as float32 `[B, features]`."""
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
            features = [self.network(normalize(part)) for part in images.split(64)]
            return np.asarray(torch.cat(features).float())


def metadata_of(
    config: Config,
    backbone: Backbone,
    mean: torch.Tensor | None,
    temperature: float,
    about: Mapping[str, Any],
) -> Metadata:
    """All that is needed to use `backbone` as `task=evaluate` does; `mean` `[features]` of base."""
    architecture = backbone.architecture
    dataset = config.dataset
    value_range = dataset.value_range if isinstance(dataset, OnDisk) else None
    return Metadata(
        image_size=architecture.resolution,
        channels=architecture.in_channels,
        features=architecture.features,
        input=config.export.input,
        reading={
            "background": list(dataset.background or PLAIN.background),
            "value_range": None if value_range is None else list(value_range),
            "drawing": isinstance(dataset, Drawings),
            "invert": isinstance(dataset, Drawings) and dataset.invert,
        },
        normalize=config.evaluation.normalize,
        base_mean=None if mean is None else mean.tolist(),
        metric=config.evaluation.metric,
        temperature=temperature,
        weights=_digest(backbone, mean),
        about=about,
    )


def write_model(
    run: Path,
    config: Config,
    backbone: Backbone,
    mean: torch.Tensor | None,
    examples: ImageStore,
    run_id: str | None,
) -> None:
    """Write `model/` in the folder of a run.

    `mean` of the base split that its evaluation took off features; two of `examples` show what it
    takes. Raises `StorageError`.
    """
    folder = run / MODEL
    with writing(folder):
        (folder / "data").mkdir(parents=True, exist_ok=True)
    weights = {f"backbone.{name}": one.cpu() for name, one in backbone.state_dict().items()}
    payload = {"architecture": backbone.architecture.to_dict(), "student": weights}
    checkpoint.save(folder / "data" / NETWORK, payload)
    about: dict[str, Any] = {"version": __version__, "run": run.name, "run_id": run_id}
    about["imports"] = config.backbone.imports
    # Only names are given, no confidences: the temperature is not fitted.
    metadata = metadata_of(config, backbone, mean, 1.0, about)
    write_json(folder / "data" / RULE, json.loads(metadata.to_json()))
    rows = [[_encoded(np.asarray(examples.images[index])), None] for index in range(2)]
    names = [column["name"] for column in COLUMNS]
    write_json(folder / EXAMPLE, {"columns": names, "data": rows})
    requirements = [f"sseg-nase=={__version__}", f"mlflow=={version('mlflow')}"]
    write_text(folder / "requirements.txt", "\n".join(requirements) + "\n")
    env = {"python": python_version(), "dependencies": ["-r requirements.txt"]}
    write_text(folder / "python_env.yaml", yaml.safe_dump(env))
    described = {
        "artifact_path": MODEL,
        "run_id": run_id,
        "model_uuid": uuid.uuid4().hex,
        "mlflow_version": version("mlflow"),
        "utc_time_created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "signature": {"inputs": json.dumps(COLUMNS), "outputs": None, "params": None},
        "saved_input_example_info": {
            "artifact_path": EXAMPLE,
            "type": "dataframe",
            "pandas_orient": "split",
        },
        "flavors": {
            "python_function": {
                "loader_module": __name__,
                "data": "data",
                "env": {"virtualenv": "python_env.yaml"},
                "python_version": python_version(),
            }
        },
    }
    write_text(folder / "MLmodel", yaml.safe_dump(described))


class Served:
    """What `mlflow.pyfunc` calls."""

    def __init__(self, embedder: TorchEmbedder) -> None:
        self.embedder = embedder

    def predict(self, table: pd.DataFrame, params: Any = None) -> Any:
        """Features float32 `[n, D]` of the images; with labels a table of the other rows' labels.

        Raises `UserError` for images that cannot be read, and for fewer than two classes.
        """
        labels = table.get("label")
        with tempfile.TemporaryDirectory() as folder:
            files = _files(table["image"], Path(folder))
            if labels is None or labels.isna().all():
                return self.embedder(self.embedder.metadata.batch(files))
            classifier = FewShotClassifier(self.embedder)
            for name in labels.dropna().unique():
                given = [file for file, label in zip(files, labels, strict=True) if label == name]
                classifier.add(str(name), given)
            asked = labels.isna()
            if not asked.any():
                raise UserError(
                    "label: every row has one; rows without a label are those to be named."
                )
            unnamed = [file for file, ask in zip(files, asked, strict=True) if ask]
            found = classifier.predict(unnamed)
        import pandas as pd

        return pd.DataFrame({"label": found.names}, index=table.index[asked])


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the folder `data` of the model."""
    folder = Path(path)
    rule = folder / RULE
    metadata = Metadata.from_json(rule.read_text(encoding="utf-8"), rule)
    registered_by("backbone.imports", metadata.about["imports"])
    network = checkpoint.backbone_of(folder / NETWORK).for_inference()
    return Served(TorchEmbedder(network, metadata))


def _files(images: Sequence[bytes], folder: Path) -> list[Path]:
    """Bytes as files: they are read as the images of a data set are."""
    found = []
    for number, content in enumerate(images):
        path = folder / f"row {number}"
        path.write_bytes(content)
        found.append(path)
    return found


def _encoded(pixels: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")


def _digest(network: Backbone, mean: torch.Tensor | None) -> str:
    """16 hexadecimal digits of the weights and the base mean: what features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    if mean is not None:
        digest.update(mean.numpy().tobytes())
    return digest.hexdigest()[:16]

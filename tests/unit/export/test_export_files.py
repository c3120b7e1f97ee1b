"""Exported files: what they say is what was measured, and they compute what the network does."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import Config
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.export import graph, onnx_file, python_file, task
from sseg_nase.export.formats import FORMATS
from sseg_nase.export.onnx_int8 import accuracy_differences, calibration_images
from sseg_nase.export.origin import as_trained
from sseg_nase.export.subject import Subject
from sseg_nase.export.task import _fastest, export, line
from sseg_nase.export.teaching import teach
from sseg_nase.fewshot.classifiers import cl2n, prototype_scores
from sseg_nase.fewshot.evaluation import embed
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.runtime import FewShotClassifier, OnnxEmbedder
from sseg_nase.stages import FewShotTask, seed_backbone
from sseg_nase.training.checkpoint import load_network
from tests.support.taken_home import asked, config_of, exported, photos

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"


# -- what is said ----------------------------------------------------------------------------------


def test_the_accuracy_is_that_of_the_evaluation(run: Path, results: dict, said: str) -> None:
    config = config_of()
    evaluated = FewShotTask(config, config.dataset).evaluate(load_network(run), torch.device("cpu"))
    for key, one in evaluated.results.items():
        told = results["network"]["accuracy"][key]
        for figure in ("accuracy", "ci95", "episodes"):
            assert told[figure] == pytest.approx(one[figure], abs=1e-9)
        assert f"{key}: {one['accuracy']:.2f} ± {one['ci95']:.2f} %, 600 episodes\n" in said
    assert set(results["network"]["accuracy"]) == {"digits/val/5w5s"}


def test_what_is_printed_is_what_was_measured(files: Path, results: dict, said: str) -> None:
    assert set(results["files"]) == {"onnx", "onnx_int8", "pt2", "python", "html"}
    for figures in results["files"].values():
        path = files / figures["file"]
        assert figures["bytes"] == path.stat().st_size
        assert f"{path}: {line(figures)}\n" in said
    assert sorted(path.name for path in files.iterdir()) == sorted(
        ["export.json", *(figures["file"] for figures in results["files"].values())]
    )
    int8, float32 = (results["files"][name] for name in ("onnx_int8", "onnx"))
    for ratio, of in {
        "size_ratio": "bytes",
        "latency_ratio": "latency_ms_b1",
        "latency_ratio_b64": "latency_ms_b64",
    }.items():
        assert int8[ratio] == pytest.approx(int8[of] / float32[of], rel=1e-9)


def test_a_line_has_each_figure_in_its_place() -> None:
    figures = {
        "bytes": 40_100,
        "size_ratio": 0.4437,
        "difference": 2.6e-7,
        "accuracy_difference": {
            "digits/val/5w1s": {"mean": -0.031, "ci95": 0.214},
            "digits/val/5w5s": {"mean": 0.052, "ci95": 0.16},
        },
        "latency_ms_b1": 0.04214,
        "latency_ms_b64": 1.0712,
        "threads": 2,
        "latency_ratio": 1.2249,
    }
    assert line(figures) == (
        "40.1 kB, 0.44 of float32, differs from torch by 3e-07 of the largest feature, "
        "-0.03 ± 0.21 points on digits/val/5w1s, +0.05 ± 0.16 points on digits/val/5w5s, "
        "0.0421 ms an image, 1.07 ms for 64 (2 threads), 1.22 of the time of float32"
    )
    assert line({"bytes": 900}) == "900 bytes"


def test_a_latency_is_the_median_of_the_passes_that_are_timed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, passes = [0.0], list[int]()

    class Embedder:
        metadata = subject.metadata

        def __call__(self, pixels: np.ndarray) -> None:
            passes.append(len(pixels))
            before = passes.count(len(pixels)) - 1
            # Slow until it is warm; then 1, 4, 9, ... ms an image.
            warm = before - onnx_file.WARMUP + 1
            clock[0] += len(pixels) * (100 if warm < 1 else 0.001 * warm**2)

    with monkeypatch.context() as ours:
        ours.setattr(onnx_file.time, "perf_counter", lambda: clock[0])
        found = onnx_file.latencies(Embedder())  # type: ignore[arg-type]
    middle = (onnx_file.REPEATS + 1) // 2
    assert found == {
        "latency_ms_b1": pytest.approx(middle**2),
        "latency_ms_b64": pytest.approx(64 * middle**2),
    }


def test_the_difference_of_int8_is_that_of_the_file(
    files: Path, results: dict, subject: Subject, said: str
) -> None:
    embedder = OnnxEmbedder(files / "network.int8.onnx")
    found = accuracy_differences(subject, embedder)
    for key, one in results["files"]["onnx_int8"]["accuracy_difference"].items():
        assert one["mean"] == pytest.approx(found[key]["mean"], abs=1e-9)
        ours = subject.evaluate(embedder(np.asarray(subject.store.images)))[key]
        apart = ours - subject.accuracies[key]
        assert one["mean"] == pytest.approx(apart.mean(), abs=1e-9)
        assert one["ci95"] == pytest.approx(1.96 * apart.std(ddof=1) / len(apart) ** 0.5, abs=1e-3)
        assert f"{one['mean']:+.2f} ± {one['ci95']:.2f} points on {key}" in said
    assert embedder.metadata.about["accuracy_difference"] == found


def test_a_file_says_of_itself_what_it_is(files: Path, run: Path, results: dict) -> None:
    metadata = OnnxEmbedder(files / "network.onnx").metadata
    architecture = load_network(run).architecture
    assert (metadata.image_size, metadata.channels, metadata.features) == (8, 3, 6)
    assert metadata.about["architecture"] == json.loads(json.dumps(architecture.to_dict()))
    assert metadata.about["params"] == architecture.params
    assert metadata.about["macs"] == architecture.macs()
    assert (metadata.about["run"], metadata.about["run_id"]) == ("a-run", "an id")
    assert metadata.about["checkpoint"] == "last.pt"
    assert metadata.about["accuracy"] == results["network"]["accuracy"]
    assert metadata.about["format"] == "onnx"
    assert OnnxEmbedder(files / "network.int8.onnx").metadata.about["format"] == "onnx_int8"


def test_int8_is_calibrated_on_base_images(subject: Subject) -> None:
    chosen = calibration_images(subject)
    base = {image.tobytes() for image in np.asarray(subject.base.images)}
    assert len(chosen) == 64
    assert all(image.tobytes() in base for image in chosen)
    assert {"0", "4"} <= set(subject.base.class_names)  # not the digits of val


def test_files_and_figures_go_to_the_mlflow_run(
    run: Path, files: Path, results: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def attached(*given: Any) -> str:
        told.append(given)
        return "said"

    monkeypatch.setattr(task, "attached", attached)
    said: list[str] = []
    task._hand_over(asked(run), files, results["files"], said.append)
    [(of, placed, _, folder, figures)] = told
    assert (of, folder, said) == (run, files, ["MLflow: said"])
    assert set(placed) == {(path, "export") for path in files.iterdir()}
    int8 = results["files"]["onnx_int8"]
    for key in ("bytes", "latency_ms_b1", "latency_ratio", "size_ratio"):
        assert figures[f"export/onnx_int8/{key}"] == int8[key]
    [key] = int8["accuracy_difference"]
    mean = int8["accuracy_difference"][key]["mean"]
    assert figures[f"export/onnx_int8/accuracy_difference/{key}"] == mean
    assert figures["export/pt2/difference"] == results["files"]["pt2"]["difference"]
    told.clear()
    task._hand_over(asked(files / "network.onnx.elsewhere"), files, results["files"], said.append)
    assert [of for of, *_ in told] == [run]
    task._hand_over(asked(run.parent), files, results["files"], said.append)
    assert len(told) == 1


# -- what is computed ------------------------------------------------------------------------------


def test_six_hundred_episodes_through_the_file_are_those_of_the_evaluation(files: Path) -> None:
    config = config_of()
    task = FewShotTask(config, config.dataset)
    network = load_network(files.parent)
    [accuracies] = task.evaluate(network, torch.device("cpu")).accuracies.values()
    classifier = FewShotClassifier(OnnxEmbedder(files / "network.onnx", threads=1))
    images, [episodes] = np.asarray(task.store.images), task.episodes
    assert len(episodes) == 600
    found = []
    for support, query, labels in zip(
        episodes.support, episodes.query, episodes.labels, strict=True
    ):
        for name in classifier.classes:
            classifier.remove(name)
        for way, chosen in enumerate(support):
            classifier.add(str(way), images[chosen])
        taken = classifier.scores(images[query.reshape(-1)]).argmax(axis=1)
        found.append(100 * (taken == labels).mean())
    assert np.array_equal(found, accuracies)
    # The scores of the last one.
    assert task.base is not None
    ours = classifier.scores(images[query.reshape(-1)])

    def features(store: object) -> torch.Tensor:
        return embed(network, store, batch_size=64, device="cpu", preprocess=normalize)  # type: ignore[arg-type]

    every = cl2n(features(task.store), features(task.base).mean(0))
    theirs = prototype_scores(
        every[torch.tensor(support)][None], every[torch.tensor(query.reshape(-1))][None], "cosine"
    )
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


def test_a_checkpoint_and_its_file_teach_alike(files: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path)
    found = []
    for source in (files.parent, files / "network.onnx"):
        classifier = teach(source)
        for each in sorted((folder / "support").iterdir()):
            classifier.add(each.name, sorted(each.iterdir()))
        found.append(classifier.predict(sorted((folder / "query").iterdir())))
    assert found[0].names == found[1].names
    np.testing.assert_allclose(found[0].probabilities, found[1].probabilities, atol=1e-4)
    # What one has learnt the other takes up.
    classifier.save(tmp_path / "classes.json")
    teach(files / "network.onnx").load(tmp_path / "classes.json")


def test_the_python_file_classifies_as_the_classifier_does(files: Path) -> None:
    module = python_file.imported(files / "network.py")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 8, 8, 3), np.uint8)
    classifier = FewShotClassifier(OnnxEmbedder(files / "network.onnx"))
    classifier.add("a", images[:3])
    classifier.add("b", images[3:6])
    names, probabilities = module.classify(images[:6], list("aaabbb"), images[6:])
    expected = classifier.predict(images[6:])
    assert names.tolist() == expected.names
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
    with pytest.raises(TypeError, match="uint8 is needed"):
        module.embed(images.astype(np.float32))


@pytest.mark.parametrize(
    ("example", "suffix"),
    [
        *(("onnx_file", ".onnx"), ("onnx_file", ".int8.onnx"), ("runtime", ".onnx")),
        ("python_file", ".py"),
        pytest.param("pt2_file", ".pt2", marks=pytest.mark.slow),
    ],
)
def test_the_examples_run_without_the_package(
    files: Path, tmp_path: Path, example: str, suffix: str
) -> None:
    folder = photos(tmp_path)
    asked = [str(path) for path in sorted((folder / "query").iterdir())]
    arguments = [str(files / f"network{suffix}")]
    if suffix.endswith(".onnx"):
        arguments += [str(folder / "support"), *asked]
    banned = ["torch"] if example != "pt2_file" else []
    banned += ["sseg_nase"] if example != "runtime" else ["filelock"]
    banned += ["onnxruntime", "PIL"] if example == "python_file" else []
    path = str(EXAMPLES.parents[1]) if example == "runtime" else ""
    code = (
        "import runpy, sys\n"
        f"for name in {banned!r}: sys.modules[name] = None\n"
        f"sys.argv = {[example, *arguments]!r}\n"
        f"runpy.run_path({str(EXAMPLES / (example + '.py'))!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if suffix.endswith(".onnx"):
        classifier = FewShotClassifier(OnnxEmbedder(files / f"network{suffix}"))
        for each in sorted((folder / "support").iterdir()):
            classifier.add(each.name, sorted(each.iterdir()))
        found = classifier.predict(asked, threshold=0.3)
        if example == "onnx_file":
            found = classifier.predict(asked)
        printed = re.findall(r": (.+) \((.+) %\)", done.stdout)
        assert [name for name, _ in printed] == found.names
        best = 100 * found.probabilities.max(axis=1)
        np.testing.assert_allclose([float(p) for _, p in printed], best, atol=0.06)
    elif example == "python_file":
        assert re.findall("[a-z]+", done.stdout) == ["dark", "dark", "light", "light"]


# -- mistakes --------------------------------------------------------------------------------------


def refused(checkpoint: Path, output: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        export(asked(checkpoint, output=str(output), **options), [], print)
    return str(error.value)


def test_checkpoints_that_are_none_are_refused(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "no such file or folder" in refused(tmp_path / "gone", output)
    (tmp_path / "bad.pt").write_bytes(b"PK damaged")
    said = refused(tmp_path / "bad.pt", output)
    assert "not a checkpoint of sseg-nase, or damaged" in said
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    said = refused(tmp_path / "foreign.pt", output)
    assert "not a checkpoint of this version" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(run, tmp_path / "file" / "x")
    assert "cannot be written" in said


def test_a_missing_extra_is_said_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refused(run, tmp_path / "out")
    assert "pip install 'sseg-nase[export]'" in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_computes_otherwise_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "expected", lambda subject, pixels: np.ones((len(pixels), 6)))
    (tmp_path / "out").mkdir()
    said = refused(run, tmp_path / "out", formats=["pt2"])
    assert "differ from the network's" in said
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("batch", graph.BATCHES)
def test_every_batch_is_compared(subject: Subject, batch: int) -> None:
    found = {
        each: graph.expected(subject, graph.random_images(subject.metadata, each))
        for each in graph.BATCHES
    }
    assert graph.check_parity("onnx", found, subject) == 0
    found[batch] = found[batch].copy()
    found[batch][-1, 0] += 2e-5 * np.abs(found[batch]).max()
    with pytest.raises(UserError, match=f"at a batch of {batch}"):
        graph.check_parity("onnx", found, subject)
    found[batch][-1, 0] = np.nan
    with pytest.raises(UserError, match=f"at a batch of {batch}"):
        graph.check_parity("onnx", found, subject)


def test_what_torch_cannot_export_is_said() -> None:
    said = r"export.formats=onnx: .* \(no such operation\)"
    with pytest.raises(UserError, match=said), graph.exporting("onnx"):
        raise RuntimeError("no such\n operation")


# -- choices ---------------------------------------------------------------------------------------


def test_only_the_faster_is_kept() -> None:
    found = {
        name: {"latency_ms_b1": time, "file": f"{name}.x"}
        for name, time in {"onnx": 2.0, "onnx_int8": 1.0, "pt2": 0.0}.items()
    }
    kept, slower = _fastest({**found, "pt2": {"file": "pt2"}}, lambda text: None)
    assert (set(kept), slower) == ({"onnx_int8", "pt2"}, "onnx.x")


def test_an_export_keeps_what_is_said_of_other_files(files: Path, results: dict) -> None:
    exported(files.parent, formats=["pt2"])
    again = json.loads((files / "export.json").read_text())
    assert again["files"]["onnx"] == results["files"]["onnx"]
    assert set(again["files"]) == set(results["files"])


def test_data_set_and_episodes_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    usual = dataclasses.replace(load(["task=export", "checkpoint=x"]), checkpoint=str(run))
    assert (usual.dataset.image_size, usual.evaluation.shots) == (32, [1, 5])

    def found(*given: str, config: Config = usual) -> tuple[int, int, list[int] | None]:
        config = as_trained(config, given)
        return config.dataset.image_size, config.evaluation.episodes, config.evaluation.shots

    few = dataclasses.replace(usual.evaluation, episodes=20)
    asked_for = dataclasses.replace(usual, evaluation=few)
    assert found() == (8, 600, [5])
    assert found("evaluation.episodes=20", config=asked_for) == (8, 20, [5])
    assert found("dataset.image_size=32") == (32, 600, [5])
    assert found("dataset=digits") == (32, 600, [5])
    assert found("experiment=quickstart") == (32, 600, [1, 5])
    alone = dataclasses.replace(usual, checkpoint=str(tmp_path / "a" / "b" / "alone.pt"))
    assert as_trained(alone, []) == alone


# -- every family ----------------------------------------------------------------------------------

FAMILIES = [name for name in options_of(BackboneConfig) if name != "vit_small"]
# Small RGB images as they are, and larger grey ones that are normalised already.
TAKEN = [
    *((name, 32, "uint8") for name in FAMILIES),
    *((name, 84, "float") for name in FAMILIES),
    *(("vit_small", 32, "uint8"), ("vit_small", 224, "float")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "taken"), TAKEN)
def test_every_family_is_exported(
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    size: int,
    taken: str,
) -> None:
    monkeypatch.setattr(onnx_file, "REPEATS", 1)  # how fast it is, is not looked at
    monkeypatch.setattr(onnx_file, "WARMUP", 0)
    channels = 1 if taken == "float" else 3
    given = [f"backbone={name}", f"dataset.image_size={size}", f"dataset.channels={channels}"]
    given += [f"backbone.in_channels={channels}", "evolution=none", "sparsity=none"]
    config = load(given)
    network = seed_backbone(config).for_inference()
    metadata = dataclasses.replace(
        subject.metadata,
        image_size=size,
        channels=channels,
        features=network.architecture.features,
        input=taken,
        base_mean=[0.0] * network.architecture.features,
    )
    here = dataclasses.replace(subject, network=network, metadata=metadata)
    for form in ("onnx", "pt2", "python", "html"):
        path = tmp_path / f"network{FORMATS[form].suffix}"
        assert FORMATS[form].write(here, path, 1)["difference"] <= 1e-5


def test_no_transformer_takes_the_batch_for_granted() -> None:
    shape = ViTArchitecture("vit_small", 8, 3, 4, hidden=24, layers=2, heads=2, mlp=32)
    network = shape.network(None).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(images), network(images))

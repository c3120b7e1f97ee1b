"""The page in a real browser, opened as a double click does: it predicts what Python predicts."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import names_with
from sseg_nase.errors import UserError
from sseg_nase.export import html_file, runner
from sseg_nase.export.formats import FORMATS
from sseg_nase.export.graph import expected
from sseg_nase.export.subject import Subject
from sseg_nase.runtime import FewShotClassifier, OnnxEmbedder, rule
from sseg_nase.stages import images_of, seed_backbone
from tests.support.headless import Browser, needs_chromium
from tests.support.taken_home import config_of

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, files: Path) -> Browser:
    """The exported page, freshly opened."""
    browser.requests.clear()
    browser.told.clear()
    browser.open(files / "network.html")
    return browser


def photos(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Photos of digits, of all sizes and kinds: five classes of five, and ten more of each."""
    store = images_of(config_of(), config_of().dataset, "val")
    rng = np.random.default_rng(0)
    support: dict[str, list[Path]] = {}
    queries = []
    for label in range(5):
        # A name that is a number comes first in any object of JavaScript.
        name = f"{10 - label}" if label % 2 else f"digit „{label}“ <b>"
        for number, index in enumerate(store.class_indices[label][:15]):
            wide, high = (int(side) for side in rng.integers(9, 90, 2))
            image = Image.fromarray(store.images[index]).resize((wide, high))
            path = folder / f"{label}_{number}.{'jpg' if number % 3 == 0 else 'png'}"
            if number % 3 == 0:
                turned = Image.Exif()
                turned[0x0112] = 1 + number % 8  # the orientation
                image.save(path, quality=92, exif=turned)
            else:
                if number % 5 == 1:
                    image.putalpha(Image.linear_gradient("L").resize(image.size))
                image.convert("L" if number % 5 == 2 else image.mode).save(path)
            (support.setdefault(name, []) if number < 5 else queries).append(path)
    return support, queries


def taught(page: Browser, support: dict[str, list[Path]]) -> None:
    """Do on the page what its user does."""
    while page.run("document.querySelectorAll('.class').length") < len(support):
        page.run("document.getElementById('add-class').click()")
    for number, (name, files) in enumerate(support.items()):
        card = f"document.querySelectorAll('.class')[{number}]"
        page.run(
            f"(() => {{ const input = {card}.querySelector('input');"
            f"input.value = {json.dumps(name)}; input.onchange(); }})()"
        )
        page.give(f"{card}.querySelector('input[type=file]')", files)
        page.until(f"{card}.querySelectorAll('.photo').length === {len(files)}")


def asked(page: Browser, files: Sequence[Path]) -> list[dict[str, Any]]:
    page.give("document.getElementById('ask-input')", list(files))
    page.until(f"fewshot.answers().length === {len(files)}")
    found: list[dict[str, Any]] = page.run("fewshot.answers()")
    return found


def classifier_of(files: Path, support: dict[str, list[Path]]) -> FewShotClassifier:
    classifier = FewShotClassifier(OnnxEmbedder(files / "network.onnx"))
    for name, paths in support.items():
        classifier.add(name, paths)
    return classifier


# -- what is computed ------------------------------------------------------------------------------


@needs_chromium
def test_fifty_photos_are_named_as_in_python(page: Browser, files: Path, tmp_path: Path) -> None:
    support, queries = photos(tmp_path)
    taught(page, support)
    found = asked(page, queries)
    theirs = classifier_of(files, support).predict(queries)
    assert [one["label"] for one in found] == [path.name for path in queries]
    same = [one["name"] == name for one, name in zip(found, theirs.names, strict=True)]
    assert sum(same) >= 49
    for one, row in zip(found, theirs.probabilities, strict=True):
        ours = {each["name"]: each["share"] for each in one["ranked"]}
        np.testing.assert_allclose([ours[name] for name in theirs.classes], row, atol=1e-2)
    # What is read is what was computed.
    shown = page.run("document.querySelectorAll('.answer .best')[7].textContent")
    assert shown == f"{found[7]['name']} {100 * found[7]['confidence']:.1f} %"
    # It has asked for nothing but itself, and had nothing to complain of.
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    assert [url for url in page.requests if url.startswith("file")] == [
        (files / "network.html").as_uri()
    ]
    assert page.told == []
    assert page.run("document.getElementById('alerts').textContent") == ""
    assert page.run("fewshot.checked")["worst"] < 1e-5


@needs_chromium
def test_nothing_can_leave_the_page(page: Browser) -> None:
    # By the page's own policy, before anything is asked for.
    page.run(
        "(() => {"
        "const found = window.keptBack = new Set(), there = 'http://127.0.0.1:9/';"
        "addEventListener('securitypolicyviolation',"
        " (event) => found.add(event.effectiveDirective));"
        "fetch(there).catch(() => 0);"
        "new Image().src = there;"
        "for (const [tag, rest] of [['script', {src: there}], ['script', {textContent: '1'}],"
        "['iframe', {src: there}], ['video', {src: there}], ['style', {textContent: 'p {}'}]])"
        "document.body.append(Object.assign(document.createElement(tag), rest)); })()"
    )
    elements = ["frame-src", "img-src", "media-src", "script-src-elem", "style-src-elem"]
    page.until(f"keptBack.size >= {1 + len(elements)}")
    assert page.run("[...keptBack].sort()") == ["connect-src", *elements]


@needs_chromium
def test_another_browser_that_computes_otherwise_is_told(
    browser: Browser, files: Path, tmp_path: Path
) -> None:
    text = (files / "network.html").read_text(encoding="utf-8")
    [before, after] = text.split('"expected": [')
    (tmp_path / "other.html").write_text(f'{before}"expected": [9, {after}', encoding="utf-8")
    browser.open(tmp_path / "other.html")
    browser.run("fewshot.checked")
    said = browser.run("document.getElementById('alerts').textContent")
    assert "its answers are wrong" in said


@needs_chromium
def test_pixels_are_those_of_pillow(page: Browser, subject: Subject, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (7, 9), (64, 64), (333, 200), (200, 333), (5, 40), (3, 400), (1201, 1100)]
    paths = []
    for number, (wide, high) in enumerate(sizes):
        coarse = rng.integers(0, 256, (high // 3 + 1, wide // 3 + 1, 3), np.uint8)
        image = Image.fromarray(coarse).resize((wide, high), Image.Resampling.NEAREST)
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.open(paths[3])
    clear.putalpha(Image.radial_gradient("L").resize(clear.size))
    extra = [tmp_path / "clear.png", tmp_path / "turned.jpg", tmp_path / "grey.png"]
    clear.save(extra[0])
    Image.open(paths[4]).save(extra[1], exif=turned)
    Image.open(paths[3]).convert("L").save(extra[2])
    page.run(
        "document.body.append(Object.assign(document.createElement('input'),"
        "{type: 'file', multiple: true, id: 'probe'}))"
    )
    page.give("document.getElementById('probe')", [*paths, *extra])
    plain = {"background": [250, 240, 230], "value_range": None, "drawing": False, "invert": False}
    drawing = {**plain, "drawing": True, "invert": True}
    for side, channels, reading in ((8, 3, plain), (33, 1, plain), (28, 1, drawing)):
        how = dataclasses.replace(
            subject.metadata, image_size=side, channels=channels, reading=reading
        )
        told = json.dumps({"image_size": side, "channels": channels, "reading": reading})
        found = page.run(
            "Promise.all([...document.getElementById('probe').files].map(async (file) =>"
            f" Array.from(await fewshot.pixelsOf(file, {told}))))"
        )
        for path, pixels in zip([*paths, *extra], found, strict=True):
            theirs = how.pixels(path).reshape(-1).astype(int)
            apart = np.abs(np.array(pixels) - theirs).max()
            # Decoders of JPEG and the mixing of transparent pixels may differ by rounding, and so
            # may means of areas, which Python takes in float32.
            allowed = 2 if path in extra else int(reading is drawing)
            assert apart <= allowed, (path.name, side, reading)


def graph_input(array: np.ndarray | None) -> str:
    if array is None:
        return "null"
    kind = {"f": "Float32Array", "u": "Uint8Array"}.get(array.dtype.kind, "Int32Array")
    values = json.dumps(array.reshape(-1).tolist())
    return f"fewshot.tensor({json.dumps(list(array.shape))}, {kind}.from({values}))"


def cases() -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Every operation, with inputs and attributes."""
    rng = np.random.default_rng(0)

    def x(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def n(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    image, row = x(2, 4, 7, 6), x(3, 5)
    scale, bias, mean, variance = x(4), x(4), x(4), np.abs(x(4)) + 1
    one = np.float32(0.5).reshape(())
    pooled: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    halved: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    found: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("Conv", [image, x(5, 4, 3, 3), x(5)], {"pads": [1, 1, 1, 1]}),
        ("Conv", [image, x(6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 0]}),
        ("Conv", [image, x(4, 1, 3, 3), x(4)], {"group": 4, "dilations": [2, 2]}),
        ("Conv", [image, x(7, 4, 1, 1), x(7)], {"strides": [2, 2]}),
        ("MaxPool", [image], pooled),
        ("MaxPool", [image], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", [image], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("MaxPool", [image], {**halved, "pads": [1, 0, 1, 0]}),
        ("AveragePool", [image], pooled),
        ("AveragePool", [image], {**pooled, "count_include_pad": 1}),
        ("AveragePool", [image], halved),
        ("AveragePool", [image], {**halved, "count_include_pad": 1}),
        ("AveragePool", [image], {**halved, "pads": [1, 0, 1, 0], "count_include_pad": 1}),
        ("GlobalAveragePool", [image], {}),
        ("BatchNormalization", [image, scale, bias, mean, variance], {"epsilon": 1e-3}),
        ("LayerNormalization", [row, x(5), x(5)], {"axis": -1, "epsilon": 1e-6}),
        ("LayerNormalization", [row, x(5)], {}),
        ("Gemm", [row, x(4, 5), x(4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Gemm", [row, x(3, 4)], {"transA": 1}),
        ("MatMul", [x(2, 3, 4, 5), x(3, 5, 2)], {}),
        ("Clip", [row, one, None], {}),
        ("Clip", [row, None, one], {}),
        ("Clip", [row], {}),
        ("Cast", [np.array([[3, 250]], np.uint8)], {"to": 1}),
        ("Cast", [np.float32([1.7, -1.7])], {"to": 7}),
        ("Concat", [image, x(2, 1, 7, 6)], {"axis": 1}),
        ("Concat", [row, row], {"axis": -1}),
        ("Div", [n(7, -7, 9), n(2, 2, 3)], {}),
        ("Div", [row, x(5)], {}),
        ("Expand", [x(3, 1), n(2, 1, 4)], {}),
        ("Flatten", [image], {"axis": 2}),
        ("Gather", [image, n(3, 0, -1)], {"axis": 1}),
        ("Gather", [row, np.array(1)], {}),
        ("Gelu", [row], {}),
        ("Gelu", [row], {"approximate": "tanh"}),
        ("Elu", [row], {"alpha": 0.7}),
        ("Elu", [row], {}),
        ("HardSigmoid", [4 * row], {"alpha": 1 / 6}),
        ("HardSigmoid", [4 * row], {}),
        ("HardSwish", [4 * row], {}),
        ("LeakyRelu", [row], {"alpha": 0.1}),
        ("LeakyRelu", [row], {}),
        ("Pad", [row, n(1, 0, 2, 3)], {}),
        ("Pad", [row, n(1, 2), one, n(-1)], {}),
        ("Pow", [np.abs(row), np.float32([2, 1, 0, 3, 0.5])], {}),
        ("Range", [np.array(2), np.array(9), np.array(3)], {}),
        ("Range", [np.array(4), np.array(-1), np.array(-2)], {}),
        ("Reshape", [image, n(0, -1, 3)], {}),
        ("Shape", [image], {"start": 1, "end": 3}),
        ("Shape", [image], {}),
        ("Slice", [image, n(1, -5), n(2**31 - 1, -1), n(1, 2)], {}),
        ("Slice", [image, n(6), n(0), n(2), n(-2)], {}),
        ("Slice", [image, n(-1), n(-100), n(2), n(-1)], {}),
        ("Slice", [image, n(0, 1), n(2, 3)], {}),
        ("Softmax", [x(2, 3, 4)], {"axis": 1}),
        ("Split", [image, n(1, 3)], {"axis": 1}),
        ("Split", [image], {"axis": 2, "num_outputs": 3}),
        ("Squeeze", [x(1, 3, 1), n(-1)], {}),
        ("Squeeze", [x(1, 3, 1)], {}),
        ("Transpose", [image], {"perm": [0, 2, 3, 1]}),
        ("Unsqueeze", [row, n(0, -1)], {}),
    ]
    found += [(name, [image, x(4, 1, 1)], {}) for name in ("Add", "Sub", "Mul")]
    found += [("Add", [row, row], {})]
    found += [(name, [row], {}) for name in ("Exp", "Identity", "Neg", "Relu", "Sigmoid", "Tanh")]
    found += [("Selu", [row], {}), ("Selu", [row], {"alpha": 1.5, "gamma": 1.1})]
    found += [("Sqrt", [np.abs(row)], {}), ("Erf", [np.linspace(-7, 7, 99, dtype=np.float32)], {})]
    for name in ("ReduceMax", "ReduceMean", "ReduceSum"):
        found += [(name, [image, n(2, 3)], {"keepdims": 0}), (name, [image, n(-1)], {})]
        found += [(name, [image], {}), (name, [image], {"noop_with_empty_axes": 1})]
    return found


@needs_chromium
def test_every_operation_is_that_of_the_python_file(page: Browser) -> None:
    tried = cases()
    known = set(page.run("Object.keys(fewshot.operations)"))
    assert known == set(runner._OPERATIONS) == {name for name, _, _ in tried}
    code = ",".join(
        f"fewshot.operations.{name}([{','.join(map(graph_input, inputs))}], {json.dumps(given)})"
        for name, inputs, given in tried
    )
    found = page.run(
        f"[{code}].map((one) => [one].flat().map(({{shape, data}}) => [shape, Array.from(data)]))"
    )
    for (name, inputs, given), outputs in zip(tried, found, strict=True):
        theirs = runner._OPERATIONS[name](*inputs, **given)
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        for ours, their in zip(outputs, theirs, strict=True):
            assert ours[0] == list(their.shape), (name, given)
            np.testing.assert_allclose(
                np.reshape(ours[1], their.shape), their, rtol=1e-5, atol=1e-6, err_msg=name
            )


OF_ONE_INPUT = (
    *("AveragePool", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool"),
    *("Relu", "Selu", "Sigmoid", "Softmax", "Tanh"),
)


def test_pooling_and_activations_are_those_of_onnx() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    tried = [case for case in cases() if case[0] in OF_ONE_INPUT]
    assert {name for name, _, _ in tried} == set(OF_ONE_INPUT)
    for name, inputs, given in tried:
        [x] = inputs
        node = onnx.helper.make_node(name, ["x"], ["y"], **given)
        kind = onnx.TensorProto.FLOAT
        ends = [onnx.helper.make_tensor_value_info(one, kind, [None] * x.ndim) for one in "xy"]
        graph = onnx.helper.make_graph([node], name, ends[:1], ends[1:])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
        )
        session = onnxruntime.InferenceSession(model.SerializeToString())
        [theirs] = session.run(None, {"x": x})
        found = runner._OPERATIONS[name](x, **given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_nothing_needs_any_more_takes_no_memory() -> None:
    images = np.ones((1, 1, 1000, 1000), np.float32)
    names = ["images", *(f"map{number}" for number in range(29))]
    nodes = [["Relu", [one], [two], {}] for one, two in itertools.pairwise(names)]
    nodes.append(["Add", [names[-1], names[1]], ["features"], {}])  # the first one to the end
    tracemalloc.start()
    found = runner._run(nodes, {}, images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == (images + images).tolist()
    assert peak < 5 * images.nbytes


@needs_chromium
def test_the_rule_is_that_of_the_runtime(page: Browser) -> None:
    rng = np.random.default_rng(0)
    prototypes, query, mean = rng.normal(size=(3, 8)), rng.normal(size=(4, 8)), rng.normal(size=8)
    for normalize, transform in rule.NORMALIZATIONS.items():
        for metric, score in rule.METRICS.items():
            theirs = rule.softmax(score(prototypes, transform(query, mean)), 0.3)
            how = {"normalize": normalize, "base_mean": mean.tolist()}
            how |= {"metric": metric, "temperature": 0.3}
            ours = page.run(
                f"{query.tolist()}.map((row) => fewshot.probabilities({prototypes.tolist()}"
                f".map((one) => Float64Array.from(one)), fewshot.normalized(row, {json.dumps(how)})"
                f", {json.dumps(how)}))"
            )
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


# -- what can be done on it ------------------------------------------------------------------------


@needs_chromium
def test_classes_go_from_the_page_to_python_and_back(
    page: Browser, files: Path, tmp_path: Path
) -> None:
    support, queries = photos(tmp_path)
    classifier = classifier_of(files, support)
    classifier.save(tmp_path / "of_python.json")
    page.give("document.getElementById('classes-input')", [tmp_path / "of_python.json"])
    page.until("document.querySelectorAll('.class').length === 5")
    one = asked(page, queries[:1])[0]
    row = classifier.predict(queries[:1]).probabilities[0]
    assert one["confidence"] == pytest.approx(row.max(), abs=1e-2)
    # One more photo of the first class on the page, which then says what is saved.
    first = page.run("document.querySelector('.class input').value")
    page.give("document.querySelector('.class input[type=file]')", [queries[1]])
    page.until("document.querySelectorAll('.photo').length === 1")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.getElementById('save-classes').click()")
    saved = tmp_path / "classes.json"
    for _ in range(500):
        if saved.exists() and saved.stat().st_size:
            break
        page.run("new Promise((go) => setTimeout(go, 20))")
    again = FewShotClassifier(OnnxEmbedder(files / "network.onnx"))
    again.load(saved)
    classifier.add(first, [queries[1]])
    assert again.counts() == classifier.counts()
    for name, total in classifier._sums.items():
        np.testing.assert_allclose(again._sums[name], total, atol=1e-2)


@needs_chromium
def test_a_folder_of_class_folders_is_opened(page: Browser, tmp_path: Path) -> None:
    for name, count in (("red", 2), ("blue", 3)):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 8), name).save(tmp_path / "all" / name / f"{number}.png")
    (tmp_path / "all" / "red" / "notes.txt").write_text("no image")
    page.give("document.getElementById('folder-input')", [tmp_path / "all"])
    page.until("document.querySelectorAll('.photo').length === 5")
    names = page.run("[...document.querySelectorAll('.class-head input')].map((one) => one.value)")
    assert names == ["blue", "red"]  # the empty ones give way
    assert page.run("document.getElementById('alerts').textContent") == ""


@needs_chromium
def test_mistakes_on_the_page_are_said(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "other.json").write_text(
        '{"schema": 1, "weights": "others", "normalize": "cl2n", "classes": {}}'
    )
    for element, name, said in (
        ("ask-input", "no.png", "cannot read it as an image"),
        ("classes-input", "no.json", "no classes can be read"),
        ("classes-input", "other.json", "another network"),
    ):
        page.give(f"document.getElementById('{element}')", [tmp_path / name])
        page.until(f"document.getElementById('alerts').textContent.includes({json.dumps(said)})")
    for name in ("", "unknown", "class 2"):
        page.run(
            "(() => { const input = document.querySelector('.class input');"
            f"input.value = {json.dumps(name)}; input.onchange(); }})()"
        )
        assert page.run("document.querySelector('.class input').value") == "class 1"
    assert page.run("document.querySelectorAll('.alert').length") == 6
    assert "two classes" in page.run("document.getElementById('hint').textContent")
    assert page.told == []


@needs_chromium
def test_a_threshold_makes_it_unknown_and_what_is_removed_is_forgotten(
    page: Browser, tmp_path: Path
) -> None:
    support, queries = photos(tmp_path)
    taught(page, dict(list(support.items())[:2]))
    asked(page, queries[:1])
    page.run(
        "(() => { const range = document.getElementById('threshold');"
        "range.value = 95; range.oninput(); })()"
    )
    sure = page.run("fewshot.answers()[0].confidence >= 0.95")
    assert sure or page.run("fewshot.answers()[0].name") == "unknown"
    page.run("document.querySelector('.class-head button').click()")
    assert page.run("document.querySelector('.answer .best').textContent") == "no answer yet"
    assert page.run("document.activeElement.closest('.class') !== null")


@needs_chromium
def test_the_camera_adds_photos_to_a_class(page: Browser) -> None:
    page.run("document.getElementById('start-camera').click()")
    page.until("document.getElementById('video').videoWidth")
    page.run("document.getElementById('take').click()")
    assert page.run("document.querySelectorAll('.photo').length") == 1
    page.run("document.getElementById('stop-camera').click()")
    assert page.run("document.getElementById('camera').hidden")
    assert page.told == []


@needs_chromium
@pytest.mark.parametrize("width", [1200, 400])
def test_it_fits_the_window_and_everything_has_a_name(
    page: Browser, tmp_path: Path, width: int
) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=width < 500,
    )
    support, queries = photos(tmp_path)
    taught(page, support)
    asked(page, queries[:4])
    assert page.run("document.documentElement.scrollWidth") <= width
    # As a screen reader has it: nothing that can be used is without a name.
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "slider", "combobox", "image", "img", "link", "checkbox")
    used = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(used) > 30
    assert [node["role"]["value"] for node in used if not node["name"]["value"].strip()] == []
    names = [node["name"]["value"] for node in used]
    assert f"Remove the class {next(iter(support))}" in names
    picture = page.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
    (tmp_path / f"page_{width}.png").write_bytes(base64.b64decode(picture))
    page.call("Emulation.clearDeviceMetricsOverride")


# -- what is refused -------------------------------------------------------------------------------


def test_operations_that_the_page_does_not_have_are_named(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        ["Relu", ["images"], ["a"], {}],
        ["Sinh", ["a"], ["b"], {}],
        ["Pad", ["b"], ["features"], {"mode": "reflect"}],
    ]
    monkeypatch.setattr(html_file.onnx_file, "taken_apart", lambda subject: (nodes, {}))
    with pytest.raises(UserError, match=r"export.formats=html: .*\(Pad, Sinh\); take onnx or pt2"):
        html_file.write(subject, tmp_path / "x.html", 1)
    assert not (tmp_path / "x.html").exists()


def test_a_page_that_computes_otherwise_is_not_written(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [["Flatten", ["images"], ["features"], {"axis": 1}]]
    monkeypatch.setattr(html_file.onnx_file, "taken_apart", lambda subject: (nodes, {}))
    monkeypatch.setattr(runner, "_run", lambda nodes, weights, images: np.ones((len(images), 6)))
    with pytest.raises(UserError, match=r"export.formats=html: its features differ"):
        html_file.write(subject, tmp_path / "x.html", 1)
    assert not (tmp_path / "x.html").exists()


# -- every family ----------------------------------------------------------------------------------

FAMILIES = [*((name, 32) for name in names_with(BackboneConfig)), ("conv4", 84)]


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("name", "size"), FAMILIES)
@pytest.mark.parametrize("taken", ["uint8", "float"])
def test_every_family_runs_in_the_browser(
    browser: Browser, subject: Subject, tmp_path: Path, name: str, size: int, taken: str
) -> None:
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
        about={
            **subject.metadata.about,
            "params": network.architecture.params,
            "macs": network.architecture.macs(),
        },
    )
    here = dataclasses.replace(subject, network=network, metadata=metadata)
    path = tmp_path / "network.html"
    FORMATS["html"].write(here, path, 1)
    browser.open(path)
    measured = browser.run("fewshot.checked")
    print(f"{name} {size}: {metadata.about['macs']:,} MACs, {measured}")
    assert measured["worst"] <= 1e-5
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, channels), np.uint8)
    given_pixels = json.dumps(pixels.reshape(-1).tolist())
    found = browser.run(
        f"Array.from(fewshot.embedded(fewshot.model, Uint8Array.from({given_pixels})))"
    )
    theirs = expected(here, pixels)[0]
    assert np.abs(np.array(found) - theirs).max() <= 1e-5 * np.abs(theirs).max()

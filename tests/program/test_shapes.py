"""Shapes of pure tensor functions: each is called with arguments that its annotations describe.

All letters have different sizes, so that a result of another shape than annotated is found.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import sseg_nase

jaxtyping = pytest.importorskip("jaxtyping", reason="make setup installs it")
beartype = pytest.importorskip("beartype", reason="make setup installs it").beartype

PACKAGE = Path(sseg_nase.__file__).parent
KINDS = {"Float": torch.float32, "Float64": torch.float64}
SIZES = {"B": 4, "V": 3, "D": 7, "D_aims": 6, "P": 9, "G": 2, "E": 2, "N": 5, "K": 3, "M": 8}
SIZES |= {"S": 15, "r": 4, "C": 6, "H": 10, "W": 12}
OTHERS: dict[str, Any] = {
    "temperature": 0.5, "redundancy_weight": 0.1, "teacher_temperature": 0.1, "momentum": 0.9,
    "metric": "cosine", "power": 0.5, "entropy": 0.1, "scalings": 3, "uniform": True, "updates": 2,
    "update_rate": 0.2, "regularization": 1.0, "scale": 1.0, "steps": 2, "lr": 0.1,
    "weight_decay": 0.0,
}  # fmt: skip
SHAPE = re.compile(r"(Float|Float64)\[Tensor, '(.*?)'\]")


def annotated() -> Iterator[Any]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "from jaxtyping import" not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(
            f"sseg_nase.{'.'.join(path.relative_to(PACKAGE).parts)[:-3]}"
        )
        for name, found in vars(module).items():
            own = isinstance(found, FunctionType) and found.__module__ == module.__name__
            if own and SHAPE.search(str(found.__annotations__)):
                yield pytest.param(found, id=f"{module.__name__}.{name}")


def argument(name: str, annotation: str) -> Any:
    if (matched := SHAPE.match(annotation)) is None:
        return OTHERS[name]
    sizes = [SIZES[letter.lstrip("*")] for letter in matched[2].split()]
    generator = torch.Generator().manual_seed(len(name))
    return torch.rand(sizes, generator=generator, dtype=KINDS[matched[1]])


@pytest.mark.parametrize("function", list(annotated()))
def test_shapes_are_those_of_the_annotations(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = inspect.unwrap(function)
    for kind in KINDS:  # for type checkers only they are imported
        monkeypatch.setitem(inner.__globals__, kind, getattr(jaxtyping, kind))
    checked = jaxtyping.jaxtyped(inner, typechecker=beartype)
    parameters = inspect.signature(inner).parameters
    given = {name: argument(name, p.annotation) for name, p in parameters.items()}
    checked(**given)
    first = next(name for name in given if isinstance(given[name], torch.Tensor))
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(**given | {first: given[first].to(torch.int32)})


def test_there_are_such_functions() -> None:
    assert len(list(annotated())) > 20

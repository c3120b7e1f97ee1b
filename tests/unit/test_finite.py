"""The decision about numbers itself, and the files that never hold a NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.files import append_line, write_json
from sseg_nase.finite import figure, finite, not_finite, plain, positive, shortened

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, 1, -2.5, 1e308, np.float64(3)])
def test_figures(value: Any) -> None:
    assert finite(value)
    assert figure(value) == value
    assert positive(value) == (value > 0)


@pytest.mark.parametrize("value", [NAN, INF, -INF, None, True, "1", [], {}, np.float64("nan")])
def test_what_is_none(value: Any) -> None:
    assert not finite(value)
    assert figure(value) is None
    assert not positive(value)


def test_json_holds_null_instead(tmp_path: Path) -> None:
    value = {"a": [NAN, {"b": INF}], "c": (1.5, np.float32("nan")), "d": np.array([1.0, NAN])}
    expected = {"a": [None, {"b": None}], "c": [1.5, None], "d": [1.0, None]}
    assert plain(value) == expected
    write_json(tmp_path / "x.json", value)
    append_line(tmp_path / "x.jsonl", value)
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    assert json.loads((tmp_path / "x.jsonl").read_text()) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_tensors_are_named_where_they_stand(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    fine = {
        "plain": torch.full((99,), largest, dtype=dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "number": torch.tensor(3),
        "text": "nan",
        "nested": {0: {"w": torch.full((2, 2), -largest, dtype=dtype)}, "list": [1.0]},
    }
    assert not_finite(fine) == []
    spoiled = torch.full((2, 2), -largest, dtype=dtype)
    spoiled[1, 0] = bad
    fine["nested"] = {0: {"w": spoiled}}
    assert not_finite({**fine, "also": torch.tensor(bad, dtype=dtype)}) == ["nested.0.w", "also"]


def test_many_names_are_shortened() -> None:
    assert shortened("ab") == "a, b"
    assert shortened("abcde") == "a, b, c and 2 more"

from __future__ import annotations

import json
import random

import pytest

from sseg_nase.evolution.plateau import PlateauDetector, plateaued


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.1])
def test_the_formula_over_any_series(window: int, threshold: float) -> None:
    rng = random.Random(window)
    losses = [4 * 0.8**t + rng.uniform(-0.004, 0.004) for t in range(60)]
    found = []
    for t in range(len(losses)):
        expected = t >= window and abs(losses[t] - losses[t - window]) < threshold
        assert plateaued(losses[: t + 1], window, threshold) == expected
        found.append(expected)
    assert any(found) == (threshold > 0)
    assert not all(found)


def test_the_threshold_is_strict_and_a_rise_counts_like_a_fall() -> None:
    assert not plateaued([1.0, 1.5], 1, 0.5)
    assert plateaued([1.0, 1.5], 1, 0.5001)
    assert plateaued([1.5, 1.0], 1, 0.5001)
    assert not plateaued([], 1, 9.0)
    assert not plateaued([1.0], 1, 9.0)
    assert not plateaued([1.0, float("nan")], 1, 9.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.6, 0.9])
def test_losses_are_smoothed_exponentially(smoothing: float) -> None:
    detector = PlateauDetector(window=2, threshold=0.05, smoothing=smoothing)
    losses = [3.0, 2.0, 2.5, 1.0, 1.1, 1.05, 1.02]
    smoothed: list[float] = []
    for loss in losses:
        detector.update(loss)
        smoothed.append(loss if not smoothed else smoothing * smoothed[-1] + (1 - smoothing) * loss)
        assert detector.losses == pytest.approx(smoothed, rel=1e-12)
        if len(smoothed) <= 2:
            assert detector.change is None
            assert not detector.plateau
        else:
            change = smoothed[-1] - smoothed[-3]
            assert detector.change == pytest.approx(change, rel=1e-9)
            assert detector.plateau == (abs(change) < 0.05)


def test_reset_forgets_everything() -> None:
    detector = PlateauDetector(window=1, threshold=1.0, smoothing=0.5)
    detector.update(1.0)
    detector.update(1.0)
    assert detector.plateau
    detector.reset()
    detector.update(7.0)
    assert detector.losses == [7.0]
    assert not detector.plateau


def test_a_detector_read_back_goes_on_alike() -> None:
    first, second = (PlateauDetector(2, 0.1, 0.6) for _ in range(2))
    for loss in (3.0, 2.0, 1.9):
        first.update(loss)
    saved = first.state_dict()
    second.load_state_dict(json.loads(json.dumps(saved)))
    first.update(1.8)
    assert len(saved["losses"]) == 3  # what was saved does not change afterwards
    second.update(1.8)
    assert second.losses == first.losses
    assert second.plateau == first.plateau

from __future__ import annotations

import json
import random

import pytest

from sseg_nase.evolution.plateau import PlateauDetector


def change(detector: str, losses: list[float], window: int) -> float | None:
    """The slow, obvious way."""
    if len(losses) <= window:
        return None
    if detector == "window":
        return losses[-1] - losses[-1 - window]
    last = losses[-1 - window :]
    slopes = sorted(
        (last[j] - last[i]) / (j - i) for i in range(window + 1) for j in range(i + 1, window + 1)
    )
    middle = len(slopes) // 2
    even = len(slopes) % 2 == 0
    return window * ((slopes[middle - 1] + slopes[middle]) / 2 if even else slopes[middle])


@pytest.mark.parametrize("detector", ["window", "slope"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize(("threshold", "patience"), [(0.0, 1), (0.01, 1), (0.1, 1), (0.1, 4)])
def test_the_formula_over_any_series(
    detector: str, window: int, threshold: float, patience: int
) -> None:
    rng = random.Random(window)
    losses = [4 * 0.8**t + rng.uniform(-0.004, 0.004) for t in range(60)]
    watching = PlateauDetector(window, threshold, 0.0, detector=detector, patience=patience)
    found, flat = [], []
    for t in range(len(losses)):
        watching.update(losses[t])
        expected = change(detector, losses[: t + 1], window)
        assert watching.change == (None if expected is None else pytest.approx(expected, rel=1e-9))
        flat.append(expected is not None and abs(expected) < threshold)
        found.append(t + 1 >= patience and all(flat[-patience:]))
        assert watching.plateau == found[-1]
    assert any(found) == (threshold > 0)
    assert not all(found)


def test_the_threshold_is_strict_and_a_rise_counts_like_a_fall() -> None:
    for losses, threshold, expected in [
        ([1.0, 1.5], 0.5, False),
        ([1.0, 1.5], 0.5001, True),
        ([1.5, 1.0], 0.5001, True),
        ([], 9.0, False),
        ([1.0], 9.0, False),
        ([1.0, float("nan")], 9.0, False),
    ]:
        detector = PlateauDetector(1, threshold, 0.0)
        for loss in losses:
            detector.update(loss)
        assert detector.plateau == expected


def test_one_epoch_that_stands_out_moves_the_window_but_not_the_slope() -> None:
    losses = [2.0, 2.0, 2.0, 2.0, 2.0, 9.0]
    flat = {}
    for name in ("window", "slope"):
        detector = PlateauDetector(5, 0.1, 0.0, detector=name)
        for loss in losses:
            detector.update(loss)
        flat[name] = detector.plateau
    assert flat == {"window": False, "slope": True}


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
    assert not detector.plateau
    detector.update(7.0)
    assert detector.losses == [7.0]
    assert not detector.plateau


def test_a_detector_read_back_goes_on_alike() -> None:
    first, second = (PlateauDetector(2, 0.2, 0.6, patience=2) for _ in range(2))
    for loss in (3.0, 2.0, 1.9):
        first.update(loss)
    saved = first.state_dict()
    second.load_state_dict(json.loads(json.dumps(saved)))
    first.update(1.8)
    assert len(saved["losses"]) == 3  # what was saved does not change afterwards
    second.update(1.8)
    assert second.losses == first.losses
    assert second.plateau == first.plateau

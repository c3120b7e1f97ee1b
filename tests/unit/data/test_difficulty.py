from __future__ import annotations

import numpy as np
import pytest
import torch

from sseg_nase.data.curriculum.difficulty import difficulty


def reference(image: np.ndarray) -> tuple[float, float, float]:
    """Edges, colours and high frequencies of one image [3, H, W] in [0, 1], pixel by pixel."""
    _, height, width = image.shape
    grey = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            r, g, b = image[:, y, x]
            grey[y, x] = 0.299 * r + 0.587 * g + 0.114 * b
    sobel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    magnitudes = []
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            gx = gy = 0.0
            for i in range(3):
                for j in range(3):
                    gx += sobel[i][j] * grey[y + i - 1, x + j - 1]
                    gy += sobel[j][i] * grey[y + i - 1, x + j - 1]
            magnitudes.append((gx * gx + gy * gy) ** 0.5 / 4)
    variance = sum(4 * float(np.var(channel)) for channel in image) / 3
    energy = np.abs(np.fft.fft2(grey)) ** 2
    high = total = 0.0
    for i, fy in enumerate(np.fft.fftfreq(height)):
        for j, fx in enumerate(np.fft.fftfreq(width)):
            if (i, j) != (0, 0):
                total += energy[i, j]
                high += energy[i, j] if fy * fy + fx * fx > 0.25**2 else 0.0
    return sum(magnitudes) / len(magnitudes), variance, high / total


@pytest.mark.parametrize("size", [(12, 12), (9, 16), (15, 11)])
def test_equals_the_loop_reference(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=generator)
    images[0] = images[0] // 16 + 100
    measured = difficulty(images)
    for b, image in enumerate(images.double().div(255).numpy()):
        edge, colour, high = reference(image)
        assert float(measured.edge_density[b]) == pytest.approx(edge, abs=1e-5)
        assert float(measured.colour_variance[b]) == pytest.approx(colour, abs=1e-5)
        assert float(measured.high_frequency[b]) == pytest.approx(high, abs=1e-4)
        score = 0.4 * edge + 0.3 * colour + 0.3 * high
        assert float(measured.score[b]) == pytest.approx(score, abs=1e-4)


def test_uint8_and_float_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(difficulty(images).score, difficulty(images.float() / 255).score)


@pytest.mark.parametrize("value", [0, 37, 128, 255])
def test_a_flat_image_has_no_difficulty(value: int) -> None:
    measured = difficulty(torch.full((1, 3, 84, 84), value, dtype=torch.uint8))
    assert float(measured.score) == pytest.approx(0, abs=1e-5)
    assert float(measured.high_frequency) == 0


def test_known_extremes() -> None:
    rows = torch.arange(16)
    board = ((rows[:, None] + rows) % 2).float().expand(1, 3, 16, 16)
    halves = (rows >= 8).float().expand(1, 3, 16, 16)
    assert float(difficulty(board).high_frequency) == pytest.approx(1)
    assert float(difficulty(board).colour_variance) == pytest.approx(1)
    # Of 14 inner columns two touch the edge, with the full magnitude 4.
    assert float(difficulty(halves).edge_density) == pytest.approx(2 / 14)


def test_every_part_stays_in_its_range() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 2, (64, 3, 8, 8), generator=generator).mul(255).to(torch.uint8)
    measured = difficulty(images)
    for part in (measured.edge_density, measured.colour_variance, measured.high_frequency):
        assert part.shape == (64,)
        assert float(part.min()) >= 0
        assert float(part.max()) <= 1


def test_sharper_texture_is_harder() -> None:
    x = torch.arange(32) / 32
    waves = [0.5 + 0.4 * torch.sin(2 * torch.pi * f * x).expand(32, 32) for f in (1, 3, 6, 12)]
    scores = difficulty(torch.stack(waves)[:, None].expand(4, 3, 32, 32)).score
    assert (scores.diff() > 0.05).all()

"""PURE's colour fix: the wavelet transfer and its AdaIN variant."""

from __future__ import annotations

import pytest
import torch

from lumina_core import InputError
from lumina_core.color import adain_fix, blur, low_band, to_bytes, wavelet_fix


def noise(seed: int, *size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_the_fix_of_a_picture_with_itself_changes_nothing():
    image = noise(0, 48, 40)
    assert torch.allclose(wavelet_fix(image, image), image, atol=1e-6)
    assert torch.allclose(adain_fix(image, image), image, atol=1e-5)


def test_the_result_has_the_low_band_of_the_style_and_the_detail_of_the_content():
    content, style = noise(1, 64, 64), torch.full((1, 3, 64, 64), 0.25)
    fixed = wavelet_fix(content, style)
    assert torch.allclose(fixed - content, style - low_band(content), atol=1e-6)
    assert fixed.mean() == pytest.approx(0.25, abs=0.02)


def test_high_bands_of_all_levels_add_up_to_the_picture_less_its_last_low_band():
    image = noise(2, 64, 48)
    high, low = torch.zeros_like(image), image
    for level in range(5):
        blurred = blur(low, 2**level)
        high, low = high + low - blurred, blurred
    assert torch.allclose(high, image - low_band(image), atol=1e-6)


def test_adain_gives_mean_and_deviation_of_the_style():
    fixed, style = adain_fix(noise(3, 32, 32), noise(4, 32, 32) * 0.3 + 0.5), noise(4, 32, 32) * 0.3 + 0.5
    assert torch.allclose(fixed.mean((2, 3)), style.mean((2, 3)), atol=1e-5)
    assert torch.allclose(fixed.std((2, 3)), style.std((2, 3)), atol=1e-3)


def test_bytes_are_clamped_and_truncated():
    values = torch.tensor([-1.0, 0.999, 0.5, 2.0]).view(1, 1, 1, 4)
    assert to_bytes(values).flatten().tolist() == [0, 254, 127, 255]


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(InputError, match="one size"):
        wavelet_fix(noise(0, 32, 32), noise(0, 32, 64))

"""Pixels as the networks want them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lean_video.errors import LeanVideoError
from lean_video.media.resize import RESIZE_MODES, fit
from lean_video.models.images import check_image, clip_pixels
from tests.engine.conftest import relative

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
SIZES = [(360, 640), (640, 360), (576, 1024), (300, 224), (224, 224), (100, 150)]


def noise(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height + width))


# CLIP


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clip_sees_the_image_as_diffusers_pipeline_prepares_it(height: int, width: int) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    image = noise(height, width)
    expected = ((_resize_with_antialiasing(image * 2 - 1, (224, 224)) + 1) / 2 - MEAN) / STD
    assert relative(clip_pixels(image, 224), expected) < 2e-6


def blur_matrix(size: int, target: int) -> Tensor:
    """[size,size], float64: a Gaussian for a shrink by size/target over an edge that is mirrored without its last pixel."""
    sigma = max((size / target - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) | 1
    weight = [math.exp(-((i - taps // 2) ** 2) / (2 * sigma**2)) for i in range(taps)]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for tap, w in enumerate(weight):
            at = abs(row + tap - taps // 2)
            matrix[row, at if at < size else 2 * (size - 1) - at] += w / sum(weight)
    return matrix


def bicubic_matrix(size: int, target: int) -> Tensor:
    """[target,size], float64: Keys' cubic convolution with a = -0.75, the corners of both grids in one place, edges repeated."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = torch.zeros(target, size, dtype=torch.float64)
    for row in range(target):
        position = row * (size - 1) / (target - 1)
        for at in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[row, min(max(at, 0), size - 1)] += kernel(position - at)
    return matrix


@pytest.mark.parametrize(("height", "width"), [(360, 640), (150, 500)])
def test_clip_sees_a_gaussian_blur_and_then_a_bicubic_with_aligned_corners(height: int, width: int) -> None:
    image = noise(height, width)
    rows = bicubic_matrix(height, 224) @ blur_matrix(height, 224)
    columns = bicubic_matrix(width, 224) @ blur_matrix(width, 224)
    expected = (rows @ image.double() @ columns.T - MEAN) / STD
    assert relative(clip_pixels(image.double(), 224), expected) < 1e-6
    assert relative(clip_pixels(image, 224), expected) < 5e-5  # torch rounds the positions between pixels to float32


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3), (3, 4000)])
def test_clip_sees_images_of_any_size(height: int, width: int) -> None:
    seen = clip_pixels(torch.full((1, 3, height, width), 0.25), 224)
    assert seen.shape == (1, 3, 224, 224)
    torch.testing.assert_close(seen, ((0.25 - MEAN) / STD).expand_as(seen), rtol=0, atol=2e-5)


def test_clip_sees_the_edges_that_a_centre_crop_would_cut() -> None:
    image = torch.zeros(1, 3, 100, 400)
    image[..., :20] = 1
    assert (clip_pixels(image, 224) * STD + MEAN)[..., :8].mean() > 0.9


# The frame


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_an_image_of_the_right_size_is_left_as_it_is(mode: str) -> None:
    image = noise(64, 96)
    assert torch.equal(fit(image, 96, 64, mode), image)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    target_height=st.integers(1, 90),
    target_width=st.integers(1, 90),
    mode=st.sampled_from(RESIZE_MODES),
)
@settings(deadline=None, max_examples=60)
def test_any_image_fits_any_frame(height: int, width: int, target_height: int, target_width: int, mode: str) -> None:
    out = fit(noise(height, width), target_width, target_height, mode)
    assert out.shape == (1, 3, target_height, target_width)
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


def stripes(height: int, width: int) -> Tensor:
    """Red grows to the right, green downwards: a pixel's colour says where it came from."""
    image = torch.zeros(1, 3, height, width)
    image[:, 0] = (torch.arange(width) + 0.5) / width
    image[:, 1] = ((torch.arange(height) + 0.5) / height)[:, None]
    image[:, 2] = 1
    return image


@pytest.mark.parametrize(("height", "width"), [(60, 200), (200, 60)])
def test_crop_fills_the_frame_from_the_images_middle(height: int, width: int) -> None:
    out = fit(stripes(height, width), 96, 64, "crop")
    assert (out[:, 2] > 0.999).all()
    shown_w, shown_h = min(1, 96 / 64 * height / width), min(1, 64 / 96 * width / height)
    for channel, shown, axis in ((0, shown_w, -1), (1, shown_h, -2)):
        first, last = out[0, channel].select(axis, 0).mean(), out[0, channel].select(axis, -1).mean()
        assert abs(first - (1 - shown) / 2) < 0.02
        assert abs(last - (1 + shown) / 2) < 0.02


@pytest.mark.parametrize(("height", "width"), [(60, 200), (200, 60)])
def test_pad_shows_the_whole_image_in_the_middle_of_black(height: int, width: int) -> None:
    out = fit(stripes(height, width), 96, 64, "pad")
    inside = out[0, 2] > 0.5
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    scale = min(96 / width, 64 / height)
    assert (len(columns), len(rows)) == (round(width * scale), round(height * scale))
    assert abs(int(columns[0]) - (95 - int(columns[-1]))) <= 1
    assert abs(int(rows[0]) - (63 - int(rows[-1]))) <= 1
    assert (out[:, :, ~inside] == 0).all()
    assert out[0, 0, rows[0], columns[0]] < 0.05
    assert out[0, 0, rows[-1], columns[-1]] > 0.95


def test_stretch_shows_the_whole_image_over_the_whole_frame() -> None:
    out = fit(stripes(60, 200), 96, 64, "stretch")
    assert (out[:, 2] > 0.999).all()
    assert abs(out[0, 0, :, 0].mean() - 0.5 / 96) < 0.02
    assert abs(out[0, 1, -1].mean() - (1 - 0.5 / 64)) < 0.02


def test_shrinking_averages_and_does_not_alias() -> None:
    checks = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    out = fit(checks.float().expand(1, 3, -1, -1), 32, 32, "stretch")
    assert (out - 0.5).abs().max() < 0.02


# What is let in


def test_transparency_is_composited_on_black() -> None:
    image = torch.rand(4, 6, 4)
    expected = (image[..., :3] * image[..., 3:]).permute(2, 0, 1)[None]
    assert torch.equal(check_image(image), expected)


def test_grey_becomes_rgb_and_values_out_of_range_are_clipped() -> None:
    assert torch.equal(check_image(torch.full((2, 3, 1), 1.5)), torch.ones(1, 3, 2, 3))
    assert torch.equal(check_image(torch.full((2, 3, 3), -0.5, dtype=torch.float64)), torch.zeros(1, 3, 2, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 3])
def test_an_image_that_is_not_finite_is_refused(value: float, channel: int) -> None:
    image = torch.rand(4, 6, 4)
    image[1, 2, channel] = value
    with pytest.raises(LeanVideoError, match="NaN or infinity"):
        check_image(image)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5, 0), (5, 5), (1, 5, 5, 3)])
def test_an_empty_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LeanVideoError, match="is empty"):
        check_image(torch.zeros(shape))


@pytest.mark.parametrize("channels", [2, 5])
def test_an_image_of_odd_channels_is_refused(channels: int) -> None:
    with pytest.raises(LeanVideoError, match=f"has {channels} channels"):
        check_image(torch.zeros(5, 5, channels))

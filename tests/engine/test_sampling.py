"""Noise levels, solvers and guidance against formulas and diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lean_video.lean.transfer import Transfer
from lean_video.models.svd import Conditioning, denoiser
from lean_video.sampling import GUIDANCE_MODES, SCHEDULES, SOLVERS, guidance_scale, guide, is_guided, sample, sigmas
from tests.engine.conftest import CPU, relative

MIN, MAX = 0.002, 700.0
AYS = [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.0]  # the paper's page, SVD, 10 steps

# Noise levels


def formula(schedule: str, n: int) -> list[float]:
    """Levels before the final zero, in float64."""
    ramp = [i / (n - 1) if n > 1 else 0.0 for i in range(n)]
    if schedule == "karras":
        return [(MAX ** (1 / 7) + r * (MIN ** (1 / 7) - MAX ** (1 / 7))) ** 7 for r in ramp]
    if schedule == "exponential":
        return [MAX * (MIN / MAX) ** r for r in ramp]
    if schedule == "uniform":
        return [MAX * (MIN / MAX) ** (i / n) for i in range(n)]
    known = np.log([*AYS[:-1], MIN])
    return list(np.exp(np.interp(np.linspace(0, 10, n + 1), np.arange(11), known)))[:-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 25, 101])
def test_sigmas_follow_the_formula(schedule: str, steps: int) -> None:
    np.testing.assert_allclose(sigmas(schedule, steps).double(), [*formula(schedule, steps), 0.0], rtol=2e-5)


def test_ten_align_your_steps_are_the_published_ones() -> None:
    from diffusers.schedulers import AysSchedules

    np.testing.assert_allclose(sigmas("align_your_steps", 10), AYS, rtol=1e-6)
    assert AysSchedules["StableDiffusionVideoSigmas"] == AYS


@pytest.mark.parametrize("steps", [20, 40])
def test_more_align_your_steps_halve_the_published_ones_in_log_sigma(steps: int) -> None:
    levels = sigmas("align_your_steps", steps).double()
    every = steps // 10
    np.testing.assert_allclose(levels[::every], AYS, rtol=1e-5)
    logs = levels[: -every - 1].log()
    for k in range(1, every):
        expected = logs[::every][:9] * (1 - k / every) + torch.tensor(AYS[1:10]).log() * k / every
        np.testing.assert_allclose(logs[k::every], expected, atol=1e-5)


@given(schedule=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 1000), strength=st.floats(0.01, 1))
@settings(deadline=None)
def test_sigmas_always_fall_from_at_most_the_largest_to_zero(schedule: str, steps: int, strength: float) -> None:
    levels = sigmas(schedule, steps, strength)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == torch.float32
    assert levels[-1] == 0
    assert levels[0] <= MAX * (1 + 1e-5)
    assert (levels.diff() < 0).all()


@given(schedule=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 200), strength=st.floats(0.05, 0.95))
@settings(deadline=None)
def test_a_strength_takes_the_end_of_a_longer_schedule(schedule: str, steps: int, strength: float) -> None:
    longer = int(steps / strength)
    assert torch.equal(sigmas(schedule, steps, strength), sigmas(schedule, longer)[longer - steps :])


# Solvers, on data that is normal with standard deviation SPREAD: the best denoiser and the ODE's path are known

SPREAD = 1.5


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def no_noise() -> Tensor:
    raise AssertionError("this solver draws no noise")


def solve(solver: str, levels: list[float], x: Tensor, noise: Callable[[], Tensor] = no_noise, denoise: Callable[[Tensor, float], Tensor] = gaussian) -> Tensor:
    return SOLVERS[solver](denoise, x, levels, noise, lambda i, x0: None)


def error(solver: str, steps: int) -> float:
    """Of the ODE from sigma 20 to 0.2, in float64: x(sigma) is in proportion to sqrt(SPREAD² + sigma²)."""
    levels = np.geomspace(20, 0.2, steps + 1)
    x = torch.ones(1, dtype=torch.float64)
    exact = math.sqrt((SPREAD**2 + levels[-1] ** 2) / (SPREAD**2 + levels[0] ** 2))
    return abs(float(solve(solver, list(levels), x)) - exact)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver: str, order: int) -> None:
    errors = [error(solver, steps) for steps in (160, 320, 640)]
    for before, after in pairwise(errors):
        assert abs(math.log2(before / after) - order) < 0.15


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_ends_at_the_estimate_of_the_last_level(solver: str) -> None:
    """From a perfect denoiser of one image every solver returns that image."""
    image = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    out = solve(solver, [*np.geomspace(700, 0.002, 7), 0.0], torch.randn_like(image) * 700, lambda: torch.randn_like(image), lambda x, sigma: image)
    torch.testing.assert_close(out, image)


def test_the_ancestral_solver_keeps_the_data_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [*np.geomspace(80, 0.01, 200), 0.0]

    def draw() -> Tensor:
        return torch.randn(40_000, generator=generator)

    out = solve("euler_ancestral", levels, draw() * math.hypot(80, SPREAD), draw)
    assert abs(float(out.std()) / SPREAD - 1) < 0.03
    assert abs(float(out.mean())) < 0.03
    quiet = solve("euler_ancestral", levels, torch.ones(1) * math.hypot(80, SPREAD), lambda: torch.zeros(1))
    assert abs(float(quiet)) < 0.5  # without the fresh noise the path dies away: it does add it


def test_ancestral_steps_are_those_of_diffusers() -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler: Any = EulerAncestralDiscreteScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(10)
    levels = [float(s) for s in scheduler.sigmas]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)) * levels[0]
    generator, same = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    ours = solve("euler_ancestral", levels, x, lambda: torch.randn(x.shape, generator=generator))
    for t, sigma in zip(scheduler.timesteps, levels, strict=False):
        scheduler.scale_model_input(x, t)
        x = scheduler.step((x - gaussian(x, sigma)) / sigma, t, x, generator=same).prev_sample
    assert relative(ours, x) < 1e-5


def test_lcm_noises_its_estimate_to_the_next_level() -> None:
    levels, noises = [10.0, 3.0, 1.0, 0.0], [torch.full((2,), 0.3), torch.full((2,), -0.7)]
    x = torch.tensor([5.0, -2.0])
    expected = x
    for sigma, following, z in zip(levels, levels[1:], [*noises, torch.zeros(2)], strict=False):
        expected = expected * SPREAD**2 / (SPREAD**2 + sigma**2) + following * z
    draws = iter(noises)
    torch.testing.assert_close(solve("lcm", levels, x, lambda: next(draws)), expected)


@pytest.mark.parametrize(("solver", "scheduler"), [("euler", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler"), ("dpmpp_2m", "DPMSolverMultistepScheduler")])
def test_solvers_match_diffusers_schedulers_on_their_sigmas(solver: str, scheduler: str) -> None:
    import diffusers

    options = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": False} if solver == "dpmpp_2m" else {}
    theirs: Any = getattr(diffusers, scheduler)(prediction_type="epsilon", use_karras_sigmas=True, **options)
    theirs.set_timesteps(12)
    levels = list(dict.fromkeys(float(s) for s in theirs.sigmas))
    assert len(levels) == 13
    start = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    variance_preserving = solver == "dpmpp_2m"  # diffusers keeps x / sqrt(1 + sigma²) there

    def scale(sigma: float) -> float:
        return math.sqrt(1 + sigma**2) if variance_preserving else 1.0

    x = start * levels[0] / scale(levels[0])
    for t in theirs.timesteps:
        theirs.scale_model_input(x, t)
        sigma = float(theirs.sigmas[theirs.step_index if theirs.step_index is not None else 0])
        whole = x * scale(sigma)
        x = theirs.step((whole - gaussian(whole, sigma)) / sigma, t, x).prev_sample
    assert relative(solve(solver, levels, start * levels[0]), x) < 1e-5


# Preconditioning


def test_denoiser_is_the_edm_formula_around_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """With c_skip = 1/(s²+1), c_out = -s/sqrt(s²+1), c_in = 1/sqrt(s²+1), c_noise = ln(s)/4."""
    seen: list[tuple[Any, ...]] = []
    v = torch.randn(1, 3, 4, 5, 6, dtype=torch.float64).float()

    class Network:
        def __init__(self, unet: Any, embedding: Tensor, added_ids: Tensor, frames: int, **_: Any) -> None:
            assert unet is weights
            assert frames == 3
            self.told = embedding, added_ids.tolist()

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x, float(t), *self.told))
            return v

    weights = SimpleNamespace(dtype=torch.float32)
    monkeypatch.setattr("lean_video.lean.unet.LeanUNet", Network)
    concat, embedding = torch.randn(1, 4, 5, 6), torch.randn(1, 1, 8)
    denoise = denoiser(weights, Conditioning(embedding, concat, fps=7, motion_bucket=40, augmentation=0.25), 3, Transfer(CPU))
    for s in (700.0, 3.0, 1.0, 0.002):
        x = torch.randn(3, 4, 5, 6) * s
        expected = x.double() / (s**2 + 1) - v[0].double() * s / math.sqrt(s**2 + 1)
        assert relative(denoise(x, s), expected) < 1e-6
        given, time, context, vector = seen.pop()
        assert relative(given[0, :, :4], x.double() / math.sqrt(s**2 + 1)) < 1e-6
        assert torch.equal(given[0, :, 4:], concat.expand(3, -1, -1, -1))
        assert time == pytest.approx(math.log(s) / 4, abs=1e-6)
        assert torch.equal(context, embedding)
        assert vector == [[6.0, 40.0, 0.25]]


# Guidance


@pytest.mark.parametrize(
    ("mode", "frames", "expected"),
    [
        ("linear", 5, [1, 1.5, 2, 2.5, 3]),
        ("linear", 1, [1]),
        ("triangular", 5, [1, 2, 3, 2, 1]),
        ("triangular", 6, [1, 1.8, 2.6, 2.6, 1.8, 1]),
        ("constant", 3, [3, 3, 3]),
    ],
)
def test_guidance_scale_of_each_frame(mode: str, frames: int, expected: list[float]) -> None:
    scale = guidance_scale(mode, frames, 1.0, 3.0)
    assert scale.shape == (frames, 1, 1, 1)
    np.testing.assert_allclose(scale.flatten(), expected, atol=1e-6)


@given(mode=st.sampled_from(GUIDANCE_MODES), frames=st.integers(1, 200), low=st.floats(0, 100), high=st.floats(0, 100))
@settings(deadline=None)
def test_guidance_stays_between_its_ends(mode: str, frames: int, low: float, high: float) -> None:
    scale = guidance_scale(mode, frames, low, high)
    slack = 1e-5 * max(low, high)
    assert scale.min() >= min(low, high) - slack
    assert scale.max() <= max(low, high) + slack


@pytest.mark.parametrize(("scale", "guided"), [([1, 1, 1], False), ([1, 1, 1.5], True), ([0.5, 1, 1], True), ([0, 0, 0], True)])
def test_guidance_is_needed_as_soon_as_one_frame_needs_it(scale: list[float], guided: bool) -> None:
    assert is_guided(torch.tensor(scale).view(-1, 1, 1, 1)) == guided


@pytest.mark.parametrize("scale", [[1, 1, 1, 1.5], [0.5, 1, 1, 1], [1, 2, 3, 4], [0, 0, 0, 0]])
def test_guidance_pushes_each_frame_by_its_own_scale(scale: list[float]) -> None:
    """Also where one end of the range is 1, which is where a shortcut goes wrong."""
    calls: list[float] = []

    def both(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        calls.append(sigma)
        return x + pull, x

    x, pull = torch.randn(4, 4, 2, 2), torch.randn(4, 4, 2, 2)
    denoise = guide(both, torch.tensor(scale).view(4, 1, 1, 1))
    torch.testing.assert_close(denoise(x, 5.0), torch.stack([x[i] + scale[i] * pull[i] for i in range(4)]))
    assert calls == [5.0]


# A whole run

SHAPE = (3, 4, 5, 6)


def first_input(**keywords: Any) -> tuple[Tensor, float]:
    """What the denoiser is given first in a run."""
    seen: list[tuple[Tensor, float]] = []

    def record(x: Tensor, sigma: float) -> Tensor:
        seen.append((x.clone(), sigma))
        return x * 0

    sample(record, SHAPE, **({"steps": 4, "seed": 7} | keywords))
    return seen[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_seed_gives_the_noise_of_torchs_own_generator_at_the_largest_sigma(schedule: str) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    x, sigma = first_input(schedule=schedule)
    assert sigma == pytest.approx(MAX, rel=1e-5)
    torch.testing.assert_close(x, noise * math.sqrt(1 + MAX**2), rtol=1e-5, atol=0)


def test_runs_neither_use_nor_move_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    first = sample(gaussian, SHAPE, steps=4, seed=7, solver="euler_ancestral")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, sample(gaussian, SHAPE, steps=4, seed=7, solver="euler_ancestral"))
    assert not torch.equal(first, sample(gaussian, SHAPE, steps=4, seed=8, solver="euler_ancestral"))


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_video_to_video_starts_from_the_clip_at_the_sigma_of_its_strength(strength: float) -> None:
    start = torch.randn(SHAPE)
    x, sigma = first_input(start_T4hw=start, strength=strength)
    longer = formula("karras", int(4 / strength))
    assert sigma == pytest.approx(longer[-4], rel=1e-5)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(x, start + noise * longer[-4], rtol=1e-4, atol=1e-4)


def test_full_strength_still_adds_the_start_clip() -> None:
    start = torch.randn(SHAPE)
    x, sigma = first_input(start_T4hw=start * 1000, strength=1.0)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    assert sigma == pytest.approx(MAX, rel=1e-5)
    torch.testing.assert_close(x, start * 1000 + noise * math.sqrt(1 + MAX**2), rtol=1e-5, atol=1e-2)


def test_strength_zero_returns_the_start_clip_untouched() -> None:
    start = torch.randn(SHAPE)

    def never(x: Tensor, sigma: float) -> Tensor:
        raise AssertionError

    assert torch.equal(sample(never, SHAPE, steps=4, seed=0, start_T4hw=start, strength=0.0), start)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_step_is_reported_with_the_estimate_of_the_clip(solver: str) -> None:
    image = torch.randn(SHAPE)
    seen: list[tuple[int, int]] = []

    def on_step(done: int, total: int, x0: Tensor) -> None:
        seen.append((done, total))
        assert torch.equal(x0, image)

    out = sample(lambda x, sigma: image, SHAPE, steps=5, seed=0, solver=solver, on_step=on_step)
    assert seen == [(i + 1, 5) for i in range(5)]
    torch.testing.assert_close(out, image)
    assert not out.is_inference()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cancel_stops_within_its_step(solver: str) -> None:
    class Cancel(Exception):
        pass

    calls: list[float] = []

    def count(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return x * 0

    def on_step(done: int, total: int, x0: Tensor) -> None:
        if done == 2:
            raise Cancel

    with pytest.raises(Cancel):
        sample(count, SHAPE, steps=50, seed=0, solver=solver, on_step=on_step)
    assert len(calls) <= (4 if solver == "heun" else 2)

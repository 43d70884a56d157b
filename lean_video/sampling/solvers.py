"""ODE and SDE solvers: each a function of a denoiser, after k-diffusion's conventions.

`denoise(x_T4hw, sigma) -> x0_T4hw`, sigma a float. `noise()` draws a fresh standard normal tensor like x.
`step(i, x0)` is called after each step with the latest estimate of the clip; it may raise to cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Denoiser = Callable[["Tensor", float], "Tensor"]
Noise = Callable[[], "Tensor"]
OnStep = Callable[[int, "Tensor"], None]
Solver = Callable[[Denoiser, "Tensor", "list[float]", Noise, OnStep], "Tensor"]


def euler(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise, step: OnStep) -> Tensor:
    """Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364) without its second-order correction."""
    for i in range(len(sigmas) - 1):
        x0 = denoise(x, sigmas[i])
        x = x + (x - x0) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        step(i, x0)
    return x


def heun(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise, step: OnStep) -> Tensor:
    """Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364): two network calls a step, one in the last."""
    for i in range(len(sigmas) - 1):
        x0 = denoise(x, sigmas[i])
        slope, dt = (x - x0) / sigmas[i], sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + slope * dt
        else:
            ahead = x + slope * dt
            slope_ahead = (ahead - denoise(ahead, sigmas[i + 1])) / sigmas[i + 1]
            x = x + (slope + slope_ahead) / 2 * dt
        step(i, x0)
    return x


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise, step: OnStep) -> Tensor:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095), with t = -ln sigma."""
    x0_before: Tensor | None = None
    for i in range(len(sigmas) - 1):
        x0 = denoise(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = x0
        else:
            h = math.log(sigmas[i] / sigmas[i + 1])
            target = x0
            if x0_before is not None:
                r = math.log(sigmas[i - 1] / sigmas[i]) / h
                target = (1 + 1 / (2 * r)) * x0 - (1 / (2 * r)) * x0_before
            x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * target
        x0_before = x0
        step(i, x0)
    return x


def euler_ancestral(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise, step: OnStep) -> Tensor:
    """Euler steps that go below the next noise level and add fresh noise to come back to it (k-diffusion, eta = 1)."""
    for i in range(len(sigmas) - 1):
        x0 = denoise(x, sigmas[i])
        up = min(sigmas[i + 1], math.sqrt(sigmas[i + 1] ** 2 * (sigmas[i] ** 2 - sigmas[i + 1] ** 2) / sigmas[i] ** 2))
        down = math.sqrt(sigmas[i + 1] ** 2 - up**2)
        x = x + (x - x0) / sigmas[i] * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + noise() * up
        step(i, x0)
    return x


def lcm(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise, step: OnStep) -> Tensor:
    """Multistep consistency sampling, Algorithm 1 of Luo et al. 2023 (arXiv:2310.04378): for distilled checkpoints only."""
    for i in range(len(sigmas) - 1):
        x0 = denoise(x, sigmas[i])
        x = x0 + noise() * sigmas[i + 1] if sigmas[i + 1] > 0 else x0
        step(i, x0)
    return x


SOLVERS: Mapping[str, Solver] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "euler_ancestral": euler_ancestral, "lcm": lcm}

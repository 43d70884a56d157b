"""Noise levels of a sampling run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0  # of SVD's training

# https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html, "Stable Video Diffusion", 10 steps
_ALIGN_YOUR_STEPS = (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022 (arXiv:2206.00364), eq. 5."""
    import torch

    ramp = torch.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _end_at_zero((high + ramp * (low - high)) ** rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in log sigma, the last noise level being sigma_min."""
    import torch

    return _end_at_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps).exp())


def uniform(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in the network's own time, c_noise = ln(sigma)/4, with the end left out (ComfyUI's sgm_uniform)."""
    import torch

    return _end_at_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps + 1)[:-1].exp())


def align_your_steps(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The published SVD noise levels of Sabour et al. 2024 (arXiv:2404.14507), log-linearly interpolated to any count.

    They are fixed: sigma_min and sigma_max are not used.
    """
    import numpy as np
    import torch

    known = np.log(_ALIGN_YOUR_STEPS[::-1])
    levels = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(known)), known))[::-1]
    return _end_at_zero(torch.tensor(levels[:-1].copy(), dtype=torch.float32))


SCHEDULES: Mapping[str, Callable[[int, float, float], Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "align_your_steps": align_your_steps,
    "uniform": uniform,
}


def sigmas(schedule: str, steps: int, denoise: float = 1.0, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Descending noise levels [steps + 1], float32 on the CPU, the last one 0.

    With `denoise` below 1 they are the last `steps` of a schedule of steps / denoise: video to video starts from less noise.
    """
    if denoise >= 1:
        return SCHEDULES[schedule](steps, sigma_min, sigma_max)
    return SCHEDULES[schedule](int(steps / denoise), sigma_min, sigma_max)[-(steps + 1) :]


def _end_at_zero(levels: Tensor) -> Tensor:
    import torch

    return torch.cat([levels, levels.new_zeros(1)])

"""From noise, or from a start clip, to a clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .schedules import SIGMA_MAX, sigmas
from .solvers import SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from .solvers import Denoiser


def sample(
    denoise: Denoiser,
    shape: tuple[int, int, int, int],
    *,
    steps: int,
    seed: int,
    solver: str = "euler",
    schedule: str = "karras",
    start_T4hw: Tensor | None = None,
    strength: float = 1.0,
    on_step: Callable[[int, int, Tensor], None] = lambda done, total, x0: None,
) -> Tensor:
    """Latents [T,4,h,w], float32 on the CPU, as is everything between two calls of the denoiser.

    denoise   see `solvers`
    shape     (T, 4, h, w)
    seed      of the one CPU generator behind every random number, so that a seed means the same noise on every device;
              the start noise is that of ComfyUI's KSampler
    start     latents of a start clip (video to video): noised and then denoised from `strength`, 1 being all the way
    on_step   called after each step with (steps done, steps, estimate of the clip); may raise to cancel
    """
    import torch

    if start_T4hw is not None and strength <= 0:
        return start_T4hw.float()
    levels = sigmas(schedule, steps, strength if start_T4hw is not None else 1.0)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator)

    first = levels[0]
    whole = math.isclose(float(first), SIGMA_MAX, rel_tol=1e-5)  # from pure noise: the variance of clip and noise together
    x = noise() * (torch.sqrt(1 + first**2) if whole else first).item()
    if start_T4hw is not None:
        x = x + start_T4hw.float()
    with torch.inference_mode():
        x = SOLVERS[solver](denoise, x, levels.tolist(), noise, lambda i, x0: on_step(i + 1, steps, x0))
    return x.float().cpu().clone()

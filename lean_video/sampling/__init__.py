"""Diffusion sampling as pure functions over a denoiser."""

from __future__ import annotations

from .guidance import GUIDANCE_MODES, guidance_scale, guide, is_guided
from .sample import sample
from .schedules import SCHEDULES, sigmas
from .solvers import SOLVERS

__all__ = ["GUIDANCE_MODES", "SCHEDULES", "SOLVERS", "guidance_scale", "guide", "is_guided", "sample", "sigmas"]

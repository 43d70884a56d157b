"""Frames to files: `combine` for a whole clip, `VideoWriter` for frame by frame, `PRESETS` for what can be written."""

from __future__ import annotations

from .audio import Audio
from .presets import AUTO, PIXEL_FORMATS, PRESETS, Preset, Settings, check_settings, exact_fps
from .writer import Frames, Numbered, PingPong, Stream, VideoWriter, Written, combine

__all__ = [
    "AUTO",
    "PIXEL_FORMATS",
    "PRESETS",
    "Audio",
    "Frames",
    "Numbered",
    "PingPong",
    "Preset",
    "Settings",
    "Stream",
    "VideoWriter",
    "Written",
    "check_settings",
    "combine",
    "exact_fps",
]

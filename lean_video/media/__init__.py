"""Frames to files and back: `combine` and `VideoWriter` write, `VideoReader` and `ImageFolder` read, `PRESETS` is what can be written."""

from __future__ import annotations

from .audio import Audio, Sound
from .clip import LoadedClip, load_clip
from .memory import ClipInMemory
from .presets import AUTO, PIXEL_FORMATS, PRESETS, Preset, Settings, check_settings, exact_fps
from .reader import VideoReader
from .resize import RESIZE_MODES
from .sound import AudioFile
from .stills import ImageFolder
from .timing import FrameSource, Measured, TimedFrame
from .writer import Frames, Numbered, PingPong, Stream, VideoWriter, Written, combine

__all__ = [
    "AUTO",
    "PIXEL_FORMATS",
    "PRESETS",
    "RESIZE_MODES",
    "Audio",
    "AudioFile",
    "ClipInMemory",
    "FrameSource",
    "Frames",
    "ImageFolder",
    "LoadedClip",
    "Measured",
    "Numbered",
    "PingPong",
    "Preset",
    "Settings",
    "Sound",
    "Stream",
    "TimedFrame",
    "VideoReader",
    "VideoWriter",
    "Written",
    "check_settings",
    "combine",
    "exact_fps",
    "load_clip",
]

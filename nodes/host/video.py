"""ComfyUI's VIDEO type, where it has one."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...lean_video.errors import LeanVideoError


def has_video_type() -> bool:
    return _video_classes() is not None


def _video_classes() -> tuple[Any, Any, Any] | None:
    try:
        from comfy_api.input_impl import VideoFromComponents, VideoFromFile
        from comfy_api.util import VideoComponents
    except ImportError:
        return None
    return VideoFromFile, VideoFromComponents, VideoComponents


def video_file(video: Any) -> Path | io.BytesIO | None:
    """What a VIDEO is read from; None where it is frames in memory, or a part of a file."""
    classes = _video_classes()
    if classes is None or not isinstance(video, classes[0]):
        return None
    window = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0, 0)
    source = video.get_stream_source()
    return None if any(window) else Path(source) if isinstance(source, str) else source


def video_frames(video: Any) -> tuple[Any, Any, Fraction]:
    """The frames [T,H,W,C] of a VIDEO, its AUDIO or None, and its rate. Raises LeanVideoError for what is no VIDEO."""
    if not hasattr(video, "get_components"):
        raise LeanVideoError(f"The input video is {type(video).__name__} {str(video)[:40]!r}, not a connection: connect it to a node that gives a VIDEO.")
    components = video.get_components()
    return components.images, components.audio, Fraction(components.frame_rate)


def video_from_file(path: Path) -> Any:
    """ComfyUI's VIDEO of a file, read only when somebody asks for it."""
    classes = _video_classes()
    return None if classes is None else classes[0](str(path))


def video_from_frames(images: Any, audio: Any, fps: float) -> Any:
    """ComfyUI's VIDEO of frames in memory, for formats that are no single video file."""
    classes = _video_classes()
    return None if classes is None else classes[1](classes[2](images=images, audio=audio, frame_rate=Fraction(fps).limit_denominator(100_000)))

"""The file formats, as data: what each can hold, what a quality of 0..100 means to it, and whether a browser plays it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Literal

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO = "auto"
FPS_MIN, FPS_MAX = 0.01, 1000.0


@dataclass(frozen=True)
class Steps:
    """A quality that picks one of a few values: the last of `values` whose threshold is not above it."""

    option: str
    values: tuple[tuple[int, str], ...]

    def __call__(self, quality: int) -> dict[str, str]:
        return {self.option: next(value for least, value in reversed(self.values) if quality >= least)}


@dataclass(frozen=True)
class Line:
    """A quality that moves a number on a straight line from `worst` (quality 0) to `best` (quality 100)."""

    option: str
    worst: int
    best: int

    def __call__(self, quality: int) -> dict[str, str]:
        return {self.option: str(round(self.worst + (self.best - self.worst) * quality / 100))}


@dataclass(frozen=True)
class Preset:
    """One file format.

    `pixel_formats` are FFmpeg's names, the first being what "auto" means; `browser` those of them that a browser plays.
    `kind` says who writes the file: "video" FFmpeg's muxer, "gif" the same behind a palette, "webp" and "png" our own writers.
    Sides are in pixels; `max_fps` is the fastest rate that the encoder or players take.
    `reorder`, where given, is by how many frames the decoding times must precede the shown ones: x265 leaves those of a clip of one or
    two frames uninitialised, so they are counted afresh.
    """

    name: str
    extension: str
    container: str
    codec: str
    pixel_formats: tuple[str, ...]
    kind: Literal["video", "gif", "webp", "png"] = "video"
    browser: tuple[str, ...] = ()
    quality: Line | Steps | None = None
    options: Mapping[str, str] = field(default_factory=lambda: {})
    container_options: Mapping[str, str] = field(default_factory=lambda: {})
    codec_tag: str = ""
    audio_codec: str = ""
    audio_rates: tuple[int, ...] = ()
    min_side: int = 1
    max_side: int = 16384
    max_fps: float = FPS_MAX
    lossless: bool = False
    reorder: int | None = None

    @property
    def is_folder(self) -> bool:
        return self.kind == "png"

    def codec_options(self, quality: int, pixel_format: str) -> dict[str, str]:
        """Options for the encoder, as FFmpeg spells them."""
        options = {**self.options, **(self.quality(quality) if self.quality else {})}
        if self.codec == "prores_ks" and not pixel_format.startswith("yuv422"):
            options["profile"] = "5" if quality >= 90 else "4"  # 4444 and 4444 XQ are the only profiles that hold 4:4:4
        return options


# What mp4 needs so that a dropped file restores its workflow: tags under their own names, and the index in front, since the page reads the first 2 MB only.
_MP4 = partial(
    Preset,
    extension=".mp4",
    container="mp4",
    container_options={"movflags": "use_metadata_tags+faststart"},
    audio_codec="aac",
    audio_rates=(96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000),
)
_WEBP = partial(
    Preset,
    kind="webp",
    extension=".webp",
    container="webp",
    codec="webp",
    pixel_formats=("rgb24", "rgba"),
    browser=("rgb24", "rgba"),
    max_side=16383,
    max_fps=90.0,
)

_TABLE = (
    _MP4(
        "h264 (mp4)",
        codec="libx264",
        pixel_formats=("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
        browser=("yuv420p",),
        quality=Line("crf", 45, 12),
        options={"preset": "medium"},
    ),
    _MP4(
        "h265 (mp4)",
        codec="libx265",
        pixel_formats=("yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
        quality=Line("crf", 45, 14),
        options={"preset": "fast", "x265-params": "log-level=error"},
        codec_tag="hvc1",
        min_side=16,
        max_side=8192,
        reorder=2,
    ),
    _MP4(
        "av1 (mp4)",
        codec="libsvtav1",
        pixel_formats=("yuv420p", "yuv420p10le"),
        browser=("yuv420p", "yuv420p10le"),
        quality=Line("crf", 63, 14),
        options={"preset": "8"},
        min_side=4,
        max_side=8192,
        max_fps=240.0,
    ),
    Preset(
        "vp9 (webm)",
        extension=".webm",
        container="webm",
        codec="libvpx-vp9",
        pixel_formats=("yuv420p", "yuv444p", "yuva420p"),
        browser=("yuv420p", "yuv444p", "yuva420p"),
        quality=Line("crf", 63, 14),
        options={"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        audio_codec="libopus",
        audio_rates=(48000,),
    ),
    Preset(
        "prores (mov)",
        extension=".mov",
        container="mov",
        codec="prores_ks",
        pixel_formats=("yuv422p10le", "yuv444p10le", "yuva444p10le"),
        quality=Steps("profile", ((0, "0"), (25, "1"), (50, "2"), (75, "3"))),
        options={"vendor": "apl0"},
        container_options={"movflags": "use_metadata_tags+faststart+write_colr"},
        audio_codec="pcm_s16le",
    ),
    Preset(
        "ffv1 (mkv)",
        extension=".mkv",
        container="matroska",
        codec="ffv1",
        pixel_formats=("bgr0", "bgra", "gbrp10le", "gbrp16le", "gbrap16le", "yuv420p", "yuv444p", "yuv444p10le"),
        options={"level": "3", "slicecrc": "1", "g": "1"},
        audio_codec="flac",
        min_side=2,
        lossless=True,
    ),
    Preset(
        "gif",
        kind="gif",
        extension=".gif",
        container="gif",
        codec="gif",
        pixel_formats=("rgb24", "rgba"),
        browser=("rgb24", "rgba"),
        quality=Line("max_colors", 16, 256),
        max_side=65535,
        max_fps=50.0,
    ),
    _WEBP("animated webp", quality=Line("quality", 0, 100)),
    _WEBP("animated webp (lossless)", lossless=True),
    Preset(
        "png sequence",
        kind="png",
        extension="",
        container="image2",
        codec="png",
        pixel_formats=("rgb24", "rgba", "rgb48be", "rgba64be"),
        options={"compression_level": "4", "pred": "mixed"},
        max_side=65535,
        lossless=True,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}
PIXEL_FORMATS: tuple[str, ...] = tuple(dict.fromkeys(name for preset in _TABLE for name in preset.pixel_formats))


@dataclass(frozen=True)
class Settings:
    """A preset with its choices made and checked: `pixel_format` is never "auto", `fps` is exact."""

    preset: Preset
    fps: Fraction
    quality: int
    pixel_format: str
    loop_count: int

    @property
    def plays_in_browser(self) -> bool:
        return self.pixel_format in self.preset.browser


def check_settings(preset: Preset | str, fps: Fraction | float, *, quality: int = 80, pixel_format: str = AUTO, loop_count: int = 0) -> Settings:
    """The settings of a file about to be written.

    Raises LeanVideoError for an unknown preset, a rate outside 0.01..1000 or beyond what the format plays, a quality outside 0..100,
    a pixel format that the preset cannot hold, or a negative loop count.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise LeanVideoError(f'There is no format "{preset}": choose one of {", ".join(PRESETS)}.')
        preset = PRESETS[preset]
    rate = exact_fps(fps)
    if rate > preset.max_fps:
        raise LeanVideoError(f"{preset.name} cannot play faster than {preset.max_fps:g} frames a second and fps is {float(rate):g}: lower fps or choose another format.")
    if not 0 <= quality <= 100:
        raise LeanVideoError(f"The quality is {quality}: choose one from 0 (smallest file) to 100 (best picture).")
    if pixel_format == AUTO:
        pixel_format = preset.pixel_formats[0]
    if pixel_format not in preset.pixel_formats:
        raise LeanVideoError(f'{preset.name} cannot hold the pixel format "{pixel_format}": choose auto or one of {", ".join(preset.pixel_formats)}.')
    if loop_count < 0:
        raise LeanVideoError(f"The loop count is {loop_count}: choose 0 to loop for ever, or how many times the clip plays.")
    return Settings(preset, rate, quality, pixel_format, loop_count)


def exact_fps(fps: Fraction | float) -> Fraction:
    """`fps` as a fraction; 23.976, 29.97, 59.94 and their kin become the broadcast rates n*1000/1001. Raises LeanVideoError outside 0.01..1000."""
    if not math.isfinite(fps) or not FPS_MIN <= fps <= FPS_MAX:
        raise LeanVideoError(f"The frame rate is {float(fps):g}: choose one from {FPS_MIN:g} to {FPS_MAX:g} frames a second.")
    if isinstance(fps, Fraction):
        return fps.limit_denominator(1001)
    for whole in (24, 30, 48, 60, 120):
        broadcast = Fraction(whole * 1000, 1001)
        if abs(fps - float(broadcast)) < 0.005:
            return broadcast
    return Fraction(fps).limit_denominator(1000)

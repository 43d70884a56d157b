"""Video files: Load Video Frames reads one, Video Combine writes one."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.media import (
    AUTO,
    PIXEL_FORMATS,
    PRESETS,
    RESIZE_MODES,
    ClipInMemory,
    Frames,
    FrameSource,
    Numbered,
    PingPong,
    Stream,
    VideoReader,
    Written,
    check_settings,
    combine,
    exact_fps,
    load_clip,
)
from . import host
from .inputs import check_connected

ABSENT = object()  # of an input that is neither connected nor given: a connected one arrives at VALIDATE_INPUTS as None


def video_inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    """The required and the optional inputs of a node that reads a video."""
    file = (host.input_videos(), {"video_upload": True, "tooltip": "A video in ComfyUI's input folder; the button puts one there."})
    video = {"video": ("VIDEO", {"tooltip": "A VIDEO to read in place of the file."})} if host.has_video_type() else {}
    return {"file": file}, video


def check_video(file: object, video: object) -> None:
    """Raises LeanVideoError for a file that is not there, unless a VIDEO is connected or the file's name is not known yet."""
    if video is ABSENT and file is not None:
        _input_file(file)


def file_changed(file: object) -> int | str:
    """What is another value when the file of that name has changed."""
    try:
        return _input_file(file).stat().st_mtime_ns
    except (LeanVideoError, OSError):
        return ""


def open_video(file: object, video: Any) -> FrameSource:
    """The VIDEO if there is one, else the file; close it. Raises LeanVideoError."""
    if video is None:
        return VideoReader(_input_file(file))
    source = host.video_file(video)
    if source is not None:
        return VideoReader(source)
    images, audio, fps = host.video_frames(video)
    return ClipInMemory(images, fps, audio)


def _input_file(name: object) -> Path:
    if not isinstance(name, str):
        raise LeanVideoError(f"The file is {name!r}, which is no name: give the name of one from the list.")
    return host.input_file(name)


class LoadVideoFrames:
    DESCRIPTION = (
        "Reads a video as images: all of it or a part, every frame or every n-th, at its own size and rate or at yours. "
        "The sound of the same part comes with it. Frames are put where they stay as they are read, so it takes no more memory than the images do."
    )
    CATEGORY = "Lean Video"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "INT", "MASK")
    RETURN_NAMES = ("images", "audio", "fps", "count", "mask")
    OUTPUT_TOOLTIPS = (
        "The frames.",
        "The sound of the part that was read; nothing where the video has none.",
        "Frames a second of the images.",
        "How many images there are.",
        "Where the video is transparent, 1; of a video without transparency, one small empty mask.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required, optional = video_inputs()
        side = {"default": 0, "min": 0, "max": 16384, "step": 8}
        return {
            "required": {
                **required,
                "start_frame": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1, "tooltip": "The first frame to read, counted from 0 in the video's own frames."}),
                "count": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1, "tooltip": "How many images to read at most; 0 is all there are."}),
                "every_nth": ("INT", {"default": 1, "min": 1, "max": 1000, "tooltip": "2 takes every second frame, and so on; fps falls with it."}),
                "fps": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.01,
                        "tooltip": "Frames a second to read at: each image is what the video shows at its time. 0 takes the frames as they are. A video of variable rate becomes even this way.",
                    },
                ),
                "width": ("INT", {**side, "tooltip": "Width of the images; 0 keeps the shape of the video with the height, or its size if both are 0."}),
                "height": ("INT", {**side, "tooltip": "Height of the images; 0 as with the width."}),
                "resize": (
                    list(RESIZE_MODES),
                    {"default": "crop", "tooltip": "To a size of another shape: crop fills it and cuts what stands over, pad shows everything on black, stretch squeezes."},
                ),
            },
            "optional": optional,
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file: Any = None, video: Any = ABSENT) -> bool | str:
        try:
            check_video(file, video)
        except LeanVideoError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, file: Any = None, **_: Any) -> Any:
        return file_changed(file)

    def run(
        self,
        file: str,
        start_frame: int,
        count: int,
        every_nth: int,
        fps: float,
        width: int,
        height: int,
        resize: str,
        video: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        with open_video(file, video) as source:
            clip = load_clip(
                source,
                start_frame=start_frame,
                count=count or None,
                stride=every_nth,
                fps=exact_fps(fps) if fps else None,
                size=(width, height) if width or height else None,
                resize=resize,
                limit_bytes=host.free_host_bytes(),
                progress=host.progress(),
            )
        for note in clip.notes:
            host.note(unique_id, note)
        frames_THWC = clip.frames_THWC
        mask = 1 - frames_THWC[..., 3] if frames_THWC.shape[-1] == 4 else torch.zeros(1, 64, 64)
        sound = None if clip.sound is None else {"waveform": clip.sound.waveform_CS[None], "sample_rate": clip.sound.sample_rate}
        return {"ui": {"text": list(clip.notes)}, "result": (frames_THWC[..., :3].contiguous(), sound, float(clip.fps), len(frames_THWC), mask)}


def format_inputs(prefix: str) -> dict[str, Any]:
    """The inputs of a node that writes a video file."""
    return {
        "format": (
            list(PRESETS),
            {
                "default": next(iter(PRESETS)),
                "tooltip": "Codec and container. h264, av1, vp9, gif and webp play in the browser; the others get a small h264 preview. ffv1, lossless webp and png lose nothing.",
            },
        ),
        "filename_prefix": (
            "STRING",
            {
                "default": prefix,
                "tooltip": "Where in the output folder, and the start of the name; a number follows. %date:yyyy-MM-dd% and other placeholders work.",
            },
        ),
        "quality": (
            "INT",
            {
                "default": 80,
                "min": 0,
                "max": 100,
                "tooltip": "0 makes the smallest file, 100 the best picture. Lossless formats ignore it; for a GIF it sets the number of colours.",
            },
        ),
        "pixel_format": (
            [AUTO, *PIXEL_FORMATS],
            {
                "default": AUTO,
                "tooltip": "How pixels are stored. auto suits the format and plays everywhere; 10le means 10 bits; names with an a (yuva420p, bgra, rgba) keep transparency, which otherwise goes on black.",
            },
        ),
    }


def check_format(fps: float | None, format: object, filename_prefix: str | None, pixel_format: str | None) -> None:
    """Raises LeanVideoError for what no file can be written as; what is connected is None here and is checked when it runs."""
    if format is not None and not isinstance(format, str):  # a graph written by hand may hold anything
        raise LeanVideoError(f"The format is {format!r}, which is no name: give the name of one from the list.")
    if filename_prefix is not None:
        host.check_prefix(filename_prefix)
    if format is not None:
        check_settings(format, 1.0 if fps is None else fps, pixel_format=pixel_format or AUTO)
    elif fps is not None:
        exact_fps(fps)


def save(
    clip: Frames | Stream,
    fps: Fraction | float,
    format: str,
    filename_prefix: str,
    quality: int,
    pixel_format: str,
    *,
    audio: Any,
    prompt: Any,
    extra_pnginfo: Any,
    loop_count: int = 0,
) -> tuple[Written, dict[str, Any]]:
    """Writes a clip to the output folder: what was written, and what the page shows of it."""
    settings = check_settings(format, fps, quality=quality, pixel_format=pixel_format, loop_count=loop_count)
    folder, name, counter, subfolder = host.output_path(filename_prefix)
    preview = preview_subfolder = None
    if not settings.plays_in_browser:
        preview_folder, preview_name, preview_counter, preview_subfolder = host.temp_path("lean_video_preview")
        preview = Numbered(preview_folder, preview_name, preview_counter)
    written = combine(
        clip,
        Numbered(folder, name, counter),
        format,
        fps,
        quality=quality,
        pixel_format=pixel_format,
        loop_count=loop_count,
        metadata=_metadata(prompt, extra_pnginfo),
        audio=audio,
        preview=preview,
        progress=host.progress(),
    )
    file = {"filename": written.path.name, "subfolder": subfolder, "type": "output"}
    shown = {"filename": written.preview.name, "subfolder": preview_subfolder, "type": "temp"} if written.preview else file
    return written, {"images": [shown], "animated": (True,), "lean_video_files": [{**file, "format": format}]}


class VideoCombine:
    DESCRIPTION = (
        "Writes images, and sound if you connect some, to a video file, frame by frame: memory does not grow with the length of the clip. "
        "The workflow is stored inside, so dropping the file on the canvas restores it."
    )
    CATEGORY = "Lean Video"
    OUTPUT_NODE = True
    FUNCTION = "run"
    RETURN_TYPES = ("STRING", "VIDEO") if host.has_video_type() else ("STRING",)
    RETURN_NAMES = ("file", "video") if host.has_video_type() else ("file",)
    OUTPUT_TOOLTIPS = ("Path of the file that was written; for a PNG sequence, of its folder.", "The clip as a VIDEO, for ComfyUI's own video nodes.")[: len(RETURN_TYPES)]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames of the clip, in order."}),
                "fps": (
                    "FLOAT",
                    {
                        "default": 6.0,
                        "min": 0.01,
                        "max": 1000.0,
                        "step": 0.01,
                        "tooltip": "Frames a second. 23.976, 29.97 and 59.94 become the exact broadcast rates. A GIF plays at most 50, a WebP 90, AV1 240.",
                    },
                ),
                **format_inputs("video/lean_video"),
                "loop_count": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "How many times a GIF or WebP plays; 0 is for ever. Video players decide for themselves."}),
                "ping_pong": ("BOOLEAN", {"default": False, "tooltip": "Play there and back again: after the last frame come the ones before it, in reverse, down to the second."}),
            },
            "optional": {
                "audio": ("AUDIO", {"tooltip": "Sound for the clip, cut or filled with silence to its length. GIF, WebP and PNG have none."}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        fps: float | None = None,
        format: object = None,
        filename_prefix: str | None = None,
        pixel_format: str | None = None,
    ) -> bool | str:
        """True, or the sentence that says what is wrong; an input that is connected arrives as None and is checked when it runs."""
        try:
            check_format(fps, format, filename_prefix, pixel_format)
        except LeanVideoError as error:
            return str(error)
        return True

    def run(
        self,
        images: Any,
        fps: float,
        format: str,
        filename_prefix: str,
        quality: int,
        pixel_format: str,
        loop_count: int,
        ping_pong: bool,
        audio: Any = None,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        check_connected(images=(images, torch.Tensor, "a node that gives images"))
        clip = PingPong(images) if ping_pong else images
        written, shown = save(clip, fps, format, filename_prefix, quality, pixel_format, audio=audio, prompt=prompt, extra_pnginfo=extra_pnginfo, loop_count=loop_count)
        if written.notes:
            host.note(unique_id, " ".join(written.notes))
        result: tuple[Any, ...] = (str(written.path),)
        if host.has_video_type():
            result += (_video(written, images, audio, ping_pong),)
        return {"ui": shown, "result": result}


def _metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    if host.metadata_disabled():
        return {}
    entries = {} if prompt is None else {"prompt": prompt}
    return {key: json.dumps(value) for key, value in {**entries, **(extra_pnginfo or {})}.items()}


def _video(written: Written, images: Any, audio: Any, ping_pong: bool) -> Any:
    """The clip as a VIDEO: the file where FFmpeg reads it back whole, else the frames that are in memory anyway."""
    if written.settings.preset.kind == "video":
        return host.video_from_file(written.path)
    if ping_pong:
        there_and_back = PingPong(range(len(images)))
        images = images[[there_and_back[i] for i in range(len(there_and_back))]]
    return host.video_from_frames(images, audio, written.settings.fps)


NODE_CLASS_MAPPINGS = {"LeanVideoLoadFrames": LoadVideoFrames, "LeanVideoCombine": VideoCombine}
NODE_DISPLAY_NAME_MAPPINGS = {"LeanVideoLoadFrames": "Load Video Frames", "LeanVideoCombine": "Video Combine"}

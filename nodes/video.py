"""Video Combine: images to a file in ComfyUI's output folder."""

from __future__ import annotations

import json
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.media import AUTO, PIXEL_FORMATS, PRESETS, Numbered, PingPong, Written, check_settings, combine, exact_fps
from . import host
from .inputs import check_connected


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
                        "default": "video/lean_video",
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
            if format is not None and not isinstance(format, str):  # a graph written by hand may hold anything
                raise LeanVideoError(f"The format is {format!r}, which is no name: give the name of one from the list.")
            if filename_prefix is not None:
                host.check_prefix(filename_prefix)
            if format is not None:
                check_settings(format, 1.0 if fps is None else fps, pixel_format=pixel_format or AUTO)
            elif fps is not None:
                exact_fps(fps)
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
        settings = check_settings(format, fps, quality=quality, pixel_format=pixel_format, loop_count=loop_count)
        folder, name, counter, subfolder = host.output_path(filename_prefix)
        preview = preview_subfolder = None
        if not settings.plays_in_browser:
            preview_folder, preview_name, preview_counter, preview_subfolder = host.temp_path("lean_video_preview")
            preview = Numbered(preview_folder, preview_name, preview_counter)
        written = combine(
            images,
            Numbered(folder, name, counter),
            format,
            fps,
            quality=quality,
            pixel_format=pixel_format,
            loop_count=loop_count,
            ping_pong=ping_pong,
            metadata=_metadata(prompt, extra_pnginfo),
            audio=audio,
            preview=preview,
            progress=host.progress(max(1, len(PingPong(images)) if ping_pong else len(images))),
        )
        if written.notes:
            host.note(unique_id, " ".join(written.notes))
        file = {"filename": written.path.name, "subfolder": subfolder, "type": "output"}
        shown = {"filename": written.preview.name, "subfolder": preview_subfolder, "type": "temp"} if written.preview else file
        result: tuple[Any, ...] = (str(written.path),)
        if host.has_video_type():
            result += (_video(written, images, audio, ping_pong),)
        return {"ui": {"images": [shown], "animated": (True,), "lean_video_files": [{**file, "format": format}]}, "result": result}


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


NODE_CLASS_MAPPINGS = {"LeanVideoCombine": VideoCombine}
NODE_DISPLAY_NAME_MAPPINGS = {"LeanVideoCombine": "Video Combine"}

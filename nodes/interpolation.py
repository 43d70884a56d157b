"""Frames between frames: Keyframe Interpolation for images, Interpolate Video File from file to file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.interpolation import library
from ..lean_video.interpolation.clip import AT_CUTS, Handling, interpolate_clip
from ..lean_video.interpolation.cost import choose_batch
from ..lean_video.interpolation.film import interpolate_film
from ..lean_video.interpolation.interpolator import Interpolator
from ..lean_video.interpolation.rife import SCALES
from ..lean_video.interpolation.scenes import CUT_THRESHOLD
from ..lean_video.interpolation.timeline import MAX_FACTOR, AtRate, Between, Schedule, check_factor, check_rate, parse_counts, parse_pairs, parse_times
from ..lean_video.media import Stream, Written, exact_fps
from . import host
from .inputs import check_connected
from .video import ABSENT, check_format, check_video, file_changed, format_inputs, open_video, save, video_inputs

CATEGORY = "Lean Video"
AUTO = "auto"

host.register_interpolation_weights()

MULTIPLIER, TARGET_FPS, COUNTS, TIMES = "multiplier", "target fps", "frames per pair", "keyframe times"
_VIDEO = ("VIDEO",) if host.has_video_type() else ()
_PRECISIONS = ("auto", "fp32", "fp16")


def _model_inputs() -> dict[str, Any]:
    return {
        "model": (
            [AUTO, *host.interpolation_weights(), library.OPTICAL_FLOW],
            {
                "default": AUTO,
                "tooltip": "RIFE weights from models/frame_interpolation or models/rife: 4.0 to 4.26 are told apart by what is inside. auto takes 4.6 if it is there, else another RIFE, else optical flow, which needs no weights.",
            },
        ),
    }


def _run_inputs() -> dict[str, Any]:
    return {
        "at_cuts": (
            list(AT_CUTS),
            {"default": "hold", "tooltip": "Across a cut nothing is morphed: hold shows the frame before it a little longer, cut puts nothing between, ignore looks for no cuts."},
        ),
        "cut_threshold": (
            "FLOAT",
            {
                "default": CUT_THRESHOLD,
                "min": 0.0,
                "max": 1.0,
                "step": 0.01,
                "tooltip": "How little of a frame must be found in the next for a cut. Lower it where cuts are missed, raise it where fast motion is taken for one; the report says what was measured.",
            },
        ),
        "smooth_repeats": (
            "BOOLEAN",
            {
                "default": True,
                "tooltip": "Where a frame repeats the one before, as in animation on twos, motion is spread over the repeats instead of stuttering. Not used where you place frames yourself.",
            },
        ),
        "scale": (
            [f"{scale:g}" for scale in SCALES],
            {"default": "1", "tooltip": "Of the picture in which motion is looked for: 0.5 or 0.25 for very large motion or 4K frames, 2 or 4 for small pictures."},
        ),
        "ensemble": ("BOOLEAN", {"default": False, "tooltip": "Look in both directions of time: a little better, for twice the time."}),
        "precision": (
            list(_PRECISIONS),
            {"default": "auto", "tooltip": "Of the network. auto is fp16 where the GPU is faster that way; motion and pictures stay fp32 in any case."},
        ),
    }


def _check_name(**names: object) -> None:
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise LeanVideoError(f"The {name} is {value!r}, which is no name: give the name of one from the list.")


def _check_model(model: str | None) -> None:
    _check_name(model=model)
    if model not in (None, AUTO, library.OPTICAL_FLOW) and model not in host.interpolation_weights():
        raise LeanVideoError(f"There are no weights named {model}: refresh the list and choose again.")


def _open(model: str, scale: str, ensemble: bool, precision: str, say: Any) -> Interpolator:
    path = _weights(model)
    if path is None and model == AUTO:
        say(f"{library.NO_WEIGHTS}put a RIFE file into models/frame_interpolation, or let scripts/fetch_models.py of this pack do so.")
    half = precision == "fp16" or (precision == "auto" and host.half_is_faster())
    return library.open_interpolator(path, host.device(), half=half, scale=float(scale), ensemble=ensemble)


def choose_interpolator(model: Any, half: bool) -> Interpolator:
    """What a choice of the list stands for, on the CPU. Raises LeanVideoError."""
    return library.open_interpolator(_weights(model), torch.device("cpu"), half=half)


def _weights(model: str) -> Path | None:
    _check_model(model)
    weights = host.interpolation_weights()
    if model == library.OPTICAL_FLOW:
        return None
    return library.best(weights.values()) if model == AUTO else weights[model]


class KeyframeInterpolation:
    DESCRIPTION = (
        "Puts frames between frames: so many times as many, at a rate you name, or as many as you say for each pair. "
        "Works on any images in order, generated keyframes as well as a video. The images you give come out unchanged among the new ones."
    )
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "fps", "report")
    OUTPUT_TOOLTIPS = (
        "The longer clip.",
        "Frames a second at which it lasts as long as the one you gave; with keyframe times, target_fps. For Video Combine.",
        "What was made, and which cuts and repeats were found.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rate = {"min": 0.01, "max": 1000.0, "step": 0.01}
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "Two frames or more, in order."}),
                **_model_inputs(),
                "mode": (
                    [MULTIPLIER, TARGET_FPS, COUNTS, TIMES],
                    {
                        "default": MULTIPLIER,
                        "tooltip": "multiplier: so many times the frames a second. target fps: from source_fps to target_fps, in any ratio. frames per pair and keyframe times: as schedule says.",
                    },
                ),
                "multiplier": ("INT", {"default": 2, "min": 2, "max": MAX_FACTOR, "tooltip": "2 puts one frame between each pair, 4 three. Used by the mode multiplier."}),
                "source_fps": ("FLOAT", {"default": 6.0, **rate, "tooltip": "Frames a second of the images that you give."}),
                "target_fps": ("FLOAT", {"default": 24.0, **rate, "tooltip": "Frames a second of the result. Used by the modes target fps and keyframe times."}),
                "schedule": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "frames per pair: how many new frames for each pair, such as 3, 0, 7. keyframe times: when each image is to be seen, in seconds, such as 0, 0.5, 2.25.",
                    },
                ),
                "skip_pairs": ("STRING", {"default": "", "tooltip": "Pairs between which nothing is put, such as 2, 5-8; pair 1 is images 1 and 2. The images themselves stay."}),
                "loop": ("BOOLEAN", {"default": False, "tooltip": "Also make the frames from the last image back to the first, so that the clip goes round."}),
                **_run_inputs(),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        model: Any = None,
        mode: Any = None,
        multiplier: int | None = None,
        source_fps: float | None = None,
        target_fps: float | None = None,
    ) -> bool | str:
        try:
            _check_model(model)
            _check_name(mode=mode)
            if mode is not None and mode not in (MULTIPLIER, TARGET_FPS, COUNTS, TIMES):
                raise LeanVideoError(f"There is no mode {mode}: choose one from the list.")
            if multiplier is not None and mode == MULTIPLIER:
                check_factor(multiplier)
            if source_fps is not None and target_fps is not None and mode == TARGET_FPS:
                check_rate(exact_fps(source_fps), exact_fps(target_fps))
        except LeanVideoError as error:
            return str(error)
        return True

    def run(
        self,
        images: Any,
        model: str,
        mode: str,
        multiplier: int,
        source_fps: float,
        target_fps: float,
        schedule: str,
        skip_pairs: str,
        loop: bool,
        at_cuts: Any,
        cut_threshold: float,
        smooth_repeats: bool,
        scale: str,
        ensemble: bool,
        precision: str,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        check_connected(images=(images, torch.Tensor, "a node that gives images"))

        def say(text: str) -> None:
            host.note(unique_id, text)

        count = len(images)
        gaps = count if loop else max(0, count - 1)
        fps = exact_fps(source_fps)
        plan = _schedule(mode, multiplier, fps, exact_fps(target_fps), schedule, count, gaps, loop)
        handling = Handling(at_cuts, cut_threshold, smooth_repeats and mode in (MULTIPLIER, TARGET_FPS), parse_pairs(skip_pairs, gaps))
        interpolator = _open(model, scale, ensemble, precision, say)
        height, width = images.shape[1:3]
        result, report = interpolate_clip(
            images,
            interpolator,
            plan,
            fps=fps,
            closed=loop,
            handling=handling,
            batch=choose_batch(interpolator, width, height, host.room),
            limit=host.free_host_bytes(),
            progress=host.progress(),
            say=say,
        )
        shown = _rate_of_result(mode, fps, exact_fps(target_fps), multiplier, count, len(result), loop)
        lines = [f"{count} frames at {float(fps):.6g} became {len(result)} at {float(shown):.6g} a second, made by {interpolator.name}.", *report.lines(handling)]
        return {"ui": {"text": lines}, "result": (result, float(shown), "\n".join(lines))}


def _schedule(mode: str, multiplier: int, fps: Fraction, target: Fraction, text: str, count: int, gaps: int, loop: bool) -> Schedule:
    if mode == MULTIPLIER:
        return Between(check_factor(multiplier) - 1)
    if mode == TARGET_FPS:
        return AtRate(check_rate(fps, target))
    return Between(parse_counts(text, gaps)) if mode == COUNTS else parse_times(text, count, target, loop)


def _rate_of_result(mode: str, fps: Fraction, target: Fraction, multiplier: int, count: int, made: int, loop: bool) -> Fraction:
    """Frames a second at which the result lasts as long as the images did."""
    if mode in (TARGET_FPS, TIMES):
        return target
    if mode == MULTIPLIER:
        return fps * multiplier
    return fps * (Fraction(made, count) if loop else Fraction(made - 1, count - 1))


class InterpolateVideoFile:
    DESCRIPTION = (
        "Makes a video smoother, from file to file: frames go through one by one, so a clip of any length takes the same memory. The sound stays in step. "
        "The new file gets its name only when it is finished."
    )
    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    FUNCTION = "run"
    RETURN_TYPES = ("STRING", "STRING", *_VIDEO)
    RETURN_NAMES = ("file", "report", *(name.lower() for name in _VIDEO))
    OUTPUT_TOOLTIPS = ("Path of the file that was written.", "What was made, and which cuts and repeats were found.", *("The new clip as a VIDEO." for _ in _VIDEO))

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required, optional = video_inputs()
        return {
            "required": {
                **required,
                **_model_inputs(),
                "mode": (
                    [MULTIPLIER, TARGET_FPS],
                    {"default": MULTIPLIER, "tooltip": "multiplier: so many times the frames a second of the video. target fps: at target_fps, in any ratio."},
                ),
                "multiplier": ("INT", {"default": 2, "min": 2, "max": MAX_FACTOR, "tooltip": "2 puts one frame between each pair. Used by the mode multiplier."}),
                "target_fps": ("FLOAT", {"default": 60.0, "min": 0.01, "max": 1000.0, "step": 0.01, "tooltip": "Frames a second of the result. Used by the mode target fps."}),
                **_run_inputs(),
                **format_inputs("video/lean_video_smooth"),
            },
            "optional": optional,
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        file: Any = None,
        video: Any = ABSENT,
        model: Any = None,
        multiplier: int | None = None,
        format: Any = None,
        filename_prefix: str | None = None,
        pixel_format: str | None = None,
    ) -> bool | str:
        try:
            check_video(file, video)
            _check_model(model)
            check_format(None, format, filename_prefix, pixel_format)
            if multiplier is not None:
                check_factor(multiplier)
        except LeanVideoError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, file: Any = None, **_: Any) -> Any:
        return file_changed(file)

    def run(
        self,
        file: str,
        model: str,
        mode: str,
        multiplier: int,
        target_fps: float,
        at_cuts: Any,
        cut_threshold: float,
        smooth_repeats: bool,
        scale: str,
        ensemble: bool,
        precision: str,
        format: str,
        filename_prefix: str,
        quality: int,
        pixel_format: str,
        video: Any = None,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        def say(text: str) -> None:
            host.note(unique_id, text)

        shown: dict[str, Any] = {}
        handling = Handling(at_cuts, cut_threshold, smooth_repeats)
        with open_video(file, video) as source:
            rate = exact_fps(target_fps) if mode == TARGET_FPS else source.fps * check_factor(multiplier)
            check_rate(source.fps, rate)
            interpolator = _open(model, scale, ensemble, precision, say)
            batch = choose_batch(interpolator, *source.size, host.room)

            def write(stream: Stream, sound: Any) -> Written:
                nonlocal shown
                written, shown = save(stream, rate, format, filename_prefix, quality, pixel_format, audio=sound, prompt=prompt, extra_pnginfo=extra_pnginfo)
                return written

            written, report = interpolate_film(source, interpolator, rate, write, handling=handling, batch=batch, say=say)
            lines = [
                f"{report.frames} frames at {float(source.fps):.6g} became {written.frames} at {float(rate):.6g} a second, made by {interpolator.name}.",
                *report.lines(handling),
                *source.notes,
                *written.notes,
            ]
        videos = (host.video_from_file(written.path),) if host.has_video_type() else ()
        return {"ui": {**shown, "text": lines}, "result": (str(written.path), "\n".join(lines), *videos)}


NODE_CLASS_MAPPINGS = {"LeanVideoKeyframeInterpolation": KeyframeInterpolation, "LeanVideoInterpolateFile": InterpolateVideoFile}
NODE_DISPLAY_NAME_MAPPINGS = {"LeanVideoKeyframeInterpolation": "Keyframe Interpolation", "LeanVideoInterpolateFile": "Interpolate Video File"}

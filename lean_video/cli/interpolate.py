"""`interpolate`: frames between frames."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LeanVideoError
from .terminal import AddParser, Bar, device_named, preset_for, read_image, say, write_image

if TYPE_CHECKING:
    import torch

    from ..interpolation.interpolator import Interpolator
    from ..media import FrameSource, Sound, Stream, Written

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FOLDER_FPS = 6.0


def add_commands(add_parser: AddParser) -> None:
    parser = add_parser(
        "interpolate",
        help="make a clip smoother, or the frame between two",
        description="Puts frames between the frames of a video file or of a folder of images, or makes one frame between two images.",
        usage="%(prog)s IN [IN2] OUT [options]",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="IN [IN2] OUT",
        help="a video file or a folder of images, or two images; then what to write: a video file, a folder for PNGs, or with --at an image",
    )
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--factor", type=int, help="so many times the frames a second, 2 if nothing is said; 2 makes 2T-1 frames of T")
    how_many.add_argument("--fps", type=float, help="so many frames a second, of whatever rate the clip is")
    how_many.add_argument("--at", type=float, metavar="TIME", help="the one frame at this time between two images, 0 being the first and 1 the second")
    parser.add_argument(
        "--model", default=None, metavar="NAME|FILE", help='weights by name, such as rife-4.6, or a file; "optical flow" needs none; if not given, the best that is found'
    )
    parser.add_argument("--ensemble", action="store_true", help="look in both directions of time: better, for twice the work")
    parser.add_argument("--scale", type=float, default=1.0, help="look for motion in a picture of this scale: 0.5 or 0.25 for large motion or large frames (default 1)")
    parser.add_argument("--no-scene-cuts", action="store_true", help="make frames across cuts too; otherwise the frame before a cut is held")
    parser.add_argument("--no-repeats", action="store_true", help="take repeated frames as they stand; otherwise motion is spread over them")
    parser.add_argument("--cut-threshold", type=float, default=None, help="of change, 0 to 1, above which two frames are a cut (default 0.65)")
    parser.add_argument("--source-fps", type=float, default=None, help=f"frames a second of a folder of images or of two images (default {_FOLDER_FPS:g}); a video has its own")
    parser.add_argument("--quality", type=int, default=80, help="of the video, 0 to 100 (default 80)")
    parser.add_argument("--precision", choices=("auto", "fp32", "fp16"), default="auto", help="auto is fp16 on a CUDA GPU")
    parser.add_argument("--device", default=None, help="a torch device such as cpu, cuda:0 or mps; the best there is if not given")
    parser.set_defaults(run=_interpolate)


def _interpolate(options: argparse.Namespace) -> int:
    *inputs, out = options.paths
    if len(inputs) not in (1, 2):
        raise LeanVideoError("Give what to read and what to write: IN OUT, or the two images IN IN2 OUT.")
    _check_target(out)
    device = device_named(options.device)
    if len(inputs) == 2 and (options.at is not None or (out.suffix.lower() in _IMAGES and options.factor is None and options.fps is None)):
        return _one_frame(inputs[0], inputs[1], out, 0.5 if options.at is None else options.at, _open(options, device))
    if options.at is not None:
        raise LeanVideoError("--at makes one frame between two images: give IN IN2 OUT.")
    return _film(options, inputs, out, device)


def _check_target(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise LeanVideoError(f"The folder {out.parent} does not exist: make it first.")
    if out.is_dir() and (out.suffix or any(out.iterdir())):
        raise LeanVideoError(f"The folder {out} is there already: choose a new name.")


def _open(options: argparse.Namespace, device: torch.device) -> Interpolator:
    from ..interpolation import library

    if options.model is None:
        weights = library.best(library.weights_in(library.folders()))
        if weights is None:
            say(f"{library.NO_WEIGHTS}{library.HOW_TO_GET_WEIGHTS}.")
    else:
        weights = None if options.model == library.OPTICAL_FLOW else library.find_or_say(options.model)
    half = options.precision == "fp16" or (options.precision == "auto" and device.type == "cuda")
    return library.open_interpolator(weights, device, half=half, scale=options.scale, ensemble=options.ensemble)


def _one_frame(first: Path, second: Path, out: Path, at: float, interpolator: Interpolator) -> int:
    if out.suffix.lower() not in _IMAGES:
        raise LeanVideoError(f"{out.name} is to be an image: give it an ending such as .png.")
    from ..interpolation.clip import one_between

    picture_HWC = one_between(read_image(first), read_image(second), at, interpolator)
    write_image(picture_HWC, out)
    say(f"Made by {interpolator.name}.")
    print(out)
    return 0


def _film(options: argparse.Namespace, inputs: list[Path], out: Path, device: torch.device) -> int:
    preset = preset_for(out)
    from ..interpolation.clip import Handling
    from ..interpolation.cost import choose_batch
    from ..interpolation.film import interpolate_film
    from ..interpolation.scenes import CUT_THRESHOLD
    from ..interpolation.timeline import check_factor
    from ..media import combine, exact_fps

    handling = Handling(
        at_cuts="ignore" if options.no_scene_cuts else "hold",
        threshold=CUT_THRESHOLD if options.cut_threshold is None else options.cut_threshold,
        repeats=not options.no_repeats,
    )
    given_fps = None if options.source_fps is None else exact_fps(options.source_fps)
    with _source(inputs, given_fps) as source:
        rate = exact_fps(options.fps) if options.fps is not None else source.fps * check_factor(2 if options.factor is None else options.factor)
        interpolator = _open(options, device)
        batch = choose_batch(interpolator, *source.size, lambda _: _free(device))
        bar = Bar("frames")

        def write(stream: Stream, sound: Sound | None) -> Written:
            return combine(stream, out, preset, rate, quality=options.quality, audio=sound, progress=bar.update)

        written, report = interpolate_film(source, interpolator, rate, write, handling=handling, batch=batch, say=say)
        for note in (*source.notes, *written.notes, *report.lines(handling)):
            say(note)
        say(f"{report.frames} frames at {float(source.fps):.6g} became {written.frames} at {float(rate):.6g} a second, made by {interpolator.name}.")
    print(written.path)
    return 0


def _source(inputs: list[Path], fps: Fraction | None) -> FrameSource:
    from ..media import ImageFolder, VideoReader

    if len(inputs) == 2 or inputs[0].is_dir():
        return ImageFolder(inputs if len(inputs) == 2 else inputs[0], Fraction(_FOLDER_FPS) if fps is None else fps)
    if fps is not None:
        raise LeanVideoError("--source-fps is for images: a video says itself how fast it is shown.")
    return VideoReader(inputs[0])


def _free(device: torch.device) -> int | None:
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None

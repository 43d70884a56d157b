"""Still images as a clip: a folder of them, or a list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LeanVideoError
from .audio import Sound
from .demuxing import MAX_SIDE
from .timing import EvenTimes, Measured, TimedFrame

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder:
    """Reads the images of a folder in the order of the numbers in their names, or those of a list in its order, at `fps`; a FrameSource.

    They are turned as their EXIF says. All get transparency when one of the first and the last has some.
    Raises LeanVideoError where there are none, for one that cannot be read, and while reading for one of another size.
    """

    def __init__(self, source: Path | Sequence[Path], fps: Fraction) -> None:
        if isinstance(source, Path):
            self._files = sorted((file for file in source.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")), key=_in_order)
            if not self._files:
                raise LeanVideoError(f"There are no images in {source}: choose a folder of PNG, JPEG or WebP files.")
            self.name = source.name
        else:
            self._files = list(source)
            self.name = self._files[0].name
        ends = [read_image(self._files[i]) for i in (0, -1)]
        self.channels = max(int(frame_HWC.shape[2]) for frame_HWC in ends)
        self.size = int(ends[0].shape[1]), int(ends[0].shape[0])
        self.fps = fps
        self.frames: int | None = len(self._files)
        self.seconds: Fraction | None = len(self._files) / fps
        self.sound: Sound | None = None
        self.notes: list[str] = []

    def frames_from(self, start: Fraction = Fraction(0)) -> Iterator[TimedFrame]:
        first = min(int(start * self.fps), len(self._files) - 1)
        for index, file in enumerate(self._files[first:], first):
            frame_HWC = _with_channels(read_image(file), self.channels)
            height, width = frame_HWC.shape[:2]
            if (width, height) != self.size:
                raise LeanVideoError(
                    f"{file.name} is {width}x{height} and {self._files[0].name} is {self.size[0]}x{self.size[1]}: frames of one clip have one size, so bring them to one first."
                )
            yield TimedFrame(index / self.fps, frame_HWC)

    def __iter__(self) -> Iterator[TimedFrame]:
        return self.frames_from()

    def measure(self) -> Measured:
        return Measured(EvenTimes(len(self._files), self.fps), len(self._files) / self.fps)

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


def read_image(path: Path) -> Tensor:
    """[H,W,3 or 4], uint8, or float32 0..1 of sixteen grey bits; turned as its EXIF says. Raises LeanVideoError."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if max(opened.size) > MAX_SIDE:
                raise LeanVideoError(f"{path.name} is {opened.size[0]}x{opened.size[1]}: images of at most {MAX_SIDE} pixels a side are read.")
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":
                grey_HW = np.asarray(image).astype(np.float32) / 65535
                return torch.from_numpy(grey_HW)[..., None].clamp(0, 1).repeat(1, 1, 3)
            pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"))
    except FileNotFoundError:
        raise LeanVideoError(f"There is no image {path}: check the name.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        raise LeanVideoError(f"{path.name} is not an image that can be read: use a PNG, JPEG or WebP file.") from None
    return torch.from_numpy(pixels.copy())


def _with_channels(frame_HWC: Tensor, channels: int) -> Tensor:
    import torch

    if frame_HWC.shape[2] == channels:
        return frame_HWC
    if frame_HWC.shape[2] > channels:
        raise LeanVideoError("An image in the middle of the clip has transparency and the first and the last have none: give all of them some, or none.")
    opaque = torch.full_like(frame_HWC[..., :1], 255 if frame_HWC.dtype == torch.uint8 else 1)
    return torch.cat((frame_HWC, opaque), 2)


def _in_order(file: Path) -> list[tuple[int, int | str]]:
    """`frame2` before `frame10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", file.name.lower()) if part]

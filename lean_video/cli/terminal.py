"""What the commands share: their words on stderr, and what names on a command line stand for."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


AddParser = Callable[..., argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LeanVideoError(f"{message} (see python -m lean_video {self.prog.partition(' ')[2]} --help).".replace("  ", " "))


def say(text: str) -> None:
    print(f"lean_video: {text}", file=sys.stderr)


class Bar:
    """One line of progress on stderr: rewritten in place on a terminal, once at the end elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._shown = ""

    def update(self, done: int, total: int) -> None:
        filled = 24 * done // max(1, total)
        line = f"{self._what:<8}[{'#' * filled}{'.' * (24 - filled)}] {done}/{total}"
        if sys.stderr.isatty():
            if line != self._shown:
                print(f"\r{line}", end="" if done < total else f"  {time.monotonic() - self._began:.1f} s\n", file=sys.stderr, flush=True)
        elif done >= total:
            print(f"{line}  {time.monotonic() - self._began:.1f} s", file=sys.stderr)
        self._shown = line


def preset_for(out: Path) -> str:
    from ..media import PRESETS

    if not out.suffix:
        return "png sequence"
    for preset in PRESETS.values():
        if preset.extension == out.suffix.lower():
            return preset.name
    known = ", ".join(sorted({preset.extension for preset in PRESETS.values() if preset.extension}))
    raise LeanVideoError(f"{out.name} has an ending that no format here has: use {known}, or a folder name for PNGs.")


def read_image(path: Path) -> Tensor:
    """[H,W,3 or 4], float32 0..1, turned as its EXIF says. Raises LeanVideoError."""
    import torch

    from ..media.stills import read_image

    image_HWC = read_image(path)
    return image_HWC.float() / 255 if image_HWC.dtype == torch.uint8 else image_HWC


def write_image(picture_HWC: Tensor, path: Path) -> None:
    """Write a picture in 0..1 in the format that the ending names, under its name only when it is whole."""
    from PIL import Image

    pixels = (picture_HWC.clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(pixels.numpy())
    temporary = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        image.convert("RGB").save(temporary) if path.suffix.lower() in (".jpg", ".jpeg", ".bmp") else image.save(temporary)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise LeanVideoError(f"{path} cannot be written ({error}): free space or choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)


def gpu() -> torch.device | None:
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else None


def device_named(name: str | None) -> torch.device:
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise LeanVideoError(f"The device {name} cannot be used here: leave --device out, or name another.") from None
    return device

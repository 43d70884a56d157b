"""Which interpolators there are: files of weights by name, and what does without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import torch

    from .interpolator import Interpolator

OPTICAL_FLOW = "optical flow"
NO_WEIGHTS = "There are no weights of a RIFE network here, so optical flow makes the frames, a fallback that follows motion less well: "
SUFFIXES = (".safetensors", ".pth", ".pkl", ".pt")
HOW_TO_GET_WEIGHTS = "python scripts/fetch_models.py gets RIFE 4.6 and 4.0"

_PACK = Path(__file__).resolve().parents[2]


def is_weights(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def folders() -> list[Path]:
    """Where weights are looked for without ComfyUI; inside it, its own model folders come first. The first is where `scripts/fetch_models.py` puts them."""
    import platformdirs

    inside_comfyui = [_PACK.parents[1] / "models" / name for name in ("frame_interpolation", "rife")] if _PACK.parent.name == "custom_nodes" else []
    return [*inside_comfyui, _PACK / "models", platformdirs.user_data_path("lean_video", appauthor=False) / "models"]


def find(name: str, places: Iterable[Path]) -> Path | None:
    """The weights of that file name, with or without its ending, in the first of `places` that has them."""
    return next((file for file in weights_in(places) if name.lower() in (file.name.lower(), file.stem.lower())), None)


def best(files: Iterable[Path]) -> Path | None:
    """What to take of `files` where the user named none: RIFE 4.6, else the first by name that is a RIFE at all; None where none is."""
    from .weights import read_weights

    for file in sorted(files, key=lambda file: (not any(name in file.stem for name in ("4.6", "46", "4_6")), file.name)):
        with contextlib.suppress(LeanVideoError):
            read_weights(file)
            return file
    return None


def weights_in(places: Iterable[Path]) -> list[Path]:
    return [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if is_weights(file.name)]


def find_or_say(name: str) -> Path:
    """The weights in the file `name`, or of that name in `folders`. Raises LeanVideoError saying how to get some."""
    given = Path(name)
    if given.is_file():
        return given
    found = find(name, folders()) if given.name == name else None
    if found is None:
        raise LeanVideoError(f'There are no weights {name}: give a file, or the name of one in {folders()[0]} ({HOW_TO_GET_WEIGHTS}), or say "{OPTICAL_FLOW}".')
    return found


def open_interpolator(weights: Path | None, device: torch.device, *, half: bool = False, scale: float = 1.0, ensemble: bool = False) -> Interpolator:
    """The RIFE in `weights`, or optical flow without any; `half`, `scale` and `ensemble` are the network's alone. Raises LeanVideoError."""
    if weights is None:
        from .flow import OpticalFlow

        return OpticalFlow()
    from .rife import load

    return replace(load(weights, device=device, half=half), scale=scale, ensemble=ensemble)

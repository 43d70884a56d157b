"""SVD in a diffusers folder: model_index.json and a folder for each component."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LeanVideoError
from ..models.parts import Kind, Part
from .header import Header, read_header

_COMPONENTS: tuple[tuple[str, Kind, str, str], ...] = (
    ("unet", "unet", "UNetSpatioTemporalConditionModel", "diffusion_pytorch_model"),
    ("vae", "vae", "AutoencoderKLTemporalDecoder", "diffusion_pytorch_model"),
    ("image_encoder", "image_encoder", "CLIPVisionModelWithProjection", "model"),
)


def is_diffusers_folder(path: Path) -> bool:
    return (path / "model_index.json").is_file()


def parts(folder: Path, half: bool) -> dict[str, Part]:
    """The components of an SVD diffusers folder. `half` prefers the fp16 files where both are there.

    Raises LeanVideoError for a folder of another pipeline or with a component missing.
    """
    pipeline = _json(folder / "model_index.json", folder).get("_class_name")
    if pipeline != "StableVideoDiffusionPipeline":
        raise LeanVideoError(f"{folder.name} holds a {pipeline}, not a StableVideoDiffusionPipeline: choose a folder of Stable Video Diffusion.")
    found: dict[str, Part] = {}
    for name, kind, class_name, stem in _COMPONENTS:
        config = _json(folder / name / "config.json", folder)
        stated = config.get("_class_name") or next(iter(config.get("architectures") or ()), class_name)
        if stated != class_name:
            raise LeanVideoError(f"{folder.name}/{name} is a {stated}, SVD needs a {class_name}: download the folder again.")
        config = {key: _tuples(value) for key, value in config.items() if not key.startswith("_")}
        files = {header.path: {tensor: tensor for tensor in header.tensors} for header in _weights(folder / name, stem, half)}
        found[name] = Part(kind=kind, config=config, files=files)
    return found


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _weights(folder: Path, stem: str, half: bool) -> list[Header]:
    variants = (".fp16", "") if half else ("", ".fp16")
    for variant in variants:
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [read_header(whole)]
        shards = sorted(folder.glob(f"{stem}{variant}-*-of-*.safetensors"))
        if shards:
            return [read_header(shard) for shard in shards]
    raise LeanVideoError(f"{folder.parent.name}/{folder.name} has no {stem}.safetensors: the folder is incomplete, download that part again.")


def _json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeanVideoError(f"{folder.name} has no {path.relative_to(folder).as_posix()}: the folder is incomplete, download that part again.") from None
    except (OSError, ValueError):
        raise LeanVideoError(f"{folder.name}/{path.relative_to(folder).as_posix()} cannot be read: download it again.") from None
    if not isinstance(value, dict):
        raise LeanVideoError(f"{folder.name}/{path.relative_to(folder).as_posix()} is not a configuration: download it again.")
    return value

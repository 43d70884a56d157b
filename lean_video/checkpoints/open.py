"""From a path to an `SVDModel`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..errors import LeanVideoError
from ..models.parts import Part
from ..models.svd import Precision, SVDModel
from . import demo, diffusers_folder, single_file
from .families import SVD, family
from .header import Header, read_header

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_OF_DTYPE: dict[str, Precision] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def open_svd(path: Path, precision: str = "auto", *, device_type: str = "cpu") -> SVDModel:
    """An SVD checkpoint, from its header alone: no weights are read before they are used.

    path       a single .safetensors file or a diffusers folder
    precision  "fp32", "fp16", "bf16", or "auto": float32 on a CPU; on a GPU the file's own half precision, fp16 for float32 files

    Raises LeanVideoError saying what the file is when it is not SVD, and what is wrong with it when it is.
    """
    layout, parts = svd_parts(path, half=precision == "fp16" or (precision == "auto" and device_type != "cpu"))
    if precision == "auto":
        resolved: Precision = "fp32" if device_type == "cpu" else "bf16" if stored_precision(parts) == "bf16" else "fp16"
    elif precision in _OF_DTYPE.values():
        resolved = precision  # type: ignore[assignment]
    else:
        raise LeanVideoError(f"Precision {precision} is unknown: choose one of {', '.join(PRECISIONS)}.")
    return SVDModel(path=path, version=version(path, parts), layout=layout, precision=resolved, parts=parts)  # type: ignore[arg-type]


def svd_parts(path: Path, half: bool = False) -> tuple[str, dict[str, Part]]:
    """("single file" or "diffusers folder", components). Raises LeanVideoError as `open_svd` does."""
    if path.is_dir():
        if not diffusers_folder.is_diffusers_folder(path):
            raise LeanVideoError(f"{path.name} has no model_index.json: it is not a diffusers folder, choose a checkpoint.")
        return "diffusers folder", diffusers_folder.parts(path, half)
    header = read_header(path)
    require_svd(header)
    return "single file", single_file.parts(header)


def require_svd(header: Header) -> None:
    """Raises LeanVideoError naming what the file is when it is not SVD."""
    found = family(header)
    if found == SVD:
        return
    if found is None:
        raise LeanVideoError(f"{header.path.name} is not a Stable Video Diffusion checkpoint: its tensors are of no model this pack knows.")
    raise LeanVideoError(f"{header.path.name} is not a Stable Video Diffusion checkpoint but {_article(found)}{found}: choose svd or svd_xt.")


def _article(name: str) -> str:
    return "" if name.startswith(("a ", "part ")) else "an " if name[0] in "AEIOUS" else "a "


def stored_precision(parts: dict[str, Part]) -> str:
    """The precision most of the UNet's numbers are stored in: "fp32", "fp16", "bf16" or safetensors' own name of another type."""
    count: Counter[str] = Counter()
    for path in parts["unet"].files:
        tensors = read_header(path).tensors
        for name in parts["unet"].files[path].values():
            count[tensors[name].dtype] += tensors[name].parameters
    dtype = count.most_common(1)[0][0]
    return _OF_DTYPE.get(dtype, dtype)


def version(path: Path, parts: dict[str, Part]) -> str:
    """ "demo", or "svd" or "svd_xt" with "_1_1" and "_image_decoder" where they apply: told from the name, since the networks are alike."""
    if demo.is_demo(path):
        return demo.NAME
    name = path.name.lower().replace("-", "_").replace(".", "_")
    extended = int(parts["unet"].config.get("num_frames", 25)) != 14 if path.is_dir() else "xt" in name
    base = "svd_xt" if extended else "svd"
    if "1_1" in name:
        base += "_1_1"
    return base + ("_image_decoder" if parts["vae"].kind == "image_vae" else "")

"""A file of RIFE weights → tensors under the names of `ifnet.IFNet`, every one of them checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LeanVideoError
from .ifnet import IFNet
from .layouts import LAYOUTS, Layout, canonical_names, read_layout

_LARGEST = 1 << 30  # the largest RIFE with all that training left in it has a few hundred megabytes


def read_weights(path: Path) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of the RIFE in `path` and its weights in float32 on the CPU.

    Reads safetensors, and PyTorch archives as what they may hold at most, tensors (`weights_only`); which of the two it is tells the content.
    Raises LeanVideoError when it is no file, no weights, the weights of another network, or not all or not only the weights of a RIFE that was released.
    """
    tensors = _read_tensors(path)
    names = canonical_names(tensors)
    weights = {names[name]: tensor for name, tensor in tensors.items() if name in names}
    layout = _known_layout(path, weights, tensors)
    expected = {name: tuple(tensor.shape) for name, tensor in _skeleton(layout).state_dict().items()}
    in_file = {canonical: name for name, canonical in names.items()}
    if missing := [name for name in expected if name not in weights]:
        raise LeanVideoError(f"{path.name} is an incomplete RIFE {layout.versions}: {_listed(missing)} is not in it, so download it again.")
    if unknown := [in_file[name] for name in weights if name not in expected]:
        raise LeanVideoError(f"{path.name} looks like RIFE {layout.versions} but also holds {_listed(unknown)}, which that has not: use the file as it was released.")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape or not weights[name].is_floating_point():
            found = f"{list(weights[name].shape)} in {str(weights[name].dtype).removeprefix('torch.')}"
            raise LeanVideoError(f"{path.name} looks like RIFE {layout.versions} but its {in_file[name]} is {found}, not {list(shape)} in floats: download it again.")
    return layout, {name: tensor.float() for name, tensor in weights.items()}


def _skeleton(layout: Layout) -> IFNet:
    with torch.device("meta"):
        return IFNet(layout)


def _known_layout(path: Path, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Layout:
    found = read_layout({name: tuple(tensor.shape) for name, tensor in weights.items()})
    if found is None:
        what = next((network.name for network in _OTHER_NETWORKS if network.has_all(tensors)), None)
        raise LeanVideoError(f"{path.name} is not a RIFE of version 4{f' but {what}' if what else ''}: choose the weights of RIFE 4.0 to 4.26.")
    known = next((layout for layout in LAYOUTS if layout == found), None)
    if known is None:
        raise LeanVideoError(f"{path.name} is a RIFE of a design that was never released ({_described(found)}): choose the weights of RIFE 4.0 to 4.26.")
    return known


@dataclass(frozen=True)
class _Network:
    """A network that is recognised by parts of names that must all be there."""

    name: str
    parts: tuple[str, ...]

    def has_all(self, names: Mapping[str, Any]) -> bool:
        return all(any(part in f".{name}" for name in names) for part in self.parts)


# In order: the first match names the file.
_OTHER_NETWORKS = (
    _Network("an older RIFE (2 or 3)", (".block0.conv0.", ".block0.conv1.")),
    _Network("an older RIFE (2 or 3)", (".block0.convblock0.",)),
    _Network("FILM", (".extract.extract_sublevels.",)),
    _Network("the optical flow of GMFSS", (".backbone.", ".feature_flow_attn.")),
    _Network("a diffusion model", (".model.diffusion_model.",)),
)


def _described(layout: Layout) -> str:
    encoder = layout.encoder
    features = f", {encoder.features} features" if encoder else ""
    return f"blocks of {', '.join(map(str, layout.widths))} channels with {layout.outputs} outputs{features}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(64)
        size = path.stat().st_size
    except FileNotFoundError:
        raise LeanVideoError(f"There is no file {path.name}: check the name, and that the file was not moved.") from None
    except OSError as error:
        raise LeanVideoError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    if size > _LARGEST:
        raise LeanVideoError(f"{path.name} is no RIFE: it has {size / 1e9:.2f} GB, and none has as much as one; choose the weights of RIFE 4.0 to 4.26.")
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _from_archive(path)
    if start[8:9] == b"{":
        return _from_safetensors(path)
    what = next((what for magic, what in _FOREIGN if re.match(magic, start)), "is neither a safetensors file nor a PyTorch archive: choose the weights of RIFE 4.0 to 4.26")
    raise LeanVideoError(f"{path.name} {what}.")


# What people have where weights belong, by its first bytes.
_FOREIGN = (
    (rb"(?s)$", "is empty: download it again"),
    (rb"(?i)\s*<(!doctype|html)", "is a web page, not weights: the download went wrong"),
    (rb"version https://git-lfs", "is a Git LFS pointer: the weights themselves were never downloaded"),
)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise LeanVideoError(f"{path.name} is corrupt or truncated: download it again.") from None


def _from_archive(path: Path) -> dict[str, Tensor]:
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged archive can fail anywhere in zipfile, pickle and torch
        raise LeanVideoError(f"{path.name} holds something other than weights or is damaged: download it again, from where RIFE's authors point to.") from None
    if not isinstance(held, Mapping) or not held or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()):
        raise LeanVideoError(f"{path.name} is a PyTorch archive but not of named tensors: choose the weights of RIFE 4.0 to 4.26.")
    return dict(held)

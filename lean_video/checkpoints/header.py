"""What a safetensors file holds, read from its header alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import LeanVideoError

_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

# First bytes of files that people put where a checkpoint belongs.
_FOREIGN = (
    (b"PK\x03\x04", "is a PyTorch pickle archive, which can run code when it is read"),
    (b"\x80", "is a Python pickle, which can run code when it is read"),
    (b"GGUF", "is a GGUF file, which the SVD networks cannot be read from"),
    (b"\x89PNG", "is a PNG image"),
    (b"<!DOCTYPE", "is a web page, not a model: the download went wrong"),
    (b"<html", "is a web page, not a model: the download went wrong"),
    (b"version https://git-lfs", "is a Git LFS pointer: the model itself was never downloaded"),
)


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors of one file: name → dtype (safetensors' names, such as "F16") and shape."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; raises LeanVideoError naming it when it is not in the file."""
        info = self.tensors.get(name)
        if info is None:
            raise LeanVideoError(f"{self.path.name} is incomplete: the tensor {name} is missing, so download it again.")
        return info.shape

    def has(self, *prefixes: str) -> bool:
        """Whether for each prefix some tensor's name starts with it."""
        return all(any(name.startswith(prefix) for name in self.tensors) for prefix in prefixes)


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Reads no weights. Raises LeanVideoError for a file that is missing, unreadable, truncated, corrupt or of another format.
    Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON, data).
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 10 or start[8:9] != b"{" or length > _MAX_HEADER_BYTES:
                raise LeanVideoError(_not_safetensors(path, start))
            file.seek(8)
            raw = file.read(length)
        size = path.stat().st_size
    except FileNotFoundError:
        raise LeanVideoError(f"There is no file {path.name}: check the name, and that the file was not moved.") from None
    except OSError as error:
        raise LeanVideoError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    if len(raw) < length:
        raise LeanVideoError(_truncated(path))
    try:
        entries: dict[str, dict[str, Any]] = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = {name: TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"])) for name, entry in entries.items()}
        end = 0
        for first, last, name in sorted((*(int(offset) for offset in entry["data_offsets"]), name) for name, entry in entries.items()):
            if first != end or last - first != tensors[name].parameters * _ITEM_BYTES[tensors[name].dtype]:
                raise ValueError(name)
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise LeanVideoError(f"{path.name} is corrupt: its header cannot be understood, so download it again.") from None
    if size < 8 + length + end:
        raise LeanVideoError(_truncated(path))
    if size > 8 + length + end:
        raise LeanVideoError(f"{path.name} is corrupt: it goes on after its last tensor, so download it again.")
    return Header(path, MappingProxyType(tensors))


def _not_safetensors(path: Path, start: bytes) -> str:
    if not start:
        return f"{path.name} is empty: download it again."
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            return f"{path.name} {what}: use a .safetensors checkpoint of Stable Video Diffusion."
    return f"{path.name} is not a safetensors file: use a .safetensors checkpoint of Stable Video Diffusion."


def _truncated(path: Path) -> str:
    return f"{path.name} is truncated: it ends before its last tensor, so download it again."

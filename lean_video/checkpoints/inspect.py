"""What a checkpoint is, and what is wrong with it, without loading it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LeanVideoError
from ..models.parts import Part
from .families import SVD, family
from .header import read_header
from .open import stored_precision, svd_parts, version


@dataclass(frozen=True)
class Report:
    """`parameters` counts numbers per component; `problems` are sentences, none of them when the checkpoint can be used."""

    file: str
    family: str | None
    version: str | None = None
    layout: str | None = None
    precision: str | None = None
    parameters: dict[str, int] = field(default_factory=dict[str, int])
    problems: tuple[str, ...] = ()


def inspect(path: Path) -> Report:
    """Report on a checkpoint file or diffusers folder; reads headers only, and checks every tensor's name and shape.

    Raises LeanVideoError only when there is nothing at that path.
    """
    if not path.exists():
        raise LeanVideoError(f"There is no file {path}: check the name.")
    found: str | None = None
    try:
        found = None if path.is_dir() else family(read_header(path))
        layout, parts = svd_parts(path)
    except LeanVideoError as error:
        return Report(path.name, found, problems=(str(error),))
    return Report(
        file=path.name,
        family=SVD,
        version=version(path, parts),
        layout=layout,
        precision=stored_precision(parts),
        parameters={name: _parameters(part) for name, part in parts.items()},
        problems=tuple(problem for part in parts.values() for problem in part.problems()),
    )


def _parameters(part: Part) -> int:
    total = 0
    for path, names in part.files.items():
        tensors = read_header(path).tensors
        total += sum(tensors[name].parameters for name in names.values())
    return total

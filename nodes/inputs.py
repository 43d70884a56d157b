"""Checks of what arrives at a node that ComfyUI leaves out."""

from __future__ import annotations

from typing import Any

from ..lean_video.errors import LeanVideoError


def check_connected(**inputs: tuple[Any, type, str]) -> None:
    """Raises LeanVideoError for a literal where a connection belongs, which a graph written by hand may hold.

    Name of the input → (its value, the type it must have, what gives such values).
    """
    for name, (value, kind, source) in inputs.items():
        if not isinstance(value, kind) or (kind is dict and "samples" not in value):
            raise LeanVideoError(f"The input {name} is {type(value).__name__} {str(value)[:40]!r}, not a connection: connect it to {source}.")

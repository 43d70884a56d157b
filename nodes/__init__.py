"""The nodes, by menu section."""

from __future__ import annotations

from . import interpolation, monitor, svd, video, vram

_SECTIONS = (svd, vram, interpolation, video, monitor)

NODE_CLASS_MAPPINGS = {name: node for section in _SECTIONS for name, node in section.NODE_CLASS_MAPPINGS.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for section in _SECTIONS for name, title in section.NODE_DISPLAY_NAME_MAPPINGS.items()}

monitor.serve()

"""The nodes, by menu section."""

from __future__ import annotations

from . import svd, video, vram

NODE_CLASS_MAPPINGS = svd.NODE_CLASS_MAPPINGS | vram.NODE_CLASS_MAPPINGS | video.NODE_CLASS_MAPPINGS
NODE_DISPLAY_NAME_MAPPINGS = svd.NODE_DISPLAY_NAME_MAPPINGS | vram.NODE_DISPLAY_NAME_MAPPINGS | video.NODE_DISPLAY_NAME_MAPPINGS

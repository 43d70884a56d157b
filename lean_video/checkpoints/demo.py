"""The demo model: a small SVD that comes with the pack, found by name."""

from __future__ import annotations

from pathlib import Path

NAME = "demo"
FILE = Path(__file__).resolve().parents[1] / "demo_model" / "demo.safetensors"
SIZES = ((192, 128), (128, 128))  # width and height that it was trained on
FRAMES = 14
MOTION_BUCKET = 90  # of faster clips the last frames melt
STEPS = 8
SOLVER = "euler_ancestral"
GUIDANCE = (1.3, 1.8)  # of the first and the last frame
SCHEDULE = "uniform"  # with as many steps it ends nearer to what a hundred give than Karras' does


def checkpoint(text: str) -> Path:
    """The path that a person means: the demo model's for its name, a path otherwise (`./demo` is a file or folder of that name)."""
    return FILE if text == NAME else Path(text)


def is_demo(path: Path) -> bool:
    return path == FILE


def unlikely(width: int, height: int) -> str:
    """A sentence for a size that the demo model makes nothing good of, or ""."""
    if any(max(width / wide, wide / width, height / high, high / height) < 1.4 for wide, high in SIZES):
        return ""
    sizes = " or ".join(f"{wide}x{high}" for wide, high in SIZES)
    return f"The demo model was trained on {sizes}: {width}x{height} will look poor."

"""Pictures side by side, with their names, as a small JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDE = 300
_BAR = 18
_LARGEST = 200_000


def worst(made_HWC: np.ndarray, truth_HWC: np.ndarray) -> tuple[int, int]:
    """Top and left of the square of SIDE in which they differ most."""
    import cv2

    difference = np.abs(made_HWC.astype(np.float32) - truth_HWC).mean(2)
    height, width = difference.shape
    summed = cv2.boxFilter(difference, -1, (min(SIDE, width), min(SIDE, height)), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = summed[: max(1, height - SIDE), : max(1, width - SIDE)]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left)


def save(path: Path, pictures: dict[str, np.ndarray], corner: tuple[int, int], columns: int, caption: str) -> None:
    from PIL import Image, ImageDraw

    top, left = corner
    crops = {name: picture[top : top + SIDE, left : left + SIDE] for name, picture in pictures.items()}
    height, width = next(iter(crops.values())).shape[:2]
    rows = -(-len(crops) // columns)
    sheet = Image.new("RGB", (columns * (width + 4) - 4, rows * (height + _BAR) + _BAR), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, crop) in enumerate(crops.items()):
        x, y = i % columns * (width + 4), i // columns * (height + _BAR)
        draw.text((x + 2, y + 3), name, fill="black")
        sheet.paste(Image.fromarray(crop), (x, y + _BAR))
    draw.text((2, sheet.height - _BAR + 3), caption, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 20, -10):
        sheet.save(path, quality=quality)
        if path.stat().st_size < _LARGEST:
            break

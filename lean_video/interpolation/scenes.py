"""Where a clip must not be interpolated as it stands: cuts, and frames that repeat the one before.

h w pixels of a reduced frame. Everything is computed on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .flow import opencv

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Within real shots `change` stays below 0.56, also from each frame to the eighth after it; cuts between them have 0.73 and more.
CUT_THRESHOLD = 0.65

_LARGE, _SMALL, _SMALLEST = 480, 192, 64  # sides in pixels: for finding small motion, for matching, and what optical flow needs
_BLOCK = 16
_SAME = 3.0  # of 255: what encoding a frame twice may change in a block
_MISS = 1.5  # pixels of the reduced frame between where the way there and back starts and ends, from which on a match is none
_FLAT = 58.5  # SSIM's constant for contrast, (0.03 * 255)^2
_COLOUR = 0.45  # a remaining difference of colour, of 1, that makes a cut by itself


@dataclass(frozen=True)
class Look:
    """What is kept of a frame to compare it with others: 8-bit RGB, [h,w,3], larger and smaller."""

    large: np.ndarray
    small: np.ndarray


def look(frame_HWC: Tensor) -> Look:
    """frame_HWC: uint8, or float in 0..1; of an RGBA frame the alpha counts as black."""
    import torch

    frame = frame_HWC if frame_HWC.dtype == torch.uint8 else (frame_HWC.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if frame.shape[-1] == 4:
        frame = (frame[..., :3].int() * frame[..., 3:] // 255).to(torch.uint8)
    pixels = frame.expand(-1, -1, 3).contiguous().cpu().numpy()
    large = _reduced(pixels, _LARGE, 1)
    return Look(large, _reduced(large, _SMALL, _SMALLEST))


def repeats(first: Look, second: Look) -> bool:
    """Whether both are one picture up to what encoding it twice changes. Something small that moves makes them two."""
    import numpy as np

    difference_hw = np.abs(first.large.astype(np.float32) - second.large).mean(2)
    height, width = difference_hw.shape
    return float(opencv().resize(difference_hw, (-(-width // _BLOCK), -(-height // _BLOCK)), interpolation=opencv().INTER_AREA).max()) <= _SAME


def change(first: Look, second: Look) -> float:
    """How little of either picture can be found in the other, 0 to 1. Motion leaves it low, however fast; a cut does not.

    Both are matched by optical flow in both directions. Counted are the pixels whose way there and back does not end where it starts, and how unlike the
    matched pictures are in structure (the second factor of SSIM, Wang et al. 2004) or, if that is more, in colour.
    """
    import numpy as np

    cv2 = opencv()
    a_hw3, b_hw3 = first.small, second.small
    grey_a, grey_b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (a_hw3, b_hw3))
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    ahead, back = search.calc(grey_a, grey_b, None), search.calc(grey_b, grey_a, None)
    a, b = a_hw3.astype(np.float32), b_hw3.astype(np.float32)
    found_in_b, found_in_a = _taken(b, ahead), _taken(a, back)
    lost = (_lost(ahead, back) + _lost(back, ahead)) / 2
    unlike = max(_unlike(a, found_in_b), _unlike(b, found_in_a))
    colour = min(float(np.abs(a - found_in_b).mean()), float(np.abs(b - found_in_a).mean())) / 255
    return min(1.0, max((lost + unlike) / 2, colour / _COLOUR * CUT_THRESHOLD))


def _reduced(pixels: Any, longest: int, shortest: int) -> Any:
    height, width = pixels.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = max(shortest, round(width * scale)), max(shortest, round(height * scale))
    return pixels if size == (width, height) else opencv().resize(pixels, size, interpolation=opencv().INTER_AREA)


def _taken(picture: Any, flow: Any) -> Any:
    import numpy as np

    cv2 = opencv()
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _lost(there: Any, back: Any) -> float:
    import numpy as np

    return float((np.linalg.norm(there + _taken(back, there), axis=2) > _MISS).mean())


def _unlike(a: Any, b: Any) -> float:
    def mean(x: Any) -> Any:
        return opencv().blur(x, (9, 9))

    a, b = a.mean(2), b.mean(2)
    mean_a, mean_b = mean(a), mean(b)
    together = mean(a * b) - mean_a * mean_b
    apart = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    return float(1 - ((2 * together + _FLAT) / (apart + _FLAT)).mean())

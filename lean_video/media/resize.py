"""Images brought to another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RESIZE_MODES = ("crop", "pad", "stretch")


def fit(image_1CHW: Tensor, width: int, height: int, mode: str) -> Tensor:
    """The image [1,C,H,W] 0..1 at width x height, untouched when it has that size already.

    crop     fill the frame, cutting what stands over, centred
    pad      show the whole image on black, centred
    stretch  fill the frame with the whole image, whatever its shape
    """
    import torch
    from torch.nn.functional import interpolate, pad

    h, w = image_1CHW.shape[-2:]
    if (h, w) == (height, width):
        return image_1CHW
    if mode not in RESIZE_MODES:
        raise ValueError(f"unknown resize mode {mode}")
    if mode == "stretch":
        inner_w, inner_h = width, height
    else:
        choose = max if mode == "crop" else min
        scale = choose(width / w, height / h)
        inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * scale))
    image = torch.as_tensor(interpolate(image_1CHW, (inner_h, inner_w), mode="bicubic", antialias=True)).clamp(0, 1)
    left, top = (inner_w - width) // 2, (inner_h - height) // 2
    if mode == "crop":
        return image[..., max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width].contiguous()
    return pad(image, (-left, width - inner_w + left, -top, height - inner_h + top))

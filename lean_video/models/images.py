"""Pixels as the networks want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from torch import Tensor

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_image(image_HWC: Tensor) -> Tensor:
    """The image as [1,3,H,W], RGB, transparency composited on black. Raises LeanVideoError when it is empty or not finite."""
    import torch

    if image_HWC.ndim != 3 or 0 in image_HWC.shape:
        raise LeanVideoError(f"The image is empty (shape {list(image_HWC.shape)}): connect an image with pixels.")
    if image_HWC.shape[-1] not in (1, 3, 4):
        raise LeanVideoError(f"The image has {image_HWC.shape[-1]} channels: grey, RGB and RGBA images can be used.")
    image = image_HWC.float().cpu()
    if not bool(torch.isfinite(image).all()):
        raise LeanVideoError("The image holds NaN or infinity: the node that made it failed, look there.")
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:]
    elif image.shape[-1] == 1:
        image = image.expand(-1, -1, 3)
    return image.movedim(-1, 0)[None].clamp(0, 1).contiguous()


def clip_pixels(image_1CHW: Tensor, side: int) -> Tensor:
    """The whole image squashed to side x side and normalised for CLIP, [1,3,side,side].

    sgm `FrozenOpenCLIPImageEmbedder.preprocess`: kornia's resize of the image in [-1,1] (Gaussian blur, then bicubic with aligned corners).
    torch's own antialiasing gives visibly different pixels.
    """
    import torch
    from kornia.geometry.transform import resize

    height, width = image_1CHW.shape[-2:]
    image_1CHW = image_1CHW.expand(-1, -1, max(height, 2), max(width, 2))  # the blur mirrors at the edges, which takes a second pixel
    pixels = resize(image_1CHW * 2 - 1, (side, side), interpolation="bicubic", align_corners=True, antialias=True)
    mean, std = torch.tensor(_CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(_CLIP_STD).view(1, 3, 1, 1)
    return ((pixels + 1) / 2 - mean) / std

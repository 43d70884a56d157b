"""Frames in float RGB(A) to the planes of FFmpeg's pixel formats.

Done here and not by swscale so that the arithmetic is that of BT.709 in limited range, rounded once, at 8, 10 or 16 bits alike.
Chroma of 4:2:0 and 4:2:2 sits on the left column, where decoders assume it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import numpy as np
    import torch

# BT.709 (ITU-R BT.709-6, item 3.2): luma weights of red and blue.
KR, KB = 0.2126, 0.0722
KG = 1 - KR - KB


@dataclass(frozen=True)
class Layout:
    """How a pixel format lays samples out: `planes` names the channels of each plane, in order; "0" is filler."""

    planes: tuple[str, ...]
    bits: int = 8
    big_endian: bool = False
    half_width: bool = False
    half_height: bool = False

    @property
    def is_yuv(self) -> bool:
        return self.planes[0] == "y"

    @property
    def has_alpha(self) -> bool:
        return any("a" in plane for plane in self.planes)

    @property
    def dtype(self) -> str:
        return "u1" if self.bits == 8 else (">u2" if self.big_endian else "<u2")


LAYOUTS: dict[str, Layout] = {
    "rgb24": Layout(("rgb",)),
    "rgba": Layout(("rgba",)),
    "rgb48be": Layout(("rgb",), 16, big_endian=True),
    "rgba64be": Layout(("rgba",), 16, big_endian=True),
    "bgr0": Layout(("bgr0",)),
    "bgra": Layout(("bgra",)),
    "gbrp10le": Layout(("g", "b", "r"), 10),
    "gbrp16le": Layout(("g", "b", "r"), 16),
    "gbrap16le": Layout(("g", "b", "r", "a"), 16),
    "yuv420p": Layout(("y", "u", "v"), half_width=True, half_height=True),
    "yuva420p": Layout(("y", "u", "v", "a"), half_width=True, half_height=True),
    "yuv422p": Layout(("y", "u", "v"), half_width=True),
    "yuv444p": Layout(("y", "u", "v")),
    "yuv420p10le": Layout(("y", "u", "v"), 10, half_width=True, half_height=True),
    "yuv422p10le": Layout(("y", "u", "v"), 10, half_width=True),
    "yuv444p10le": Layout(("y", "u", "v"), 10),
    "yuva444p10le": Layout(("y", "u", "v", "a"), 10),
}


def padded_size(width: int, height: int, layout: Layout) -> tuple[int, int]:
    """(width, height) made even where the layout halves chroma: H.264, H.265 and AV1 have no odd sizes there."""
    return width + (layout.half_width and width % 2), height + (layout.half_height and height % 2)


def frame_tensor(frame: object, index: int) -> torch.Tensor:
    """The frame as a CPU tensor [H,W,3 or 4], uint8 or float32 clamped to 0..1.

    Raises LeanVideoError where it is not such an image or holds NaN or infinite values; `index` names it in the sentence.
    """
    import numpy as np
    import torch

    if isinstance(frame, np.ndarray):
        frame = torch.from_numpy(np.ascontiguousarray(frame))
    if not isinstance(frame, torch.Tensor):
        raise LeanVideoError(f"Frame {index} is a {type(frame).__name__}: frames are tensors or arrays [height, width, channels].")
    if frame.ndim != 3 or frame.shape[0] < 1 or frame.shape[1] < 1:
        raise LeanVideoError(f"Frame {index} has the shape {list(frame.shape)}: frames are [height, width, channels] with at least one pixel.")
    if frame.shape[2] not in (3, 4):
        raise LeanVideoError(f"Frame {index} has {frame.shape[2]} channels: give images with 3 (RGB) or 4 (RGBA).")
    frame_HWC = frame.detach().to("cpu")
    if frame_HWC.dtype == torch.uint8:
        return frame_HWC
    if not frame_HWC.is_floating_point():
        raise LeanVideoError(f"Frame {index} holds {frame_HWC.dtype}: frames are float from 0 to 1, or uint8.")
    frame_HWC = frame_HWC.float()
    if not bool(torch.isfinite(frame_HWC).all()):
        raise LeanVideoError(
            f"Frame {index} holds NaN or infinite values, so nothing was written: look for the step before that overflowed, often a model in fp16, and use fp32 or bf16 there."
        )
    return frame_HWC.clamp(0, 1)


def samples(frame_HWC: torch.Tensor, layout: Layout) -> list[np.ndarray]:
    """The planes of `layout` for a checked frame: arrays [h,w] or, where a plane packs several channels, [h,w*channels].

    Without alpha in the layout an RGBA frame is composited on black; without alpha in the frame it is opaque. Odd sizes that chroma
    cannot halve get their last row or column repeated.
    """
    import torch

    if frame_HWC.shape[2] == 4 and not layout.has_alpha:
        rgba_HW4 = _as_float(frame_HWC)
        frame_HWC = rgba_HW4[..., :3] * rgba_HW4[..., 3:]
    if not layout.is_yuv:
        top = (1 << layout.bits) - 1
        whole_HWC = frame_HWC if frame_HWC.dtype == torch.uint8 and top == 255 else _rounded(_as_float(frame_HWC) * top)
        return [_packed(whole_HWC, plane, top, layout.dtype) for plane in layout.planes]

    rgb_HWC = _as_float(frame_HWC)
    height, width = rgb_HWC.shape[:2]
    wide, high = padded_size(width, height, layout)
    if (wide, high) != (width, height):
        rgb_HWC = rgb_HWC[[*range(height), *[height - 1] * (high - height)]][:, [*range(width), *[width - 1] * (wide - width)]]
    red, green, blue = rgb_HWC[..., 0], rgb_HWC[..., 1], rgb_HWC[..., 2]
    luma = KR * red + KG * green + KB * blue
    unit = 1 << (layout.bits - 8)
    planes = {
        "y": unit * (16 + 219 * luma),
        "u": unit * (128 + 224 * _subsampled((blue - luma) / (2 * (1 - KB)), layout)),
        "v": unit * (128 + 224 * _subsampled((red - luma) / (2 * (1 - KR)), layout)),
    }
    if layout.has_alpha:
        planes["a"] = ((1 << layout.bits) - 1) * (rgb_HWC[..., 3] if rgb_HWC.shape[2] == 4 else torch.ones_like(luma))
    return [_rounded(planes[name]).numpy().astype(layout.dtype) for name in layout.planes]


def fill(frame: Any, planes: list[np.ndarray]) -> None:
    """Copy `planes` into a PyAV VideoFrame of the same layout, whose lines may be padded."""
    import numpy as np

    for target, source in zip(frame.planes, planes, strict=True):
        lines = np.frombuffer(memoryview(target), dtype=source.dtype).reshape(-1, target.line_size // source.dtype.itemsize)
        lines[: source.shape[0], : source.shape[1]] = source


def _as_float(frame_HWC: torch.Tensor) -> torch.Tensor:
    import torch

    return frame_HWC.float() / 255 if frame_HWC.dtype == torch.uint8 else frame_HWC


def _rounded(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.round().to(torch.int32)


def _packed(whole_HWC: torch.Tensor, plane: str, top: int, dtype: str) -> np.ndarray:
    import numpy as np

    source = whole_HWC.numpy()
    height, width, channels = source.shape
    packed = np.empty((height, width, len(plane)), dtype)
    for k, name in enumerate(plane):
        channel = {"r": 0, "g": 1, "b": 2, "a": 3}.get(name, channels)
        packed[..., k] = source[..., channel] if channel < channels else top
    return packed.reshape(height, width * len(plane))


def _subsampled(chroma_HW: torch.Tensor, layout: Layout) -> torch.Tensor:
    if layout.half_width:
        left = chroma_HW.roll(1, dims=1)[:, ::2].clone()
        left[:, 0] = chroma_HW[:, 0]
        chroma_HW = (left + 2 * chroma_HW[:, ::2] + chroma_HW[:, 1::2]) / 4
    if layout.half_height:
        chroma_HW = (chroma_HW[::2] + chroma_HW[1::2]) / 2
    return chroma_HW

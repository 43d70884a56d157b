"""The planes of FFmpeg's pixel formats to frames in RGB(A): `pixels` backwards.

The matrix and range are those that the stream names (code points of ITU-T H.273). Chroma of 4:2:0 and 4:2:2 sits on the left column and is
interpolated linearly. Only formats outside `layout_of` go through swscale.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from .pixels import LAYOUTS, Layout

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Luma weights of red and blue by matrix code point: BT.709, FCC, BT.470BG and SMPTE 170M (both BT.601), SMPTE 240M, BT.2020.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_NAMES = {1: "BT.709", 5: "BT.601"}
_UNNAMED = (0, 2, 3)
_LIMITED, _FULL = 1, 2
_PQ, _HLG = 16, 18
_HD_LINES = 720


@functools.cache
def layout_of(pixel_format: str) -> Layout | None:
    """How `pixel_format` (FFmpeg's name) lays its samples out, or None where only swscale knows."""
    if pixel_format in LAYOUTS:
        return LAYOUTS[pixel_format]
    if match := re.fullmatch(r"yuv(a|j|)(420|422|444)p(\d+|)(le|be|)", pixel_format):
        planes = ("y", "u", "v", "a") if match[1] == "a" else ("y", "u", "v")
        return Layout(planes, int(match[3] or 8), match[4] == "be", half_width=match[2] != "444", half_height=match[2] == "420")
    if match := re.fullmatch(r"gbr(a|)p(\d+|)(le|be|)", pixel_format):
        return Layout(("g", "b", "r", "a") if match[1] else ("g", "b", "r"), int(match[2] or 8), match[3] == "be")
    if match := re.fullmatch(r"gray(\d+|)(le|be|)", pixel_format):
        return Layout(("y",), int(match[1] or 8), match[2] == "be")
    if match := re.fullmatch(r"((?:rgb|bgr|rgba|bgra|argb|abgr|rgb0|bgr0|0rgb|0bgr))(24|48|64|)(le|be|)", pixel_format):
        return Layout((match[1],), 16 if match[2] in ("48", "64") else 8, match[3] == "be")
    return None


def has_alpha(frame: Any) -> bool:
    layout = layout_of(frame.format.name)
    return layout.has_alpha if layout else frame.format.name.startswith("ya") or any(component.is_alpha for component in frame.format.components)


def colour_notes(frame: Any, name: str) -> list[str]:
    """Sentences about what was assumed of the colours of `frame`, or left as it is."""
    notes: list[str] = []
    layout = layout_of(frame.format.name)
    matrix = int(frame.colorspace)
    if layout and layout.is_yuv and len(layout.planes) > 1 and matrix not in _WEIGHTS:
        assumed = _NAMES[_matrix_by_size(frame)]
        says = "does not say which colour matrix it uses" if matrix in _UNNAMED else "uses a colour matrix that is not known here"
        notes.append(f"{name} {says}, so {assumed} was assumed from its size.")
    if int(frame.color_trc) in (_PQ, _HLG):
        notes.append(
            f"{name} is HDR ({'PQ' if int(frame.color_trc) == _PQ else 'HLG'}): its values are shown as they are, which looks flat, so tone-map it to SDR first if that matters."
        )
    return notes


def to_rgb(frame: Any, alpha: bool, centred: bool = False) -> Tensor:
    """A PyAV VideoFrame as [H,W,3] or, with `alpha`, [H,W,4]: uint8, or float32 0..1 from more than 8 bits. `centred` is JPEG's place for chroma."""
    import torch

    layout = layout_of(frame.format.name)
    if layout is None or any(plane.line_size < 0 for plane in frame.planes):
        return _through_swscale(frame, alpha)
    height, width = frame.height, frame.width
    if not layout.is_yuv:
        whole = _unpacked(frame, layout, height, width)
        rgb = [whole[channel] for channel in "rgb"]
        if alpha:
            rgb.append(whole["a"] if "a" in whole else rgb[0].new_full(rgb[0].shape, (1 << layout.bits) - 1))
        stacked = torch.stack(rgb, -1)
        return stacked if layout.bits == 8 else stacked.float().div_((1 << layout.bits) - 1)

    planes = {name: _plane(plane, layout, *_plane_size(name, layout, height, width)) for name, plane in zip(layout.planes, frame.planes, strict=True)}
    top = (1 << layout.bits) - 1
    scale = 255 if layout.bits == 8 else 1
    full = _is_full(frame, layout)
    unit = 1 << (layout.bits - 8)
    black, luma_range, chroma_range = (0, top, top) if full else (16 * unit, 219 * unit, 224 * unit)
    luma = (planes["y"].float() - black).mul_(scale / luma_range)
    rgba_HWC = torch.empty(height, width, 4 if alpha else 3)
    if "u" in planes:
        kr, kb = _WEIGHTS.get(int(frame.colorspace)) or _WEIGHTS[_matrix_by_size(frame)]
        kg = 1 - kr - kb
        u, v = (_upsampled((planes[name].float() - 128 * unit).mul_(scale / chroma_range), layout, height, width, centred) for name in "uv")
        torch.add(luma, v, alpha=2 * (1 - kr), out=rgba_HWC[..., 0])
        torch.add(luma, u, alpha=2 * (1 - kb), out=rgba_HWC[..., 2])
        luma.sub_(u, alpha=2 * (1 - kb) * kb / kg).sub_(v, alpha=2 * (1 - kr) * kr / kg)
        rgba_HWC[..., 1] = luma
    else:
        rgba_HWC[..., :3] = luma[..., None]
    if alpha:
        rgba_HWC[..., 3] = planes["a"].float().mul_(scale / top) if "a" in planes else scale
    return rgba_HWC.round_().clamp_(0, 255).byte() if layout.bits == 8 else rgba_HWC.clamp_(0, 1)


def _matrix_by_size(frame: Any) -> int:
    return 1 if frame.height >= _HD_LINES else 5


def _is_full(frame: Any, layout: Layout) -> bool:
    tag = int(frame.color_range)
    if len(layout.planes) == 1:
        return tag != _LIMITED
    return tag == _FULL or frame.format.name.startswith("yuvj")


def _plane_size(name: str, layout: Layout, height: int, width: int) -> tuple[int, int]:
    if name not in "uv":
        return height, width
    return (height + 1) // 2 if layout.half_height else height, (width + 1) // 2 if layout.half_width else width


def _plane(plane: Any, layout: Layout, height: int, width: int) -> Tensor:
    """The samples [height, width] of a plane, as uint8 or int32."""
    import numpy as np
    import torch

    dtype = np.dtype(layout.dtype)
    lines = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)[:height, :width]
    return torch.from_numpy(np.array(lines) if layout.bits == 8 else lines.astype(np.int32))


def _unpacked(frame: Any, layout: Layout, height: int, width: int) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for names, plane in zip(layout.planes, frame.planes, strict=True):
        samples = _plane(plane, layout, height, width * len(names)).reshape(height, width, len(names))
        whole.update({name: samples[..., i] for i, name in enumerate(names)})
    return whole


def _upsampled(chroma: Tensor, layout: Layout, height: int, width: int, centred: bool) -> Tensor:
    if layout.half_height:
        chroma = _between(chroma, 0)[:height]
    if layout.half_width:
        chroma = (_between(chroma, 1) if centred else _on_the_left(chroma))[:, :width]
    return chroma


def _between(chroma: Tensor, dim: int) -> Tensor:
    """Twice as many samples along `dim`, the given ones lying midway between two."""
    import torch

    count = chroma.shape[dim]
    before = torch.cat([chroma.narrow(dim, 0, 1), chroma.narrow(dim, 0, count - 1)], dim)
    after = torch.cat([chroma.narrow(dim, 1, count - 1), chroma.narrow(dim, count - 1, 1)], dim)
    return torch.stack([torch.lerp(chroma, before, 0.25), torch.lerp(chroma, after, 0.25)], dim + 1).flatten(dim, dim + 1)


def _on_the_left(chroma: Tensor) -> Tensor:
    """Twice as many columns, the given ones lying on the even of them."""
    import torch

    after = torch.cat([chroma[:, 1:], chroma[:, -1:]], 1)
    return torch.stack([chroma, torch.lerp(chroma, after, 0.5)], 2).flatten(1)


def _through_swscale(frame: Any, alpha: bool) -> Tensor:
    import numpy as np
    import torch

    deep = max(component.bits for component in frame.format.components) > 8
    target = f"rgba64{_endian()}" if deep else "rgba"
    matrix = int(frame.colorspace)
    named = matrix if matrix in _WEIGHTS else _matrix_by_size(frame)
    # swscale's own numbering of matrices is that of H.273 except for BT.2020, 9 in both.
    rgba: np.ndarray = frame.reformat(format=target, src_colorspace=min(named, 9)).to_ndarray()
    rgba_HW4 = torch.from_numpy(rgba.astype(np.float32) / 65535 if deep else np.array(rgba))
    return rgba_HW4 if alpha else rgba_HW4[..., :3].contiguous()


def _endian() -> str:
    import sys

    return "le" if sys.byteorder == "little" else "be"

"""A picture of what each phase of a run takes, against the card that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

MIB = 2**20
_WIDTH, _MARGIN, _LABELS, _BAR, _GAP = 960, 36, 112, 44, 24
_TOP, _BOTTOM = 104, 76
_PAPER, _INK, _QUIET, _TRACK = (24, 26, 31), (236, 238, 242), (150, 156, 168), (44, 48, 57)
_FITS, _TOO_LARGE, _LIMIT = (86, 156, 235), (226, 86, 80), (240, 190, 84)


def chart(title: str, peaks: Mapping[str, int], *, limit: int | None = None, card: int | None = None, card_name: str = "") -> NDArray[float32]:
    """[1,H,W,3], float32 0..1: a bar for each phase, in bytes; red where it is over the limit.

    limit  the budget, drawn as a line; None for none
    card   bytes of the whole device: the right end of the scale; None where it is not known
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    scale = max([card or 0, *peaks.values(), limit if limit is not None and card is None else 0, 1]) * (1.0 if card else 1.08)
    left, right = _MARGIN + _LABELS, _WIDTH - _MARGIN
    height = _TOP + len(peaks) * (_BAR + _GAP) - _GAP + _BOTTOM
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(26), ImageFont.load_default(19)

    def x_of(size: float) -> int:
        return left + round((right - left) * min(1.0, size / scale))

    draw.text((_MARGIN, 28), title, font=large, fill=_INK)
    subtitle = f"{card_name or 'this device'}: {_size(card)}" if card else "scale: the largest phase"
    draw.text((_MARGIN, 64), subtitle, font=small, fill=_QUIET)
    y = _TOP
    for phase, peak in peaks.items():
        over = limit is not None and peak > limit
        draw.text((_MARGIN, y + _BAR // 2), phase, font=small, fill=_INK, anchor="lm")
        draw.rounded_rectangle((left, y, right, y + _BAR), 8, fill=_TRACK)
        end = x_of(peak)
        if end - left >= 4:
            draw.rounded_rectangle((left, y, end, y + _BAR), 8, fill=_TOO_LARGE if over else _FITS)
        label = _size(peak) if peak else "nothing: on the host"
        inside = draw.textlength(label, font=small) + 24 < end - left
        draw.text((end - 12 if inside else end + 12, y + _BAR // 2), label, font=small, fill=_PAPER if inside else _INK, anchor="rm" if inside else "lm")
        y += _BAR + _GAP
    bottom = y - _GAP
    if limit is not None and limit <= scale:
        x = x_of(limit)
        draw.line((x, _TOP - 10, x, bottom + 10), fill=_LIMIT, width=3)
        text = f"budget {_size(limit)}"
        half = draw.textlength(text, font=small) / 2
        draw.text((min(max(x, left + half), right - half), bottom + 30), text, font=small, fill=_LIMIT, anchor="mm")
    pixels = np.array(image, dtype=np.float32)
    pixels /= 255
    return pixels[None]


def _size(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size < 10 * 1024 * MIB else f"{size / MIB / 1024:.1f} GiB"

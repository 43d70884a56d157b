"""Pictures: what each phase of a run will take against the card that it runs on, and what a run held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


_PLOT_HEIGHT, _FOOT = 320, 64
# Colours of nodes in turn: of one brightness, so that none looks like a warning (Okabe and Ito's, lightened).
COLOURS = ((86, 156, 235), (230, 170, 80), (80, 190, 150), (214, 130, 180), (150, 190, 90), (240, 130, 95), (140, 150, 230), (110, 200, 215))


def plot(run: Mapping[str, Any]) -> NDArray[float32]:
    """[1,H,W,3], float32 0..1: what a run held over time, as `timeline.Recorder.run` tells it, coloured by node; of the device where there is one, else of RAM."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    samples, nodes = run["samples"], run["nodes"]
    device = samples["devices"][0] if samples["devices"] else None
    held = samples["host"] if device is None else [size or used or 0 for size, used in zip(device["process"], device["used"], strict=True)]
    seconds = max([run["now"] if run["seconds"] is None else run["seconds"], *samples["at"], 1e-3])
    most = float(max(held, default=1))
    top_value = max(most, float(device["total"])) if device else most * 1.15
    height = _TOP + _PLOT_HEIGHT + _FOOT
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(26), ImageFont.load_default(17)
    left, right, bottom = _MARGIN, _WIDTH - _MARGIN, _TOP + _PLOT_HEIGHT

    def at(second: float, size: float) -> tuple[float, float]:
        return left + (right - left) * second / seconds, bottom - _PLOT_HEIGHT * min(1.0, size / top_value)

    draw.text((_MARGIN, 28), f"{_size(int(most))} at most in {seconds:.1f} s", font=large, fill=_INK)
    draw.text((_MARGIN, 64), f"{device['name']}: {_size(device['total'])}" if device else f"RAM of this process; the top is {_size(int(top_value))}", font=small, fill=_QUIET)
    draw.rectangle((left, _TOP, right, bottom), fill=_TRACK)
    colours = {node["id"]: COLOURS[i % len(COLOURS)] for i, node in enumerate(nodes)}
    labelled = -1.0
    for node in nodes:
        end = node["started"] + (seconds - node["started"] if node["seconds"] is None else node["seconds"])
        inside = [(second, size) for second, size in zip(samples["at"], held, strict=True) if node["started"] <= second <= end]
        if inside:
            points = [at(node["started"], inside[0][1]), *(at(*point) for point in inside), at(end, inside[-1][1])]
            draw.polygon([(points[0][0], bottom), *points, (points[-1][0], bottom)], fill=colours[node["id"]])
        x, x_end = at(node["started"], 0)[0], at(end, 0)[0]
        draw.rectangle((x, bottom + 6, max(x + 1, x_end), bottom + 14), fill=colours[node["id"]])
        name = node["title"] or node["type"]
        if x > labelled and draw.textlength(name, font=small) < right - x:
            draw.text((x, bottom + 22), name, font=small, fill=_INK)
            labelled = x + draw.textlength(name, font=small) + 12
    pixels = np.array(image, dtype=np.float32)
    pixels /= 255
    return pixels[None]


def _size(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size < 10 * 1024 * MIB else f"{size / MIB / 1024:.1f} GiB"

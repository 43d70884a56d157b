"""The most memory that something holds at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lean_video.vram.trace import LiveBytes, TracedTransfer


def peak_bytes(run: Callable[[], object]) -> int:
    with LiveBytes() as live:
        run()
    return live.peak


def device_peak(run: Callable[[TracedTransfer], object], device: str) -> int:
    """Of a run with a transfer to a device that is pretended: weights that come to it count."""
    live = LiveBytes()
    with torch.no_grad():
        run(TracedTransfer(live, torch.device(device)))
    return live.peak

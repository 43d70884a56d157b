"""What interpolating takes of a GPU, found by running it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..vram.trace import LiveBytes
from .clip import between_pairs
from .ifnet import IFNet
from .interpolator import Interpolator
from .rife import Rife

LARGEST_BATCH = 8


def peak_bytes(interpolator: Rife, width: int, height: int, batch: int) -> int:
    """Bytes that are held at most while a batch of frames of (width, height) is made, each between another pair; weights included."""
    with torch.device("meta"):
        network = IFNet(interpolator.network.layout).to(interpolator.network.dtype).requires_grad_(False)
    pretended = replace(interpolator, network=network)
    frames = [torch.empty(3, height, width, device="meta") for _ in range(batch + 1)]
    live = LiveBytes()
    with live:
        prepared = [pretended.prepare(frame) for frame in frames]
        between_pairs(pretended, prepared[:-1], prepared[1:], [0.5] * batch)
    return live.peak + sum(tensor.nbytes for tensor in network.state_dict().values())


def choose_batch(interpolator: Interpolator, width: int, height: int, room: Callable[[int], int | None]) -> int:
    """How many frames to make at once.

    room  is asked with the bytes that LARGEST_BATCH takes, may make room for them, and says what is then free of the GPU; None for a CPU, where more at
          once are no faster
    """
    if not isinstance(interpolator, Rife):
        return 1
    batch, peak = LARGEST_BATCH, peak_bytes(interpolator, width, height, LARGEST_BATCH)
    free = room(peak)
    while free is not None and batch > 1 and peak > free:
        batch //= 2
        peak = peak_bytes(interpolator, width, height, batch)
    return 1 if free is None else batch

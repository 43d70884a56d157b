"""A clip between two layers: on the device, or waiting on the host.

Shape suffixes: F frames of one chunk, T frames of the clip, C channels, H and W the frame, P positions of one span.
A position is one of the H*W places of a frame; a span of positions holds all T frames of each of its places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .pieces import Repeats
from .transfer import Transfer


def position_spans(frame_positions: int, chunk_positions: int) -> Iterator[slice]:
    """The spans of at most `chunk_positions` that cover a frame, in order."""
    for start in range(0, frame_positions, chunk_positions):
        yield slice(start, min(start + chunk_positions, frame_positions))


class Clip:
    """All frames in order, as chunks [F,C,H,W]; separate tensors, so that a chunk can be released on its own.

    chunk_positions: how long its spans are.
    """

    def __init__(self, chunks: Iterable[Tensor], chunk_positions: int) -> None:
        self.chunks = list(map(torch.Tensor.contiguous, chunks))  # no name here that would hold the last one twice
        self.chunk_positions = chunk_positions

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """C, H, W"""
        _, channels, height, width = self.chunks[0].shape
        return channels, height, width

    @property
    def frames(self) -> int:
        return sum(map(len, self.chunks))

    @property
    def dtype(self) -> torch.dtype:
        return self.chunks[0].dtype

    @property
    def device(self) -> torch.device:
        return self.chunks[0].device

    def spans(self) -> Iterator[slice]:
        _, height, width = self.frame_shape
        return position_spans(height * width, self.chunk_positions)

    def gather(self, span: slice) -> Tensor:
        """A contiguous copy [C,T,P] of every frame at the positions of a span."""
        return torch.cat([_positions(x_FCHW, span).transpose(0, 1) for x_FCHW in self.chunks], dim=1)

    def add(self, span: slice, y_CTP: Tensor, factor: Tensor) -> None:
        """Adds y * factor at the positions of a span."""
        frames_per_chunk = [len(x_FCHW) for x_FCHW in self.chunks]
        for x_FCHW, y_CFP in zip(self.chunks, y_CTP.split(frames_per_chunk, dim=1), strict=True):
            _positions(x_FCHW, span).addcmul_(y_CFP.transpose(0, 1), factor)

    def drain(self) -> Iterator[Tensor]:
        """The chunks in order; the clip lets go of each as it is handed out."""
        return drained(self.chunks)


class ParkedClip:
    """The same on the host. Each span of each frame is a block of its own, so that both frames and spans travel in whole blocks."""

    def __init__(self, chunks: Iterable[Tensor], chunk_positions: int, transfer: Transfer) -> None:
        self._transfer = transfer
        self.device = transfer.device
        self._blocks: list[dict[int, Tensor]] = []  # per frame: start of the span → [C,P]
        self.chunk_positions = chunk_positions
        for x_FCHW in chunks:
            self.frame_shape, self.dtype = tuple(x_FCHW.shape[1:]), x_FCHW.dtype
            for x_CP in x_FCHW.flatten(2):
                as_before = self._blocks and x_FCHW.is_meta  # there, one frame stands for all
                self._blocks.append(dict(self._blocks[-1]) if as_before else {span.start: transfer.park(x_CP[:, span]) for span in self.spans()})
                del x_CP
            del x_FCHW

    @property
    def frames(self) -> int:
        return len(self._blocks)

    def spans(self) -> Iterator[slice]:
        _, height, width = self.frame_shape
        return position_spans(height * width, self.chunk_positions)

    def gather(self, span: slice) -> Tensor:
        """A contiguous copy [C,T,P], on the device, of every frame at the positions of a span."""
        return torch.stack(self._transfer.fetch([frame[span.start] for frame in self._blocks])(), dim=1)

    def add(self, span: slice, y_CTP: Tensor, factor: Tensor) -> None:
        """Adds y * factor at the positions of a span."""
        x_CTP = self.gather(span).addcmul_(y_CTP, factor)
        for frame, x_CP in zip(self._blocks, x_CTP.unbind(1), strict=True):
            frame[span.start] = self._transfer.park(x_CP)

    def drain(self) -> Iterator[Tensor]:
        """The frames in order on the device, [1,C,H,W]; the clip lets go of each as it is handed out."""
        self._blocks.reverse()
        repeats = Repeats(self.device, self.frames)
        while self._blocks:
            blocks = self._blocks.pop()
            if repeats(1):
                yield torch.empty(1, *self.frame_shape, dtype=self.dtype, device=self.device)
                continue
            x_1CP = torch.cat(self._transfer.fetch(list(blocks.values()))(), dim=1)[None]
            del blocks
            yield x_1CP.unflatten(2, self.frame_shape[1:])
            del x_1CP


def drained(chunks: list[Tensor]) -> Iterator[Tensor]:
    """The chunks in order; the list lets go of each as it is handed out."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()


def _positions(x_FCHW: Tensor, span: slice) -> Tensor:
    return x_FCHW.view(*x_FCHW.shape[:2], -1)[:, :, span]  # view, not flatten: a copy would lose what is written to it

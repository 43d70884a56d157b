"""What a phase of a run held on the device at most, beside what was predicted."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ..lean.transfer import Transfer, transfer_to
from .trace import LiveBytes, TracedTransfer


class Measured:
    """transfer  to the device, to be used by what is measured
    peak      bytes, weights and everything else; None where the device does not tell, and before the end
    """

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.peak: int | None = None


@contextmanager
def measured(device: torch.device) -> Generator[Measured]:
    """Measures what is computed inside the block.

    CUDA tells what its allocator gave out, beyond what it had given out before. On a CPU, host and device are one: weights are copied as to a
    device, and live bytes are counted.
    """
    if device.type == "cuda":
        result = Measured(transfer_to(device))
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield result
        result.peak = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu":
        live = LiveBytes()
        result = Measured(TracedTransfer(live, device))
        yield result
        result.peak = live.peak
    else:
        yield Measured(transfer_to(device))

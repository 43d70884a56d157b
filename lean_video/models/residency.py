"""Weights on the device while they are used, and back on the host after."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def resident(device: torch.device, *modules: nn.Module) -> Generator[None]:
    """Holds the modules' weights on `device` inside the block.

    Afterwards, also after an error, the modules have their host tensors back (memory-mapped ones included) and the device holds nothing of them.
    """
    if device.type == "cpu":
        yield
        return
    host = [module.state_dict() for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, weights in zip(modules, host, strict=True):
            module.load_state_dict(weights, assign=True)
            module.requires_grad_(False).to("cpu")  # what is left are buffers that no state dict has

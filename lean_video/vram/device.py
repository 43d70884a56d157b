"""What is to be known of a device to predict a run on it: measured once, on the device itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lean.transfer import transfer_to
from .store import Store
from .trace import LiveBytes


@dataclass(frozen=True)
class DeviceProfile:
    """workspace  bytes that libraries and the allocator's rounding take beside the tensors of a layer
    flops      floating-point operations a second, in the layers that SVD is made of
    copied     bytes a second from the host
    """

    workspace: int
    flops: float
    copied: float


def device_profile(device: torch.device, dtype: torch.dtype, store: Store) -> DeviceProfile:
    """Of a device, from the store or measured, which takes about a second. Raises what torch raises when the device cannot be used."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    workspace, flops, copied = store.get(f"device {name} {dtype} torch {torch.__version__}", lambda: _measure(device, dtype))
    return DeviceProfile(int(workspace), flops, copied)


def free_bytes(device: torch.device) -> int | None:
    """What a new tensor may take: free on the device, and held by torch's allocator for nothing. None where that is not known."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _measure(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    layers = _layers(device, dtype)
    flops = sum(work for _, work in layers)
    _seconds(device, layers)
    seconds = min(_seconds(device, layers) for _ in range(3))
    return _workspace(device, layers), flops / seconds, _copied(device)


def _layers(device: torch.device, dtype: torch.dtype) -> list[tuple[Callable[[], Tensor], float]]:
    """Layers of the published UNet with the work of each: convolutions, a feed-forward's projection, attention over a frame."""
    frames, side = (1, 32) if device.type == "cpu" else (8, 64)

    def make(*shape: int) -> Tensor:
        return torch.full(shape, 0.01, device=device, dtype=dtype)

    x, space, over_time = make(frames, 320, side, side), make(320, 320, 3, 3), make(320, 320, 3, 1, 1)
    tokens, projection = make(frames * side * side, 320), make(2560, 320)
    q = make(frames, 5, side * side, 64)
    return [
        (lambda: F.conv2d(x, space, padding=1), 2.0 * 9 * 320 * x.numel()),
        (lambda: F.conv3d(x.transpose(0, 1).flatten(2)[None, :, :, None], over_time, padding=(1, 0, 0)), 2.0 * 3 * 320 * x.numel()),
        (lambda: F.linear(tokens, projection), 2.0 * tokens.numel() * 2560),
        (lambda: F.scaled_dot_product_attention(q, q, q), 4.0 * q.numel() * side * side),
    ]


def _seconds(device: torch.device, layers: list[tuple[Callable[[], Tensor], float]]) -> float:
    _wait(device)
    began = time.perf_counter()
    for layer, _ in layers:
        layer()
    _wait(device)
    return time.perf_counter() - began


def _workspace(device: torch.device, layers: list[tuple[Callable[[], Tensor], float]]) -> int:
    """The most that a layer takes beyond the tensors that it makes."""
    if device.type != "cuda":
        return 0
    most = 0
    for layer, _ in layers:
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with LiveBytes() as live:
            layer()
        most = max(most, torch.cuda.max_memory_allocated(device) - before - live.peak)
    return most


def _copied(device: torch.device) -> float:
    host: Any = torch.empty(2**26, dtype=torch.uint8)
    transfer = transfer_to(device)
    (staged,) = transfer.stage_on_host([host])
    seconds: list[float] = []
    for _ in range(3):
        _wait(device)
        began = time.perf_counter()
        transfer.fetch([staged])()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return host.nbytes / max(min(seconds), 1e-9)


def _wait(device: torch.device) -> None:
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "synchronize"):
        backend.synchronize()

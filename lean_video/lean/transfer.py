"""Tensors between the host's memory and the device that computes, and a network's weights with them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from . import pages

Stage = tuple[nn.Module, ...]
"""The modules whose weights a piece of work needs."""

Arrival = Callable[[], list[Tensor]]
"""Gives the tensors on the device once they have been asked to come; what is computed after that finds them whole."""


class Transfer:
    """Copies that are made at once: right for every device, and for a CPU no copies at all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def computing(self) -> AbstractContextManager[object]:
        """Around everything that is computed on the device, so that a transfer may look on."""
        return nullcontext()

    def stage_on_host(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """The form in which weights that will be fetched many times are best kept."""
        return weights

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        """Asks for copies on the device."""
        fetched = [tensor.to(self.device) for tensor in tensors]
        return lambda: fetched

    def let_go(self, weights: Sequence[Tensor]) -> None:
        """Weights that will be fetched again are not needed for now. Where they are computed with in place, what a mapped file holds of them leaves memory."""
        if self.device.type == "cpu":
            pages.let_go(weights)

    def park(self, x: Tensor) -> Tensor:
        """A copy on the host, from where `fetch` brings it back."""
        return x.to("cpu")


class CudaTransfer(Transfer):
    """Copies beside the computation, on a stream of their own, from and to pinned memory.

    Device memory is taken from the computing stream, and the copying stream waits for what that has been told until then: so the
    memory's last user has finished. The computing stream waits for the copy before it uses it, so its own order keeps the rest right.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._copies = torch.cuda.Stream(device)

    def stage_on_host(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        pinned = [_pinned(tensor.shape, tensor.dtype) for tensor in weights]
        staged = [tensor if page_locked is None else page_locked.copy_(tensor) for tensor, page_locked in zip(weights, pinned, strict=True)]
        pages.let_go([tensor for tensor, page_locked in zip(weights, pinned, strict=True) if page_locked is not None])
        return staged

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        computing = torch.cuda.current_stream(self.device)
        fetched = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        self._copies.wait_stream(computing)
        with torch.cuda.stream(self._copies):
            for target, source in zip(fetched, tensors, strict=True):
                target.copy_(source, non_blocking=True)
                target.record_stream(self._copies)  # it may be let go of before it has arrived
            done = self._copies.record_event()

        def arrive() -> list[Tensor]:
            torch.cuda.current_stream(self.device).wait_event(done)
            return fetched

        return arrive

    def park(self, x: Tensor) -> Tensor:
        parked = _pinned(x.shape, x.dtype)
        if parked is None:
            return x.to("cpu")
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            parked.copy_(x, non_blocking=True)
        x.record_stream(self._copies)  # its memory is not given away before the copy is done
        return parked


def _pinned(shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Page-locked host memory, from and to which copies go beside the computation; None when the system has no more of it to give."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return None


def transfer_to(device: torch.device) -> Transfer:
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)


class Weights:
    """The weights of a network that stay on the host, each stage's on the device while it runs.

    resident: they stay on the device once they are there, as long as this object lives. Otherwise they are there for their stage only, and those of
    the stage that came next the last time are on their way meanwhile.
    """

    def __init__(self, transfer: Transfer, *, resident: bool) -> None:
        self.transfer = transfer
        self._resident = resident
        self._kept: dict[Stage, list[Tensor]] = {}
        self._staged: dict[Stage, Sequence[Tensor]] = {}
        self._coming: dict[Stage, Arrival] = {}
        self._next: dict[Stage, Stage] = {}
        self._last: Stage | None = None

    @contextmanager
    def stage(self, modules: Stage) -> Generator[None]:
        """Holds the weights of `modules`, and of everything in them, on the device inside the block; gives the modules their own back after."""
        places = [(owner, name) for module in modules for owner in module.modules() for name, _ in _tensors(owner)]
        host = [getattr(owner, name) for owner, name in places]
        on_device = self._on_device(modules, host)
        try:
            for place, tensor in zip(places, on_device, strict=True):
                _put(*place, tensor)
            del on_device
            yield
        finally:
            for place, tensor in zip(places, host, strict=True):
                _put(*place, tensor)
            if not self._resident:
                self.transfer.let_go(host)

    @property
    def held_bytes(self) -> int:
        """On the device between stages: what stays there, and what is on its way."""
        coming = (self._staged[modules] for modules in self._coming)
        return sum(tensor.nbytes for tensors in (*self._kept.values(), *coming) for tensor in tensors)

    def drop(self) -> None:
        """Lets go of everything on the device; what is needed again is fetched again."""
        self._kept.clear()
        self._coming.clear()

    def _on_device(self, modules: Stage, host: list[Tensor]) -> list[Tensor]:
        if modules in self._kept:
            return self._kept[modules]
        if self._last is not None:
            self._next[self._last] = modules
        self._last = modules
        if not self._resident and modules not in self._staged:
            self._staged[modules] = self.transfer.stage_on_host(host)
        arrive = self._coming.pop(modules, None) or self.transfer.fetch(self._staged.get(modules, host))
        self._coming.clear()
        tensors = arrive()
        if self._resident:
            self._kept[modules] = tensors
        elif modules in self._next and self._next[modules] != modules:
            following = self._next[modules]
            self._coming[following] = self.transfer.fetch(self._staged[following])
        return tensors


def _tensors(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from owner.named_parameters(recurse=False)
    yield from owner.named_buffers(recurse=False)


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(getattr(owner, name), nn.Parameter) and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(owner, name, tensor)

"""How much device memory a computation holds at most, counted as its tensors are made and die: with no device at all, on meta tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..lean.transfer import Arrival, Transfer


class LiveBytes(TorchDispatchMode):
    """Inside the block, adds up the storages that operators make, until they die.

    What was there before is not counted, nor what a `TracedTransfer` parks on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._uncounted = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.endswith("_") and args[0].is_meta:
            return args[0]  # in place, where there is nothing to compute
        result = func(*args, **(kwargs or {}))
        if not self._uncounted and not func.is_view:
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor) and not any(tensor is argument for argument in args):
                    self._born(tensor.untyped_storage())
        return result

    def host_copy(self, x: Tensor) -> Tensor:
        self._uncounted = True
        try:
            return x.clone()
        finally:
            self._uncounted = False

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class TracedTransfer(Transfer):
    """A transfer to a device that is pretended: what comes to it is counted, what is parked is not."""

    def __init__(self, live: LiveBytes, device: torch.device) -> None:
        super().__init__(device)
        self._live = live

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        fetched = [tensor.clone() for tensor in tensors]
        return lambda: fetched

    def park(self, x: Tensor) -> Tensor:
        return self._live.host_copy(x)

"""How much device memory a computation holds at most, counted as its tensors are made and die: with no device at all, on meta tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..lean.transfer import Arrival, Transfer


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    statistics = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    return torch.empty_like(x), x.new_empty(statistics, dtype=torch.float32), x.new_empty(statistics, dtype=torch.float32)


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, positions: int, groups: int, eps: float) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)


_aten: Any = torch.ops.aten
# What these operators allocate. torch's own answers for the meta device take a millisecond each, which is most of a trace.
_RESULTS: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten.addmm.default: lambda bias, a, b: a.new_empty(a.shape[0], b.shape[1]),
    _aten.gelu.default: torch.empty_like,
}


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
        rule = _RESULTS.get(func) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        result = func(*args, **(kwargs or {})) if rule is None else rule(*args)
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

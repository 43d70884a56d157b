"""How much device memory a computation holds at most, counted as its tensors are made and die: with no device at all, on meta tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..lean.transfer import Arrival, Transfer
from ..lean.transformer import attend


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device="meta")


def _like(x: Tensor, *_: Any) -> Tensor:
    return _empty(x.shape, x) if x.is_contiguous() else torch.empty_like(x)


def _elementwise(a: Tensor, *others: Any) -> Tensor:
    if not a.is_floating_point():
        return NotImplemented
    shapes, dtype = {a.shape}, a.dtype
    for other in others:
        if isinstance(other, Tensor):
            shapes.add(other.shape)
            dtype = dtype if other.dtype == dtype else torch.result_type(a, other)
    return _empty(shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes), a, dtype)


def _reduced(x: Tensor, dims: Sequence[int] | None = None, keep: bool = False) -> Tensor:
    dropped = {dim % x.ndim for dim in (dims or range(x.ndim))}
    return _empty([1 if i in dropped else size for i, size in enumerate(x.shape) if keep or i not in dropped], x)


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    statistics = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    return _empty(x.shape, x), _empty(statistics, x, torch.float32), _empty(statistics, x, torch.float32)


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, positions: int, groups: int, eps: float) -> tuple[Tensor, ...]:
    return _empty(x.shape, x), _empty((n, groups), x), _empty((n, groups), x)


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    dim %= first.ndim
    return _empty((*first.shape[:dim], sum(tensor.shape[dim] for tensor in tensors), *first.shape[dim + 1 :]), first)


_aten: Any = torch.ops.aten
# What these operators allocate. torch's own answers for the meta device take up to a millisecond each, which is most of a trace.
_RESULTS: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    _aten.addmm.default: lambda bias, a, b: _empty((a.shape[0], b.shape[1]), a),
    _aten.mm.default: lambda a, b: _empty((a.shape[0], b.shape[1]), a),
    _aten.gelu.default: _like,
    _aten.silu.default: _like,
    _aten.clone.default: _like,
    _aten.sqrt.default: _like,
    _aten.add.Tensor: _elementwise,
    _aten.sub.Tensor: _elementwise,
    _aten.mul.Tensor: _elementwise,
    _aten.div.Tensor: _elementwise,
    _aten.addcmul.default: _elementwise,
    _aten.pow.Tensor_Scalar: _elementwise,
    _aten.mean.dim: _reduced,
    _aten.sum.dim_IntList: _reduced,
    _aten.cat.default: _concatenated,
}
_IN_PLACE, _VIEW, _MAKES = "in place", "view", "makes"


class LiveBytes(TorchDispatchMode):
    """Inside the block, adds up the storages that operators make, until they die.

    What was there before is not counted, nor what a `TracedTransfer` parks on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._deaths: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._kinds: dict[Any, str] = {}
        self._host_copies: dict[Any, Tensor] = {}
        self._uncounted = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _IN_PLACE if func._schema.name.endswith("_") else _VIEW if func.is_view else _MAKES
        if kind is _VIEW:
            return func(*args, **(kwargs or {}))
        if kind is _IN_PLACE and args[0].is_meta:
            return args[0]  # there is nothing to compute
        first = args[0] if args else None
        if isinstance(first, list) and first:
            first = first[0]
        rule = None if kwargs or not isinstance(first, Tensor) or not first.is_meta else _RESULTS.get(func)
        result = NotImplemented if rule is None else rule(*args)
        if result is NotImplemented:
            result = func(*args, **(kwargs or {}))
        if not self._uncounted:
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor) and not any(tensor is argument for argument in args):
                    self._born(tensor.untyped_storage())
        return result

    def host_copy(self, x: Tensor) -> Tensor:
        """A copy that is not counted. On meta, one tensor stands for all of its shape."""
        self._uncounted = True
        try:
            if not x.is_meta:
                return x.clone()
            key = x.shape, x.dtype
            if key not in self._host_copies:
                self._host_copies[key] = torch.empty(x.shape, dtype=x.dtype, device="meta")
            return self._host_copies[key]
        finally:
            self._uncounted = False

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key not in self._sizes:
            self._sizes[key] = size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            self._deaths[key] = weakref.ref(storage, lambda _: self._died(key))

    def _died(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._deaths[key]


class Work(LiveBytes):
    """Adds up floating-point operations as well, by torch's own formulas. On meta, loops over pieces do not run all of them: trace whole clips."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        formula: Any = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


class AttentionKernels(TorchFunctionMode):
    """Inside the block, attention on the meta device takes what it takes on real ones, also in modules that are not ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and args[0].is_meta:
            return attend(*args[:3])
        return func(*args, **(kwargs or {}))


class TracedTransfer(Transfer):
    """A transfer to a device that is pretended: what comes to it is counted, what is parked is not."""

    def __init__(self, live: LiveBytes, device: torch.device) -> None:
        super().__init__(device)
        self._live = live
        self.moved = 0  # bytes, either way

    def computing(self) -> AbstractContextManager[object]:
        return self._live

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        fetched = [tensor.clone() for tensor in tensors]
        self.moved += sum(tensor.nbytes for tensor in tensors)
        return lambda: fetched

    def park(self, x: Tensor) -> Tensor:
        self.moved += x.nbytes
        return self._live.host_copy(x)

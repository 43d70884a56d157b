"""What was sampled in the course of a run, in a few bytes a sample: a server remembers many runs."""

from __future__ import annotations

from array import array
from operator import attrgetter
from typing import Any

from .gauges import Device, Snapshot

MOST_SAMPLES = 2000
_FIGURES = ("used", "process", "allocated")
_UNTOLD = -1
_figures = attrgetter(*_FIGURES)


class Samples:
    """At most MOST_SAMPLES. Where there are more, neighbours become one that has the larger of each figure, so that no peak is lost."""

    def __init__(self) -> None:
        self._at = array("d")
        self._host = array("q")
        self._devices: dict[int, tuple[Device, array[int]]] = {}  # by index, as last seen; its figures one sample after the other
        self._merged = 0  # into the last one
        self._every = 1

    @property
    def host_peak(self) -> int:
        return max(self._host, default=0)

    def add(self, at: float, snapshot: Snapshot) -> None:
        """`at` is in seconds since the run began."""
        self._merged += 1
        if not self._at or self._merged > self._every:
            self._merged = 1
            if len(self._at) == MOST_SAMPLES:
                self._halve()
            self._at.append(at)
            self._host.append(snapshot.host.process)
        self._host[-1] = max(self._host[-1], snapshot.host.process)
        end = len(self._at) * len(_FIGURES)
        for device in snapshot.devices:
            values = [_UNTOLD if value is None else value for value in _figures(device)]
            known = self._devices.get(device.index)
            column = array("q") if known is None else known[1]
            self._devices[device.index] = device, column
            if len(column) == end:
                column[-len(values) :] = array("q", map(max, column[-len(values) :], values))
            else:
                column.extend([_UNTOLD] * (end - len(column) - len(values)))  # while it was not there
                column.extend(values)

    def as_json(self) -> dict[str, Any]:
        devices = [
            {"index": index, "name": device.name, "total": device.total, **{figure: self._told(column, i) for i, figure in enumerate(_FIGURES)}}
            for index, (device, column) in sorted(self._devices.items())
        ]
        return {"at": self._at.tolist(), "host": self._host.tolist(), "devices": devices}

    def _told(self, column: array[int], figure: int) -> list[int | None]:
        told = [None if value == _UNTOLD else value for value in column[figure :: len(_FIGURES)]]
        return [*told, *[None] * (len(self._at) - len(told))]

    def _halve(self) -> None:
        self._at = self._at[::2]
        self._host = _larger(self._host)
        for _, column in self._devices.values():
            columns = [_larger(column[i :: len(_FIGURES)]) for i in range(len(_FIGURES))]
            column[:] = array("q", [value for values in zip(*columns, strict=True) for value in values])
        self._every *= 2


def _larger(column: array[int]) -> array[int]:
    """Of each two neighbours; the last may have none."""
    return array("q", map(max, column[::2], [*column[1::2], *column[-1:]]))

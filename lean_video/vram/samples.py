"""What was sampled in the course of a run, in a few bytes a sample: a server remembers many runs."""

from __future__ import annotations

from array import array
from operator import attrgetter
from typing import Any

from .gauges import Device, Snapshot

MOST_SAMPLES = 2000
_FIGURES = ("used", "process", "allocated")
_figures = attrgetter(*_FIGURES)
_UNTOLD = -1


class Samples:
    """At most MOST_SAMPLES. Where there are more, neighbours become one that has the larger of each figure, so that no peak is lost."""

    def __init__(self) -> None:
        self._at = array("d")
        self._host = array("q")
        self._devices: dict[int, tuple[Device, list[array[int]]]] = {}  # by index, as last seen; a column for each figure
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
            self._host.append(_UNTOLD)
            for _, columns in self._devices.values():
                for column in columns:
                    column.append(_UNTOLD)
        self._host[-1] = max(self._host[-1], snapshot.host.process)
        for device in snapshot.devices:
            before = self._devices.get(device.index)
            columns = [array("q", [_UNTOLD]) * len(self._at) for _ in _FIGURES] if before is None else before[1]
            self._devices[device.index] = device, columns
            for value, column in zip(_figures(device), columns, strict=True):
                if value is not None and value > column[-1]:
                    column[-1] = value

    def as_json(self) -> dict[str, Any]:
        devices = [
            {"index": index, "name": device.name, "total": device.total, **{figure: _told(column) for figure, column in zip(_FIGURES, columns, strict=True)}}
            for index, (device, columns) in sorted(self._devices.items())
        ]
        return {"at": self._at.tolist(), "host": self._host.tolist(), "devices": devices}

    def _halve(self) -> None:
        self._at = self._at[::2]
        self._host = _larger(self._host)
        self._devices = {index: (device, [_larger(column) for column in columns]) for index, (device, columns) in self._devices.items()}
        self._every *= 2


def _larger(column: array[int]) -> array[int]:
    return array("q", map(max, column[::2], column[1::2]))


def _told(column: array[int]) -> list[int | None]:
    return [None if value == _UNTOLD else value for value in column]

"""Measurements that are worth keeping between runs, in one JSON file. Losing it costs time only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_MOST_ENTRIES = 4096


class Store:
    """Key → a few numbers. Without a path they live as long as this object.

    Processes may share a file: each writes it whole under another name and renames it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: dict[str, Sequence[float]] = {}

    def get(self, key: str, measure: Callable[[], Sequence[float]]) -> Sequence[float]:
        """The numbers of a key, measured and kept when there are none."""
        known = self._read().get(key)
        if known is not None:
            return known
        numbers = measure()
        self.put({key: numbers})
        return numbers

    def peek(self, key: str) -> Sequence[float] | None:
        """The numbers of a key, if there are any."""
        return self._read().get(key)

    def peek_all(self, keys: Mapping[str, str]) -> dict[str, Sequence[float]]:
        """The numbers of each name's key, without the names that there are none for."""
        known = self._read()
        return {name: known[key] for name, key in keys.items() if key in known}

    def put(self, numbers: Mapping[str, Sequence[float]]) -> None:
        """Keeps numbers, in place of what there was. The oldest go when there are too many."""
        known = {key: value for key, value in self._read().items() if key not in numbers}
        self._entries = dict([*known.items(), *numbers.items()][-_MOST_ENTRIES:])
        self._write()

    def _read(self) -> dict[str, Sequence[float]]:
        if self._path is None:
            return self._entries
        try:
            read = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self._entries
        return {key: value for key, value in read.items() if _is_numbers(value)} if isinstance(read, dict) else {}

    def _write(self) -> None:
        if self._path is None:
            return
        temporary: Path | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            temporary = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._entries, file)
            temporary.replace(self._path)
        except OSError:  # a folder that cannot be written to: measured again by the next process
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(number, (int, float)) for number in value)

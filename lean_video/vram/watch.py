"""One thread that samples what there is: often while something runs, seldom otherwise."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .gauges import Gauges, Snapshot

log = logging.getLogger("lean_video")


class Watch:
    """Started on demand; what goes wrong is logged once and the next sample is taken all the same."""

    def __init__(self, gauges: Gauges, on_snapshot: Callable[[Snapshot], None], busy_hz: float = 10.0, idle_hz: float = 1.0) -> None:
        self._gauges, self._on_snapshot = gauges, on_snapshot
        self._periods = 1 / idle_hz, 1 / busy_hz
        self._wake = threading.Condition()
        self._reading = threading.Lock()
        self._thread: threading.Thread | None = None
        self._busy = self._stopped = self._has_failed = False
        self._latest: Snapshot | None = None

    def busy(self, is_busy: bool) -> None:
        """Samples at once, and from now on often or seldom."""
        with self._wake:
            self._busy = is_busy
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._sample, name="lean_video.watch", daemon=True)
                self._thread.start()
            self._wake.notify()

    @property
    def latest(self) -> Snapshot:
        """The last sample; taken now as long as nothing was started."""
        return self._read() if self._thread is None or self._latest is None else self._latest

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._gauges.close()

    def _sample(self) -> None:
        while not self._stopped:
            try:
                self._on_snapshot(self._read())
            except Exception:
                if not self._has_failed:
                    self._has_failed = True
                    log.exception("A sample of the memory in use was lost.")
            with self._wake:
                if not self._stopped:
                    self._wake.wait(self._periods[self._busy])

    def _read(self) -> Snapshot:
        with self._reading:
            self._latest = self._gauges.read()
            return self._latest

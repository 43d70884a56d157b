"""Where the memory of a run went: what was held in each node and at each step, kept for the last runs.

A run tells of itself by events, which may come late, twice or never; samples of what there is come from elsewhere and belong to the node that runs then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .gauges import Snapshot, torch_devices, torch_in_use
from .samples import Samples

MOST_NODES = 2000
MOST_STEPS = 500
SHORT = 300  # characters of a message or a title that are kept


@dataclass(frozen=True)
class Label:
    """What a node is, for people."""

    type: str
    title: str


class Probe(Protocol):
    """What was held since a node began, in bytes; more exact than samples where the system can tell."""

    def begin(self) -> tuple[int | None, int]:
        """Starts anew; what is held now of the device, None where it cannot tell, and of the host."""
        ...

    def peak(self) -> tuple[int | None, int]:
        """The most since then."""
        ...


class ProcessProbe:
    """This process: torch's allocator where it is in use, and on Linux the kernel's high-water mark of RAM."""

    def __init__(self) -> None:
        import psutil

        self._own: Any = psutil.Process()
        self._start = 0

    def begin(self) -> tuple[int | None, int]:
        with contextlib.suppress(OSError):  # another system, or no permission: samples must do
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._start = int(self._own.memory_info().rss)
        torch = torch_in_use()
        if torch is None:
            return None, self._start
        held = 0
        for index in torch_devices(torch):
            torch.cuda.reset_peak_memory_stats(index)
            held += int(torch.cuda.memory_allocated(index))
        return held, self._start

    def peak(self) -> tuple[int | None, int]:
        torch = torch_in_use()
        device = None if torch is None else sum(int(torch.cuda.max_memory_allocated(index)) for index in torch_devices(torch))
        return device, max(_high_water(), int(self._own.memory_info().rss))


def _high_water() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


@dataclass
class _Node:
    id: str
    label: Label
    started: float
    device_start: int | None
    host_start: int
    device_peak: int | None
    host_peak: int
    seconds: float | None = None
    status: str = "running"
    predicted: int | None = None
    is_sampled: bool = False  # of the device samples tell, as the probe cannot
    steps: list[dict[str, Any]] = field(default_factory=lambda: [])


@dataclass
class _Run:
    id: str
    began: float  # by the clock on the wall
    origin: float  # by the clock that only goes forward
    labels: Mapping[str, Label]
    seconds: float | None = None
    status: str = "running"
    message: str | None = None
    nodes: list[_Node] = field(default_factory=lambda: [])
    predicted: dict[str, int] = field(default_factory=lambda: {})
    samples: Samples = field(default_factory=Samples)


class Recorder:
    """Keeps the last `history` runs. Safe to be told from several threads; no event makes it raise."""

    def __init__(self, history: int = 50, probe: Probe | None = None) -> None:
        self._history = history
        self._probe: Probe = ProcessProbe() if probe is None else probe
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.RLock()
        self._current: _Run | None = None
        self._rest: tuple[int | None, int] | None = None

    def rest(self) -> None:
        """Nothing runs: what is held now is what the first nodes of the next run begin with, should they be heard of late."""
        with self._lock:
            if self._current is None:
                self._rest = self._probe.begin()

    def start_run(self, run_id: str, labels: Mapping[str, Label]) -> None:
        with self._lock:
            if run_id in self._runs:
                return
            if self._current is not None:
                self.end_run(self._current.id, "interrupted", "The end of this run was not heard of.")
            kept = {node: Label(label.type[:SHORT], label.title[:SHORT]) for node, label in list(labels.items())[:MOST_NODES]}
            self._current = self._runs[run_id] = _Run(run_id, time.time(), time.monotonic(), kept)
            while len(self._runs) > self._history:
                self._runs.popitem(last=False)

    def start_node(self, run_id: str, node_id: str, is_late: bool = False) -> None:
        """`is_late` when it may hold something already that it did not begin with: it then began with no more than what was held at rest."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.status != "running":
                return
            running = self._running(run)
            if running is not None and running.id == node_id:
                return
            self._finish(run, "done")
            if len(run.nodes) >= MOST_NODES:
                return
            # A node inside a subgraph or made on the way has the name of the one on the canvas in front of its own.
            label = run.labels.get(node_id) or run.labels.get(node_id.split(":")[0]) or run.labels.get(node_id.split(".")[0]) or Label("", f"node {node_id}"[:SHORT])
            device, host = self._probe.begin()
            if is_late and self._rest is not None:
                host = min(host, self._rest[1])
                device = device if device is None or self._rest[0] is None else min(device, self._rest[0])
            run.nodes.append(_Node(node_id[:SHORT], label, time.monotonic() - run.origin, device, host, device, host, predicted=run.predicted.get(node_id)))

    def step(self, run_id: str, node_id: str, label: str, done: int, total: int) -> None:
        """A step of a node is done: of a sampler, a strip of a decode, a frame."""
        with self._lock:
            run = self._runs.get(run_id)
            node = None if run is None else next((node for node in reversed(run.nodes) if node.id == node_id), None)
            if run is None or node is None or node.status != "running" or len(node.steps) >= MOST_STEPS:
                return
            device, host = self._probe.peak()
            self._raise_peaks(node, device, host)
            node.steps.append({"at": time.monotonic() - run.origin, "label": label[:SHORT], "done": done, "total": total, "device": device, "host": host})

    def finish_node(self, run_id: str, node_id: str) -> None:
        with self._lock:
            run = self._runs.get(run_id)
            running = None if run is None else self._running(run)
            if run is not None and running is not None and running.id == node_id:
                self._finish(run, "done")

    def predict(self, run_id: str, node_id: str, peak: int) -> None:
        """What a node was expected to take, before or while it runs."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return
            if len(run.predicted) < MOST_NODES:
                run.predicted[node_id] = peak
            for node in run.nodes:
                if node.id == node_id:
                    node.predicted = peak

    def predict_running(self, peak: int) -> None:
        """The same for the node that runs now."""
        with self._lock:
            node = None if self._current is None else self._running(self._current)
            if self._current is not None and node is not None:
                self.predict(self._current.id, node.id, peak)

    def end_run(self, run_id: str, status: str, message: str | None = None) -> None:
        """`status` is success, error or interrupted. What runs then is what failed."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.status != "running":
                return
            self._finish(run, "done" if status == "success" else status)
            run.seconds, run.status = time.monotonic() - run.origin, status
            run.message = None if message is None else message[:4000]
            if self._current is run:
                self._current = None
            self.rest()

    def add(self, snapshot: Snapshot) -> None:
        """A sample, for the run and the node that are at work."""
        with self._lock:
            run = self._current
            if run is None:
                return
            node = self._running(run)
            if node is not None:
                held = _of_process(snapshot) if node.device_start is None or node.is_sampled else None
                if held is not None and node.device_start is None:
                    node.device_start, node.is_sampled = held, True
                self._raise_peaks(node, held, snapshot.host.process)
            run.samples.add(time.monotonic() - run.origin, snapshot)

    def runs(self) -> list[dict[str, Any]]:
        """What is known of each run, the newest first."""
        with self._lock:
            return [self._summary(run) for run in reversed(self._runs.values())]

    def run(self, run_id: str) -> dict[str, Any] | None:
        """All that is known of a run: the summary, each node in order, and the samples."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return None
            now = time.monotonic() - run.origin
            nodes = [
                {
                    "id": node.id,
                    "type": node.label.type,
                    "title": node.label.title,
                    "started": node.started,
                    "seconds": node.seconds,
                    "status": node.status,
                    "device": {"start": node.device_start, "peak": node.device_peak},
                    "host": {"start": node.host_start, "peak": node.host_peak},
                    "predicted": node.predicted,
                    "steps": list(node.steps),
                }
                for node in run.nodes
            ]
            return {**self._summary(run), "now": now, "nodes": nodes, "samples": run.samples.as_json()}

    def _summary(self, run: _Run) -> dict[str, Any]:
        devices = [node.device_peak for node in run.nodes if node.device_peak is not None]
        return {
            "id": run.id,
            "started": run.began,
            "seconds": run.seconds,
            "status": run.status,
            "message": run.message,
            "peak": {"device": max(devices, default=None), "host": max([run.samples.host_peak, *(node.host_peak for node in run.nodes)])},
            "predicted": max(run.predicted.values(), default=None),
            "nodes": len({node.id for node in run.nodes}),
        }

    def _finish(self, run: _Run, status: str) -> None:
        node = self._running(run)
        if node is None:
            return
        self._raise_peaks(node, *self._probe.peak())
        node.seconds, node.status = time.monotonic() - run.origin - node.started, status

    @staticmethod
    def _running(run: _Run) -> _Node | None:
        return run.nodes[-1] if run.nodes and run.nodes[-1].status == "running" else None

    @staticmethod
    def _raise_peaks(node: _Node, device: int | None, host: int) -> None:
        node.host_peak = max(node.host_peak, host)
        if device is not None:
            node.device_peak = max(node.device_peak or 0, device)


def _of_process(snapshot: Snapshot) -> int | None:
    """What this process holds of the devices; where the driver does not tell, what is in use of them at all."""
    if not snapshot.devices:
        return None
    held = [device.process for device in snapshot.devices]
    if any(size is not None for size in held):
        return sum(size or 0 for size in held)
    return sum(device.used for device in snapshot.devices)


def chrome_trace(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run, as `Recorder.run` gives it, in the Trace Event Format that chrome://tracing and Perfetto read: nodes as slices, memory as counters, steps as instants.

    Times are in microseconds since the run began.
    """
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": f"run {run['id']}"}}]
    for node in run["nodes"]:
        seconds = node["seconds"] if node["seconds"] is not None else max(0.0, run["now"] - node["started"])
        facts = {key: node[key] for key in ("id", "type", "status", "device", "host", "predicted")}
        events.append(
            {"name": node["title"] or node["type"] or node["id"], "cat": "node", "ph": "X", "ts": node["started"] * 1e6, "dur": seconds * 1e6, "pid": 1, "tid": 1, "args": facts}
        )
        events += [
            {"name": f"{step['label']} {step['done']}/{step['total']}", "cat": "step", "ph": "i", "s": "t", "ts": step["at"] * 1e6, "pid": 1, "tid": 1, "args": {}}
            for step in node["steps"]
        ]
    samples = run["samples"]
    for i, at in enumerate(samples["at"]):
        events.append({"name": "host", "ph": "C", "ts": at * 1e6, "pid": 1, "tid": 1, "args": {"bytes": samples["host"][i]}})
        for device in samples["devices"]:
            held = {key: device[key][i] for key in ("used", "process", "allocated") if device[key][i] is not None}
            if held:
                events.append({"name": f"{device['index']}: {device['name']}", "ph": "C", "ts": at * 1e6, "pid": 1, "tid": 1, "args": held})
    return {"traceEvents": events, "displayTimeUnit": "ms"}

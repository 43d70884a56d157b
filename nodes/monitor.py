"""The monitor: what there is, where it went in each run, and whether a graph will fit. Its addresses at the server, and VRAM Monitor."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.vram.chart import MIB, plot
from ..lean_video.vram.gauges import Gauges
from ..lean_video.vram.store import Store
from ..lean_video.vram.timeline import Label, Recorder, chrome_trace
from ..lean_video.vram.watch import Watch
from . import host
from .graph import Graph
from .preflight import card_here, is_planned, preflight

LOCALES = Path(__file__).resolve().parent.parent / "locales"
_MOST_GRAPHS = 8


class Monitor:
    """Hears of runs, samples memory meanwhile, and remembers what nodes took. There is one; it lasts as long as the server."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._watch = Watch(Gauges(), self.recorder.add)
        self._graphs: OrderedDict[str, Graph] = OrderedDict()
        self._lock, self._planning = threading.Lock(), threading.Lock()

    # What the host tells

    def nothing_runs(self) -> None:
        self.recorder.rest()

    def run_started(self, run_id: str, prompt: Mapping[str, Any]) -> None:
        try:
            graph = Graph(dict(prompt), host.display_name)
        except LeanVideoError:
            graph = Graph({})
        with self._lock:
            self._graphs[run_id] = graph
            while len(self._graphs) > _MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self.recorder.start_run(run_id, {node: Label(graph.type_of(node), graph.title_of(node)) for node in graph})
        self._watch.busy(True)
        measured = _store().peek_all({node: _key(graph.signature(node), host.device().type) for node in graph if not is_planned(graph.type_of(node))})
        for node, (peak,) in measured.items():
            self.recorder.predict(run_id, node, int(peak))
        host.send_to_all("lean_video.run", {"id": run_id, "status": "running"})

    def node_started(self, run_id: str, node_id: str, is_late: bool = False) -> None:
        self.recorder.start_node(run_id, node_id, is_late)

    def step(self, run_id: str, node_id: str, done: int, total: int) -> None:
        self.recorder.step(run_id, node_id, "step", done, total)

    def node_finished(self, run_id: str, node_id: str) -> None:
        self.recorder.finish_node(run_id, node_id)

    def planned(self, peak: int) -> None:
        self.recorder.predict_running(peak)

    def run_ended(self, run_id: str, status: str, message: str | None) -> None:
        self._watch.busy(False)
        self.recorder.end_run(run_id, status, message)
        self._remember(run_id)
        host.send_to_all("lean_video.run", {"id": run_id, "status": status})

    # What may be asked

    def snapshot(self) -> dict[str, Any]:
        return self._watch.latest.as_json()

    def preflight(self, prompt: object, card_mib: float | None, is_quick: bool = False) -> dict[str, Any]:
        card = card_here(card_mib)
        # Looking for what would fit takes seconds: one at a time, or they slow each other and what runs. A quick answer does not wait for them.
        with nullcontext() if is_quick else self._planning:
            return preflight(prompt, card, lambda signature: self._measured(signature, card.device.type), is_quick)

    def _remember(self, run_id: str) -> None:
        """What each node took, the most of its last runs of that size."""
        run, graph = self.recorder.run(run_id), self._graphs.get(run_id)
        if run is None or graph is None:
            return
        found: dict[str, list[float]] = {}
        for node in run["nodes"]:
            if node["status"] != "done" or node["id"] not in graph:
                continue
            peak = node["device"]["peak"]
            key = _key(graph.signature(node["id"]), "cpu" if peak is None else "cuda")
            taken = float(peak if peak is not None else max(0, node["host"]["peak"] - node["host"]["start"]))
            found[key] = [max(taken, found.get(key, [0.0])[0])]
        if found:
            _store().put(found)

    @staticmethod
    def _measured(signature: str, device: str) -> int | None:
        numbers = _store().peek(_key(signature, device))
        return None if numbers is None else int(numbers[0])


def _key(signature: str, device: str) -> str:
    """Of what was measured in RAM or on a device: neither tells of the other."""
    return f"{'cpu' if device == 'cpu' else 'device'} {signature}"


def _store() -> Store:
    return Store(host.user_folder() / "measured.json")


@lru_cache(maxsize=1)
def monitor() -> Monitor:
    return Monitor()


def serve() -> None:
    """Begins to listen, and answers at the server; to be called when the pack is loaded. Outside ComfyUI nothing happens."""
    if not host.is_served():
        return
    host.follow(monitor())
    host.serve("GET", "/lean_video/vram", lambda values, body: monitor().snapshot())
    host.serve("GET", "/lean_video/runs", lambda values, body: monitor().recorder.runs())
    host.serve("GET", "/lean_video/runs/{id}", lambda values, body: _run(values))
    host.serve("GET", "/lean_video/runs/{id}/trace", lambda values, body: _trace(values))
    host.serve("GET", "/lean_video/text/{language}", lambda values, body: panel_texts(values["language"]))
    host.serve("POST", "/lean_video/preflight", lambda values, body: _preflight(body))


@lru_cache(maxsize=32)
def panel_texts(language: str) -> dict[str, str]:
    """What the panel says, by key, in the language of a tag such as zh or zh-CN; in English what that lacks."""
    texts: dict[str, str] = {}
    for name in ("en", language.lower().partition("-")[0]):
        file = LOCALES / name / "main.json"
        if name.isalpha() and file.is_file():
            texts |= json.loads(file.read_text(encoding="utf-8"))["leanVideo"]
    return texts


def _run(values: Mapping[str, str]) -> Any:
    run = monitor().recorder.run(values["id"])
    if run is not None and values.get("samples") == "0":
        del run["samples"]
    return run


def _trace(values: Mapping[str, str]) -> Any:
    run = monitor().recorder.run(values["id"])
    return None if run is None else chrome_trace(run)


def _preflight(body: Any) -> Any:
    if not isinstance(body, dict) or "prompt" not in body:
        raise LeanVideoError(
            'Send {"prompt": the graph in API form}, with "card_mib" the size of a card to hold it against, if it is another than the one here, and "changes": false if you need none.'
        )
    card = body.get("card_mib")
    if card is not None and (isinstance(card, bool) or not isinstance(card, (int, float))):
        raise LeanVideoError("card_mib is a number of MiB.")
    return monitor().preflight(body["prompt"], card, is_quick=body.get("changes", True) is False)


class _Anything(str):
    """The type * for every ComfyUI: older ones compare types by `!=` and know no wildcard."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


_ANYTHING = _Anything("*")


class VRAMMonitor:
    DESCRIPTION = (
        "Tells what the run has taken so far, wherever you put it between two nodes: what comes in goes out unchanged. "
        "With a limit it stops the run before memory does: when more was taken, or when a node that comes after is planned to take more."
    )
    CATEGORY = "Lean Video"
    FUNCTION = "run"
    RETURN_TYPES = (_ANYTHING, "STRING", "FLOAT", "FLOAT", "IMAGE")
    RETURN_NAMES = ("anything", "report", "peak_mib", "free_mib", "plot")
    OUTPUT_TOOLTIPS = ("What came in.", "What each node has taken so far.", "The most that the run has held so far.", "What is free now.", "Memory over time, coloured by node.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "anything": (_ANYTHING, {"tooltip": "Whatever there is at this place of the graph; it goes out unchanged."}),
                "label": ("STRING", {"default": "", "tooltip": "Heads the report."}),
                "limit_mib": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**22,
                        "step": 64,
                        "tooltip": "Stop the run with a sentence when it has taken more of the device (on a CPU: of RAM) than this, or will; 0 is no limit.",
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any = None) -> bool:
        return True

    def run(self, anything: Any, label: str, limit_mib: int, prompt: Any = None, unique_id: str | None = None) -> dict[str, Any]:
        running = next((run["id"] for run in monitor().recorder.runs() if run["status"] == "running"), None)
        if running is not None and unique_id is not None:
            monitor().node_started(running, unique_id)  # older hosts tell of it later
        run = monitor().recorder.run(running) if running is not None else None
        snapshot = monitor().snapshot()
        device = snapshot["devices"][0] if snapshot["devices"] else None
        nodes = [] if run is None else run["nodes"]
        which = "host" if device is None else "device"
        peak = max([node[which]["peak"] or 0 for node in nodes], default=snapshot["host"]["process"] if device is None else device["used"])
        free = snapshot["host"]["available"] if device is None else device["free"]
        if limit_mib:
            _guard(peak, limit_mib, prompt, unique_id, nodes)
        lines = [*([label] if label else []), f"{peak / MIB:,.0f} MiB at most so far, {free / MIB:,.0f} MiB free now{'' if device else ' (RAM: there is no GPU here)'}."]
        lines += [
            f"{node['title'] or node['type']}: {_taken(node[which], device is None) / MIB:,.0f} MiB, {node['seconds']:.1f} s" for node in nodes if node["seconds"] is not None
        ]
        picture = torch.from_numpy(plot(run)) if run is not None else torch.zeros(1, 64, 64, 3)
        return {"ui": {"text": lines}, "result": (anything, "\n".join(lines), peak / MIB, free / MIB, picture)}


def _taken(held: Mapping[str, int | None], is_host: bool) -> int:
    """Of a device, the most that was held; of RAM, the most beyond what the process held before."""
    return max(0, (held["peak"] or 0) - ((held["start"] or 0) if is_host else 0))


def _guard(peak: int, limit_mib: int, prompt: Any, node_id: str | None, nodes: list[dict[str, Any]]) -> None:
    if peak > limit_mib * MIB:
        raise LeanVideoError(f"This run has taken {peak / MIB:,.0f} MiB, more than the limit of {limit_mib:,} MiB, so it was stopped.")
    if prompt is None or node_id is None:
        return
    done = {node["id"] for node in nodes}
    for expected in monitor().preflight(prompt, None, is_quick=True)["nodes"]:
        if expected["id"] not in done and expected["peak"] is not None and expected["peak"] > limit_mib * MIB:
            raise LeanVideoError(f"{expected['title']} will take {expected['peak'] / MIB:,.0f} MiB, more than the limit of {limit_mib:,} MiB, so the run was stopped before it.")


NODE_CLASS_MAPPINGS = {"LeanVideoVRAMMonitor": VRAMMonitor}
NODE_DISPLAY_NAME_MAPPINGS = {"LeanVideoVRAMMonitor": "VRAM Monitor"}

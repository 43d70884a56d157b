"""Where the memory of a run went, whatever its events do, and the thread that samples meanwhile."""

from __future__ import annotations

import gc
import json
import logging
import queue
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest

from lean_video.vram import timeline, watch
from lean_video.vram.chart import plot
from lean_video.vram.gauges import Device, Gauges, Host, Snapshot
from lean_video.vram.samples import MOST_SAMPLES
from lean_video.vram.timeline import MOST_NODES, MOST_STEPS, SHORT, Label, ProcessProbe, Recorder, chrome_trace
from lean_video.vram.watch import Watch
from tests.engine.stand_ins import MIB, ROOT, TorchCard, stand_in_torch

LABELS = {"1": Label("Loader", "Load"), "2": Label("Sampler", "Sample it"), "3": Label("Decoder", "")}


class StandInProbe:
    """What a node holds, as the test says, in MiB."""

    def __init__(self) -> None:
        self.device: int | None = 100
        self.host = 1000
        self._peak = self.device, self.host

    def hold(self, device: int | None, host: int) -> None:
        self.device, self.host = device, host
        self._peak = None if device is None else max(self._peak[0] or 0, device), max(self._peak[1], host)

    def begin(self) -> tuple[int | None, int]:
        self._peak = self.device, self.host
        return self.peak()

    def peak(self) -> tuple[int | None, int]:
        device, host = self._peak
        return None if device is None else device * MIB, host * MIB


class Clock:
    """Time goes on as the test says."""

    def __init__(self) -> None:
        self.now = 500.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timeline, "time", clock)
    return clock


@pytest.fixture
def probe() -> StandInProbe:
    return StandInProbe()


@pytest.fixture
def recorder(probe: StandInProbe, clock: Clock) -> Recorder:
    return Recorder(probe=probe)


def snapshot(host: int = 1000, *devices: Device) -> Snapshot:
    return Snapshot(0.0, Host(64000 * MIB, 2 * host * MIB, 64000 * MIB - 2 * host * MIB, host * MIB), devices)


def card(used: int, process: int | None = None, allocated: int | None = None, index: int = 0) -> Device:
    return Device(index, f"Card {index}", "nvml", 8192 * MIB, used * MIB, process=process and process * MIB, allocated=allocated and allocated * MIB)


def known(recorder: Recorder, run_id: str = "run") -> dict[str, Any]:
    run = recorder.run(run_id)
    assert run is not None
    return run


def told(recorder: Recorder, run_id: str = "run") -> list[tuple[str, str]]:
    return [(node["id"], node["status"]) for node in known(recorder, run_id)["nodes"]]


# What is told of a run


def test_each_node_is_told_with_what_was_held_while_it_ran(recorder: Recorder, probe: StandInProbe, clock: Clock) -> None:
    recorder.start_run("run", LABELS)
    clock.now += 1
    recorder.start_node("run", "1")
    clock.now += 2
    probe.hold(700, 3000)
    probe.hold(300, 1500)
    recorder.finish_node("run", "1")
    probe.hold(900, 5000)  # between nodes it is nobody's
    probe.hold(300, 1500)
    clock.now += 1
    recorder.start_node("run", "2")
    probe.hold(400, 1400)
    clock.now += 4
    recorder.end_run("run", "success")
    run = known(recorder)
    first, second = run["nodes"]
    assert (first["type"], first["title"], first["started"], first["seconds"], first["status"]) == ("Loader", "Load", 1, 2, "done")
    assert (first["device"], first["host"]["peak"]) == ({"start": 100 * MIB, "peak": 700 * MIB}, 3000 * MIB)
    assert (second["title"], second["started"], second["seconds"], second["status"]) == ("Sample it", 4, 4, "done")
    assert (second["device"], second["host"]) == ({"start": 300 * MIB, "peak": 400 * MIB}, {"start": 1500 * MIB, "peak": 1500 * MIB})
    assert recorder.runs() == [{"id": "run", "started": 1e9 + 500, "seconds": 8, "status": "success", "message": None, "peak": run["peak"], "predicted": None, "nodes": 2}]
    assert run["peak"] == {"device": 700 * MIB, "host": 3000 * MIB}


def test_steps_are_told_with_what_was_held_until_then(recorder: Recorder, probe: StandInProbe, clock: Clock) -> None:
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "2")
    for done in (1, 2):
        clock.now += 1.5
        probe.hold(100 * done, 1000 + done)
        recorder.step("run", "2", "step", done, 2)
    steps = known(recorder)["nodes"][0]["steps"]
    assert steps == [
        {"at": 1.5, "label": "step", "done": 1, "total": 2, "device": 100 * MIB, "host": 1001 * MIB},
        {"at": 3.0, "label": "step", "done": 2, "total": 2, "device": 200 * MIB, "host": 1002 * MIB},
    ]
    assert known(recorder)["nodes"][0]["device"]["peak"] == 200 * MIB, "also while it runs"


def test_a_node_within_a_node_has_the_name_of_the_one_on_the_canvas(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    for node in ("2:7", "2.0.1", "9"):
        recorder.start_node("run", node)
    assert [node["title"] for node in known(recorder)["nodes"]] == ["Sample it", "Sample it", "node 9"]


def test_a_prediction_stands_beside_what_was_measured(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    recorder.predict("run", "1", 250)
    recorder.predict("run", "2", 333)
    recorder.start_node("run", "1")
    recorder.start_node("run", "2")
    recorder.predict("run", "2", 444)  # better known now
    assert [node["predicted"] for node in known(recorder)["nodes"]] == [250, 444]
    assert recorder.runs()[0]["predicted"] == 444


# Events that are not as they should be


def test_an_event_that_comes_twice_changes_nothing(recorder: Recorder, clock: Clock) -> None:
    for _ in range(2):
        recorder.start_run("run", LABELS)
    for node in ("1", "2"):
        for _ in range(2):
            recorder.start_node("run", node)
            clock.now += 1
        for _ in range(2):
            recorder.finish_node("run", node)
    for status in ("success", "error"):
        recorder.end_run("run", status)
    assert told(recorder) == [("1", "done"), ("2", "done")]
    assert [node["seconds"] for node in known(recorder)["nodes"]] == [2, 2]
    assert recorder.runs()[0]["status"] == "success"


def test_a_node_whose_end_was_not_heard_ends_where_the_next_begins(recorder: Recorder, clock: Clock) -> None:
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "1")
    clock.now += 3
    recorder.start_node("run", "2")
    clock.now += 1
    assert told(recorder) == [("1", "done"), ("2", "running")]
    assert [node["seconds"] for node in known(recorder)["nodes"]] == [3, None]
    assert known(recorder)["now"] == 4


def test_what_is_heard_of_late_is_no_part_of_what_runs_now(recorder: Recorder, probe: StandInProbe) -> None:
    recorder.start_run("run", LABELS)
    recorder.step("run", "1", "step", 1, 2)  # before it began
    recorder.start_node("run", "1")
    recorder.start_node("run", "2")
    probe.hold(5000, 5000)
    recorder.step("run", "1", "step", 2, 2)
    recorder.finish_node("run", "1")
    assert told(recorder) == [("1", "done"), ("2", "running")]
    assert [node["steps"] for node in known(recorder)["nodes"]] == [[], []]
    assert known(recorder)["nodes"][0]["device"]["peak"] == 100 * MIB
    recorder.end_run("run", "success")
    recorder.start_node("run", "3")
    recorder.step("run", "2", "step", 1, 1)
    recorder.add(snapshot(60000))
    assert told(recorder) == [("1", "done"), ("2", "done")]
    assert known(recorder)["peak"]["host"] == 5000 * MIB


def test_events_of_a_run_that_is_not_known_are_nothing(recorder: Recorder) -> None:
    recorder.start_node("other", "1")
    recorder.step("other", "1", "step", 1, 2)
    recorder.finish_node("other", "1")
    recorder.predict("other", "1", 5)
    recorder.end_run("other", "success")
    recorder.add(snapshot())
    assert (recorder.runs(), recorder.run("other")) == ([], None)


def test_a_run_whose_end_was_not_heard_ends_where_the_next_begins(recorder: Recorder, clock: Clock) -> None:
    recorder.start_run("first", LABELS)
    recorder.start_node("first", "1")
    clock.now += 2
    recorder.start_run("second", LABELS)
    recorder.add(snapshot(4000))
    assert told(recorder, "first") == [("1", "interrupted")]
    second, first = recorder.runs()
    assert (first["status"], first["seconds"], first["message"]) == ("interrupted", 2, "The end of this run was not heard of.")
    assert (second["status"], second["peak"]["host"]) == ("running", 4000 * MIB)


@pytest.mark.parametrize("status", ["error", "interrupted"])
def test_the_node_at_which_a_run_broke_off_is_named_with_its_last_samples(recorder: Recorder, probe: StandInProbe, clock: Clock, status: str) -> None:
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "1")
    recorder.start_node("run", "2")
    recorder.step("run", "2", "step", 7, 25)
    clock.now += 1
    recorder.add(snapshot(2000, card(7000, process=6500)))
    probe.hold(6900, 2100)
    probe.hold(100, 1000)  # it is freed before the failure is told
    recorder.end_run("run", status, "x" * 9999)
    run = known(recorder)
    assert told(recorder) == [("1", "done"), ("2", status)]
    assert (run["status"], len(run["message"])) == (status, 4000)
    assert run["nodes"][1]["device"]["peak"] == 6900 * MIB
    assert [step["done"] for step in run["nodes"][1]["steps"]] == [7]
    assert run["samples"]["devices"][0]["process"] == [6500 * MIB]


# Samples


def test_samples_belong_to_the_node_that_runs(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    for node, sizes in (("1", (1200, 1500, 1100)), ("2", (1050, 1300))):
        recorder.start_node("run", node)
        for size in sizes:
            recorder.add(snapshot(size))
    assert [node["host"]["peak"] for node in known(recorder)["nodes"]] == [1500 * MIB, 1300 * MIB]
    assert known(recorder)["samples"]["host"] == [size * MIB for size in (1200, 1500, 1100, 1050, 1300)]


def test_where_the_probe_cannot_tell_of_the_device_all_samples_do(recorder: Recorder, probe: StandInProbe) -> None:
    probe.hold(None, 1000)
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "1")
    for used in (300, 900, 500):
        recorder.add(snapshot(1000, card(used + 50, process=used, index=0), card(20, process=10, index=1)))
    recorder.start_node("run", "2")
    for used in (500, 450):
        recorder.add(snapshot(1000, card(used)))  # a driver that tells of no process
    assert [node["device"] for node in known(recorder)["nodes"]] == [{"start": 310 * MIB, "peak": 910 * MIB}, {"start": 500 * MIB, "peak": 500 * MIB}]


def test_where_the_probe_tells_of_the_device_samples_do_not(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "1")
    recorder.add(snapshot(1000, card(5000, process=4000)))
    assert known(recorder)["nodes"][0]["device"] == {"start": 100 * MIB, "peak": 100 * MIB}


def test_a_long_run_keeps_its_peaks_and_no_more_samples_than_any(recorder: Recorder, clock: Clock) -> None:
    count, group = 5 * MOST_SAMPLES + 123, 8
    figures = np.random.default_rng(0).integers(1, 8000, (count, 4))
    recorder.start_run("run", LABELS)
    for host, used, process, allocated in figures.tolist():
        recorder.add(snapshot(host, card(used, process, allocated)))
        clock.now += 1
    samples = known(recorder)["samples"]
    at = np.array(samples["at"])
    assert len(at) <= MOST_SAMPLES
    assert (at == np.arange(0, count, group)).all()
    device = samples["devices"][0]
    columns = np.array([samples["host"], device["used"], device["process"], device["allocated"]]).T
    assert (columns == np.maximum.reduceat(figures, np.arange(0, count, group)) * MIB).all()


def test_a_card_that_goes_and_one_that_comes_have_their_samples(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    recorder.start_node("run", "1")
    for devices in [[card(10, 5), card(20, index=1)], [card(11, 6), card(21, index=1)], [card(22, index=1)], [card(23, 8, index=1), card(30, index=2)]]:
        recorder.add(snapshot(1000, *devices))
    run = known(recorder)
    assert {device["index"]: [used and used // MIB for used in device["used"]] for device in run["samples"]["devices"]} == {
        0: [10, 11, None, None],
        1: [20, 21, 22, 23],
        2: [None, None, None, 30],
    }
    assert run["samples"]["devices"][0]["process"] == [5 * MIB, 6 * MIB, None, None]
    counters = [event["args"] for event in chrome_trace(run)["traceEvents"] if event["name"] == "0: Card 0"]
    assert counters == [{"used": 10 * MIB, "process": 5 * MIB}, {"used": 11 * MIB, "process": 6 * MIB}]
    assert plot(run).ndim == 4


# What is kept


def test_the_last_fifty_runs_are_kept(recorder: Recorder) -> None:
    for i in range(60):
        recorder.start_run(f"run {i}", LABELS)
        recorder.end_run(f"run {i}", "success")
    assert [run["id"] for run in recorder.runs()] == [f"run {i}" for i in range(59, 9, -1)]
    assert recorder.run("run 9") is None
    assert known(recorder, "run 10")["status"] == "success"


def test_a_run_that_never_stops_telling_is_kept_in_bounds(recorder: Recorder) -> None:
    recorder.start_run("run", {"1": Label("t" * 1000, "n" * 1000)})
    recorder.start_node("run", "1")
    for i in range(MOST_STEPS + 50):
        recorder.step("run", "1", "s" * 1000, i, 10**6)
    for i in range(MOST_NODES + 50):
        recorder.start_node("run", f"more {i}")
        recorder.predict("run", f"more {i}", i)
    run = known(recorder)
    first = run["nodes"][0]
    assert (len(run["nodes"]), len(first["steps"])) == (MOST_NODES, MOST_STEPS)
    assert [len(text) for text in (first["type"], first["title"], first["steps"][0]["label"])] == [SHORT] * 3


def one_run(recorder: Recorder, run_id: str) -> None:
    recorder.start_run(run_id, {str(i): Label("Type", f"node {i} of {run_id}") for i in range(3)})
    for node in ("0", "1", "2"):
        recorder.start_node(run_id, node)
        recorder.predict(run_id, node, 5)
        recorder.step(run_id, node, "step", 1, 1)
        recorder.add(snapshot(1000, card(1000)))
    recorder.end_run(run_id, "error", f"{run_id} failed")


def test_ten_thousand_runs_take_no_more_memory_than_one_thousand(probe: StandInProbe) -> None:
    recorder = Recorder(probe=probe)
    held: list[int] = []
    tracemalloc.start()
    try:
        for i in range(10_000):
            one_run(recorder, f"run {i:05}")
            if i + 1 in (1_000, 10_000):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(recorder.runs()) == 50
    assert held[1] - held[0] < 16 * 1024


def test_a_full_run_on_eight_cards_is_kept_in_half_a_mebibyte(recorder: Recorder) -> None:
    recorder.start_run("run", LABELS)
    tracemalloc.start()
    try:
        for _ in range(MOST_SAMPLES):
            recorder.add(snapshot(1000, *(card(1000, 900, 800, i) for i in range(8))))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(known(recorder)["samples"]["at"]) == MOST_SAMPLES
    assert held < MIB // 2


# The Chrome trace


def test_a_chrome_trace_has_nodes_as_slices_steps_as_instants_and_memory_as_counters(recorder: Recorder, clock: Clock) -> None:
    recorder.start_run("run", LABELS)
    clock.now += 0.25
    for node in ("1", "2", "3"):
        recorder.start_node("run", node)
        clock.now += 0.5
        recorder.add(snapshot(2000, card(300, 200)))
        recorder.step("run", node, "strip", 1, 4)
        clock.now += 1
    recorder.end_run("run", "error", "out of memory")
    trace = json.loads(json.dumps(chrome_trace(known(recorder))))
    events = trace["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in slices] == [("Load", 0.25e6, 1.5e6), ("Sample it", 1.75e6, 1.5e6), ("Decoder", 3.25e6, 1.5e6)]
    assert [event["args"]["status"] for event in slices] == ["done", "done", "error"]
    assert slices[-1]["ts"] + slices[-1]["dur"] <= known(recorder)["seconds"] * 1e6
    assert [(event["name"], event["ts"], event["s"]) for event in events if event["ph"] == "i"] == [("strip 1/4", at, "t") for at in (0.75e6, 2.25e6, 3.75e6)]
    counters = [event for event in events if event["ph"] == "C"]
    assert {event["name"]: event["args"] for event in counters} == {"host": {"bytes": 2000 * MIB}, "0: Card 0": {"used": 300 * MIB, "process": 200 * MIB}}
    assert {(event["pid"], event["tid"]) for event in events} == {(1, 1)}


def test_a_chrome_trace_of_a_run_that_goes_on_ends_now(recorder: Recorder, clock: Clock) -> None:
    recorder.start_run("run", LABELS)
    clock.now += 1
    recorder.start_node("run", "9")
    clock.now += 2
    (node,) = (event for event in chrome_trace(known(recorder))["traceEvents"] if event["ph"] == "X")
    assert (node["name"], node["ts"], node["dur"]) == ("node 9", 1e6, 2e6)


# This process

_ALLOCATIONS = """
import json
from lean_video.vram.timeline import Recorder
recorder = Recorder()
recorder.start_run("run", {})
kept = []
for size in json.loads(%r):
    recorder.start_node("run", str(size))
    held = bytearray(b"1") * size  # written to, so that all of it is in RAM
    if size %% 3:
        kept.append(held)
    del held
    recorder.finish_node("run", str(size))
recorder.end_run("run", "success")
print(json.dumps(recorder.run("run")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Only Linux tells the most that a process held.")
def test_what_nodes_allocated_is_measured_to_two_percent() -> None:
    sizes = [64 * MIB, 150 * MIB, 96 * MIB, 3 * 70 * MIB]
    code = _ALLOCATIONS % json.dumps(sizes)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    nodes = json.loads(done.stdout)["nodes"]
    assert [node["host"]["peak"] - node["host"]["start"] for node in nodes] == pytest.approx(sizes, rel=0.02)
    assert [node["device"]["peak"] for node in nodes] == [None] * 4


def test_the_allocators_of_all_cards_in_use_are_summed_and_no_context_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [TorchCard(allocated=100, peak=5000), TorchCard(has_context=False), TorchCard(allocated=30, peak=40)]
    monkeypatch.setitem(sys.modules, "torch", stand_in_torch(*used))
    probe = ProcessProbe()
    assert probe.begin()[0] == 130 * MIB
    used[0].peak, used[2].peak = 700, 50
    assert probe.peak()[0] == 750 * MIB


def test_a_torch_that_is_not_in_use_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = stand_in_torch(TorchCard(), is_in_use=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    probe = ProcessProbe()
    assert (probe.begin()[0], probe.peak()[0], torch.cuda.asked) == (None, None, [])


# The thread that samples


class Waits:
    """A condition whose waits end when the test says so, and that tells how long they were to be."""

    def __init__(self) -> None:
        self._lock, self._go, self._is_waiting = threading.Lock(), threading.Semaphore(0), False
        self.asked: queue.Queue[float] = queue.Queue()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def wait(self, seconds: float) -> None:
        self._is_waiting = True
        self._lock.release()
        self.asked.put(seconds)
        self._go.acquire()
        self._lock.acquire()

    def notify(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._go.release()

    def pass_by(self) -> None:
        """The time that was asked for."""
        with self:
            self.notify()

    def asks_for(self) -> float:
        return self.asked.get(timeout=30)


class StandInGauges(Gauges):
    def __init__(self) -> None:
        self.reads, self.is_closed, self.fails = 0, False, False

    def read(self) -> Snapshot:
        self.reads += 1
        if self.fails:
            raise OSError("the world ended")
        return snapshot(self.reads)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(watch, "threading", SimpleNamespace(Condition=lambda: waits, Lock=threading.Lock, Thread=threading.Thread))
    return waits


@pytest.fixture
def gauges() -> StandInGauges:
    return StandInGauges()


@pytest.fixture
def seen() -> list[int]:
    return []


@pytest.fixture
def watched(waits: Waits, gauges: StandInGauges, seen: list[int]) -> Iterator[Watch]:
    watched = Watch(gauges, lambda sample: seen.append(sample.host.process // MIB))
    yield watched
    watched.stop()


def test_samples_are_taken_ten_times_a_second_while_busy_and_once_when_not(watched: Watch, waits: Waits, seen: list[int]) -> None:
    watched.busy(True)
    for count in range(1, 6):
        assert waits.asks_for() == pytest.approx(0.1)
        assert seen == list(range(1, count + 1))
        if count < 5:
            waits.pass_by()
    watched.busy(False)  # at once, and then seldom
    for count in (6, 7):
        assert waits.asks_for() == 1
        assert seen == list(range(1, count + 1))
        if count < 7:
            waits.pass_by()
    watched.busy(True)
    assert waits.asks_for() == pytest.approx(0.1)
    assert watched.latest.host.process == 8 * MIB


def test_a_sample_that_fails_is_logged_once_and_the_next_is_taken(watched: Watch, waits: Waits, gauges: StandInGauges, seen: list[int], caplog: pytest.LogCaptureFixture) -> None:
    gauges.fails = True
    with caplog.at_level(logging.ERROR, "lean_video"):
        watched.busy(True)
        for _ in range(3):
            waits.asks_for()
            waits.pass_by()
        waits.asks_for()
        gauges.fails = False
        waits.pass_by()
        waits.asks_for()
    assert seen == [5]
    assert [record.getMessage() for record in caplog.records] == ["A sample of the memory in use was lost."]
    assert "the world ended" in caplog.text


def test_one_thread_samples_however_often_it_is_told_and_stop_ends_it(watched: Watch, waits: Waits, gauges: StandInGauges) -> None:
    before = threading.active_count()
    for is_busy in (True, True, False, True):
        watched.busy(is_busy)
    waits.asks_for()
    assert threading.active_count() == before + 1
    watched.stop()
    assert (threading.active_count(), gauges.is_closed) == (before, True)
    reads = gauges.reads
    watched.busy(True)
    assert (threading.active_count(), gauges.reads) == (before, reads)


def test_as_long_as_no_thread_samples_the_latest_sample_is_taken_when_it_is_asked_for(watched: Watch, waits: Waits) -> None:
    assert [watched.latest.host.process // MIB for _ in range(3)] == [1, 2, 3]
    watched.busy(False)
    waits.asks_for()
    assert [watched.latest.host.process // MIB for _ in range(3)] == [4, 4, 4]


def test_samples_are_taken_one_at_a_time(monkeypatch: pytest.MonkeyPatch, gauges: StandInGauges) -> None:
    inside, most = 0, 0
    meet = threading.Barrier(4)

    def read() -> Snapshot:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(200):
            sum(range(100))
        inside -= 1
        return snapshot()

    monkeypatch.setattr(gauges, "read", read)
    watched = Watch(gauges, lambda _: None)

    def ask() -> None:
        meet.wait()
        for _ in range(20):
            _ = watched.latest

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert most == 1

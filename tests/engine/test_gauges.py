"""What is told of devices and of RAM, whatever the driver does: its library is nvml.c, loaded as the real one would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lean_video.vram.gauges import Device, Gauges, visible_devices
from tests.engine.stand_ins import MIB, Gpu, TorchCard, World, build_nvml, stand_in_torch

FOREVER = 3600.0
STAND_IN = "import sys; from tests.engine.stand_ins import TorchCard, stand_in_torch; torch = sys.modules['torch'] = stand_in_torch"


def indexes(snapshot: dict[str, Any]) -> dict[int, str]:
    return {device["index"]: device["uuid"] for device in snapshot["devices"]}


# What a healthy driver tells


@pytest.mark.parametrize("count", [0, 1, 8])
def test_each_gpu_is_told_with_its_own_figures(world: World, count: int) -> None:
    gpus = [Gpu(i, 8192 + i, 1000 + i, use=10 * i, temperature=40 + i, power=100.5 + i, limit=200 + i) for i in range(count)]
    world.has(*gpus)
    with world.reader() as reader:
        snapshot = reader.read()
    assert snapshot["problem"] is None
    assert snapshot["devices"] == [
        {
            "index": i,
            "name": f"NVIDIA Card {i}",
            "backend": "nvml",
            "total": (8192 + i) * MIB,
            "used": (1000 + i) * MIB,
            "free": 7192 * MIB,
            "uuid": gpus[i].uuid,
            "process": 0,
            "others": [],
            "allocated": None,
            "reserved": None,
            "peak": None,
            "utilisation": 10 * i,
            "temperature": 40 + i,
            "power": 100.5 + i,
            "power_limit": 200 + i,
            "problem": None,
        }
        for i in range(count)
    ]


def test_processes_are_told_once_and_this_one_apart(world: World) -> None:
    with world.reader() as reader, subprocess.Popen(["sleep", "60"]) as other:
        gone = 4_000_000_000
        try:
            world.has(Gpu(compute={reader.pid: 300, other.pid: 200, gone: None}, graphics={other.pid: 200, reader.pid: None, 1: 5}))
            (device,) = reader.read()["devices"]
        finally:
            other.kill()
    assert device["process"] == 300 * MIB
    assert {(process["pid"], process["used"]) for process in device["others"]} == {(other.pid, 200 * MIB), (gone, None), (1, 5 * MIB)}
    names = {process["pid"]: process["name"] for process in device["others"]}
    assert names == {other.pid: "sleep", gone: None, 1: psutil.Process(1).name()}


def test_a_driver_that_does_not_tell_sizes_has_them_untold(world: World) -> None:
    with world.reader() as reader:
        world.has(Gpu(compute={reader.pid: None}))
        assert reader.read()["devices"][0]["process"] is None


@pytest.mark.parametrize(("form", "tells"), [(2, True), (1, False)])
def test_an_old_driver_tells_processes_in_its_own_form_or_not_at_all(c_compiler: str, tmp_path: Path, form: int, tells: bool) -> None:
    world = World(build_nvml(c_compiler, tmp_path / "library", form), tmp_path)
    with world.reader() as reader:
        world.has(Gpu(compute={reader.pid: 300, 1: 5}))
        (device,) = reader.read()["devices"]
    assert device["process"] == (300 * MIB if tells else None)
    assert [process["used"] for process in device["others"]] == ([5 * MIB] if tells else [])
    assert (device["used"], device["temperature"], device["problem"]) == (1024 * MIB, 61, None)


def test_ram_is_what_the_system_says_and_the_process_has(world: World) -> None:
    with world.reader() as reader:
        reader.read()
        host = reader.read()["host"]
        resident = psutil.Process(reader.pid).memory_info().rss
    assert host["total"] == psutil.virtual_memory().total
    assert host["used"] + host["available"] == host["total"]
    assert host["process"] == pytest.approx(resident, rel=0.05)


# What a driver may not tell

FIGURES = {
    "nvmlDeviceGetName": {"name": "an NVIDIA GPU"},
    "nvmlDeviceGetUUID": {"uuid": None},
    "nvmlDeviceGetComputeRunningProcesses_v3": {"process": 0},
    "nvmlDeviceGetUtilizationRates": {"utilisation": None},
    "nvmlDeviceGetTemperature": {"temperature": None},
    "nvmlDeviceGetPowerUsage": {"power": None},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit": None},
}


@pytest.mark.parametrize("code", [3, 4, 999], ids=["not supported", "no permission", "unknown error"])
def test_a_figure_that_cannot_be_had_leaves_the_others(world: World, code: int) -> None:
    world.has(Gpu())
    with world.reader() as reader:
        (whole,) = reader.read()["devices"]
        for function, missing in FIGURES.items():
            world.has(Gpu(failures={function: code}))
            snapshot = reader.read("every.close()")  # some are asked when the driver is opened
            assert snapshot["devices"] == [{**whole, **missing}], function
            assert snapshot["problem"] is None


def test_where_no_processes_may_be_seen_that_of_this_one_is_not_told(world: World) -> None:
    world.has(Gpu(failures={f"nvmlDeviceGet{kind}RunningProcesses_v3": 4 for kind in ("Compute", "Graphics")}))
    with world.reader() as reader:
        (device,) = reader.read()["devices"]
    assert (device["process"], device["others"], device["used"]) == (None, [], 1024 * MIB)


def test_a_gpu_whose_memory_is_the_ram_says_that_it_is_not_told(world: World) -> None:
    world.has(Gpu(failures={"nvmlDeviceGetMemoryInfo": 3}))
    with world.reader() as reader:
        (device,) = reader.read()["devices"]
        assert (device["total"], device["used"], device["utilisation"]) == (0, 0, 37)
        assert device["problem"] == "The driver does not tell how much memory this GPU has."
        (device,) = reader.read(f"{STAND_IN}(TorchCard('{Gpu().uuid}', total=128000, used=2048))")["devices"]
        assert (device["total"], device["used"], device["problem"]) == (128000 * MIB, 2048 * MIB, None)


def test_a_gpu_that_is_kept_from_this_container_has_no_number(world: World) -> None:
    world.has(Gpu(0), Gpu(1, failures={"nvmlDeviceGetHandleByIndex_v2": 4}), Gpu(2))
    with world.reader() as reader:
        snapshot = reader.read()
    assert indexes(snapshot) == {0: Gpu(0).uuid, 1: Gpu(2).uuid}
    assert snapshot["problem"] is None


def test_where_every_gpu_is_kept_from_this_user_it_is_said_so(world: World) -> None:
    world.has(Gpu(failures={"nvmlDeviceGetHandleByIndex_v2": 4}))
    with world.reader() as reader:
        snapshot = reader.read()
    assert (snapshot["devices"], snapshot["problem"]) == ([], "NVIDIA's cards cannot be read: this user has no permission.")


# What breaks


def test_a_gpu_that_falls_off_the_bus_is_said_so_while_the_others_go_on(world: World) -> None:
    world.has(Gpu(0), Gpu(1, used=2000), Gpu(2))
    with world.reader(retry_s=FOREVER) as reader:
        reader.read()
        for used in (1100, 1200):
            world.has(Gpu(0, used=used), Gpu(1, is_lost=True), Gpu(2, used=used + 1))
            snapshot = reader.read()
            assert [device["used"] // MIB for device in snapshot["devices"]] == [used, 2000, used + 1]
            assert [device["name"] for device in snapshot["devices"]] == ["NVIDIA Card 0", "NVIDIA Card 1", "NVIDIA Card 2"]
            assert [device["problem"] for device in snapshot["devices"]] == [
                None,
                "This GPU cannot be read: it has fallen off the bus; restart the machine, and check its power if that happens again.",
                None,
            ]
        assert world.calls().count("nvmlInitWithFlags") == 1


def test_a_gpu_that_is_gone_is_left_out_and_told_again_when_it_is_back(world: World) -> None:
    world.has(Gpu(0), Gpu(1), Gpu(2))
    with world.reader() as reader:
        reader.read()
        world.has(Gpu(0), Gpu(1, is_lost=True), Gpu(2))
        for _ in range(3):  # the driver still counts it each time it is opened
            snapshot = reader.read()
            assert indexes(snapshot) == {i: Gpu(i).uuid for i in range(3)}
            assert [bool(device["problem"]) for device in snapshot["devices"]] == [False, True, False]
        world.has(Gpu(0), Gpu(2))
        assert indexes(reader.read()) == {0: Gpu(0).uuid, 1: Gpu(2).uuid}
    world.has(Gpu(0), Gpu(1), Gpu(2))
    with world.reader() as reader:
        reader.read()
        world.has(Gpu(0), Gpu(1, is_lost=True), Gpu(2))
        reader.read()
        world.has(Gpu(0), Gpu(1, used=77), Gpu(2))
        reader.read()
        assert [(device["used"] // MIB, device["problem"]) for device in reader.read()["devices"]] == [(1024, None), (77, None), (1024, None)]


@pytest.mark.parametrize("code", [1, 6, 15, 16, 28, 999])
def test_memory_that_cannot_be_read_gets_a_sentence_and_is_read_again_later(world: World, code: int) -> None:
    world.has(Gpu())
    with world.reader() as reader:
        reader.read()
        world.has(Gpu(failures={"nvmlDeviceGetMemoryInfo": code}))
        (device,) = reader.read()["devices"]
        assert device["problem"].startswith("This GPU cannot be read: ")
        assert device["problem"].endswith(".")
        assert device["process"] is None
        world.has(Gpu(used=5))
        (device,) = reader.read()["devices"]
        assert (device["used"], device["problem"]) == (5 * MIB, None)


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("nvmlInitWithFlags", 18, "NVIDIA's cards cannot be read: the driver and its library are of different versions; restart the machine."),
        ("nvmlInitWithFlags", 9, "NVIDIA's cards cannot be read: the driver is not loaded."),
        ("nvmlInitWithFlags", 4, "NVIDIA's cards cannot be read: this user has no permission."),
        ("nvmlInitWithFlags", 999, "NVIDIA's cards cannot be read: Unknown Error."),
        ("nvmlInitWithFlags", 77, "NVIDIA's cards cannot be read: error 77 of the driver."),
        ("nvmlDeviceGetCount_v2", 15, "NVIDIA's cards cannot be read: it has fallen off the bus"),
    ],
)
def test_a_driver_that_cannot_be_opened_says_why_and_is_opened_later(world: World, function: str, code: int, says: str) -> None:
    world.has(Gpu(), failures={function: code})
    with world.reader() as reader:
        for _ in range(2):
            snapshot = reader.read()
            assert snapshot["devices"] == []
            assert snapshot["problem"].startswith(says)
            assert snapshot["host"]["total"] > 0
        world.has(Gpu())
        snapshot = reader.read()
        assert indexes(snapshot) == {0: Gpu().uuid}
        assert snapshot["problem"] is None
    calls = world.calls()
    opened = calls.count("nvmlInitWithFlags") - (2 if function == "nvmlInitWithFlags" else 0)
    assert calls.count("nvmlShutdown") == opened, "each time that it was opened it is closed"


def test_a_driver_that_was_lost_is_left_alone_for_a_while(world: World) -> None:
    world.has(failures={"nvmlInitWithFlags": 9})
    with world.reader(retry_s=FOREVER) as reader:
        for _ in range(5):
            assert reader.read()["problem"] == "NVIDIA's cards cannot be read: the driver is not loaded."
    assert world.calls() == ["nvmlInitWithFlags"]


def test_a_library_that_is_none_is_a_machine_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library", encoding="utf-8")
    with World(tmp_path, tmp_path).reader() as reader:
        snapshot = reader.read()
    assert (snapshot["devices"], snapshot["problem"]) == ([], "There is no NVIDIA driver here, so no NVIDIA card is seen.")


@pytest.mark.parametrize("broken", ["sys.modules['pynvml'] = None", "sys.meta_path.insert(0, Broken())"])
def test_a_package_that_cannot_be_imported_is_said_so(world: World, broken: str) -> None:
    world.has(Gpu())
    finder = "import sys\nclass Broken:\n    def find_spec(self, name, *more):\n        if name == 'pynvml': raise SyntaxError('half a file')\n"
    with world.reader(first=finder + broken) as reader:
        snapshot = reader.read()
    assert (snapshot["devices"], snapshot["problem"]) == ([], "The package nvidia-ml-py cannot be imported, so NVIDIA cards are not seen.")


# What it costs


def test_a_gpu_is_asked_for_its_memory_each_time_and_for_who_holds_it_once_that_moved(world: World) -> None:
    world.has(Gpu(0), Gpu(1))
    with world.reader(again_s=FOREVER) as reader:
        reader.read()
        world.calls()
        for used in (1024, 1400):
            world.has(Gpu(0), Gpu(1, used=used))
            assert [device["used"] // MIB for device in reader.read()["devices"]] == [1024, used]
            assert world.calls() == ["nvmlDeviceGetMemoryInfo"] * 2
        reader.read("gauges._MOVED_S = 0")
        world.calls()
        world.has(Gpu(0), Gpu(1, used=1500, compute={reader.pid: 476}))
        assert [device["process"] for device in reader.read()["devices"]] == [0, 476 * MIB]
        assert set(world.calls()) == {"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses_v3"}


def test_all_figures_are_asked_for_again_after_a_while(world: World) -> None:
    world.has(Gpu(temperature=50))
    with world.reader(again_s=0) as reader:
        reader.read()
        world.has(Gpu(temperature=70, compute={reader.pid: 1024}))
        (device,) = reader.read()["devices"]
        assert (device["temperature"], device["process"]) == (70, 1024 * MIB)


# Which of them programs see


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("2,0", [2, 0]),
        (" 1 , 3", [1, 3]),
        (f"{Gpu(3).uuid},{Gpu(1).uuid}", [3, 1]),
        ("GPU-2c6,GPU-0c6cafe0-1234", [2, 0]),
        ("GPU-", []),
        ("0,7,1", [0]),
        ("1,-1,0", [1]),
        ("0,0", []),
        ("none", []),
        ("-1", []),
        ("", []),
        (Gpu(9, is_part=True).uuid, [9]),
        (f"{Gpu(9, is_part=True).uuid},{Gpu(8, is_part=True).uuid}", [9]),
        (Gpu(7, is_part=True).uuid, []),
    ],
)
def test_cuda_visible_devices_says_which_gpus_and_in_which_order(world: World, setting: str, seen: list[int]) -> None:
    parts = [Gpu(8, total=1000, is_part=True), Gpu(9, total=1000, is_part=True)]
    world.has(*(Gpu(i) for i in range(4)), *parts)
    with world.reader(CUDA_VISIBLE_DEVICES=setting) as reader:
        snapshot = reader.read()
    assert [(device["index"], device["name"]) for device in snapshot["devices"]] == [(i, f"NVIDIA Card {number}") for i, number in enumerate(seen)]
    assert snapshot["problem"] == (None if seen else f"CUDA_VISIBLE_DEVICES is {setting!r}, which names no NVIDIA card that is here.")


uuids = st.lists(st.text("ab", min_size=1, max_size=3).map(lambda text: f"GPU-{text}"), unique=True, max_size=5)
entries = st.one_of(
    st.integers(-2, 6).map(str),
    st.sampled_from(["", " ", "x", "1gpu2", "+1", " 2 ", "0,", "GPU-", "GPU", "gpu-a", "-0"]),
    st.text("ab", max_size=3).map(lambda text: f"GPU-{text}"),
)


@given(uuids=uuids, setting=st.lists(entries, max_size=4).map(",".join))
def test_cuda_visible_devices_is_read_as_torch_reads_it(uuids: list[str], setting: str) -> None:
    cuda = pytest.importorskip("torch").cuda
    if not hasattr(cuda, "_parse_visible_devices") or not hasattr(cuda, "_transform_uuid_to_ordinals"):
        pytest.skip("This torch reads it in another way.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", setting)
        parsed = cuda._parse_visible_devices()
    by_uuid = bool(parsed) and isinstance(parsed[0], str)
    known = next((i for i, number in enumerate(parsed) if number >= len(uuids)), len(parsed)) if not by_uuid else 0
    theirs = cuda._transform_uuid_to_ordinals(parsed, uuids) if by_uuid else parsed[:known]
    assert visible_devices(uuids, setting) == dict(enumerate(theirs))


def test_without_cuda_visible_devices_all_are_seen() -> None:
    assert visible_devices(["GPU-a", "GPU-b"], None) == {0: 0, 1: 1}


def test_torch_has_the_last_word_on_the_order_and_a_gone_card_keeps_its_number() -> None:
    assert visible_devices(["GPU-a", "GPU-b", "GPU-c"], "0", ["GPU-c", "GPU-a"]) == {0: 2, 1: 0}
    assert visible_devices(["GPU-a", "GPU-c"], None, ["GPU-a", "GPU-b", "GPU-c"]) == {0: 0, 2: 1}


# Beside a torch that is in use


def test_once_torch_is_in_use_cards_have_its_order_and_its_figures(world: World) -> None:
    world.has(Gpu(0), Gpu(1))
    cards = f"TorchCard('{Gpu(1).uuid}', allocated=11, reserved=12, peak=13), TorchCard('{Gpu(0).uuid}', allocated=21, reserved=22, peak=23)"
    with world.reader(first=f"{STAND_IN}({cards}, is_in_use=False)", again_s=FOREVER) as reader:
        before = reader.read()
        assert indexes(before) == {0: Gpu(0).uuid, 1: Gpu(1).uuid}
        assert [device["allocated"] for device in before["devices"]] == [None, None]
        after = reader.read("torch.cuda.is_in_use = True")
        assert indexes(after) == {0: Gpu(1).uuid, 1: Gpu(0).uuid}
        assert [(device["allocated"] // MIB, device["reserved"] // MIB, device["peak"] // MIB) for device in after["devices"]] == [(11, 12, 13), (21, 22, 23)]
        assert reader.read("torch.cuda.cards[0].allocated = 15")["devices"][0]["allocated"] == 15 * MIB, "also while nothing else moves"


def test_a_card_that_torch_has_and_the_driver_lost_keeps_the_number_of_the_others(world: World) -> None:
    world.has(Gpu(0), Gpu(1), Gpu(2))
    cards = ", ".join(f"TorchCard('{Gpu(i).uuid}', allocated={i})" for i in range(3))
    with world.reader(first=f"{STAND_IN}({cards})") as reader:
        reader.read()
        world.has(Gpu(0), Gpu(1, is_lost=True), Gpu(2))
        reader.read()
        world.has(Gpu(0), Gpu(2))
        snapshot = reader.read()
    assert {device["index"]: (device["uuid"], device["allocated"]) for device in snapshot["devices"]} == {0: (Gpu(0).uuid, 0), 2: (Gpu(2).uuid, 2 * MIB)}


@pytest.mark.parametrize(("count", "told"), [(1, 512 * MIB), (2, None)])
def test_a_torch_that_tells_no_uuids_is_believed_of_a_single_card_only(world: World, count: int, told: int | None) -> None:
    world.has(*(Gpu(i) for i in range(count)))
    with world.reader(first=f"{STAND_IN}(*[TorchCard() for _ in range({count})])") as reader:
        assert [device["allocated"] for device in reader.read()["devices"]] == [told] * count


def test_where_the_driver_knows_this_process_under_another_number_its_share_is_not_told(world: World) -> None:
    world.has(Gpu(compute={4711: 900}))
    with world.reader(first=f"{STAND_IN}(TorchCard('{Gpu().uuid}', reserved=768))") as reader:
        assert reader.read()["devices"][0]["process"] is None
        world.has(Gpu(compute={reader.pid: 900}))
        assert reader.read()["devices"][0]["process"] == 900 * MIB


def test_the_figures_of_a_card_without_a_context_are_none_and_asking_makes_none(world: World) -> None:
    world.has(Gpu(0), Gpu(1))
    cards = f"TorchCard('{Gpu(0).uuid}'), TorchCard('{Gpu(1).uuid}', has_context=False)"
    with world.reader(first=f"{STAND_IN}({cards})") as reader:
        assert [device["reserved"] for device in reader.read()["devices"]] == [768 * MIB, 0]


# Through torch alone


@pytest.fixture
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return monkeypatch


def test_a_card_without_nvml_is_read_through_torch(without_nvml: pytest.MonkeyPatch) -> None:
    torch = stand_in_torch(TorchCard(total=16384, used=3000, allocated=1, reserved=2, peak=3), TorchCard(total=4096, has_context=False))
    without_nvml.setitem(sys.modules, "torch", torch)
    snapshot = Gauges().read()
    assert snapshot.problem is None
    first, second = snapshot.devices
    assert first == Device(0, "Card 0 of torch", "cuda", 16384 * MIB, 3000 * MIB, allocated=MIB, reserved=2 * MIB, peak=3 * MIB)
    assert (second.total, second.used, second.problem) == (4096 * MIB, 0, "What is in use of this GPU is told once a program here uses it.")


def test_a_torch_that_does_not_say_where_it_has_contexts_is_asked_for_its_current_device(without_nvml: pytest.MonkeyPatch) -> None:
    torch = stand_in_torch(TorchCard(has_context=False), TorchCard(used=99))
    torch._C = SimpleNamespace()
    without_nvml.setitem(sys.modules, "torch", torch)
    assert [device.used // MIB for device in Gauges().read().devices] == [0, 99]


def test_an_apple_gpu_is_read_through_torch(without_nvml: pytest.MonkeyPatch) -> None:
    mps = SimpleNamespace(recommended_max_memory=lambda: 12000 * MIB, driver_allocated_memory=lambda: 700 * MIB, current_allocated_memory=lambda: 600 * MIB)
    without_nvml.setitem(sys.modules, "torch", stand_in_torch(is_in_use=False, mps=mps))
    assert Gauges().read().devices == (Device(0, "Apple GPU", "mps", 12000 * MIB, 700 * MIB, process=700 * MIB, allocated=600 * MIB),)


def test_reading_asks_a_torch_that_is_not_in_use_for_nothing_else(without_nvml: pytest.MonkeyPatch) -> None:
    torch = stand_in_torch(TorchCard(), is_in_use=False)
    without_nvml.setitem(sys.modules, "torch", torch)
    snapshot = Gauges().read()
    assert (snapshot.devices, torch.cuda.asked) == ((), [])
    assert snapshot.problem == "The package nvidia-ml-py cannot be imported, so NVIDIA cards are not seen."


def test_reading_does_not_import_torch(world: World) -> None:
    world.has(Gpu())
    with world.reader() as reader:
        reader.read()
        assert reader.read("assert 'torch' not in sys.modules")["devices"]


@pytest.mark.parametrize("torch", [None, SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))], ids=["none", "half imported", "broken"])
def test_a_torch_that_cannot_be_asked_is_no_device(without_nvml: pytest.MonkeyPatch, torch: object) -> None:
    without_nvml.setitem(sys.modules, "torch", torch)
    snapshot = Gauges().read()
    assert snapshot.devices == ()
    assert snapshot.host.process > 0
    assert snapshot.host.process == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.05)

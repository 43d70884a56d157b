"""`python -m lean_video vram`: on machines with several GPUs, with a broken one, and without any."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.stand_ins import MIB, ROOT, Gpu, World

COMMAND = [sys.executable, "-m", "lean_video", "vram"]
RAM = rf"RAM: \d+/{psutil.virtual_memory().total / MIB:.0f} MiB"


@pytest.fixture
def machine_without_driver(tmp_path: Path) -> World:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library", encoding="utf-8")
    return World(tmp_path, tmp_path)


def vram(world: World, *flags: str, **environment: str) -> tuple[str, str]:
    done = subprocess.run([*COMMAND, *flags], cwd=ROOT, env=world.environment(**environment), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def _heed_interrupts() -> None:
    """A shell starts what runs in the background with interrupts ignored, and every program after it inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def watching(world: World, **more: Any) -> Iterator[subprocess.Popen[str]]:
    if os.name == "posix":
        more["preexec_fn"] = _heed_interrupts
    process = subprocess.Popen([*COMMAND, "--watch"], cwd=ROOT, env=world.environment(), stderr=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Once


def test_json_has_every_gpu_process_and_the_ram_in_bytes(world: World) -> None:
    world.has(Gpu(0, used=3000, compute={1: 2500}), Gpu(1, total=24576, failures={"nvmlDeviceGetPowerUsage": 3}))
    out, err = vram(world, "--json")
    report = json.loads(out)
    assert (err, report["problem"]) == ("", None)
    first, second = report["devices"]
    assert (first["total"], first["used"], first["free"], first["power"]) == (8192 * MIB, 3000 * MIB, 5192 * MIB, 123.456)
    assert first["others"] == [{"pid": 1, "name": psutil.Process(1).name(), "used": 2500 * MIB}]
    assert (second["index"], second["uuid"], second["total"], second["power"]) == (1, Gpu(1).uuid, 24576 * MIB, None)
    assert report["host"]["total"] == psutil.virtual_memory().total


def test_a_table_tells_people_who_has_the_memory(world: World) -> None:
    world.has(Gpu(0, used=4096, compute={1: 2500, 4_000_000_000: None}), Gpu(1, used=0, failures={"nvmlDeviceGetEnforcedPowerLimit": 3, "nvmlDeviceGetTemperature": 3}), Gpu(2))
    out, err = vram(world, CUDA_VISIBLE_DEVICES="0,1")
    lines = out.splitlines()
    assert err == ""
    assert lines[:-2] == [
        "0: NVIDIA Card 0  (37 % busy, 61 °C, 123 W of 300)",
        f"   [{'#' * 16}{'.' * 16}] 4,096 MiB of 8,192 MiB",
        f"      2,500 MiB  {psutil.Process(1).name()} (1)",
        "       not told  a process (4000000000)",
        "1: NVIDIA Card 1  (37 % busy, 123 W)",
        f"   [{'.' * 32}] 0 MiB of 8,192 MiB",
    ]
    assert lines[-2] == "RAM"
    assert lines[-1].endswith(f" of {psutil.virtual_memory().total / MIB:,.0f} MiB")


def test_no_gpu_is_taken_into_use_and_the_driver_is_closed(world: World) -> None:
    world.has(*(Gpu(i) for i in range(8)))
    vram(world)
    calls = world.calls()
    assert (calls.count("nvmlInitWithFlags"), calls.count("nvmlShutdown"), calls[-1]) == (1, 1, "nvmlShutdown")


def test_a_machine_without_a_driver_has_its_ram_told_and_why_no_gpu_is(machine_without_driver: World) -> None:
    out, err = vram(machine_without_driver)
    assert out.splitlines()[0] == "RAM"
    assert err == "lean_video: There is no NVIDIA driver here, so no NVIDIA card is seen.\n"
    report = json.loads(vram(machine_without_driver, "--json")[0])
    assert (report["devices"], report["problem"]) == ([], "There is no NVIDIA driver here, so no NVIDIA card is seen.")


def test_a_gpu_that_cannot_be_read_is_said_so_beside_the_others(world: World) -> None:
    world.has(Gpu(0, is_lost=True), Gpu(1))
    out, _ = vram(world)
    assert out.splitlines()[:4] == [
        "0: an NVIDIA GPU",
        "   This GPU cannot be read: it has fallen off the bus; restart the machine, and check its power if that happens again.",
        "1: NVIDIA Card 1  (37 % busy, 61 °C, 123 W of 300)",
        f"   [{'#' * 4}{'.' * 28}] 1,024 MiB of 8,192 MiB",
    ]


# Live


def test_watching_tells_what_changes_until_it_is_interrupted(world: World) -> None:
    world.has(Gpu(0), Gpu(1, used=100))
    with watching(world, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        world.has(Gpu(0, used=2222), Gpu(1, is_lost=True))
        while not re.search("0: 2222/", line := process.stdout.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  0: 1024/8192 MiB  1: 100/8192 MiB  {RAM}\n", first)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  0: 2222/8192 MiB  1: 100/8192 MiB  {RAM}\n", line)
    assert rest == "" or re.fullmatch(rf"\d\d:\d\d:\d\d .*{RAM}\n", rest)
    assert err == "lean_video: 1: This GPU cannot be read: it has fallen off the bus; restart the machine, and check its power if that happens again.\n", "once"


def test_watching_ends_quietly_when_nobody_reads_on(world: World) -> None:
    world.has(Gpu())
    with watching(world, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="There is no pseudo-terminal.")
def test_on_a_terminal_the_table_is_drawn_over_itself(world: World) -> None:
    world.has(Gpu(0), Gpu(1))
    ours, theirs = os.openpty()
    with watching(world, stdout=theirs) as process:
        os.close(theirs)
        shown = ""
        while shown.count("RAM") < 2 or not shown.endswith("MiB\r\n"):
            shown += os.read(ours, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    os.close(ours)
    first, second = shown.split("\x1b[6A\x1b[J")  # two GPUs and the RAM, two lines each
    assert first.count("\n") == second.count("\n") == 6

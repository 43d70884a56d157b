"""Living with ComfyUI's own memory management: its models and ours make room for each other, and runs leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from environment import ROOT
from get_comfyui import Host

from tests.host.comfy import Comfy, image_to_video

DRIVER = Path(__file__).with_name("memory_driver.py")
MIB, GIB = 2**20, 2**30


def drive(host: Host, *flags: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(host.python), str(DRIVER), str(ROOT), *flags], cwd=host.path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(host: Host) -> dict[str, Any]:
    return drive(host)


def test_comfyui_lists_our_weights_and_they_stay_between_runs(report: dict[str, Any]) -> None:
    assert report["listed after a run"]
    assert report["held after a run"]
    assert report["listed once after two runs"] == 1
    assert report["held after two runs"]


def test_unloading_models_unloads_ours(report: dict[str, Any]) -> None:
    assert report["held after unload"] == report["held after free_memory"] == 0
    assert not report["listed after unload"]


def test_core_models_evict_ours_when_they_need_the_room(report: dict[str, Any]) -> None:
    assert report["held beside a core model that fits"]
    assert report["core loaded"]
    assert report["held beside a core model that needs the room"] == 0


def test_ours_evict_core_models_when_they_need_the_room(report: dict[str, Any]) -> None:
    assert report["core on device before ours"]
    assert not report["core on device beside ours"]
    assert report["held in its place"]
    assert report["core back"]
    assert not report["core on device after make_room"]


def test_weights_stay_only_where_the_user_lets_models_stay(report: dict[str, Any]) -> None:
    assert report["may stay"] == {
        "NORMAL_VRAM": True,
        "HIGH_VRAM": True,
        "LOW_VRAM": False,
        "NO_VRAM": False,
        "SHARED": False,
        "DISABLED": False,
        "--disable-smart-memory": False,
    }


def test_our_weights_leave_comfyuis_list_with_their_model(report: dict[str, Any]) -> None:
    assert report["listed after it died"] == 0


def test_what_is_reserved_for_others_is_not_free(host: Host) -> None:
    """`--reserve-vram`, in GiB, of the versions that have it."""
    if "--reserve-vram" not in (host.path / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        report = drive(host)
        assert report["free"] == report["free without a reserve"]
        return
    report = drive(host, "--reserve-vram", "2")
    assert report["free"] == report["free without a reserve"] - 2 * GIB


def test_twenty_runs_take_no_more_memory_than_five(comfy: Comfy) -> None:
    server = psutil.Process(comfy.server.pid)
    after: list[int] = []
    for seed in range(20):
        assert comfy.run(image_to_video(seed=300 + seed, frames=2, steps=1)).status == "success"
        assert comfy.live("SVDModel") == 1
        after.append(server.memory_info().rss)
    assert max(after[15:]) - max(after[:5]) < 24 * MIB, [round(size / MIB) for size in after]


def test_unload_models_over_http_is_answered_and_the_next_run_is_the_same(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(seed=330))
    before = comfy.stats(run, "7")[0]["sha256"]
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    again = comfy.run(image_to_video(seed=330))
    assert comfy.stats(again, "7")[0]["sha256"] == before

"""Living with ComfyUI's own memory management: its models and ours make room for each other, and runs leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from environment import ROOT
from get_comfyui import Host

from tests.host.comfy import Comfy, image_to_video

DRIVER = Path(__file__).with_name("memory_driver.py")
MIB, GIB = 2**20, 2**30
ON_CARD, GONE = {"listed": 1, "held": 1.0}, {"listed": 0, "held": 0.0}

Report = dict[str, Any]


@pytest.fixture(scope="module")
def drive(host: Host, checkpoint_file: Path) -> Callable[..., Report]:
    """What happened on a pretended card (see `memory_driver.py`), in a ComfyUI that was started with these flags."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}

    @cache
    def run(*flags: str) -> Report:
        command = [str(host.python), str(DRIVER), str(ROOT), str(checkpoint_file), *flags]
        done = subprocess.run(command, cwd=host.path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(params=[(), ("--highvram",)], ids=lambda flags: " ".join(flags) or "default")
def seen(drive: Callable[..., Report], request: pytest.FixtureRequest) -> Report:
    """Where weights may stay: in a ComfyUI that was started as usual, and in one that never moves its own models off the card."""
    return drive(*request.param)["evictions"]


def has_flag(host: Host, flag: str) -> bool:
    return f'"{flag}"' in (host.path / "comfy" / "cli_args.py").read_text(encoding="utf-8")


def test_comfyui_lists_our_weights_and_they_stay_between_runs(seen: Report) -> None:
    assert seen["a run"] == ON_CARD
    assert seen["told"]
    assert seen["two runs"] == ON_CARD | {"fetches": 1}


def test_unloading_models_unloads_ours_and_a_run_brings_them_back(seen: Report) -> None:
    assert seen["unload"] == seen["free_memory"] == GONE
    assert seen["a run after unload"] == ON_CARD


def test_core_models_evict_ours_when_they_need_the_room(seen: Report) -> None:
    assert seen["a core model that fits"] == ON_CARD | {"core": True}
    assert seen["a core model that needs the room"] == GONE | {"core": True}
    assert seen["a core model of the dynamic kind"] == GONE


def test_ours_evict_core_models_when_they_need_the_room(seen: Report) -> None:
    assert seen["ours, which needs the room"] == ON_CARD | {"core": False}
    assert seen["ours, dropped and back"] == ON_CARD | {"core": False}


def test_room_is_made_of_other_models_before_ours(seen: Report) -> None:
    assert seen["room made, but ours kept"] == ON_CARD | {"core": False}
    assert seen["room made"] == GONE


def test_our_weights_leave_the_card_and_comfyuis_list_with_their_model(seen: Report) -> None:
    assert seen["gone when it died"]
    assert seen["listed after it died"] == 0


def test_a_sampler_leaves_its_weights_unless_they_are_streamed(drive: Callable[..., Report]) -> None:
    stay, gone = ({"stay": there, "held": there, "listed": int(there)} for there in (True, False))
    seen = drive()["sampling"]
    assert (seen["fastest"], seen["again"], seen["smallest"], seen["and back"]) == (stay, stay, gone, stay)
    assert seen["listed after the model"] == 0


@pytest.mark.parametrize(("flag", "state"), [("--lowvram", "LOW_VRAM"), ("--novram", "NO_VRAM"), ("--disable-smart-memory", "NORMAL_VRAM")])
def test_nothing_stays_where_the_user_wants_nothing_to_stay(flag: str, state: str, drive: Callable[..., Report]) -> None:
    report = drive(flag)
    assert report["state"] == state
    assert not report["may stay"]
    assert all(run == {"stay": False, "held": False, "listed": 0} for name, run in report["sampling"].items() if name != "listed after the model")


def test_what_is_reserved_for_others_is_not_free(host: Host, drive: Callable[..., Report]) -> None:
    """In bytes. What torch's allocator holds without using it is free."""
    usual = drive()["reserved"]
    assert usual == drive()["evictions"]["reserved beside models"]
    assert usual in ([400 * MIB, 600 * MIB] if has_flag(host, "--reserve-vram") else [GIB])
    if has_flag(host, "--reserve-vram"):
        assert drive("--reserve-vram", "2")["reserved"] == 2 * GIB
    if has_flag(host, "--vram-headroom"):
        assert drive("--vram-headroom", "1")["reserved"] == usual + GIB


def test_runs_leave_nothing_behind(comfy: Comfy) -> None:
    """What grows is ComfyUI's history, some 15 KiB a run. A first run loads what the later ones use."""
    server = psutil.Process(comfy.server.pid)
    resident: list[int] = []
    tensors: list[int] = []
    for seed in range(20):
        assert comfy.run(image_to_video(seed=300 + seed, frames=2, steps=1)).status == "success"
        assert comfy.live("SVDModel") == 1
        tensors.append(comfy.live("Tensor"))
        resident.append(server.memory_info().rss)
    assert max(tensors[5:]) <= max(tensors[:5]), tensors
    assert resident[-1] - resident[4] < 8 * MIB, [round(size / MIB) for size in resident]


def test_unload_models_over_http_is_answered_and_the_next_run_is_the_same(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(seed=330))
    before = comfy.stats(run, "7")[0]["sha256"]
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    again = comfy.run(image_to_video(seed=330))
    assert comfy.stats(again, "7")[0]["sha256"] == before

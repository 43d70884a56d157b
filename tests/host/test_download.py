"""Choosing "name (download)" in a real ComfyUI fetches the checkpoint from the hub, here a local server that speaks its routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.host.comfy import Comfy, image_to_video
from tests.hub_server import HubServer

XT, GATED = "svd_xt.safetensors", "svd_xt_1_1.safetensors"
REPO = "stabilityai/stable-video-diffusion-img2vid-xt"
GATED_REPO = "stabilityai/stable-video-diffusion-img2vid-xt-1-1"


@pytest.fixture
def hub(checkpoint_file: Path) -> Iterator[HubServer]:
    content = checkpoint_file.read_bytes()
    with HubServer(files={(REPO, XT): content, (GATED_REPO, GATED): content}, gated={GATED_REPO: "hf_mine"}) as server:
        yield server


@pytest.fixture
def fresh(hub: HubServer, make_server: MakeServer, tmp_path: Path) -> Iterator[Comfy]:
    server = make_server(env={"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": ""})
    client = Comfy(server)
    yield client
    client.close()
    server.stop()


def choices(comfy: Comfy) -> list[str]:
    return comfy.object_info("LeanVideoSVDLoader")["LeanVideoSVDLoader"]["input"]["required"]["checkpoint"][0]


def test_a_download_that_breaks_half_way_goes_on_and_then_runs(fresh: Comfy, hub: HubServer, checkpoint_file: Path) -> None:
    whole = checkpoint_file.stat().st_size
    target = fresh.server.base / "models" / "checkpoints" / XT
    assert f"{XT} (download)" in choices(fresh)
    assert f"{GATED} (download)" in choices(fresh)

    gated = fresh.run(image_to_video(checkpoint=f"{GATED} (download)"))
    assert gated.status == "error"
    assert "token" in gated.message
    assert "huggingface.co/" + GATED_REPO in gated.message

    hub.drop_after, hub.cdn_down = whole // 2, False
    broken = None

    def take_the_line_down(kind: str, data: dict[str, int]) -> None:
        if hub.bodies():
            hub.cdn_down = True

    broken = fresh.run(image_to_video(checkpoint=f"{XT} (download)"), on_event=take_the_line_down)
    assert broken.status == "error"
    assert "interrupted" in broken.message
    assert not target.exists()

    hub.drop_after, hub.cdn_down = None, False
    before = len(hub.bodies())
    run = fresh.run(image_to_video(checkpoint=f"{XT} (download)"))
    assert run.status == "success"
    resumed = hub.bodies()[before:]
    assert all("range" in request.headers for request in resumed)
    assert sum(request.sent for request in resumed) < whole
    assert target.read_bytes() == checkpoint_file.read_bytes()
    told = [data["value"] for data in run.named("progress") if data["max"] == whole]
    assert told[0] >= whole // 2  # the bar goes on where the line broke
    assert told[-1] == whole

    assert XT in choices(fresh)
    assert f"{XT} (download)" not in choices(fresh)
    fetched = len(hub.requests)
    assert fresh.run(image_to_video(checkpoint=f"{XT} (download)", seed=5)).status == "success"
    assert len(hub.requests) == fetched


def test_a_download_can_be_cancelled_and_goes_on_from_there(fresh: Comfy, hub: HubServer, checkpoint_file: Path) -> None:
    whole = checkpoint_file.stat().st_size
    target = fresh.server.base / "models" / "checkpoints" / XT
    prompt = image_to_video(checkpoint=f"{XT} (download)")
    hub.chunk_s = 0.02
    cancelled = False

    def cancel_in_the_middle(kind: str, data: dict[str, int]) -> None:
        nonlocal cancelled
        if kind == "progress" and data["max"] == whole and whole // 4 < data["value"] and not cancelled:
            fresh.interrupt()
            cancelled = True

    assert fresh.run(prompt, on_event=cancel_in_the_middle).status == "interrupted"
    assert sum(request.sent for request in hub.bodies()) < whole
    assert not target.exists()

    hub.chunk_s = 0
    before = len(hub.bodies())
    assert fresh.run(prompt).status == "success"
    resumed = hub.bodies()[before:]
    assert all("range" in request.headers for request in resumed)
    assert sum(request.sent for request in resumed) < whole - whole // 4
    assert target.read_bytes() == checkpoint_file.read_bytes()

"""The shipped workflows on ComfyUI's own page: they load, run and play, and come back from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comfy_server import PACK, Server

from tests.browser.page import Canvas
from tests.host import workflow_files as files
from tests.host.comfy import CHECKPOINT, Comfy

SMALL: dict[str, Any] = {"checkpoint": CHECKPOINT, "width": 128, "height": 64, "frames": 4, "steps": 2}


@pytest.mark.parametrize("name", files.NAMES)
def test_a_shipped_workflow_loads_without_a_missing_node(canvas: Canvas, name: str) -> None:
    workflow = files.canvas(name)
    canvas.load(workflow)
    canvas.fit()
    assert canvas.types() == sorted(node["type"] for node in workflow["nodes"])
    assert canvas.missing_nodes() == []
    assert canvas.missing_dialog().count() == 0
    assert [error for error in canvas.errors if PACK in error] == []


@pytest.mark.parametrize("name", files.NAMES)
def test_pressing_run_plays_the_finished_video_and_its_file_restores_the_workflow(canvas: Canvas, server: Server, tmp_path: Path, name: str) -> None:
    for clip in files.small_clips(tmp_path):
        Comfy(server).upload(clip)
    workflow = files.canvas(name)
    canvas.load(workflow)
    canvas.set_widgets(SMALL)
    canvas.fit()
    assert canvas.run() == "success"
    movie = max((server.output / "video").glob("*.mp4"), key=lambda file: file.stat().st_mtime_ns)
    assert canvas.playing(movie.name)
    canvas.picture(f"{server.host.version}-{name}")

    canvas.clear()
    canvas.drop(movie.name, movie.read_bytes(), "video/mp4")
    canvas.wait_for_types(sorted(node["type"] for node in workflow["nodes"]))
    if name != "smooth_video":
        assert canvas.widget("LeanVideoTemporalSampler", "steps") == SMALL["steps"]

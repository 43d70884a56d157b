"""The shipped workflows: valid against the running ComfyUI, equal in both forms, and running."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from comfy_client import Prompt
from comfy_server import Server
from numpy.typing import NDArray
from PIL import Image

from tests.host import workflow_files as files
from tests.host.comfy import CHECKPOINT, Comfy

# What the files leave to the user: which checkpoint, and which of the user's pictures and films.
USERS_OWN = (("LeanVideoSVDLoader", "checkpoint"), ("LoadImage", "image"), ("LeanVideoInterpolateFile", "file"))
SMALL: dict[str, Any] = {"checkpoint": CHECKPOINT, "width": 128, "height": 64, "frames": 4, "steps": 2}


def _small(prompt: Prompt) -> Prompt:
    for node in prompt.values():
        node["inputs"].update({name: value for name, value in SMALL.items() if name in node["inputs"]})
    return prompt


@pytest.mark.parametrize("name", files.NAMES)
def test_the_api_twin_is_what_the_canvas_queues(comfy: Comfy, name: str) -> None:
    assert files.to_prompt(files.canvas(name), comfy.object_info()) == files.api_twin(name)


@pytest.mark.parametrize("name", files.NAMES)
def test_every_node_input_and_value_is_known_to_the_host(comfy: Comfy, name: str) -> None:
    object_info = comfy.object_info()
    for node in files.api_twin(name).values():
        info = object_info[node["class_type"]]
        declared = files.inputs_of(info)
        required = info["input"].get("required", {})
        assert set(required) <= set(node["inputs"]) <= set(declared), node["class_type"]
        for key, value in node["inputs"].items():
            if isinstance(value, list) or (node["class_type"], key) in USERS_OWN:
                continue
            where = f"{node['class_type']}.{key} = {value!r}"
            options = files.choices(declared[key])
            if options is not None:
                assert value in options, where
                continue
            kind = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[declared[key][0]]
            assert isinstance(value, kind), where
            limits = declared[key][1]
            if not isinstance(value, (str, bool)):
                assert limits.get("min", value) <= value <= limits.get("max", value), where


@pytest.mark.parametrize("name", files.NAMES)
def test_every_link_of_the_canvas_joins_slots_of_one_type(comfy: Comfy, name: str) -> None:
    workflow = files.canvas(name)
    object_info = comfy.object_info()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        assert object_info[nodes[source]["type"]]["output"][output] == kind
        entry = nodes[target]["inputs"][slot]
        wanted = files.inputs_of(object_info[nodes[target]["type"]])[entry["name"]][0]
        assert wanted == kind or "*" in (wanted, kind)
        assert entry["link"] == number
        assert number in nodes[source]["outputs"][output]["links"]


@pytest.mark.parametrize("name", files.NAMES)
def test_nodes_do_not_overlap_and_lie_inside_a_group(name: str) -> None:
    workflow = files.canvas(name)
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for number, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:number]:
            # The title bar, 30 high, sits above a node's position.
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 - 30 or y2 + h2 <= y - 30
        groups = [group["bounding"] for group in workflow["groups"]]
        assert any(gx <= x and gy <= y - 30 and x + w <= gx + gw and y + h <= gy + gh for gx, gy, gw, gh in groups)


@pytest.mark.parametrize("name", files.NAMES)
def test_the_template_browser_has_a_thumbnail(name: str) -> None:
    with Image.open(files.thumbnail(name)) as picture:
        assert picture.format == "JPEG"
        assert 480 <= picture.width <= 960


def test_image_to_video_makes_an_mp4_and_its_frames(comfy: Comfy, server: Server) -> None:
    files.upload_inputs(comfy)
    canvas = files.canvas("image_to_video")
    run = comfy.run(_small(files.api_twin("image_to_video")), canvas)
    assert run.status == "success", run.message
    results = {result["format"]: result for out in run.outputs.values() for result in out.get("lean_video_files", [])}

    movie = results["h264 (mp4)"]
    with av.open(io.BytesIO(comfy.view(movie))) as container:
        assert container.metadata.keys() >= {"prompt", "workflow"}
        film = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in film] == [(64, 128, 3)] * 4

    frames = results["png sequence"]
    pictures = sorted((server.output / frames["subfolder"] / frames["filename"]).glob("*.png"))
    shots = [np.asarray(Image.open(picture)) for picture in pictures]
    assert [shot.shape for shot in shots] == [(64, 128, 3)] * 4
    for shot, frame in zip(shots, film, strict=True):
        # Noise at this size costs the film its colour detail, not its light.
        assert np.corrcoef(_luma(shot), _luma(frame))[0, 1] > 0.95


def test_the_demo_runs_as_it_is_shipped(comfy: Comfy) -> None:
    """With no checkpoint in ComfyUI's folders; only steps are saved."""
    files.upload_inputs(comfy)
    prompt = files.api_twin("demo")
    loader = next(node for node in prompt.values() if node["class_type"] == "LeanVideoSVDLoader")
    declared = files.inputs_of(comfy.object_info()["LeanVideoSVDLoader"])["checkpoint"]
    assert loader["inputs"]["checkpoint"] in (files.choices(declared) or ())
    for node in prompt.values():
        node["inputs"].update({"steps": 2} if "steps" in node["inputs"] else {})
    run = comfy.run(prompt)
    assert run.status == "success", run.message
    movie = next(out["lean_video_files"][0] for out in run.outputs.values() if "lean_video_files" in out)
    with av.open(io.BytesIO(comfy.view(movie))) as container:
        shapes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert shapes == [(192, 128)] * 14


def test_video_to_video_keeps_the_length_of_its_start_clip(comfy: Comfy, tmp_path: Path) -> None:
    upload_clips(comfy, tmp_path)
    run = comfy.run(_small(files.api_twin("video_to_video")))
    assert run.status == "success", run.message
    movie = next(out["lean_video_files"][0] for out in run.outputs.values() if "lean_video_files" in out)
    with av.open(io.BytesIO(comfy.view(movie))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_keyframes_to_video_makes_a_clip_of_four_times_the_rate(comfy: Comfy, tmp_path: Path) -> None:
    files.upload_inputs(comfy)
    run = comfy.run(_small(files.api_twin("keyframes_to_video")))
    assert run.status == "success", run.message
    movie = next(out["lean_video_files"][0] for out in run.outputs.values() if "lean_video_files" in out)
    with av.open(io.BytesIO(comfy.view(movie))) as container:
        assert container.streams.video[0].average_rate == 24
        assert sum(1 for _ in container.decode(video=0)) == 13


def test_smooth_video_doubles_the_rate_of_a_film(comfy: Comfy, tmp_path: Path) -> None:
    upload_clips(comfy, tmp_path)
    run = comfy.run(files.api_twin("smooth_video"))
    assert run.status == "success", run.message
    movie = next(out["lean_video_files"][0] for out in run.outputs.values() if "lean_video_files" in out)
    with av.open(io.BytesIO(comfy.view(movie))) as container:
        assert container.streams.video[0].average_rate == 12
        assert sum(1 for _ in container.decode(video=0)) == 11


def test_vram_report_tells_before_and_after(comfy: Comfy) -> None:
    files.upload_inputs(comfy)
    prompt = _small(files.api_twin("vram_report"))
    run = comfy.run(prompt)
    assert run.status == "success", run.message
    types = {number: node["class_type"] for number, node in prompt.items()}
    told = {types[number]: out["text"] for number, out in run.outputs.items() if "text" in out}
    assert any(line.startswith("sample") for line in told["LeanVideoVRAMPlan"])
    assert told["LeanVideoVRAMMonitor"][0] == "After decoding"
    assert any(line.startswith("Temporal Decode: ") for line in told["LeanVideoVRAMMonitor"])
    pictures = [out["images"][0] for number, out in run.outputs.items() if types[number] == "PreviewImage"]
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(io.BytesIO(comfy.view(picture))) as image:
            assert image.width == 960


def upload_clips(comfy: Comfy, folder: Path) -> None:
    for clip in files.small_clips(folder):
        comfy.upload(clip)


def _luma(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (picture @ np.array([0.2126, 0.7152, 0.0722])).ravel()

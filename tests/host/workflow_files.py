"""The shipped workflows, and how a canvas becomes the prompt that the API takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_client import Prompt
from environment import ROOT
from PIL import Image, ImageOps, ImageSequence

from lean_video.media import combine

FOLDER = ROOT / "workflows"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
# Only on the canvas: these never reach the server.
NOTES = ("Note", "MarkdownNote")


def canvas(name: str) -> dict[str, Any]:
    """A shipped workflow as the canvas loads it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_twin(name: str) -> Prompt:
    """The API form of a shipped workflow."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    """Input name → its declaration, required before optional, in the order of the node."""
    order = info.get("input_order") or {kind: list(inputs) for kind, inputs in info["input"].items()}
    return {name: info["input"][kind][name] for kind in ("required", "optional") for name in order.get(kind, [])}


def is_widget(declared: list[Any]) -> bool:
    """Whether the canvas shows this input as a widget: a list of choices or a plain value."""
    return isinstance(declared[0], list) or declared[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def choices(declared: list[Any]) -> list[Any] | None:
    """The choices of an input, None when it is not a list of choices."""
    if isinstance(declared[0], list):
        return declared[0]
    return declared[1]["options"] if declared[0] == "COMBO" else None


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Widget name → value on the canvas. Two widgets are the page's own and follow their input:
    "control after generate" after a seed, and the upload button after an image or behind all others of a video."""
    left = list(node["widgets_values"])
    values: dict[str, Any] = {}
    if any(len(declared) > 1 and declared[1].get("video_upload") for declared in inputs_of(info).values()):
        assert left.pop() == "image"
    for name, declared in inputs_of(info).items():
        if not is_widget(declared):
            continue
        values[name] = left.pop(0)
        options = declared[1] if len(declared) > 1 else {}
        if options.get("control_after_generate") or name in ("seed", "noise_seed"):
            assert left.pop(0) in ("fixed", "increment", "decrement", "randomize")
        if options.get("image_upload"):
            assert left.pop(0) == "image"
    assert not left, f"{node['type']} has more widget values than widgets: {left}"
    return values


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """The prompt that the page would queue for this canvas."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    prompt: Prompt = {}
    for number, node in nodes.items():
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        inputs = widget_values(node, info)
        for slot in node["inputs"]:
            if slot["link"] is not None:
                _, source, output, *_ = links[slot["link"]]
                inputs[slot["name"]] = [str(source), output]
        title = node.get("title", info["display_name"])
        prompt[str(number)] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def upload_inputs(client: Any) -> None:
    """Put the shipped photograph and clip into a server's input folder."""
    for file in sorted((FOLDER / "input").iterdir()):
        if file.suffix != ".txt":
            client.upload(file)


def small_clips(folder: Path, size: tuple[int, int] = (128, 64), count: int = 6) -> list[Path]:
    """The shipped clips in `folder` under their own names, their first `count` frames cut to this width and height."""
    with Image.open(FOLDER / "input" / "clip.webp") as clip:
        frames = [ImageOps.fit(frame.convert("RGB"), size) for frame in ImageSequence.Iterator(clip)][:count]
    frames[0].save(folder / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames_THWC = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames])
    return [folder / "clip.webp", combine(frames_THWC, folder / "clip.mp4", "h264 (mp4)", 6).path]


def thumbnail(name: str) -> Path:
    """The picture that ComfyUI's template browser shows."""
    return FOLDER / f"{name}.jpg"

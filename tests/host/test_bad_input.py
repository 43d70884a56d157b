"""What bad input gets, over HTTP: one sentence on the node, a server that still serves, no partial file, an unaffected next run."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_client import Prompt, Rejected
from safetensors.torch import save_file

from tests.host import comfy as prompts
from tests.host.comfy import CHECKPOINT, Comfy, combine, probe_audio, probe_image


@dataclass(frozen=True)
class Refusal:
    node: str
    sentence: str


def image_to_video(*arguments: Any, **changes: Any) -> Prompt:
    """Without the statistics: their inputs are optional, and the host of 2024 checks nothing behind an optional input."""
    prompt = prompts.image_to_video(*arguments, **changes)
    del prompt["7"]
    return prompt


def refusal(comfy: Comfy, prompt: Prompt) -> Refusal:
    """Which node says what when a prompt is queued or run; fails when the prompt succeeds."""
    try:
        run = comfy.run(prompt)
    except Rejected as rejected:
        nodes = rejected.body.get("node_errors") or {}
        node, report = next(iter(nodes.items()))
        error = report["errors"][0]
        sentence = error["details"]
        return Refusal(node, sentence.partition(" - ")[2] or f"{error['message']} {sentence}")
    assert run.status == "error", "the prompt ran to its end"
    assert run.error is not None
    return Refusal(str(run.error["node_id"]), run.message.removeprefix("LeanVideoError: "))


_SEEDS = itertools.count(1000)


def files(comfy: Comfy) -> set[Path]:
    base = comfy.server.base
    return {path for name in ("output", "temp") for path in (base / name).rglob("*") if path.is_file() and path.suffix != ".npy"}


@pytest.fixture
def unharmed(comfy: Comfy) -> Any:
    """After the test: no file more than before, and a good run succeeds and writes its mp4."""
    before = files(comfy)
    yield
    assert files(comfy) == before
    assert not [path for name in ("output", "temp", "models") for path in (comfy.server.base / name).rglob("*.part")]
    run = comfy.run(image_to_video(seed=next(_SEEDS), frames=2, steps=1))  # a seed of its own: nothing comes from the cache
    assert run.status == "success"
    assert [file.suffix for file in files(comfy) - before] == [".mp4"]


def one_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and "Traceback" not in text and re.search(r"[.!?] [A-Z]", text) is None


# Checkpoints


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def probe_latent(channels: int = 4, frames: int = 4, kind: str = "zero") -> dict[str, Any]:
    return {"class_type": "LeanVideoProbeLatent", "inputs": {"channels": channels, "frames": frames, "kind": kind}}


def truncated(checkpoint: Path, target: Path) -> None:
    write(target, checkpoint.read_bytes()[:-1000])


def cut_in_the_header(checkpoint: Path, target: Path) -> None:
    write(target, checkpoint.read_bytes()[:500])


def corrupt(checkpoint: Path, target: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[20:40] = b"\xff" * 20
    write(target, bytes(content))


def of_another_family(checkpoint: Path, target: Path) -> None:
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}, target)


def pickled(checkpoint: Path, target: Path) -> None:
    torch.save({"model.diffusion_model.out.0.weight": torch.zeros(2)}, target)


def with_a_tensor_missing(checkpoint: Path, target: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(checkpoint)
    del weights["model.diffusion_model.middle_block.0.in_layers.0.weight"]
    save_file(weights, target)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (truncated, "is truncated"),
        (cut_in_the_header, "is truncated"),
        (corrupt, "is corrupt"),
        (of_another_family, "but a LoRA"),
        (pickled, "pickle"),
        (with_a_tensor_missing, "tensors are missing"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_checkpoint_that_is_none(make: Callable[[Path, Path], None], says: str, comfy: Comfy, checkpoint_file: Path, unharmed: None) -> None:
    target = comfy.server.base / "models" / "checkpoints" / f"{make.__name__}.safetensors"
    make(checkpoint_file, target)
    try:
        found = refusal(comfy, image_to_video(checkpoint=target.name))
    finally:
        target.unlink()
    assert says in found.sentence
    assert target.name in found.sentence
    assert one_sentence(found.sentence)
    assert found.node in ("2", "3", "4")


def test_a_pickle_under_its_own_name(comfy: Comfy, checkpoint_file: Path, unharmed: None) -> None:
    target = comfy.server.base / "models" / "checkpoints" / "old.ckpt"
    pickled(checkpoint_file, target)
    try:
        found = refusal(comfy, image_to_video(checkpoint=target.name))
    finally:
        target.unlink()
    assert found.node == "2"
    assert "old.ckpt is a PyTorch pickle" in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("name", ["not_there.safetensors", f"../checkpoints/{CHECKPOINT}", "/etc/passwd", ""])
def test_a_checkpoint_that_is_not_in_the_list(name: str, comfy: Comfy, unharmed: None) -> None:
    found = refusal(comfy, image_to_video(checkpoint=name))
    assert found.node == "2"
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("left", ["config", "nothing"])
@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_a_diffusers_folder_with_a_part_missing(part: str, left: str, comfy: Comfy, unharmed: None) -> None:
    folder = comfy.server.base / "models" / "diffusers" / "half_svd"
    index = {"_class_name": "StableVideoDiffusionPipeline"}
    write(folder / "model_index.json", json.dumps(index).encode())
    for name in {"unet", "vae", "image_encoder"} - {part}:
        write(folder / name / "config.json", b"{}")
        stem = "model" if name == "image_encoder" else "diffusion_pytorch_model"
        save_file({"x": torch.zeros(1)}, folder / name / f"{stem}.safetensors")
    if left == "config":
        write(folder / part / "config.json", b"{}")
    try:
        found = refusal(comfy, image_to_video(checkpoint="half_svd (diffusers)"))
    finally:
        shutil.rmtree(folder)
    assert found.node == "2"
    assert (f"half_svd/{part} has no " if left == "config" else f"{part}/config.json") in found.sentence
    assert "incomplete" in found.sentence
    assert one_sentence(found.sentence)


# Images, sizes and counts


@pytest.mark.parametrize(("kind", "says"), [("nan", "NaN"), ("infinite", "NaN or infinity"), ("empty", "empty")])
def test_an_image_that_is_none(kind: str, says: str, comfy: Comfy, unharmed: None) -> None:
    found = refusal(comfy, image_to_video(probe_image(kind)))
    assert found.node == "3"
    assert says in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("frames", [0, -1, 10_000])
def test_a_frame_count_that_no_clip_has(frames: int, comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    prompt["4"]["inputs"]["frames"] = frames
    found = refusal(comfy, prompt)
    assert found.node == "4"
    ours = f"A clip of {frames} frames cannot be made: ask for 1 to 1024 frames."
    assert found.sentence in (ours, f"Value {frames} smaller than min of 1 frames", f"Value {frames} bigger than max of 1024 frames")


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"steps": 10**6}, {"width": 0}, {"height": 10**6}, {"denoise": 7.0}, {"guidance_max": -1.0}, {"solver": "magic"}, {"steps": "many"}], ids=str
)
def test_a_setting_out_of_range(change: dict[str, Any], comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    (name, value) = next(iter(change.items()))
    node = "3" if name in ("width", "height") else "4"
    prompt[node]["inputs"][name] = value
    found = refusal(comfy, prompt)
    assert found.node == node
    assert "\n" not in found.sentence


def test_start_latents_of_another_size(comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    prompt["8"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 128, "batch_size": 4}}
    prompt["4"]["inputs"] |= {"latents": ["8", 0], "denoise": 0.5}
    found = refusal(comfy, prompt)
    assert found.node == "4"
    assert "4 frames of 128x64 pixels" in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("node", ["4", "5"])
def test_latents_of_another_model(node: str, comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    if "EmptySD3LatentImage" in comfy.object_info():
        prompt["8"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 64, "batch_size": 4}}
    else:
        prompt["8"] = probe_latent(channels=16)
    prompt[node]["inputs"]["latents"] = ["8", 0]
    found = refusal(comfy, prompt)
    assert found.node == node
    assert "[4, 16, 8, 16]" in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.parametrize(("latents", "says"), [(probe_latent(kind="nan"), "NaN"), (probe_latent(frames=0), "[0, 4, 8, 16]")], ids=["nan", "empty"])
def test_latents_that_no_frame_can_be_decoded_from(latents: dict[str, Any], says: str, comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video() | {"8": latents}
    prompt["5"]["inputs"]["latents"] = ["8", 0]
    found = refusal(comfy, prompt)
    assert found.node == "5"
    assert says in found.sentence
    assert one_sentence(found.sentence)


# A graph written by hand


@pytest.mark.parametrize(
    ("node", "change"),
    [
        ("2", {"checkpoint": 5}),
        ("2", {"checkpoint": {"name": CHECKPOINT}}),
        ("2", {"precision": 16}),
        ("3", {"width": "wide"}),
        ("3", {"width": {"pixels": 128}}),
        ("4", {"frames": "four"}),
        ("4", {"frames": {}}),
        ("4", {"conditioning": ["2", 0]}),
        ("4", {"solver": 1}),
        ("5", {"latents": ["1", 0]}),
        ("6", {"images": ["2", 0]}),
        ("6", {"fps": "fast"}),
        ("6", {"fps": float("nan")}),
        ("6", {"format": "unheard of"}),
        ("6", {"format": 5}),
        ("6", {"format": {}}),
        ("6", {"pixel_format": 5}),
        ("6", {"filename_prefix": ""}),
    ],
    ids=str,
)
def test_an_input_of_the_wrong_type(node: str, change: dict[str, Any], comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    prompt[node]["inputs"] |= change
    found = refusal(comfy, prompt)
    assert found.node == node
    assert "\n" not in found.sentence
    assert "object has no attribute" not in found.sentence
    assert "unhashable" not in found.sentence


# Files


def test_audio_without_samples(comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video() | {"8": probe_audio("empty")}
    prompt["6"] = combine(["5", 0], audio=["8", 0])
    found = refusal(comfy, prompt)
    assert found.node == "6"
    assert "no samples" in found.sentence.lower()
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("kind", ["nan", "empty"])
def test_frames_that_cannot_be_written(kind: str, comfy: Comfy, unharmed: None) -> None:
    found = refusal(comfy, {"1": probe_image(kind, frames=8), "6": combine(["1", 0])})
    assert found.node == "6"
    assert one_sentence(found.sentence)


@pytest.mark.parametrize("prefix", ["../../escaped", "video/../../escaped", "/tmp/escaped", "..\\..\\escaped", "C:\\escaped"])
def test_a_filename_prefix_that_climbs_out(prefix: str, comfy: Comfy, unharmed: None) -> None:
    found = refusal(comfy, {"1": probe_image(frames=2), "6": combine(["1", 0], filename_prefix=prefix)})
    assert found.node == "6"
    assert "leads out of the output folder" in found.sentence
    assert one_sentence(found.sentence)
    assert not list(comfy.server.base.parent.glob("escaped*"))


@pytest.mark.parametrize("format", ["h264 (mp4)", "gif", "animated webp", "png sequence", "ffv1 (mkv)"])
def test_an_output_folder_that_cannot_be_written(format: str, comfy: Comfy, unharmed: None) -> None:
    blocker = comfy.server.base / "output" / "taken"
    write(blocker, b"a file where a folder is needed")
    try:
        found = refusal(comfy, {"1": probe_image(frames=2), "6": combine(["1", 0], filename_prefix="taken/clip", format=format)})
        assert blocker.read_bytes() == b"a file where a folder is needed"
    finally:
        blocker.unlink()
    assert found.node == "6"
    assert "cannot be written" in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")
@pytest.mark.parametrize("format", ["h264 (mp4)", "ffv1 (mkv)", "gif", "animated webp", "png sequence"])
def test_a_full_disk_while_encoding(format: str, comfy: Comfy, unharmed: None) -> None:
    import resource

    server = comfy.server
    prompt = {"1": probe_image("noise", frames=12, width=512, height=512), "6": combine(["1", 0], format=format, quality=100)}
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        found = refusal(comfy, prompt)
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert found.node == "6"
    assert "could not be written" in found.sentence or "cannot be written" in found.sentence or "full" in found.sentence
    assert one_sentence(found.sentence)


@pytest.mark.parametrize(
    ("node", "name"), [("3", "model"), ("3", "image"), ("4", "model"), ("4", "conditioning"), ("4", "latents"), ("5", "model"), ("5", "latents"), ("6", "images")]
)
def test_a_literal_where_a_connection_belongs(node: str, name: str, comfy: Comfy, unharmed: None) -> None:
    prompt = image_to_video()
    prompt[node]["inputs"][name] = "small"
    found = refusal(comfy, prompt)
    assert found.node == node
    assert f"The input {name} is str 'small', not a connection" in found.sentence
    assert one_sentence(found.sentence)


def test_a_literal_where_audio_belongs(comfy: Comfy, unharmed: None) -> None:
    found = refusal(comfy, {"1": probe_image(frames=2), "6": combine(["1", 0], audio="small")})
    assert found.node == "6"
    assert "connect an AUDIO output" in found.sentence
    assert one_sentence(found.sentence)

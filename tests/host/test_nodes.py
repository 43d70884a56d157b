"""The nodes in a real ComfyUI: what they make, tell, cache, cancel and leave behind."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from comfy_client import Prompt, Run
from PIL import Image

from tests.host.comfy import Comfy, combine, image_to_video, probe_audio, probe_image

ROOT = Path(__file__).parents[2]


def written(comfy: Comfy, run: Run, node: str = "6") -> list[Path]:
    return [comfy.server.base / file["type"] / file["subfolder"] / file["filename"] for file in run.outputs[node]["lean_video_files"]]


def frames_of(path: Path) -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def sampled(comfy: Comfy, **changes: Any) -> np.ndarray[Any, Any]:
    """The frames' values of a run."""
    return comfy.tensor(comfy.stats(comfy.run(image_to_video(**changes)), "7")[0])


def cached(run: Run) -> set[str]:
    """The nodes whose results ComfyUI took from its cache."""
    return {str(node) for data in run.named("execution_cached") for node in data["nodes"]}


# What comes out


def test_an_image_becomes_an_mp4_of_its_frames_with_the_workflow_inside(comfy: Comfy) -> None:
    workflow = {"nodes": [], "links": [], "extra": {"made_by": "a test"}}
    prompt = image_to_video(seed=101)
    run = comfy.run(prompt, workflow)
    (clip,) = written(comfy, run)
    values = comfy.tensor(comfy.stats(run, "7")[0])
    frames = frames_of(clip)
    assert values.shape == (4, 64, 128, 3)
    assert [frame.shape for frame in frames] == [(64, 128, 3)] * 4
    with av.open(str(clip)) as container:
        assert container.streams.video[0].average_rate == 6
        assert json.loads(container.metadata["workflow"]) == workflow
        embedded = json.loads(container.metadata["prompt"])
    assert {node: entry["inputs"] for node, entry in embedded.items()} == {node: entry["inputs"] for node, entry in prompt.items()}


def test_pngs_hold_the_frames_rounded_to_8_bits(comfy: Comfy) -> None:
    prompt = image_to_video(seed=102)
    prompt["6"] = combine(["5", 0], format="png sequence", filename_prefix="frames/clip")
    run = comfy.run(prompt)
    (folder,) = written(comfy, run)
    values = comfy.tensor(comfy.stats(run, "7")[0])
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    assert np.array_equal(np.stack(pictures), np.round(values * 255).astype(np.uint8))


def test_a_batch_is_one_clip_or_a_clip_for_each_image(comfy: Comfy) -> None:
    images = probe_image(frames=3)
    one = comfy.run(image_to_video(images, seed=103))
    each = comfy.run(image_to_video(images, seed=103, batch="one clip per image"))
    assert len(written(comfy, one)) == 1
    assert len(written(comfy, each)) == 3
    stats = comfy.stats(each, "7")
    assert stats[0]["sha256"] == comfy.stats(one, "7")[0]["sha256"]  # a clip is the same alone or in company
    assert len({clip["sha256"] for clip in stats}) == 3


def test_a_seed_is_a_clip_and_another_seed_another(comfy: Comfy) -> None:
    first = sampled(comfy, seed=104)
    comfy.run(image_to_video(seed=105))
    assert np.array_equal(sampled(comfy, seed=104, precision="auto"), first)  # not from the cache: the loader changed
    assert not np.array_equal(sampled(comfy, seed=105), first)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "euler_ancestral", "lcm"])
def test_every_solver_makes_a_clip(solver: str, comfy: Comfy) -> None:
    values = sampled(comfy, solver=solver, seed=106, frames=2)
    assert np.isfinite(values).all()
    assert values.std() > 0.01


@pytest.mark.parametrize("schedule", ["exponential", "align_your_steps", "uniform"])
def test_every_schedule_makes_a_clip(schedule: str, comfy: Comfy) -> None:
    values = sampled(comfy, schedule=schedule, seed=107, frames=2)
    assert np.isfinite(values).all()
    assert values.std() > 0.01


def test_an_rgba_image_goes_on_black(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(probe_image("rgba"), seed=108, frames=2))
    assert run.status == "success"


def test_sound_is_as_long_as_the_clip(comfy: Comfy) -> None:
    run = comfy.run({"1": probe_image(frames=12), "2": probe_audio(seconds=10), "6": combine(["1", 0], audio=["2", 0])})
    with av.open(str(written(comfy, run)[0])) as container:
        sound = container.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(2.0, abs=0.05)


def test_every_format_gives_a_page_something_to_show(comfy: Comfy) -> None:
    formats = comfy.object_info("LeanVideoCombine")["LeanVideoCombine"]["input"]["required"]["format"][0]
    for name in formats:
        run = comfy.run({"1": probe_image(frames=6), "6": combine(["1", 0], format=name, filename_prefix=f"formats/{name.split()[0]}")})
        (shown,) = run.outputs["6"]["images"]
        assert len(comfy.view(shown)) > 100, name
        assert Path(shown["filename"]).suffix in {".mp4", ".webm", ".gif", ".webp"}, name
        assert written(comfy, run)[0].exists(), name


# Latents are ComfyUI's


def with_start(prompt: Prompt, latents: list[Any], denoise: float) -> Prompt:
    prompt["4"]["inputs"] |= {"latents": latents, "denoise": denoise}
    prompt["8"] = {"class_type": "LeanVideoProbeStats", "inputs": {"latents": ["4", 0]}}
    return prompt


def test_cores_latent_nodes_and_ours_take_each_others_latents(comfy: Comfy) -> None:
    prompt = image_to_video(seed=110)
    prompt["9"] = {"class_type": "LatentFromBatch", "inputs": {"samples": ["4", 0], "batch_index": 1, "length": 2}}
    prompt["5"]["inputs"]["latents"] = ["9", 0]
    assert comfy.stats(comfy.run(prompt), "7")[0]["shape"] == [2, 64, 128, 3]
    prompt["9"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 192, "height": 64, "batch_size": 3}}
    assert comfy.stats(comfy.run(prompt), "7")[0]["shape"] == [3, 64, 192, 3]


def test_latents_grow_repeat_and_survive_a_file_in_cores_own_nodes(comfy: Comfy) -> None:
    prompt = image_to_video(seed=112, frames=2)
    prompt["8"] = {"class_type": "LeanVideoProbeStats", "inputs": {"latents": ["4", 0]}}
    prompt["9"] = {"class_type": "LatentUpscale", "inputs": {"samples": ["4", 0], "upscale_method": "bilinear", "width": 192, "height": 128, "crop": "disabled"}}
    prompt["10"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["9", 0], "amount": 2}}
    prompt["11"] = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "latents/of_a_clip"}}
    prompt["5"]["inputs"]["latents"] = ["10", 0]
    run = comfy.run(prompt)
    assert comfy.stats(run, "7")[0]["shape"] == [4, 128, 192, 3]
    (saved,) = run.outputs["11"]["latents"]
    name = comfy.upload(comfy.server.output / saved["subfolder"] / saved["filename"])
    prompt["12"] = {"class_type": "LoadLatent", "inputs": {"latent": name}}
    prompt["8"]["inputs"]["latents"] = prompt["5"]["inputs"]["latents"] = ["12", 0]
    loaded = comfy.run(prompt)
    assert comfy.stats(loaded, "8")[0]["sha256"] == comfy.stats(run, "8")[0]["sha256"]
    assert comfy.stats(loaded, "7")[0]["shape"] == [2, 64, 128, 3]


def test_video_to_video_stays_with_its_start_clip_as_far_as_it_is_told(comfy: Comfy) -> None:
    prompt = image_to_video(seed=111, steps=4)
    prompt["10"] = probe_image(frames=4)
    prompt["9"] = {"class_type": "LeanVideoTemporalEncode", "inputs": {"model": ["2", 0], "images": ["10", 0]}}
    prompt["11"] = {"class_type": "LeanVideoProbeStats", "inputs": {"latents": ["9", 0]}}
    results = {}
    start = np.empty(0)
    for denoise in (0.0, 0.2, 1.0):
        run = comfy.run(with_start(prompt, ["9", 0], denoise))
        results[denoise] = comfy.tensor(comfy.stats(run, "8")[0])
        start = comfy.tensor(comfy.stats(run, "11")[0]) if denoise == 0 else start
    assert np.array_equal(results[0.0], start)
    assert start.shape == (4, 4, 8, 16)
    near, far = (np.linalg.norm(results[denoise] - start) for denoise in (0.2, 1.0))
    assert 0 < near < far / 2


# What the user is told on the way


def test_each_step_moves_the_bar_and_both_previews(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(seed=120, steps=3))
    steps = [data for data in run.named("progress") if data["max"] == 3]
    assert [data["value"] for data in steps] == [1, 2, 3]
    moving = run.named("lean_video.preview")
    assert [(data["node"], data["step"], data["steps"]) for data in moving] == [("4", 1, 3), ("4", 2, 3), ("4", 3, 3)]
    import base64

    head, _, data = moving[-1]["image"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/webp;base64"
    assert picture.n_frames == 4
    assert run.previews
    assert Image.open(io.BytesIO(run.previews[-1])).format == "JPEG"


def test_a_size_the_network_cannot_take_is_rounded_and_said(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(seed=121, width=120, height=72))
    said = "The size was rounded from 120x72 to 128x64: this network takes multiples of 64."
    assert run.outputs["3"]["text"] == [said]
    assert [data["text"] for data in run.named("lean_video.note")] == [said]
    assert comfy.stats(run, "7")[0]["shape"] == [4, 64, 128, 3]


def test_a_cancel_stops_within_a_step_and_the_next_run_is_unaffected(comfy: Comfy) -> None:
    before: list[int] = []
    after: list[int] = []
    cancelled = False

    def cancel_at_the_first_step(kind: str, data: dict[str, Any]) -> None:
        nonlocal cancelled
        if kind == "progress" and data["max"] == 400:
            (after if cancelled else before).append(data["value"])
            if not cancelled:
                comfy.interrupt()
                cancelled = True

    run = comfy.run(image_to_video(seed=122, steps=400, frames=32), on_event=cancel_at_the_first_step)
    assert run.status == "interrupted"
    assert before == [1]
    assert len(after) <= 5  # those that were done while the request travelled, and the one it met
    assert "6" not in run.outputs
    assert comfy.run(image_to_video(seed=122)).status == "success"


# Cache and memory


def test_the_same_inputs_hit_the_cache_and_a_new_seed_only_samples_anew(comfy: Comfy) -> None:
    comfy.run(image_to_video(seed=130))
    again = comfy.run(image_to_video(seed=130))
    assert not {"2", "3", "4", "5"} & set(again.executed())
    assert {"2", "3", "4", "5"} <= cached(again)
    prompt = image_to_video(seed=130)
    prompt["4"]["inputs"]["seed"] = 131
    other = comfy.run(prompt)
    assert {"4", "5"} <= set(other.executed())
    assert not {"2", "3"} & set(other.executed())
    assert {"2", "3"} <= cached(other)
    assert not {"4", "5"} & cached(other)


def test_no_model_outlives_its_nodes(comfy: Comfy) -> None:
    comfy.run(image_to_video(seed=140))
    assert comfy.live("SVDModel") == 1
    comfy.run({"1": probe_image("noise"), "7": {"class_type": "LeanVideoProbeStats", "inputs": {"images": ["1", 0]}}})
    assert comfy.live("SVDModel") == 0


def test_the_hosts_free_button_frees_the_model_and_a_run_brings_it_back(comfy: Comfy) -> None:
    comfy.run(image_to_video(seed=141))
    assert comfy.live("SVDModel") == 1
    comfy.free()
    deadline = time.monotonic() + 60
    while comfy.live("SVDModel") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert comfy.live("SVDModel") == 0
    assert comfy.run(image_to_video(seed=141)).status == "success"


# What the canvas shows


def test_every_node_and_every_input_explains_itself(comfy: Comfy) -> None:
    ours = {name: info for name, info in comfy.object_info().items() if info["category"] == "Lean Video"}
    assert len(ours) == 11
    for name, info in ours.items():
        assert info["description"], name
        page = (ROOT / "js" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                assert spec[1]["tooltip"], (name, key)
                assert key in page, (name, key)


def test_video_is_given_where_the_host_has_the_type(comfy: Comfy) -> None:
    info = comfy.object_info("LeanVideoCombine")["LeanVideoCombine"]
    has_type = "GetVideoComponents" in comfy.object_info()
    assert ("VIDEO" in info["output"]) == has_type
    if has_type:
        prompt: Prompt = {"1": probe_image(frames=5), "6": combine(["1", 0], format="ffv1 (mkv)", pixel_format="bgr0")}
        prompt["2"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["6", 1]}}
        prompt["7"] = {"class_type": "LeanVideoProbeStats", "inputs": {"images": ["2", 0]}}
        assert comfy.stats(comfy.run(prompt), "7")[0]["shape"] == [5, 64, 128, 3]

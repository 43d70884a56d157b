"""The monitor in a real ComfyUI: what there is, where it went, what will fit, and the node that tells."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from comfy_client import Prompt, Run

from tests.host.comfy import Comfy, image_to_video, probe_image
from tests.host.test_bad_input import one_sentence, refusal

MIB = 2**20


def allocate(images: list[Any], mib: int, **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"images": images, "mib": mib, "seconds": 0.3, "fail": False}
    return {"class_type": "LeanVideoProbeAllocate", "inputs": {**inputs, **changes}}


def stats(images: list[Any]) -> dict[str, Any]:
    return {"class_type": "LeanVideoProbeStats", "inputs": {"images": images}}


def settled(comfy: Comfy, prompt: Prompt) -> dict[str, Any]:
    """The prompt as the monitor has it, run a second time: what earlier runs leave behind is given back in the first."""
    run = None
    for seed in (1, 2):
        prompt["1"]["inputs"]["seed"] = seed
        run = comfy.run(prompt)
        time.sleep(0.5)
    assert run is not None
    return recorded(comfy, run)


def recorded(comfy: Comfy, run: Run) -> dict[str, Any]:
    """The run as the monitor has it, once it is over."""
    for _ in range(200):
        found = comfy.get(f"/lean_video/runs/{run.prompt_id}")
        if found["status"] != "running":
            return found
        time.sleep(0.02)
    raise AssertionError("the run is still running")


def preflight(comfy: Comfy, prompt: Any, **more: Any) -> dict[str, Any]:
    return comfy.post("/lean_video/preflight", {"prompt": prompt, **more})


def is_old(comfy: Comfy) -> bool:
    """The ComfyUI of 2024 names the node that runs, and nothing else."""
    return "2024" in comfy.server.host.version


# Now


def test_what_there_is_now(comfy: Comfy) -> None:
    now = comfy.get("/lean_video/vram")
    assert abs(now["time"] - time.time()) < 60
    assert now["devices"] == []
    assert "NVIDIA" in now["problem"]
    assert 50 * MIB < now["host"]["process"] < now["host"]["total"]
    assert now["host"]["used"] + now["host"]["available"] == now["host"]["total"]


# Runs


def test_each_node_of_a_run_has_its_time_and_its_memory(comfy: Comfy) -> None:
    """What a node allocates is its peak, within 2 %, above what the run began with: on the ComfyUI of 2024 a node's beginning is heard of late."""
    sizes = {"2": 300, "3": 100, "4": 600}
    prompt: Prompt = {"1": probe_image(), "2": allocate(["1", 0], 300), "3": allocate(["2", 0], 100), "4": allocate(["3", 0], 600), "5": stats(["4", 0])}
    prompt["3"]["_meta"] = {"title": "The small one"}
    found = settled(comfy, prompt)
    assert found["status"] == "success"
    nodes = {node["id"]: node for node in found["nodes"]}
    began = min(node["host"]["start"] for node in found["nodes"])
    for number, mib in sizes.items():
        node = nodes[number]
        assert node["type"] == "LeanVideoProbeAllocate"
        assert node["status"] == "done"
        assert 0.25 <= node["seconds"] <= found["seconds"]
        assert (node["host"]["peak"] - (began if is_old(comfy) else node["host"]["start"])) / MIB == pytest.approx(mib, rel=0.02, abs=2)
    assert nodes["3"]["title"] == "The small one"
    assert [node["id"] for node in found["nodes"] if node["id"] in sizes] == list(sizes)
    assert found["peak"]["host"] >= nodes["4"]["host"]["peak"]
    assert len(found["samples"]["at"]) >= 5
    assert found["samples"]["at"] == sorted(found["samples"]["at"])
    assert "samples" not in comfy.get(f"/lean_video/runs/{found['id']}", samples="0")
    summary = comfy.get("/lean_video/runs")[0]
    assert summary["id"] == found["id"]
    assert summary["seconds"] == found["seconds"] > 0.85


def test_what_was_expected_is_told_beside_what_was_measured(comfy: Comfy) -> None:
    """Of our nodes by the plan they run under, of others by what they took before."""
    prompt = image_to_video(seed=905)
    prompt["1"]["inputs"]["frames"] = 3
    for number in ("4", "5"):
        prompt[number]["inputs"]["budget_mib"] = 64
    nodes = {node["id"]: node for node in recorded(comfy, comfy.run(prompt))["nodes"]}
    assert 0 < nodes["4"]["predicted"] <= 64 * MIB
    assert 0 < nodes["5"]["predicted"] <= 64 * MIB
    if is_old(comfy):
        return  # short nodes are not always noticed
    first = {"1": probe_image(frames=5), "2": allocate(["1", 0], 80), "3": stats(["2", 0])}
    assert recorded(comfy, comfy.run(first))["nodes"][1]["predicted"] is None
    first["1"]["inputs"]["seed"] = 3
    again = recorded(comfy, comfy.run(first))["nodes"][1]
    assert again["predicted"] / MIB == pytest.approx(80, rel=0.1, abs=4)


def test_steps_of_the_sampler_are_in_the_timeline(comfy: Comfy) -> None:
    run = comfy.run(image_to_video(seed=901, steps=3))
    found = recorded(comfy, run)
    sampler = next(node for node in found["nodes"] if node["id"] == "4")
    if is_old(comfy):
        pytest.skip("This ComfyUI tells of no steps.")
    assert [(step["done"], step["total"]) for step in sampler["steps"]][-3:] == [(1, 3), (2, 3), (3, 3)]


def test_the_node_that_fails_is_named_with_what_it_held(comfy: Comfy) -> None:
    prompt = {"1": probe_image(), "2": allocate(["1", 0], 200), "3": allocate(["2", 0], 400, fail=True), "4": stats(["3", 0])}
    found = settled(comfy, prompt)
    assert found["status"] == "error"
    assert "Allocation on device failed" in found["message"]
    failed = found["nodes"][-1]
    assert (failed["id"], failed["status"]) == ("3", "error")
    began = min(node["host"]["start"] for node in found["nodes"]) if is_old(comfy) else failed["host"]["start"]
    assert (failed["host"]["peak"] - began) / MIB == pytest.approx(400, rel=0.02, abs=2)


def test_a_cancelled_run_says_so(comfy: Comfy) -> None:
    stopped = False

    def stop(kind: str, data: dict[str, Any]) -> None:
        nonlocal stopped
        if kind == "progress" and data["max"] == 300 and not stopped:
            stopped = True
            comfy.interrupt()

    run = comfy.run(image_to_video(seed=902, steps=300), on_event=stop)
    found = recorded(comfy, run)
    assert found["status"] == "interrupted"
    assert found["nodes"][-1]["id"] == "4"
    assert found["nodes"][-1]["status"] == "interrupted"


def test_a_run_is_exported_as_a_trace(comfy: Comfy) -> None:
    run = comfy.run({"1": probe_image(), "2": allocate(["1", 0], 50), "3": stats(["2", 0])})
    recorded(comfy, run)
    events = comfy.get(f"/lean_video/runs/{run.prompt_id}/trace")["traceEvents"]
    assert "LeanVideoProbeAllocate" in {event["name"] for event in events if event["ph"] == "X"}
    assert any(event["ph"] == "C" and event["name"] == "host" for event in events)


def test_only_the_last_fifty_runs_are_kept(comfy: Comfy) -> None:
    for seed in range(52):
        image = probe_image()
        image["inputs"]["seed"] = seed
        comfy.run({"1": image, "2": stats(["1", 0])})
    time.sleep(0.5)
    assert len(comfy.get("/lean_video/runs")) <= 50


@pytest.mark.parametrize("path", ["/lean_video/runs/nothing", "/lean_video/runs/nothing/trace", "/lean_video/runs/%2e%2e%2fsecret"])
def test_a_run_that_is_not_known(comfy: Comfy, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        comfy.get(path)
    assert caught.value.code == 404


# Preflight


def by_id(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["id"]: node for node in answer["nodes"]}


def test_a_graph_that_will_not_fit_is_told_with_changes_that_make_it_fit(comfy: Comfy) -> None:
    prompt = image_to_video()
    prompt["3"]["inputs"] |= {"width": 1024, "height": 576}
    prompt["4"]["inputs"] |= {"frames": 100, "budget_mib": 30000}
    prompt["5"]["inputs"] |= {"budget_mib": 30000}
    prompt["2"]["inputs"]["precision"] = "fp16"
    answer = preflight(comfy, prompt, card_mib=150)
    assert answer["device"] == {"name": "a card of 0.146484 GiB", "total": 150 * MIB, "free": 150 * MIB, "pretended": True}
    assert answer["fits"] is False
    nodes = by_id(answer)
    assert nodes["5"]["fits"] is False
    assert nodes["5"]["source"] == "planned"
    assert nodes["5"]["peak"] > 150 * MIB
    assert nodes["2"]["peak"] == nodes["6"]["peak"] == 0
    quick = by_id(preflight(comfy, prompt, card_mib=150, changes=False))
    assert quick["5"]["fits"] is False
    assert quick["5"]["changes"] == []
    for number in ("4", "5"):
        prompt[number]["inputs"]["budget_mib"] = 0
    again = preflight(comfy, prompt, card_mib=150)
    while again["fits"] is False:
        node = next(node for node in again["nodes"] if node["fits"] is False)
        change = node["changes"][-1]
        assert change["text"].split()[0].isdecimal()
        for entry in change["set"]:
            prompt[entry["node"]]["inputs"][entry["input"]] = entry["value"]
        again = preflight(comfy, prompt, card_mib=150)
    assert again["peak"] <= 150 * MIB


def test_a_budget_for_another_card_is_mended_by_planning_for_what_is_free(comfy: Comfy) -> None:
    prompt = image_to_video()
    prompt["4"]["inputs"] |= {"frames": 14, "budget_mib": 2}
    prompt["5"]["inputs"]["budget_mib"] = 8000
    answer = preflight(comfy, prompt, card_mib=100)
    assert answer["fits"] is False
    nodes = by_id(answer)
    assert "The budget of 2 MiB is too small" in nodes["4"]["why"]
    for number in ("4", "5"):
        if nodes[number]["fits"]:
            continue
        (change,) = nodes[number]["changes"]
        assert change["set"] == [{"node": number, "input": "budget_mib", "value": 0}]
        prompt[number]["inputs"]["budget_mib"] = 0
    again = by_id(preflight(comfy, prompt, card_mib=100))
    assert all(again[number]["fits"] for number in ("4", "5"))


def test_nodes_of_others_are_known_by_what_they_took(comfy: Comfy) -> None:
    prompt = {"1": probe_image(frames=2), "2": allocate(["1", 0], 250), "3": stats(["2", 0])}
    assert by_id(preflight(comfy, prompt))["2"]["source"] == "unknown"
    settled(comfy, prompt)
    answer = by_id(preflight(comfy, prompt))["2"]
    assert answer["source"] == "measured"
    assert answer["peak"] / MIB == pytest.approx(250, rel=0.02 if not is_old(comfy) else 0.5, abs=2)
    prompt["2"]["inputs"]["mib"] = 251
    assert by_id(preflight(comfy, prompt))["2"]["source"] == "unknown"


def test_a_graph_in_any_state_gets_an_answer(comfy: Comfy) -> None:
    prompt = image_to_video()
    prompt["20"] = {"class_type": "NobodyKnowsThis", "inputs": {"x": ["4", 0]}}
    prompt["21"] = {"class_type": "A", "inputs": {"x": ["22", 0]}}
    prompt["22"] = {"class_type": "B", "inputs": {"x": ["21", 0]}}
    prompt["23"] = {"class_type": "LeanVideoTemporalSampler", "inputs": {"model": ["99", 0], "conditioning": ["23", 0]}}
    prompt["24"] = {"class_type": "LeanVideoTemporalDecode", "inputs": {}}
    prompt["25"] = {"class_type": "LeanVideoTemporalDecode"}
    prompt["26"] = {"inputs": {}}
    prompt["27"] = "not a node"  # type: ignore[assignment]
    prompt["3"]["inputs"]["width"] = ["20", 0]
    nodes = by_id(preflight(comfy, prompt))
    assert {"26", "27"} & set(nodes) == set()
    assert all(nodes[number]["source"] == "unknown" and one_sentence(nodes[number]["why"]) for number in ("20", "21", "22", "23", "24", "25"))
    assert nodes["4"]["source"] == "unknown"
    assert "not known before the graph runs" in nodes["4"]["why"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "Send"),
        (b'{"prompt": 5}', "no graph"),
        (b'{"prompt": {}, "card_mib": "large"}', "number of MiB"),
        (b'{"prompt": {}, "card_mib": -1}', "none to hold"),
        (b'{"prompt": {}, "card_mib": 1e99}', "none to hold"),
    ],
)
def test_a_request_that_is_none_gets_a_sentence(comfy: Comfy, body: bytes, says: str) -> None:
    request = urllib.request.Request(f"{comfy.server.url}/lean_video/preflight", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert says in json.loads(caught.value.read())["error"]


# The node


def monitor(anything: list[Any], **changes: Any) -> dict[str, Any]:
    return {"class_type": "LeanVideoVRAMMonitor", "inputs": {"anything": anything, "label": "here", "limit_mib": 0, **changes}}


def test_the_node_passes_on_what_comes_in_and_tells_of_the_run(comfy: Comfy) -> None:
    prompt = {"1": probe_image(), "2": allocate(["1", 0], 200), "3": monitor(["2", 0]), "4": stats(["3", 0]), "5": stats(["1", 0]), "6": stats(["3", 4])}
    run = comfy.run(prompt)
    assert run.status == "success", run.message
    assert np.array_equal(comfy.tensor(comfy.stats(run, "4")[0]), comfy.tensor(comfy.stats(run, "5")[0]))
    text = run.outputs["3"]["text"]
    assert text[0] == "here"
    assert "at most so far" in text[1]
    assert any(line.startswith("LeanVideoProbeAllocate: ") for line in text)
    assert comfy.stats(run, "6")[0]["shape"][2:] == [960, 3]


def test_it_takes_any_type(comfy: Comfy) -> None:
    prompt = image_to_video(seed=903)
    prompt["10"] = monitor(["2", 0])
    prompt["11"] = monitor(["4", 0])
    for number in ("3", "4", "5"):
        prompt[number]["inputs"]["model"] = ["10", 0]
    prompt["5"]["inputs"]["latents"] = ["11", 0]
    assert comfy.run(prompt).status == "success"


def test_a_limit_stops_the_run_with_a_sentence(comfy: Comfy) -> None:
    prompt = {"1": probe_image(), "2": allocate(["1", 0], 200), "3": monitor(["2", 0], limit_mib=64), "4": stats(["3", 0])}
    refused = refusal(comfy, prompt)
    assert refused.node == "3"
    assert "more than the limit of 64 MiB, so it was stopped" in refused.sentence
    assert one_sentence(refused.sentence)


def test_a_limit_stops_the_run_before_a_node_that_will_pass_it(comfy: Comfy) -> None:
    prompt = image_to_video(seed=904)
    prompt["3"]["inputs"] |= {"width": 1024, "height": 576}
    prompt["4"]["inputs"] |= {"frames": 200}
    prompt["10"] = monitor(["2", 0], limit_mib=3000)
    prompt["4"]["inputs"]["model"] = ["10", 0]
    refused = refusal(comfy, prompt)
    assert refused.node == "10"
    assert "so the run was stopped before it" in refused.sentence

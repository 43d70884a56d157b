"""Budgets and plans in a real ComfyUI: the same clip whatever they are, and a sentence where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.host.comfy import Comfy, image_to_video

SIZE = {"width": 128, "height": 64, "frames": 4}


def with_plan(budget_mib: int, **changes: Any) -> dict[str, Any]:
    prompt = image_to_video(seed=201)
    prompt["8"] = {"class_type": "LeanVideoVRAMPlan", "inputs": {"model": ["2", 0], **SIZE, "budget_mib": budget_mib, **changes}}
    for node in ("3", "4", "5"):
        prompt[node]["inputs"]["plan"] = ["8", 0]
    prompt["9"] = {"class_type": "LeanVideoProbeStats", "inputs": {"images": ["8", 2]}}
    return prompt


@pytest.fixture
def unlimited(comfy: Comfy) -> Any:
    return comfy.tensor(comfy.stats(comfy.run(image_to_video(seed=201)), "7")[0])


def test_a_plan_says_what_a_clip_takes_and_the_clip_is_the_same(comfy: Comfy, unlimited: Any) -> None:
    reports: list[str] = []
    for budget in (0, 30, 4096):
        run = comfy.run(with_plan(budget))
        assert run.status == "success"
        assert np.abs(comfy.tensor(comfy.stats(run, "7")[0]) - unlimited).max() < 1e-4
        chart = comfy.stats(run, "9")[0]
        assert chart["shape"][0] == 1
        assert chart["shape"][3] == 3
        assert chart["max"] > chart["min"]
        reports.append("\n".join(run.outputs["8"]["text"]))
    for report in reports:
        assert "4 frames of 128x64 in fp32" in report
        for phase in ("encode", "sample", "decode", "step"):
            assert phase in report
    assert "weights streamed from the host" in reports[1]
    assert "weights on the device" in reports[2]


def test_a_budget_of_its_own_changes_no_frame(comfy: Comfy, unlimited: Any) -> None:
    prompt = image_to_video(seed=201)
    for node in ("4", "5"):
        prompt[node]["inputs"]["budget_mib"] = 30
    run = comfy.run(prompt)
    assert np.abs(comfy.tensor(comfy.stats(run, "7")[0]) - unlimited).max() < 1e-4


@pytest.mark.parametrize("node", ["4", "5"])
def test_a_budget_that_nothing_fits_in_ends_in_a_sentence(node: str, comfy: Comfy) -> None:
    prompt = image_to_video(seed=201)
    prompt[node]["inputs"]["budget_mib"] = 1
    run = comfy.run(prompt)
    assert run.status == "error"
    assert "more than the budget of 1 MiB" in (run.message or "")


def test_a_plan_for_another_clip_ends_in_a_sentence(comfy: Comfy) -> None:
    run = comfy.run(with_plan(0, frames=5))
    assert run.status == "error"
    assert "made for 5 frames of 128x64 in fp32, this clip has 4 frames of 128x64 in fp32" in (run.message or "")


def test_a_literal_where_a_plan_belongs_ends_in_a_sentence(comfy: Comfy) -> None:
    for node in ("3", "4", "5"):
        prompt = image_to_video(seed=201)
        prompt[node]["inputs"]["plan"] = "small"
        run = comfy.run(prompt)
        assert run.status == "error"
        assert "connect it to a VRAM Plan" in (run.message or "")


def test_what_was_planned_is_kept_in_comfyuis_user_folder(comfy: Comfy) -> None:
    comfy.run(with_plan(30))
    assert list(comfy.server.base.rglob("planning.json"))

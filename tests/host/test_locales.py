"""The texts in other languages, as a real ComfyUI serves them to its page."""

from __future__ import annotations

import json
import urllib.error

import pytest
from environment import ROOT

from tests.host.comfy import Comfy


def panel(language: str) -> dict[str, str]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["leanVideo"]


def test_the_host_gives_the_page_our_texts(comfy: Comfy) -> None:
    try:
        texts = comfy.get("/i18n")
    except urllib.error.HTTPError:
        pytest.skip("This ComfyUI has no translations of node packs.")
    assert texts["zh"]["nodeDefs"]["LeanVideoTemporalSampler"]["display_name"] == "时序采样器"
    assert texts["zh"]["settings"]["LeanVideo_Monitor_Units"]["options"]["automatic"] == "自动"
    assert texts["zh"]["settingsCategories"]["Monitor"] == "监视器"
    assert "LeanVideoTemporalSampler" not in texts["en"].get("nodeDefs", {})


@pytest.mark.parametrize(
    ("tag", "language"),
    [("zh-CN", "zh"), ("zh", "zh"), ("en", "en"), ("en-GB", "en"), ("xx", "en"), ("..%2f..%2fsecret", "en"), ("%2e%2e", "en"), ("zh%2f..%2f..", "en")],
)
def test_the_panel_gets_its_texts_by_language_and_english_where_there_is_none(comfy: Comfy, tag: str, language: str) -> None:
    assert comfy.get(f"/lean_video/text/{tag}") == panel(language)

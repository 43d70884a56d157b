"""The page in Chinese: our nodes, the monitor's panel and its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from comfy_server import PACK, Server
from playwright.sync_api import Browser, expect

from tests.browser.page import Canvas
from tests.host import workflow_files as files
from tests.host.comfy import Comfy


@pytest.fixture
def chinese(browser: Browser, server: Server) -> Iterator[Canvas]:
    """A fresh page of a user who chose Chinese."""
    client = Comfy(server)
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(60_000)
    try:
        page.request.post(f"{server.url}/settings", data={"Comfy.Locale": "zh"})
        canvas = Canvas(page, server.url)
        if not page.evaluate("() => Boolean(window.app.extensionManager?.registerSidebarTab)"):
            pytest.skip("This page has no sidebar, and no languages to choose from.")
        canvas.load(files.canvas("image_to_video"))
        canvas.fit()
        yield canvas
        assert [error for error in canvas.errors if PACK in error] == []
    finally:
        page.request.post(f"{server.url}/settings", data={"Comfy.Locale": "en"})
        page.close()
        client.close()


def test_nodes_are_chinese_and_what_they_send_is_not(chinese: Canvas) -> None:
    sampler = chinese.page.evaluate(
        """async () => {
          const node = LiteGraph.createNode("LeanVideoTemporalSampler");
          window.app.graph.add(node);
          const sent = (await window.app.graphToPrompt()).output[node.id].inputs;
          return { title: node.title, output: node.outputs[0].localized_name, name: node.outputs[0].name, sent: Object.keys(sent),
            labels: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.label])) };
        }"""
    )
    assert sampler["title"] == "时序采样器"
    assert sampler["output"] == "潜空间"
    assert sampler["name"] == "latents"
    assert sampler["labels"]["guidance_max"] == "最大引导强度"
    assert {"frames", "guidance_max", "budget_mib"} <= set(sampler["sent"])


def test_the_panel_and_its_settings_are_chinese(chinese: Canvas, server: Server) -> None:
    panel = chinese.open_monitor()
    expect(panel.locator("h3")).to_have_text(["当前", "放得下吗？", "运行记录"])
    expect(panel.locator(".lv-section-now .lv-name").last).to_have_text("内存")
    chinese.picture(f"{server.host.version}-zh-monitor")
    page = chinese.page
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.get_by_text("Lean Video", exact=True).filter(visible=True).last.click()
    expect(page.get_by_text("面板打开时每秒更新次数")).to_be_visible()
    expect(page.get_by_text("监视器", exact=True)).to_be_visible()
    expect(page.get_by_text("自动", exact=True).filter(visible=True).first).to_be_visible()
    chinese.picture(f"{server.host.version}-zh-settings")

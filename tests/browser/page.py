"""ComfyUI's page, as a person would use it; works on the pages of 2024 to 2026."""

from __future__ import annotations

import base64
from typing import Any

from environment import WORK
from playwright.sync_api import Locator, Page

SCREENSHOTS = WORK / "screenshots"

# Dialogs that newer pages show a first-time user.
_GREETED = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "99.0.0",
    "Comfy.Release.Status": "skip",
    "Comfy.Minimap.Visible": False,
}


class Canvas:
    """One open page. `errors` collects what its scripts threw."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        page.request.post(f"{url}/settings", data=_GREETED)
        page.goto(url)
        page.wait_for_function("() => Boolean(window.app && window.app.graph && window.app.canvas && window.LiteGraph?.registered_node_types?.LeanVideoCombine)")
        # The page restores its last graph or a default one; ours must come after it.
        page.wait_for_timeout(1000)

    def load(self, workflow: dict[str, Any]) -> None:
        """Load a workflow in canvas form and show all of it."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(500)

    def missing_nodes(self) -> list[str]:
        """Types on the canvas that are not registered."""
        return self.page.evaluate("() => window.app.graph._nodes.map(n => n.type).filter(t => !window.LiteGraph.registered_node_types[t])")

    def missing_dialog(self) -> Locator:
        """What the page shows when a workflow has unknown nodes."""
        return self.page.get_by_text("missing node", exact=False).or_(self.page.get_by_text("node types were not found", exact=False))

    def types(self) -> list[str]:
        """The node types on the canvas, sorted."""
        return sorted(self.page.evaluate("() => window.app.graph._nodes.map(n => n.type)"))

    def set_widgets(self, values: dict[str, Any]) -> None:
        """Set every widget of our nodes that has one of these names."""
        self.page.evaluate(
            """values => {
              for (const node of window.app.graph._nodes)
                for (const widget of node.widgets ?? [])
                  if (node.type.startsWith("LeanVideo") && widget.name in values) {
                    widget.value = values[widget.name];
                    widget.callback?.(widget.value);
                  }
            }""",
            values,
        )

    def run(self, timeout_s: float = 180) -> str:
        """Press Run and wait for the end; returns "success" or the error's message."""
        self.page.evaluate(
            """async () => {
              const { api } = await import("/scripts/api.js");
              window.__end = null;
              const say = text => { window.__end ??= text; };
              api.addEventListener("execution_error", e => say(e.detail.exception_message));
              api.addEventListener("execution_interrupted", () => say("interrupted"));
              api.addEventListener("execution_success", () => say("success"));
              api.addEventListener("executing", e => {
                if ((e.detail?.node ?? e.detail) === null) say("success");
              });
            }"""
        )
        self._run_button().click()
        self.page.wait_for_function("() => window.__end !== null", timeout=timeout_s * 1000)
        return self.page.evaluate("() => window.__end")

    def playing(self, filename: str) -> bool:
        """Wait until a visible player of this file moves on by itself."""
        self.page.wait_for_function(
            """name => [...document.querySelectorAll("video")].some(v => {
              const source = v.currentSrc || v.src || v.querySelector("source")?.src || "";
              const box = v.getBoundingClientRect();
              return source.includes(name) && box.width > 0 && v.readyState >= 2
                && !v.paused && v.currentTime > 0.05;
            })""",
            arg=filename,
        )
        return True

    def drop(self, name: str, data: bytes, kind: str) -> None:
        """Drop a file on an empty place of the canvas."""
        self.page.evaluate(
            """([name, data, kind]) => {
              const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], name, { type: kind }));
              const options = { dataTransfer: transfer, bubbles: true, cancelable: true,
                clientX: 800, clientY: 850 };
              const target = document.querySelector("#graph-canvas") ?? window.app.canvas.canvas;
              target.dispatchEvent(new DragEvent("dragover", options));
              target.dispatchEvent(new DragEvent("drop", options));
            }""",
            [name, base64.b64encode(data).decode(), kind],
        )

    def wait_for_types(self, types: list[str]) -> None:
        """Wait until the canvas holds just these nodes."""
        self.page.wait_for_function(
            "types => JSON.stringify(window.app.graph._nodes.map(n => n.type).sort()) === JSON.stringify(types)",
            arg=types,
        )

    def widget(self, node_type: str, name: str) -> Any:
        """The value of a widget of the first node of a type."""
        return self.page.evaluate(
            """([type, name]) => window.app.graph._nodes.find(n => n.type === type)
              .widgets.find(w => w.name === name).value""",
            [node_type, name],
        )

    def clear(self) -> None:
        """Empty the canvas."""
        self.page.evaluate("() => window.app.graph.clear()")

    def picture(self, name: str) -> None:
        """Keep a screenshot for a person to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def fit(self) -> dict[str, float]:
        """Zoom so that the whole workflow fills the page; returns where it then is on the page."""
        box = self.page.evaluate(
            """() => {
              const graph = window.app.graph, view = window.app.canvas.ds;
              const page = window.app.canvas.canvas.getBoundingClientRect();
              const boxes = graph._groups.map(g => g._bounding ?? g.bounding);
              const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
              const wide = Math.max(...boxes.map(b => b[0] + b[2])) - left;
              const high = Math.max(...boxes.map(b => b[1] + b[3])) - top;
              // Menus lie over the edges of some pages and beside the canvas of others.
              const x = Math.max(page.left, 70) + 15, y = Math.max(page.top, 90) + 15;
              const scale = Math.min((innerWidth - 15 - x) / wide, (innerHeight - 15 - y) / high);
              const dx = (innerWidth - 15 - x - wide * scale) / 2;
              const dy = (innerHeight - 15 - y - high * scale) / 2;
              view.scale = scale;
              view.offset[0] = (x + dx - page.left) / scale - left;
              view.offset[1] = (y + dy - page.top) / scale - top;
              window.app.canvas.setDirty(true, true);
              return { x: x + dx, y: y + dy, width: wide * scale, height: high * scale };
            }"""
        )
        self.page.wait_for_timeout(700)
        return box

    def open_monitor(self) -> Locator:
        """The monitor's panel, opened by its button in the sidebar or the menu."""
        panel = self.page.locator(".lv-panel")
        if not panel.count():
            self.page.locator(".lean-video-vram-tab-button").or_(self.page.locator(".lv-open")).first.click()
        panel.wait_for()
        return panel

    def _run_button(self) -> Locator:
        """The button that queues the canvas, by whichever name this page gives it."""
        page = self.page
        return page.locator('[data-testid="queue-button"]').or_(page.locator("#queue-button")).or_(page.get_by_role("button", name="Run", exact=True)).filter(visible=True).first

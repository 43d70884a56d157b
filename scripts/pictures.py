"""Takes the pictures of the canvas: the thumbnail of each workflow after a run of the demo model, `docs/canvas.jpg`, and the monitor's.

Run it after changing a workflow: `.venv/bin/python scripts/pictures.py`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import get_comfyui
from comfy_client import Client
from comfy_server import Server, link
from demo import SMALL
from environment import ROOT, say
from make_checkpoint import SIZES, layout, write_hollow
from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(ROOT))

from lean_video.checkpoints import demo as demo_model
from tests.browser.page import Canvas
from tests.host import workflow_files as files

THUMBNAIL_WIDTH = 640


def main() -> int:
    """Write the pictures, from the newest ComfyUI that is here."""
    host = get_comfyui.found()[0]
    say(f"Taking pictures in ComfyUI {host.version}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        server = Server(host, Path(scratch), flags=("--cpu",))
        server.checkpoints.mkdir(parents=True)
        # Under the name that the workflows ship with, so that the page finds it.
        link(demo_model.FILE, server.checkpoints / "svd_xt.safetensors")
        with server, sync_playwright() as playwright:
            client = Client(server.url)
            files.upload_inputs(client)
            for clip in files.small_clips(Path(scratch), (SMALL["width"], SMALL["height"]), demo_model.FRAMES):
                client.upload(clip)
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = chromium.new_page(viewport={"width": 1920, "height": 1000})
            canvas = Canvas(page, server.url)
            for name in files.NAMES:
                if not _ran(page, canvas, client, name):
                    return 1
                if name == "image_to_video":
                    page.screenshot(path=ROOT / "docs" / "canvas.jpg", type="jpeg", quality=85)
                canvas.set_widgets(_shipped(name))
                _thumbnail(page, canvas.fit()).save(files.thumbnail(name), quality=88)
            if not _monitor(page, canvas, client, server):
                return 1
    return 0


def _ran(page: Page, canvas: Canvas, client: Client, name: str) -> bool:
    """Runs a workflow with the demo model at its size, and waits until the page shows what came out."""
    canvas.load(files.canvas(name))
    canvas.set_widgets(SMALL)
    canvas.fit()
    client.free()  # what is still known from the run before would not run again, and show nothing
    if (end := canvas.run(900)) != "success":
        say(f"{name} ended with: {end}")
        return False
    page.wait_for_timeout(8000)
    return True


def _shipped(name: str) -> dict[str, Any]:
    """What the workflow says where the run had something else."""
    return {widget: value for node in files.api_twin(name).values() for widget, value in node["inputs"].items() if widget in SMALL}


def _monitor(page: Page, canvas: Canvas, client: Client, server: Server) -> bool:
    """The panel after a run, and over a graph that is too large for a card."""
    canvas.load(files.canvas("vram_report"))
    canvas.set_widgets(SMALL)
    panel = canvas.open_monitor()
    canvas.fit()
    client.free()
    if (end := canvas.run(600)) != "success":
        say(f"The run ended with: {end}")
        return False
    page.wait_for_timeout(8000)
    parts = panel.locator(".lv-part")
    box = max((box for part in parts.all() if (box := part.bounding_box())), key=lambda box: box["width"])
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 40)
    page.wait_for_timeout(300)
    page.screenshot(path=ROOT / "docs" / "monitor.jpg", type="jpeg", quality=85)
    large = write_hollow(server.checkpoints / "svd_xt_1_1.safetensors", layout(SIZES["full"]))
    canvas.load(files.canvas("image_to_video"))
    canvas.set_widgets({"checkpoint": large.name, "width": 1024, "height": 576, "frames": 100, "budget_mib": 30016})
    canvas.fit()
    panel.get_by_test_id("lean-video-card").select_option("8")
    panel.locator(".lv-verdict.lv-no").wait_for(timeout=120_000)
    page.wait_for_timeout(6000)
    page.screenshot(path=ROOT / "docs" / "will_it_fit.jpg", type="jpeg", quality=85)
    return True


def _thumbnail(page: Page, box: dict[str, float]) -> Image.Image:
    edge = 14
    clip = {"x": box["x"] - edge, "y": box["y"] - edge, "width": box["width"] + 2 * edge, "height": box["height"] + 2 * edge}
    shot = page.screenshot(clip=clip)
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    size = (THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width))
    return picture.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())

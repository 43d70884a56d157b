"""Takes the pictures of the canvas: the thumbnail of each workflow, and `docs/canvas.jpg` after a run.

Run it after changing a workflow: `.venv/bin/python scripts/pictures.py`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

import get_comfyui
from comfy_client import Client
from comfy_server import Server, link
from demo import SMALL, small_checkpoint
from environment import ROOT, say
from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(ROOT))

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
        link(small_checkpoint(), server.checkpoints / "svd_xt.safetensors")
        with server, sync_playwright() as playwright:
            files.upload_inputs(Client(server.url))
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = chromium.new_page(viewport={"width": 1920, "height": 1000})
            canvas = Canvas(page, server.url)
            for name in files.NAMES:
                canvas.load(files.canvas(name))
                _thumbnail(page, canvas.fit()).save(files.thumbnail(name), quality=88)
            canvas.load(files.canvas("image_to_video"))
            canvas.set_widgets(SMALL)
            canvas.fit()
            if (end := canvas.run(600)) != "success":
                say(f"The run ended with: {end}")
                return 1
            page.wait_for_timeout(8000)
            page.screenshot(path=ROOT / "docs" / "canvas.jpg", type="jpeg", quality=85)
    return 0


def _thumbnail(page: Page, box: dict[str, float]) -> Image.Image:
    edge = 14
    clip = {"x": box["x"] - edge, "y": box["y"] - edge, "width": box["width"] + 2 * edge, "height": box["height"] + 2 * edge}
    shot = page.screenshot(clip=clip)
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    size = (THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width))
    return picture.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())

"""A real Chromium on ComfyUI's own page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from comfy_server import Server
from playwright.sync_api import Browser, sync_playwright

from tests.browser.page import Canvas
from tests.host import workflow_files
from tests.host.comfy import Comfy

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("Chromium is not on the PATH; scripts/test.sh says how to get it.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def canvas(browser: Browser, server: Server) -> Iterator[Canvas]:
    """A fresh page of the server, with the shipped photograph and clip uploaded."""
    client = Comfy(server)
    workflow_files.upload_inputs(client)
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(60_000)
    yield Canvas(page, server.url)
    page.close()
    client.close()

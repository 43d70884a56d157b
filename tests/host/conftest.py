"""What every host test gets: a client of its ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from comfy_server import Server

from tests.host.comfy import Comfy


@pytest.fixture
def comfy(server: Server) -> Iterator[Comfy]:
    """A client of the shared server, with a websocket of its own."""
    client = Comfy(server)
    yield client
    client.close()

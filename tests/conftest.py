"""The ComfyUI servers that host and browser tests share: one process per ComfyUI found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import get_comfyui
import pytest
from comfy_server import PACK, Server, link
from environment import ROOT
from get_comfyui import Host

CHECKPOINT = "small_svd.safetensors"
PROBE = {"lean-video-probe": Path(__file__).parent / "host" / "probe"}
_LOG_START = pytest.StashKey[int]()

MakeServer = Callable[..., Server]


class _RootHoldsThePack:
    """pytest would take the pack's `__init__.py` for a package of tests, and import it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootHoldsThePack())


def _hosts() -> list[object]:
    hosts = [pytest.param(host, id=host.version) for host in get_comfyui.found()]
    return hosts or [pytest.param(None, id="no-comfyui")]


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few megabytes in SVD's own layout."""
    file = tmp_path_factory.mktemp("checkpoint") / CHECKPOINT
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, str(script), str(file)], check=True, cwd=ROOT)
    return file


@pytest.fixture(scope="session", params=_hosts())
def host(request: pytest.FixtureRequest) -> Host:
    """Each ComfyUI found in turn; its version is in the test's id."""
    if request.param is None:
        pytest.fail("No ComfyUI is ready; run 'python scripts/get_comfyui.py all' first.")
    return request.param


@pytest.fixture(scope="session")
def make_server(host: Host, checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeServer]:
    """Starts a further server of the same ComfyUI: `make_server(env=…, flags=…, prepare=…)`.

    It has the pack, the probe nodes and the small checkpoint. `prepare(base)` may change its
    scratch folder before the start. It is stopped at the end of the session at the latest.
    """
    servers: list[Server] = []

    def make(
        env: dict[str, str] | None = None,
        flags: tuple[str, ...] = (),
        prepare: Callable[[Path], object] | None = None,
    ) -> Server:
        base = tmp_path_factory.mktemp(f"comfyui-{host.version}-")
        (base / "models" / "checkpoints").mkdir(parents=True)
        link(checkpoint_file, base / "models" / "checkpoints" / CHECKPOINT)
        if prepare is not None:
            prepare(base)
        threads = {"OMP_NUM_THREADS": "2", **(env or {})}
        server = Server(host, base, {PACK: ROOT, **PROBE}, threads, ("--cpu", *flags))
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(make_server: MakeServer) -> Server:
    return make_server()


@pytest.fixture
def server(shared_server: Server, request: pytest.FixtureRequest) -> Server:
    """The one server of this ComfyUI that tests share; started anew if a test brought it down."""
    if not shared_server.alive:
        shared_server.start()
    request.node.stash[_LOG_START] = len(shared_server.log_text())
    return shared_server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the server printed during a test that failed."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        text = server.log_text()[item.stash.get(_LOG_START, 0) :]
        report.sections.append((f"ComfyUI {server.host.version} printed", text[-6000:]))
    return report

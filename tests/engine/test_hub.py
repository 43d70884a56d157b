"""Downloads against a hub of our own on this machine: real sockets, real processes, real interruptions."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lean_video.checkpoints import hub
from lean_video.checkpoints.hub import KNOWN, choices, download, parse_choice
from lean_video.errors import LeanVideoError
from tests.hub_server import HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator

SVD_XT = next(known for known in KNOWN if known.filename == "svd_xt.safetensors")
GATED = next(known for known in KNOWN if known.gated)
CONTENT = random.Random(7).randbytes(3 * 1024 * 1024 + 17)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_user_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests must not send the developer's own token, wait between attempts, or go through a proxy."""
    import huggingface_hub.constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(files={(SVD_XT.repo_id, SVD_XT.filename): CONTENT, (GATED.repo_id, GATED.filename): CONTENT}, gated={GATED.repo_id: "hf_right"}) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def _ignore(done: int, total: int) -> None:
    pass


def _everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _partial_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.part"))


class Cancelled(Exception):
    pass


# --- what is offered ---


def test_every_known_file_is_offered_until_it_is_present_in_whatever_subfolder() -> None:
    assert "svd_xt.safetensors (download)" in choices([])
    offered = choices(["video/svd_xt.safetensors", "video\\svd.safetensors", "my_svd_xt_1_1.safetensors"])
    assert offered == ["svd_image_decoder.safetensors (download)", "svd_xt_image_decoder.safetensors (download)", "svd_xt_1_1.safetensors (download)"]


def test_a_choice_names_its_checkpoint_and_a_file_on_disk_names_none() -> None:
    assert [parse_choice(choice) for choice in choices([])] == list(KNOWN)
    assert parse_choice("svd_xt.safetensors") is None
    assert parse_choice("other.safetensors (download)") is None


# --- the whole way ---


def test_the_whole_file_arrives_alone_in_the_folder_and_progress_runs_to_its_size(server: HubServer, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    server.chunk_s = 0.01
    path = download(SVD_XT, folder, endpoint=server.endpoint, progress=lambda done, total: seen.append((done, total)))
    assert path == folder / "svd_xt.safetensors"
    assert path.read_bytes() == CONTENT
    assert _everything(folder) == ["svd_xt.safetensors"]
    assert {total for _, total in seen} == {len(CONTENT)}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert any(0 < done < len(CONTENT) for done, _ in seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_is_returned_without_a_question_to_the_hub(server: HubServer, folder: Path) -> None:
    folder.mkdir()
    (folder / "svd_xt.safetensors").write_bytes(b"mine")
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == b"mine"
    assert server.requests == []


def test_other_files_of_the_folder_are_left_alone(server: HubServer, folder: Path) -> None:
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / "other.safetensors").write_bytes(b"x")
    download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)
    assert _everything(folder) == sorted([".cache", str(Path(".cache/huggingface")), "other.safetensors", "svd_xt.safetensors"])


# --- interruptions ---


def test_a_download_interrupted_half_way_goes_on_from_there(server: HubServer, folder: Path) -> None:
    server.drop_after = len(CONTENT) // 2
    server.drops_left = 1

    def then_the_cdn_is_gone(done: int, total: int) -> None:
        server.cdn_down = True

    with pytest.raises(LeanVideoError, match=r"interrupted after 1\.57 MB of 3\.15 MB \(.+\): choose it again"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=then_the_cdn_is_gone)
    assert _partial_bytes(folder) == len(CONTENT) // 2
    assert not (folder / "svd_xt.safetensors").exists()

    server.cdn_down = False
    server.requests.clear()
    path = download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)
    (body,) = server.bodies()
    assert body.headers["range"] == f"bytes={len(CONTENT) // 2}-"
    assert body.sent == len(CONTENT) - len(CONTENT) // 2
    assert path.read_bytes() == CONTENT
    assert _everything(folder) == ["svd_xt.safetensors"]


def test_a_connection_lost_time_and_again_is_taken_up_within_one_call(server: HubServer, folder: Path) -> None:
    server.drop_after = 300_000  # eleven connections, more than the attempts without data that end a call
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT
    assert len(server.bodies()) == -(-len(CONTENT) // 300_000)
    assert sum(body.sent for body in server.bodies()) == len(CONTENT)


def test_a_cancelled_download_keeps_its_data_for_the_next_call(server: HubServer, folder: Path) -> None:
    server.chunk_s = 0.01

    def cancel_at_a_third(done: int, total: int) -> None:
        if done > total // 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=cancel_at_a_third)
    kept = _partial_bytes(folder)
    assert len(CONTENT) // 3 < kept < len(CONTENT)

    server.requests.clear()
    server.chunk_s = 0
    seen: list[int] = []
    path = download(SVD_XT, folder, endpoint=server.endpoint, progress=lambda done, total: seen.append(done))
    assert server.bodies()[0].headers["range"] == f"bytes={kept}-"
    assert server.bodies()[0].sent == len(CONTENT) - kept
    assert seen[0] == kept
    assert path.read_bytes() == CONTENT
    assert _everything(folder) == ["svd_xt.safetensors"]


def test_a_download_cancelled_while_it_waits_for_the_network_stops(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cdn_down = True
    monkeypatch.setattr(hub, "_FIRST_PAUSE_S", 3600.0)

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=cancel)


def test_a_process_that_is_killed_leaves_what_the_next_one_needs(server: HubServer, folder: Path) -> None:
    server.chunk_s = 0.02
    child = _child(server, folder)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > len(CONTENT) // 4:
            break
    child.kill()
    child.communicate()
    kept = _partial_bytes(folder)
    assert 0 < kept < len(CONTENT)
    server.requests.clear()
    server.chunk_s = 0
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT
    assert server.bodies()[0].sent == len(CONTENT) - kept


def test_a_line_that_stalls_is_dropped_and_taken_up_again(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server.chunk_s = 3600.0

    def the_next_connection_flows(done: int, total: int) -> None:
        if done:
            server.chunk_s = 0.0

    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=the_next_connection_flows).read_bytes() == CONTENT
    assert len(server.bodies()) > 1


def test_a_server_that_ignores_the_range_is_read_from_the_start(server: HubServer, folder: Path) -> None:
    server.drop_after, server.drops_left, server.ranges = len(CONTENT) // 2, 1, False
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT
    assert [body.sent for body in server.bodies()] == [len(CONTENT) // 2, len(CONTENT)]


# --- what must not be trusted ---


def test_a_file_with_another_sha256_than_the_hubs_is_thrown_away(server: HubServer, folder: Path) -> None:
    server.hash_of = lambda content: hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(LeanVideoError, match=r"svd_xt\.safetensors was thrown away because its SHA-256"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)
    assert not (folder / "svd_xt.safetensors").exists()
    assert _partial_bytes(folder) == 0

    server.hash_of = lambda content: hashlib.sha256(content).hexdigest()
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT


def test_partial_data_spoilt_on_the_disk_never_becomes_a_checkpoint(server: HubServer, folder: Path) -> None:
    server.drop_after, server.drops_left = len(CONTENT) // 2, 1

    def cut_the_line(done: int, total: int) -> None:
        server.cdn_down = True

    with pytest.raises(LeanVideoError):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=cut_the_line)
    (part,) = folder.rglob("*.part")
    part.write_bytes(bytes(part.stat().st_size))
    server.cdn_down = False
    with pytest.raises(LeanVideoError, match="SHA-256"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)
    assert not list(folder.glob("*.safetensors"))
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT


def test_the_partial_data_of_an_older_version_of_the_file_is_not_built_upon(server: HubServer, folder: Path) -> None:
    server.chunk_s = 0.01

    def cancel_with_data(done: int, total: int) -> None:
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=cancel_with_data)
    assert _partial_bytes(folder) > 0
    server.files[SVD_XT.repo_id, SVD_XT.filename] = CONTENT[::-1]
    assert download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore).read_bytes() == CONTENT[::-1]
    assert _everything(folder) == ["svd_xt.safetensors"]


def test_a_hub_without_a_sha256_is_refused(server: HubServer, folder: Path) -> None:
    server.hash_of = lambda content: hashlib.sha1(content).hexdigest()
    with pytest.raises(LeanVideoError, match="gave no size and SHA-256"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)


# --- tokens ---


def test_a_gated_file_without_a_token_says_where_the_licence_is_and_how_to_give_a_token(server: HubServer, folder: Path) -> None:
    with pytest.raises(LeanVideoError) as caught:
        download(GATED, folder, endpoint=server.endpoint, progress=_ignore)
    for part in ("svd_xt_1_1.safetensors", GATED.page, "https://huggingface.co/settings/tokens", "hf auth login", "HF_TOKEN"):
        assert part in str(caught.value)


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_a_gated_file_comes_with_the_users_token_which_the_cdn_never_sees(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    if given == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_right")
    token = "hf_right" if given == "argument" else None
    assert download(GATED, folder, endpoint=server.endpoint, token=token, progress=_ignore).read_bytes() == CONTENT
    hub_side = [request for request in server.requests if request.side == "hub"]
    cdn_side = [request for request in server.requests if request.side == "cdn"]
    assert {request.headers.get("authorization") for request in hub_side} == {"Bearer hf_right"}
    assert cdn_side
    assert not any("authorization" in request.headers for request in cdn_side)


def test_the_token_follows_a_renamed_repository_on_the_hub_itself(server: HubServer, folder: Path) -> None:
    server.files["stabilityai/renamed", GATED.filename] = server.files.pop((GATED.repo_id, GATED.filename))
    server.gated = {"stabilityai/renamed": "hf_right"}
    server.renamed = {GATED.repo_id: "stabilityai/renamed"}
    assert download(GATED, folder, endpoint=server.endpoint, token="hf_right", progress=_ignore).read_bytes() == CONTENT
    assert not any("authorization" in body.headers for body in server.bodies())


@pytest.mark.parametrize("known", [GATED, SVD_XT], ids=["gated", "open"])
@pytest.mark.parametrize("token", ["hf_wrongwrong", "hf_wrong\nwrong"], ids=["refused", "malformed"])
def test_a_token_that_is_refused_is_never_quoted(
    server: HubServer, folder: Path, known: hub.KnownCheckpoint, token: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.valid_tokens = {"hf_right"}
    with pytest.raises(LeanVideoError) as caught:
        download(known, folder, endpoint=server.endpoint, token=token, progress=_ignore)
    if token == "hf_wrongwrong":
        assert str(caught.value).startswith(f"Your Hugging Face token was refused for {known.filename}: ")
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert "hf_wrong" not in shown


def test_a_valid_token_without_the_licence_names_the_page(server: HubServer, folder: Path) -> None:
    with pytest.raises(LeanVideoError, match="token was refused") as caught:
        download(GATED, folder, endpoint=server.endpoint, token="hf_someone", progress=_ignore)
    assert GATED.page in str(caught.value)


# --- no way through ---


def test_a_file_the_hub_does_not_have_is_a_sentence(server: HubServer, folder: Path) -> None:
    del server.files[SVD_XT.repo_id, SVD_XT.filename]
    server.files[SVD_XT.repo_id, "other"] = b""
    with pytest.raises(LeanVideoError, match=r"svd_xt\.safetensors was not found at https://huggingface\.co/stabilityai/"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)


def test_no_network_is_a_sentence(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LeanVideoError, match="could not be reached"):
            download(SVD_XT, folder, endpoint=endpoint, progress=_ignore)
    assert not folder.exists()


def test_offline_mode_is_respected(server: HubServer, folder: Path) -> None:
    child = _child(server, folder, HF_HUB_OFFLINE="1")
    _, complaint = child.communicate()
    assert child.returncode != 0
    assert "LeanVideoError: svd_xt.safetensors was not downloaded because HF_HUB_OFFLINE is set" in complaint.splitlines()[-1].replace("lean_video.errors.", "")
    assert server.requests == []


def test_a_disk_without_room_is_a_sentence_before_anything_is_fetched(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1_000_000))
    with pytest.raises(LeanVideoError, match=r"needs 3\.15 MB more and .* has 1\.00 MB free"):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=_ignore)
    assert server.bodies() == []


def test_a_folder_that_cannot_be_made_is_a_sentence(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LeanVideoError, match="could not be written to"):
        download(SVD_XT, tmp_path / "file" / "checkpoints", endpoint=server.endpoint, progress=_ignore)


# --- company ---


def test_two_processes_that_want_the_same_file_fetch_it_once(server: HubServer, folder: Path) -> None:
    server.chunk_s = 0.02
    children = [_child(server, folder), _child(server, folder)]
    for child in children:
        _, complaint = child.communicate()
        assert child.returncode == 0, complaint
    assert (folder / "svd_xt.safetensors").read_bytes() == CONTENT
    assert sum(body.sent for body in server.bodies()) == len(CONTENT)
    assert _everything(folder) == ["svd_xt.safetensors"]


def test_who_waits_for_another_sees_its_progress_and_can_cancel(server: HubServer, folder: Path) -> None:
    server.chunk_s = 0.02
    started = threading.Event()
    first = threading.Thread(target=download, args=(SVD_XT, folder), kwargs={"endpoint": server.endpoint, "progress": lambda done, total: started.set() if done else None})
    first.start()
    assert started.wait(20)

    def cancel(done: int, total: int) -> None:
        assert 0 < done < total
        raise Cancelled

    with pytest.raises(Cancelled):
        download(SVD_XT, folder, endpoint=server.endpoint, progress=cancel)
    first.join(30)
    assert (folder / "svd_xt.safetensors").read_bytes() == CONTENT
    assert len(server.bodies()) == 1


def _child(server: HubServer, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Another Python that downloads SVD_XT, printing the bytes done, with HF_ENDPOINT as its only direction."""
    program = (
        "import sys; from pathlib import Path; from lean_video.checkpoints.hub import download, parse_choice\n"
        "known = parse_choice('svd_xt.safetensors (download)')\n"
        "download(known, Path(sys.argv[1]), progress=lambda done, total: print(done, flush=True))"
    )
    env = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_right", **environment}
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

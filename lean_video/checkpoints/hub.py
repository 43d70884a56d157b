"""Known checkpoints that are not on disk yet, and how they get there.

`huggingface_hub` finds the file and opens the door: the address (`hf_hub_url`), the user's token (`build_hf_headers`), and the size and SHA-256
(`get_hf_file_metadata`). The bytes are fetched here, by ranged GETs of the standard library, because `hf_hub_download` cannot do what a 10 GB file in
a canvas needs: since 2.x it deletes the partial file when it fails, its chunks of 10 MiB report and cancel too seldom on a slow line, its Xet
transfer does not resume in place, and none of its versions compares the SHA-256. Plain HTTP serves Xet repositories too.

A partial file lives in `.cache/lean_video` inside the models folder (same volume, so that the final rename is atomic) until it is complete and checked.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from http.client import HTTPMessage
    from typing import IO

    Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class KnownCheckpoint:
    """One file of a repository on the Hugging Face hub; `approx_bytes` is for people, the real size comes from the hub."""

    filename: str
    repo_id: str
    gated: bool
    approx_bytes: int | None
    note: str

    @property
    def page(self) -> str:
        """Where the licence is read and accepted."""
        return f"https://huggingface.co/{self.repo_id}"


KNOWN: tuple[KnownCheckpoint, ...] = (
    KnownCheckpoint("svd.safetensors", "stabilityai/stable-video-diffusion-img2vid", False, 9_560_000_000, "14 frames"),
    KnownCheckpoint("svd_image_decoder.safetensors", "stabilityai/stable-video-diffusion-img2vid", False, None, "14 frames, decoded one by one"),
    KnownCheckpoint("svd_xt.safetensors", "stabilityai/stable-video-diffusion-img2vid-xt", False, 9_560_000_000, "25 frames"),
    KnownCheckpoint("svd_xt_image_decoder.safetensors", "stabilityai/stable-video-diffusion-img2vid-xt", False, None, "25 frames, decoded one by one"),
    KnownCheckpoint("svd_xt_1_1.safetensors", "stabilityai/stable-video-diffusion-img2vid-xt-1-1", True, 4_780_000_000, "25 frames, 1024x576 at 6 fps"),
)

_MARK = " (download)"


def choices(present: Iterable[str]) -> list[str]:
    """Each known file that is missing, as "svd_xt.safetensors (download)": those that `present` (names as ComfyUI lists them, subfolders allowed) lacks."""
    have = {PureWindowsPath(name).name.casefold() for name in present}
    return [known.filename + _MARK for known in KNOWN if known.filename.casefold() not in have]


def parse_choice(name: str) -> KnownCheckpoint | None:
    """The checkpoint that a choice made by `choices` stands for; None for the name of a file on disk."""
    return next((known for known in KNOWN if name == known.filename + _MARK), None)


def download(known: KnownCheckpoint, folder: Path, *, endpoint: str | None = None, token: str | None = None, progress: Progress) -> Path:
    """Fetches `known` and returns `folder / known.filename`; returns at once when that file is already there.

    folder    created when missing; holds nothing but the finished file afterwards
    endpoint  a hub other than HF_ENDPOINT
    token     None: the user's own, as huggingface_hub finds it (HF_TOKEN or a login)
    progress  called with bytes (done, total), several times a second while data flows; an exception it raises (but an OSError) cancels and passes through;
              a line that stalls is given up, and a cancel noticed, after HF_HUB_DOWNLOAD_TIMEOUT (10 s)

    After a cancel, a lost connection or a crash the next call goes on where this one stopped. Of two processes that want the same file, one fetches
    and the other waits for it. Raises LeanVideoError, which never quotes a token, for everything the user can mend.
    """
    final = folder / known.filename
    if final.is_file():
        return final
    source = _ask_hub(known, endpoint, token)
    staging = folder / ".cache" / "lean_video"
    part = staging / f"{known.filename}.{source.sha256[:16]}.part"
    try:
        with _held(staging / f"{known.filename}.lock", waiting=lambda: progress(min(_size(part), source.bytes), source.bytes)):
            if not final.is_file():
                _require_space(known, folder, source.bytes - _size(part))
                _fetch(known, source, part, progress)
                _verify(known, source, part, progress)
                part.replace(final)
    except OSError as error:
        raise LeanVideoError(_unwritable(known, folder, error)) from error
    _tidy(staging, known)
    return final


@dataclass(frozen=True, repr=False)  # no repr: the headers hold the token
class _Source:
    url: str
    headers: dict[str, str]
    bytes: int
    sha256: str


def _ask_hub(known: KnownCheckpoint, endpoint: str | None, token: str | None) -> _Source:
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import HfHubHTTPError, OfflineModeIsEnabled, build_hf_headers
    except ImportError as error:
        raise LeanVideoError(f"Downloading {known.filename} needs huggingface_hub: install it, or put the file from {known.page} into the folder.") from error

    url = hf_hub_url(known.repo_id, known.filename, endpoint=endpoint)
    headers: dict[str, str] = {}
    try:
        headers = build_hf_headers(token=token, library_name="lean_video")
        metadata = get_hf_file_metadata(url, token=token, library_name="lean_video")
    except OfflineModeIsEnabled:
        raise LeanVideoError(f"{known.filename} was not downloaded because HF_HUB_OFFLINE is set: unset it, or put the file from {known.page} into the folder.") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        raise LeanVideoError(_refusal(known, status, has_token="authorization" in headers)) from None
    except Exception as error:  # the HTTP client's own classes, and the client differs between versions of huggingface_hub
        # The cause is cut off: clients quote a malformed header, which is the token, in their messages.
        raise LeanVideoError(
            f"{known.filename} was not downloaded: {urlsplit(url).netloc} could not be reached ({type(error).__name__}); check the network and try again."
        ) from None
    if metadata.size is None or not re.fullmatch(r"[0-9a-f]{64}", metadata.etag or ""):
        raise LeanVideoError(f"{known.filename} was not downloaded: {urlsplit(url).netloc} gave no size and SHA-256 for it, so it cannot be checked; use another HF_ENDPOINT.")
    return _Source(url, headers, metadata.size, metadata.etag or "")


def _fetch(known: KnownCheckpoint, source: _Source, part: Path, progress: Progress) -> None:
    """Completes `part`. A lost connection is taken up again a few times, starting the count anew whenever data came."""
    opener = urllib.request.build_opener(_TokenStaysHome(), urllib.request.HTTPSHandler(context=_tls()))
    attempts, why = 0, ""
    while (done := _size(part)) < source.bytes:
        if attempts == _ATTEMPTS:
            raise LeanVideoError(f"The download of {known.filename} was interrupted after {_gb(done)} of {_gb(source.bytes)} ({why}): choose it again to go on from there.")
        if attempts:
            _pause(_FIRST_PAUSE_S * 2 ** (attempts - 1), lambda done=done: progress(done, source.bytes))
        why = _receive(known, source, opener, part, done, progress)
        attempts = 1 if _size(part) > done else attempts + 1


def _receive(known: KnownCheckpoint, source: _Source, opener: urllib.request.OpenerDirector, part: Path, done: int, progress: Progress) -> str:
    """Appends to `part` what one request brings; returns why it ended."""
    from huggingface_hub import constants

    request = urllib.request.Request(source.url, headers=source.headers)
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = opener.open(request, timeout=float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink(missing_ok=True)
        elif error.code in (401, 403, 404) and _origin(error.url) == _origin(source.url):
            raise LeanVideoError(_refusal(known, error.code, "authorization" in source.headers)) from None
        return f"status {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return type(getattr(error, "reason", error)).__name__
    with response, part.open("ab") as file:
        if response.status != 206:  # the server knows no ranges
            done = 0
            file.truncate(0)
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-"):
            return "another range than asked for"
        told = -_REPORT_S
        while done < source.bytes:
            if time.monotonic() - told >= _REPORT_S:
                told = time.monotonic()
                progress(done, source.bytes)
            try:
                chunk = response.read1(min(_CHUNK, source.bytes - done))
            except (OSError, http.client.HTTPException) as error:
                return type(error).__name__
            if not chunk:
                return "connection closed"
            file.write(chunk)
            done += len(chunk)
        file.flush()
        os.fsync(file.fileno())  # a power cut after the rename must not leave a hollow file
    return "complete"


def _verify(known: KnownCheckpoint, source: _Source, part: Path, progress: Progress) -> None:
    """Reads the file back, so that what is on the disk is what was promised, however many processes and calls wrote it."""
    sha256 = hashlib.sha256()
    told = -_REPORT_S
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            if time.monotonic() - told >= _REPORT_S:
                told = time.monotonic()
                progress(source.bytes, source.bytes)
    if sha256.hexdigest() != source.sha256:
        part.unlink(missing_ok=True)
        raise LeanVideoError(f"The download of {known.filename} was thrown away because its SHA-256 is not the one the hub gives: choose it again to fetch it anew.")
    progress(source.bytes, source.bytes)


_ATTEMPTS = 5
_FIRST_PAUSE_S = 1.0
_REPORT_S = 0.1
_CHUNK = 1 << 20


class _TokenStaysHome(urllib.request.HTTPRedirectHandler):
    """Follows the hub to its CDN without the user's token."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(request.full_url) != _origin(req.full_url):
            request.remove_header("Authorization")
        return request


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # Pythons from python.org on macOS trust nobody on their own
        import certifi

        context.load_verify_locations(certifi.where())
    return context


@contextmanager
def _held(path: Path, waiting: Callable[[], None]) -> Generator[None]:
    """Holds the lock at `path`, calling `waiting` while another process does."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    lost = 0
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _pause(_REPORT_S, waiting)
        except FileNotFoundError:  # who was here before has just tidied the folder away
            if (lost := lost + 1) == 10:
                raise
        except NotImplementedError:  # a file system without locks: the checksum still tells
            break
        else:
            break
    try:
        yield
    finally:
        lock.release()


def _tidy(staging: Path, known: KnownCheckpoint) -> None:
    """Removes what is left of `known`. Safe beside a waiting process: whoever gets the lock now finds the finished file."""
    with suppress(OSError):
        for path in (*staging.glob(f"{known.filename}.*.part"), staging / f"{known.filename}.lock"):
            path.unlink(missing_ok=True)
        staging.rmdir()
        staging.parent.rmdir()


def _pause(seconds: float, meanwhile: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while True:
        meanwhile()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _REPORT_S))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _require_space(known: KnownCheckpoint, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise LeanVideoError(f"{known.filename} needs {_gb(need)} more and {folder} has {_gb(free)} free: make room and try again.")


def _unwritable(known: KnownCheckpoint, folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {folder} became full while {known.filename} was downloaded: make room and choose it again to go on."
    return f"{known.filename} could not be written to {folder} ({error.strerror or type(error).__name__}): check the folder's permissions."


def _refusal(known: KnownCheckpoint, status: int, has_token: bool) -> str:
    how = "make a token at https://huggingface.co/settings/tokens, give it with `hf auth login` (or HF_TOKEN)"
    if status in (401, 403) and known.gated and not has_token:
        return f"{known.filename} needs your own Hugging Face token: accept the licence at {known.page}, {how} and try again."
    if status in (401, 403) and known.gated:
        return f"Your Hugging Face token was refused for {known.filename}: accept the licence at {known.page} with the same account, or {how} and try again."
    if status in (401, 403) and has_token:
        return f"Your Hugging Face token was refused for {known.filename}: {how}, or log out, and try again."
    if status in (401, 403, 404):
        return f"{known.filename} was not found at {known.page}: put the file into the folder yourself."
    return f"{known.filename} was not downloaded: the hub answered with status {status}; try again later."


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"

"""A hub on this machine: the routes of the Hugging Face hub that a download touches, with the faults that a network has.

Two ports, as in life: the hub answers HEAD and GET of /{repo}/resolve/{revision}/{file} with the file's size and SHA-256 and a redirect to the CDN,
and the CDN serves the bytes, whole or from a Range. Give `endpoint` to `download`, or to another process as HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 64 * 1024


@dataclass
class Request:
    """What was asked, and how much of a body was sent in answer."""

    side: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    sent: int = 0


@dataclass
class HubServer:
    """A context manager. The attributes may be changed while it runs.

    files        (repo id, file name) -> content
    gated        repo id -> the token that opens it; any other is refused as the hub refuses it
    valid_tokens when not None, a request with any other token is answered 401 as for wrong credentials, in every repo
    renamed      old repo id -> the new one, to which the hub redirects
    hash_of      the SHA-256 the hub claims for a content
    drop_after   bytes of a body after which the CDN cuts the connection; None: never
    drops_left   how many connections are cut that way; None: all
    cdn_down     the CDN cuts every connection before it answers
    ranges       False: the CDN answers a Range with the whole file
    chunk_s      pause after each 64 KiB
    """

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    valid_tokens: set[str] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    hash_of: Callable[[bytes], str] = lambda content: hashlib.sha256(content).hexdigest()
    drop_after: int | None = None
    drops_left: int | None = None
    cdn_down: bool = False
    ranges: bool = True
    chunk_s: float = 0.0
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._lock = threading.Lock()
        self._servers = [self._serve("hub", self._hub), self._serve("cdn", self._cdn)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def bodies(self) -> list[Request]:
        """The CDN's GETs, in order of arrival."""
        with self._lock:
            return [request for request in self.requests if request.side == "cdn" and request.method == "GET"]

    def _serve(self, side: str, answer: Callable[[BaseHTTPRequestHandler, Request], None]) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                request = Request(side, handler.command, handler.path, {name.lower(): value for name, value in handler.headers.items()})
                with self._lock:
                    self.requests.append(request)
                with suppress(ConnectionError):
                    answer(handler, request)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def _hub(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.valid_tokens is not None and token and token not in self.valid_tokens:
            return _refuse(handler, 401, None, "Invalid credentials in Authorization header")
        repo, slash, rest = unquote(urlsplit(request.path).path).strip("/").partition("/resolve/")
        if repo in self.renamed:
            handler.send_response(307)
            handler.send_header("Location", f"/{self.renamed[repo]}/resolve/{rest}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        if not slash or not any(repo == known for known, _ in self.files):
            return _refuse(handler, 404 if token else 401, "RepoNotFound", "Repository not found")
        if repo in self.gated and token != self.gated[repo]:
            return _refuse(handler, 403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        name = rest.partition("/")[2]
        content = self.files.get((repo, name))
        if content is None:
            return _refuse(handler, 404, "EntryNotFound", "Entry not found")
        sha256 = self.hash_of(content)
        handler.send_response(302)
        for header, value in {
            "Location": f"{self.cdn}/{repo}/{name}?Signature=abc",
            "X-Repo-Commit": _COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{sha256}"',
            "ETag": f'"{sha256}"',
            "X-Xet-Hash": sha256,  # as nearly every large file has today
            "Link": f'<{self.endpoint}/api/models/{repo}/xet-read-token/{_COMMIT}>; rel="xet-auth"',
            "Accept-Ranges": "bytes",
            "Content-Length": "0",
        }.items():
            handler.send_header(header, value)
        handler.end_headers()

    def _cdn(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        handler.close_connection = True
        if self.cdn_down:
            return
        repo, _, name = unquote(urlsplit(request.path).path).strip("/").rpartition("/")
        content = self.files[repo, name]
        start = 0
        if self.ranges and "range" in request.headers:
            start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.send_header("Content-Length", "0")
                return handler.end_headers()
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        cut = self._cut()
        body = content[start:] if cut is None else content[start : start + cut]
        for at in range(0, len(body), _CHUNK):
            handler.wfile.write(body[at : at + _CHUNK])
            request.sent += len(body[at : at + _CHUNK])
            time.sleep(self.chunk_s)

    def _cut(self) -> int | None:
        with self._lock:
            if self.drop_after is None or self.drops_left == 0:
                return None
            if self.drops_left is not None:
                self.drops_left -= 1
            return self.drop_after


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str | None, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    handler.send_response(status)
    if code:
        handler.send_header("X-Error-Code", code)
    handler.send_header("X-Error-Message", message)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)

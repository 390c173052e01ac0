"""A Hub on 127.0.0.1 that speaks the protocol of huggingface_hub 2.4.0, and misbehaves on demand.

Addresses, headers and codes are those of its hf_api.py (`model_info`, `list_repo_tree`,
`list_repo_refs`), file_download.py (`get_hf_file_metadata`) and utils/_http.py
(`hf_raise_for_status`). Large files are redirected to a second port, as the Hub sends them to its
content delivery network.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE_BYTES = 10_000
_CHUNK_BYTES = 1 << 16
COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: instead of the file.
        headers: added to the answer, or instead of its own.
        cut_after: hang up after so many bytes of the body.
        body: instead of the file's bytes; the headers are the file's own.
        ignore_range: send the whole file whatever was asked.
        no_length: do not say how long it is; the end of the connection ends it.
        bytes_per_second: no faster than that.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut_after: int | None = None
    body: bytes | None = None
    ignore_range: bool = False
    no_length: bool = False
    bytes_per_second: int | None = None


@dataclass(kw_only=True)
class Repo:
    """A repository.

    Attributes:
        files: name -> bytes.
        commit: of the branch `main`.
        revisions: branches and tags.
        gated: who may not read it: "no token" or "everybody".
        listing: replaces what the API says of it.
        hides_metadata: the API lists names only, as some mirrors do.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: str | None = None
    listing: bytes | None = None
    hides_metadata: bool = False


@dataclass(kw_only=True)
class Request:
    """One request, and what was sent for it."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str
    n_bytes: int = 0


def git_hash(data: bytes) -> str:
    """Return git's name for a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class HubServer:
    """The Hub and its content delivery network, each on a port of its own."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        # Taken one at a time by the requests for the bytes of a file, and by those to the API ("").
        self.faults: dict[str, list[Fault]] = {}
        self.bad_token: str | None = None
        self.lock = threading.Lock()
        self._servers = [self._serve(), self._serve()]
        self.endpoint, self.cdn = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def __enter__(self) -> HubServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def n_bytes(self, name: str) -> int:
        """Return how many bytes of a file were sent, all requests together."""
        return sum(request.n_bytes for request in self.of(name))

    def of(self, name: str) -> list[Request]:
        """Return the requests that sent bytes of a file."""
        return [one for one in self.requests if one.n_bytes and unquote(one.path).endswith(name)]

    def fault(self, name: str) -> Fault:
        """Return what goes wrong with the next answer of this name."""
        with self.lock:
            waiting = self.faults.get(name, [])
            return waiting.pop(0) if waiting else Fault()

    def _serve(self) -> ThreadingHTTPServer:
        hub = self

        class Bound(_Handler):
            server_hub = hub

        server = _Server(("127.0.0.1", 0), Bound)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hangs up; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    request_log: Request

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_hub
        self.request_log = Request(
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            authorization=self.headers.get("Authorization"),
            host=f"http://{self.headers['Host']}",
        )
        with hub.lock:
            hub.requests.append(self.request_log)
        path = unquote(urlsplit(self.path).path)
        try:
            if path.startswith("/api/"):
                self._api(path)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(found[1], found[3])
            elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
                self._bytes(found[2], hub.repos[found[1]].files[found[2]], {})
            else:
                self._refuse(404, {})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _api(self, path: str) -> None:
        hub = self.server_hub
        fault = hub.fault("")
        if fault.status is not None:
            return self._refuse(fault.status, fault.headers)
        if path == "/api/models":
            author = parse_qs(urlsplit(self.path).query).get("author", [""])[0]
            names = [name for name in hub.repos if name.startswith(f"{author}/")]
            return self._json([{"id": name} for name in names])
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(refs|revision/(.+)|tree/(.+))", path)
        if found is None or not self._may_see(found[1]):
            return None
        repo = hub.repos[found[1]]
        if found[2] == "refs":
            return self._json({"branches": [{"name": name} for name in repo.revisions], "tags": []})
        revision = found[3] or found[4]
        if revision not in (*repo.revisions, repo.commit):
            return self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if repo.listing is not None:
            return self._send(200, {"Content-Type": "text/html"}, repo.listing)
        if found[4]:
            return self._json([_tree_entry(name, data) for name, data in repo.files.items()])
        files = [_sibling(name, data, repo) for name, data in repo.files.items()]
        return self._json({"id": found[1], "sha": repo.commit, "siblings": files})

    def _may_see(self, name: str) -> bool:
        hub = self.server_hub
        token = self.request_log.authorization
        if token is not None and token == f"Bearer {hub.bad_token}":
            message = "Invalid credentials in Authorization header"
            self._refuse(401, {"X-Error-Message": message})
            return False
        if name not in hub.repos:
            self._refuse(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _resolve(self, name: str, file: str) -> None:
        if not self._may_see(name):
            return
        hub = self.server_hub
        repo = hub.repos[name]
        token = self.request_log.authorization
        if repo.gated == "everybody" or (repo.gated and token is None):
            message = f"Access to model {name} is restricted."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            return self._refuse(403 if token else 401, headers)
        if file not in repo.files:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound"})
        data = repo.files[file]
        headers = {"X-Repo-Commit": repo.commit}
        if len(data) < LARGE_BYTES:
            return self._bytes(file, data, {**headers, "ETag": f'"{git_hash(data)}"'})
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{hub.cdn}/cdn/{name}/{file}",
        }
        waiting = hub.faults.get(file, [])
        if waiting and waiting[0].status is None:
            headers |= waiting[0].headers
        return self._send(302, headers, b"")

    def _bytes(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        fault = self.server_hub.fault(file) if self.command == "GET" else Fault()
        if fault.status is not None:
            return self._refuse(fault.status, fault.headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.request_log.range or "")
        start = int(asked[1]) if asked and not fault.ignore_range else 0
        body = (fault.body or data)[start:]
        headers = {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers |= fault.headers
        return self._send(206 if start else 200, headers, body, fault)

    def _json(self, document: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self._send(status, {"Content-Type": "text/plain", **headers}, b"refused")

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if name != "Content-Length" or not fault.no_length:
                self.send_header(name, value)
        if fault.no_length:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = body[: fault.cut_after] if fault.cut_after is not None else body
        for start in range(0, len(body), _CHUNK_BYTES):
            chunk = body[start : start + _CHUNK_BYTES]
            self.wfile.write(chunk)
            self.request_log.n_bytes += len(chunk)
            if fault.bytes_per_second:
                time.sleep(len(chunk) / fault.bytes_per_second)
        if fault.cut_after is not None:
            self.close_connection = True


def _sibling(name: str, data: bytes, repo: Repo) -> dict[str, object]:
    if repo.hides_metadata:
        return {"rfilename": name}
    sibling: dict[str, object] = {
        "rfilename": name,
        "size": len(data),
        "blobId": git_hash(data),
    }
    if len(data) >= LARGE_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
    return sibling


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": git_hash(data),
    }
    if len(data) >= LARGE_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def point_at(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Make huggingface_hub of this process ask `endpoint`; its variables are read at import."""
    from huggingface_hub import close_session, constants

    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    try:
        yield
    finally:
        close_session()

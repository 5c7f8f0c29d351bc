"""A hub of our own on a local port: enough of the Hugging Face HTTP interface for its real client to download from."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, each a mapping of path to content. ``cut_after`` breaks the next download off there."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.gated: set[str] = set()
        self.cut_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, path, asked))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(match[1], match[2], asked, body=body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/.*)?", path):
            self._listing(match[1], tree="/tree/" in path)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _missing(self, repo: str) -> bool:
        if repo in self.hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
            return True
        if repo not in self.hub.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def _listing(self, repo: str, *, tree: bool) -> None:
        if self._missing(repo):
            return
        files = self.hub.repositories[repo]
        if tree:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            self._send(200, json.dumps(rows).encode())
            return
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, json.dumps(info).encode())

    def _file(self, repo: str, name: str, asked: str | None, *, body: bool) -> None:
        if self._missing(repo):
            return
        data = self.hub.repositories[repo].get(name)
        if data is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first, _, last = (asked or "").removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or len(data) - 1) + 1, len(data))
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(206 if asked else 200, data[start:end], headers, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body or self.command == "HEAD":
            return
        cut = self.hub.cut_after
        if cut is not None and "/resolve/" in self.path:
            self.hub.cut_after = None
            self.wfile.write(data[:cut])
            self.close_connection = True
        else:
            self.wfile.write(data)


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve ``repositories`` on a free local port."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

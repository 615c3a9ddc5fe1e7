"""A file server that can be told to misbehave: one fault for each request of a path, in order, then it behaves."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What happens to one GET."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Body bytes after which the connection is closed."""
    delay: float = 0.0
    stall_after: int | None = None
    """Body bytes after which nothing comes for `delay` seconds."""
    corrupt: bool = False
    replace: bytes | None = None
    """The file is this from now on."""


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    if_range: str | None
    status: int
    time: float
    sent: int


class FaultyServer:
    """`files` by path; `faults[path]` is used up from its front by GET requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.ignore_range = self.ignore_if_range = self.no_validator = self.no_length = self.no_head = False
        self.slow: float = 0.0  # seconds for each 64 KiB
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                server.answer(self)

            def do_GET(self) -> None:
                server.answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path and request.method == "GET"]

    def _listing(self, folder: str) -> bytes | None:
        inside = [path[len(folder) :].partition("/") for path in self.files if path.startswith(folder)]
        below = sorted({name + slash for name, slash, _ in inside})
        rows = "".join(f'<a href="{name}">{name}</a>   2023-01-01 00:00    -   \n' for name in below)
        page = f'<html><head><title>Index of {folder}</title></head><body><pre><a href="../">Parent</a>\n{rows}</pre></body></html>'
        return page.encode() if below else None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, method = handler.path, handler.command
        queue = self.faults.get(path, [])
        fault = queue.pop(0) if queue and method == "GET" else Fault()
        if fault.replace is not None:
            self.files[path] = fault.replace
        body = self._listing(path) if path.endswith("/") else self.files.get(path)
        range_header, if_range = handler.headers.get("Range"), handler.headers.get("If-Range")
        request = Request(method, path, range_header, if_range, fault.status or (200 if body is not None else 404), time.monotonic(), 0)
        self.requests.append(request)
        if fault.delay and fault.stall_after is None:
            time.sleep(fault.delay)
        if method == "HEAD" and self.no_head:
            request.status, body = 405, b""
        if request.status >= 400 or body is None:
            handler.send_response(request.status)
            for name, value in fault.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, request, fault, body)

    def _send(self, handler: BaseHTTPRequestHandler, request: Request, fault: Fault, body: bytes) -> None:
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        fits = self.ignore_if_range or request.if_range in (None, etag)
        if request.range and fits and not self.ignore_range:
            start = int(request.range.removeprefix("bytes=").rstrip("-"))
            request.status = 206 if start < len(body) else 416
        handler.send_response(request.status)
        if request.status == 416:
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if request.status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if not self.no_validator:
            handler.send_header("ETag", etag)
            handler.send_header("Last-Modified", formatdate(1_600_000_000, usegmt=True))
        payload = bytearray(body[start:])
        if not self.no_length:
            handler.send_header("Content-Length", str(len(payload)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        if request.method == "HEAD":
            return
        if fault.corrupt:
            payload[len(payload) // 2] ^= 0xFF
        end = len(payload) if fault.drop_after is None else min(fault.drop_after, len(payload))
        try:
            while request.sent < end:
                stop = min(request.sent + (1 << 16), end)
                if fault.stall_after is not None and request.sent <= fault.stall_after < stop:
                    stop = fault.stall_after
                handler.wfile.write(payload[request.sent : stop])
                request.sent = stop
                time.sleep(self.slow)
                if fault.stall_after == stop:
                    handler.wfile.flush()
                    time.sleep(fault.delay)
                    fault.stall_after = None
        except OSError:
            pass  # the client has gone

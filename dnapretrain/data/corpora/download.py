"""Files from HTTP servers: resumed after any interruption, checked before they get their name, gentle to the server.

A file grows as `NAME.part` beside `NAME.part.json`, which holds the validator (ETag or Last-Modified) of the version
that is being fetched. It gets its name when all of it is there and its size, its checksum and its gzip members are
right; the record of how it was fetched is written just before. So a kill at any moment loses no finished bytes, and
a file with its name is whole.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from dnapretrain import __version__
from dnapretrain.data.corpora.fetched import DamagedError, Fetched, Wanted, check_gzip, digests, write_json
from dnapretrain.data.shards.writer import sync_folder
from dnapretrain.errors import DataError

READ_BYTES = 1 << 18
STEP_BYTES = 1 << 20
"""An attempt that brought so many new bytes makes the count of failures start again."""
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that a later attempt may change."""
LONGEST_WAIT = 120.0
LONGEST_RETRY_AFTER = 3600.0
DAMAGED_FETCHES = 2
"""Whole downloads with wrong content before the file is given up: each may be many gigabytes."""
TEXT_BYTES = 1 << 26

Result = TypeVar("Result")


class FetchError(DataError):
    """One file cannot be had; others may. `status` is that of HTTP, 0 where there is none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _AgainError(Exception):
    """A later attempt may succeed."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _RangeError(Exception):
    """HTTP 416, with the size that the server states (-1: none)."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total


@dataclass(frozen=True)
class Remote:
    """What a server says of a file, None where it says nothing."""

    size: int | None
    validator: str | None
    """A strong ETag or the Last-Modified date: what If-Range takes."""
    last_modified: str | None


class Downloader:
    """Fetches from any number of threads, which share the rate limit and the pauses that servers ask for.

    `max_rate` is in bytes per second. `retries` counts attempts in a row that brought less than 1 MiB.
    `timeout` (seconds) bounds the silence of a server, `backoff` (seconds) is the first wait; it doubles.
    """

    def __init__(
        self,
        max_rate: float | None = None,
        retries: int = 6,
        timeout: float = 60.0,
        backoff: float = 1.0,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max_rate, self._retries, self._timeout, self._backoff = max_rate, retries, timeout, backoff
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._rate_free_at = 0.0
        self._pause_until: dict[str, float] = {}

    def stop(self) -> None:
        """End all threads at their next read or wait: they raise InterruptedError. Parts are kept."""
        self._stopped.set()

    def check(self) -> None:
        """Raises InterruptedError after `stop`."""
        if self._stopped.is_set():
            raise InterruptedError("stopped")

    def text(self, url: str) -> str:
        """A small text file or folder listing. Raises FetchError."""

        def attempt() -> str:
            with self._open(url, {}) as response:
                data = self._guarded(lambda: response.read(TEXT_BYTES))
                size = _remote(response).size
            if size is not None and len(data) < min(size, TEXT_BYTES):  # a cut list of checksums would look like one without ours
                raise _AgainError(f"the connection ended after {len(data):,} of {size:,} bytes")
            if len(data) == TEXT_BYTES:
                raise FetchError(f"{url}: over {TEXT_BYTES:,} bytes, so not a folder listing or a list of checksums. Check the address")
            return data.decode("utf-8", "replace")

        return self._retried(url, attempt)

    def head(self, url: str) -> Remote:
        """What the server says of `url` before it is fetched. Raises FetchError where it has no such file."""

        def attempt() -> Remote:
            try:
                with self._open(url, {}, "HEAD") as response:
                    return _remote(response)
            except FetchError as error:
                if error.status in (405, 501):
                    return Remote(None, None, None)
                raise

        return self._retried(url, attempt)

    def fetch(self, wanted: Wanted) -> Fetched:
        """Fetch or finish one file. Raises FetchError where it cannot be had, DataError where it cannot be written."""
        part = wanted.path.with_name(wanted.path.name + ".part")
        damaged = 0

        def attempt() -> Fetched:
            nonlocal damaged
            remote = self._transfer(wanted, part)
            try:
                return self._finish(wanted, part, remote)
            except DamagedError as error:
                _forget(part)
                damaged += 1
                if damaged >= DAMAGED_FETCHES:
                    raise FetchError(
                        f"{wanted.url}: {error}, {damaged} times. Compare the checksum with the server's, or choose another mirror"
                    ) from None
                raise _AgainError(str(error)) from None

        try:
            wanted.path.parent.mkdir(parents=True, exist_ok=True)
            wanted.record.parent.mkdir(parents=True, exist_ok=True)
            return self._retried(wanted.url, attempt, lambda: _size(part))
        except OSError as error:
            if isinstance(error, InterruptedError):
                raise
            raise DataError(f"{wanted.path}: cannot be written: {error.strerror or error}. Free space or choose another --output") from None

    def adopt(self, wanted: Wanted) -> Fetched:
        """Take a whole file that somebody put at `wanted.path`, after the same checks. Raises FetchError."""
        try:
            return self._finish(wanted, wanted.path, Remote(None, None, None))
        except DamagedError as error:
            raise FetchError(f"{wanted.path}: {error}. Remove the file, and it will be fetched") from None

    def _retried(self, url: str, attempt: Callable[[], Result], have: Callable[[], int] = lambda: 0) -> Result:
        failures = 0
        while True:
            before = have()
            try:
                return attempt()
            except _AgainError as error:
                failures = 1 if have() - before >= STEP_BYTES else failures + 1
                if failures > self._retries:
                    kept = f" {have():,} bytes are kept." if have() else ""
                    raise FetchError(f"{url}: {error}, {failures} times in a row.{kept} Run the same command again later") from None
                wait = min(self._backoff * 2 ** (failures - 1), LONGEST_WAIT) * random.uniform(0.5, 1.5)
                self._sleep(max(wait, error.wait))

    def _open(self, url: str, headers: dict[str, str], method: str = "GET") -> Any:
        host = urllib.parse.urlsplit(url).netloc
        self._sleep(self._pause_until.get(host, 0.0) - time.monotonic())
        request = urllib.request.Request(url, headers={"User-Agent": f"dnapretrain/{__version__}", **headers}, method=method)
        try:
            return self._guarded(lambda: urllib.request.urlopen(request, timeout=self._timeout))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    raise _RangeError(_content_range(error.headers.get("Content-Range", ""))[1]) from None
                if error.code not in AGAIN:
                    raise FetchError(f"{url}: HTTP {error.code} {error.reason}", error.code) from None
                wait = _retry_after(error.headers.get("Retry-After"))
                if wait > LONGEST_RETRY_AFTER:
                    raise FetchError(f"{url}: HTTP {error.code}, and the server asks to wait {wait:,.0f} s. Run it again then") from None
                with self._lock:  # the other threads ask the same server
                    self._pause_until[host] = max(self._pause_until.get(host, 0.0), time.monotonic() + wait)
                raise _AgainError(f"HTTP {error.code} {error.reason}", wait) from None

    def _guarded(self, call: Callable[[], Result]) -> Result:
        """`call`, with failures of the network as _AgainError; HTTPError passes."""
        self.check()
        try:
            return call()
        except urllib.error.HTTPError:
            raise
        except (http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise FetchError(f"the server's certificate is not trusted here: {reason.verify_message}. Set SSL_CERT_FILE") from None
            raise _AgainError(f"no answer within {self._timeout:g} s" if isinstance(reason, TimeoutError) else str(reason)) from None

    def _transfer(self, wanted: Wanted, part: Path) -> Remote:
        """Append to `part` what is missing of the file; starts afresh where the file on the server is not the one begun."""
        validator = _part_validator(part, wanted.url)
        have = _size(part) if validator else 0
        headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
        try:
            response = self._open(wanted.url, headers)
        except _RangeError as error:
            if error.total == have:
                return Remote(have, validator, None)
            _forget(part)
            raise _AgainError("the file on the server has changed") from None
        with response:
            remote = _remote(response)
            if response.status == 206:
                start, total = _content_range(response.headers.get("Content-Range", ""))
                if start != have or validator not in (response.headers.get("ETag"), remote.last_modified):
                    _forget(part)  # a server that takes no notice of If-Range
                    raise _AgainError("the file on the server has changed")
                remote = Remote(total if total >= 0 else None, validator, remote.last_modified)
            else:
                _forget(part)
                have = 0
                _part_state(part).write_text(json.dumps({"url": wanted.url, "validator": remote.validator}))
            if wanted.size is not None and remote.size not in (None, wanted.size):
                raise FetchError(
                    f"{wanted.url}: {remote.size:,} bytes on the server, but {wanted.size:,} are expected. The file was replaced"
                )
            with part.open("ab", buffering=0) as file:
                while data := self._guarded(lambda: response.read1(READ_BYTES)):
                    file.write(data)
                    have += len(data)
                    self._on_bytes(len(data))
                    self._take_rate(len(data))
        if remote.size is not None and have != remote.size:
            raise _AgainError(f"the connection ended after {have:,} of {remote.size:,} bytes")
        return remote

    def _finish(self, wanted: Wanted, part: Path, remote: Remote) -> Fetched:
        """Check the whole file, make it durable, write its record and give it its name."""
        found = digests(part)
        for name in ("size", "md5", "sha256"):
            expected = getattr(wanted, name)
            if expected is not None and found[name] != expected:
                raise DamagedError(f"{name} is {found[name]}, expected {expected}")
        check_gzip(part, wanted.path.name)
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fetched = Fetched(
            url=wanted.url,
            file=wanted.path.name,
            checked_by=wanted.checked_by,
            **found,
            validator=remote.validator,
            last_modified=remote.last_modified,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            mtime_ns=part.stat().st_mtime_ns,
        )
        write_json(wanted.record, asdict(fetched))
        part.replace(wanted.path)
        sync_folder(wanted.path.parent)
        _part_state(part).unlink(missing_ok=True)
        return fetched

    def _take_rate(self, size: int) -> None:
        if self._max_rate is None:
            return
        with self._lock:
            self._rate_free_at = max(self._rate_free_at, time.monotonic()) + size / self._max_rate
            wait = self._rate_free_at - time.monotonic()
        self._sleep(wait)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0 and self._stopped.wait(seconds):
            raise InterruptedError("stopped")


def part_size(path: Path) -> int:
    """Bytes of `path` that an interrupted download has left, 0 where it can only start afresh."""
    part = path.with_name(path.name + ".part")
    return _size(part) if _part_validator(part) else 0


def _part_state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _part_validator(part: Path, url: str | None = None) -> str | None:
    """The version that `part` belongs to; None where that is not known, or where it comes from another address than `url`."""
    try:
        state = json.loads(_part_state(part).read_bytes())
        validator, begun = state["validator"], state["url"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return validator if isinstance(validator, str) and url in (None, begun) else None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)  # first: a state without a part is harmless, a part with another file's state is not
    _part_state(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _remote(response: Any) -> Remote:
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    length = response.headers.get("Content-Length", "")
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones
    return Remote(int(length) if length.isdecimal() else None, strong or modified, modified)


def _content_range(header: str) -> tuple[int, int]:
    """First byte and size of the whole file of a Content-Range, -1 where it states none."""
    match = re.fullmatch(r"\s*bytes\s+(?:(\d+)-\d+|\*)/(\d+|\*)\s*", header)
    if not match:
        return -1, -1
    first, total = match.groups()
    return int(first) if first else -1, int(total) if total != "*" else -1


def _retry_after(header: str | None) -> float:
    """Seconds; the header holds them or an HTTP date."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        date = email.utils.parsedate_to_datetime(header)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0

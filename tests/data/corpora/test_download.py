"""Downloads against a server that drops, delays, refuses, lies and corrupts: the file is right or it has no name."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest
from corpus_server import Fault, FaultyServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnapretrain.data.corpora.download import STEP_BYTES, Downloader, FetchError, part_size
from dnapretrain.data.corpora.fetched import Wanted, finished
from dnapretrain.errors import DataError

DATA = np.random.default_rng(3).integers(0, 256, 1_500_000, dtype=np.uint8).tobytes()
PATH = "/genome.bin"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    server.files[PATH] = DATA
    yield server
    server.close()


def wanted(server: FaultyServer, folder: Path, path: str = PATH, **checks: object) -> Wanted:
    return Wanted(server.url + path, folder / path.strip("/"), folder / "records" / "r.json", **checks)  # type: ignore[arg-type]


def client(**settings: object) -> Downloader:
    return Downloader(**{"retries": 3, "timeout": 5.0, "backoff": 0.01, **settings})  # type: ignore[arg-type]


def test_a_file_with_its_record(server, tmp_path):
    seen = []
    item = wanted(server, tmp_path, md5=md5(DATA).hexdigest(), size=len(DATA))
    fetched = client(on_bytes=seen.append).fetch(item)
    assert item.path.read_bytes() == DATA and sum(seen) == len(DATA)
    assert (fetched.size, fetched.md5, fetched.sha256) == (len(DATA), md5(DATA).hexdigest(), sha256(DATA).hexdigest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genome.bin", "records"]
    assert finished(item.record, tmp_path, None, None, None) == fetched
    assert finished(item.record, tmp_path, None, None, "0" * 64) is None


def test_a_changed_file_is_not_taken_for_finished(server, tmp_path):
    item = wanted(server, tmp_path)
    fetched = client().fetch(item)
    item.path.touch()
    assert finished(item.record, tmp_path, None, None, None) == fetched  # same bytes, read again
    item.path.write_bytes(DATA[:-1] + b"x")
    assert finished(item.record, tmp_path, None, None, None) is None


def test_dropped_connections_are_resumed_where_they_ended(server, tmp_path):
    server.faults[PATH] = [Fault(drop_after=200_000), Fault(drop_after=100_000)]
    client().fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA
    assert [request.range for request in server.gets(PATH)] == [None, "bytes=200000-", "bytes=300000-"]
    assert sum(request.sent for request in server.gets(PATH)) == len(DATA)


def test_failures_count_only_in_a_row(server, tmp_path):
    big = DATA * 4
    server.files[PATH] = big
    server.faults[PATH] = [Fault(drop_after=STEP_BYTES) for _ in range(4)]
    client(retries=1).fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == big
    server.faults[PATH] = [Fault(drop_after=10) for _ in range(2)]
    (tmp_path / "genome.bin").unlink()
    with pytest.raises(FetchError, match=r"ended after 20 of 6,000,000 bytes, 2 times in a row\. 20 bytes are kept"):
        client(retries=1).fetch(wanted(server, tmp_path))
    assert part_size(tmp_path / "genome.bin") == 20
    client(retries=0).fetch(wanted(server, tmp_path))
    assert server.gets(PATH)[-1].range == "bytes=20-"


def test_a_silent_server_is_given_up_and_asked_again(server, tmp_path):
    server.faults[PATH] = [Fault(delay=1.0), Fault(delay=1.0, stall_after=65_536)]
    client(timeout=0.2).fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA
    assert [request.range for request in server.gets(PATH)] == [None, None, "bytes=65536-"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_errors_are_asked_again(server, tmp_path, status):
    server.faults[PATH] = [Fault(status=status)]
    client().fetch(wanted(server, tmp_path))
    assert [request.status for request in server.gets(PATH)] == [status, 200]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_lasting_errors_are_not(server, tmp_path, status):
    server.faults[PATH] = [Fault(status=status)] * 9
    with pytest.raises(FetchError, match=rf"genome.bin: HTTP {status}") as error:
        client().fetch(wanted(server, tmp_path))
    assert error.value.status == status and len(server.gets(PATH)) == 1
    assert not (tmp_path / "genome.bin").exists()


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept_by_all_threads(server, tmp_path, as_date):
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if as_date else "1"
    server.faults[PATH] = [Fault(status=429, headers={"Retry-After": value})]
    server.files["/other"] = b"other"
    downloader = client()
    started = time.monotonic()
    import threading

    thread = threading.Thread(target=downloader.fetch, args=[wanted(server, tmp_path)])
    thread.start()
    while not server.gets(PATH):
        time.sleep(0.01)
    time.sleep(0.1)
    assert downloader.text(server.url + "/other") == "other"
    assert time.monotonic() - started >= 0.9
    thread.join()
    first, second = server.gets(PATH)
    assert second.time - first.time >= 0.9


def test_a_very_long_retry_after_is_an_error(server, tmp_path):
    server.faults[PATH] = [Fault(status=503, headers={"Retry-After": "86400"})]
    with pytest.raises(FetchError, match="asks to wait 86,400 s"):
        client().fetch(wanted(server, tmp_path))


def test_waits_grow_and_are_scattered(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(Downloader, "_sleep", lambda _, seconds: waits.append(seconds) if seconds > 0 else None)
    server.faults[PATH] = [Fault(status=500) for _ in range(6)]
    client(retries=6, backoff=1.0).fetch(wanted(server, tmp_path))
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits)) and len(set(waits)) == 6 == len(waits)


def test_a_file_that_changes_between_requests_starts_afresh(server, tmp_path):
    new = DATA[::-1]
    server.faults[PATH] = [Fault(drop_after=300_000), Fault(replace=new)]
    client().fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == new
    assert [request.status for request in server.gets(PATH)] == [200, 200]


def test_so_it_does_on_a_server_without_if_range(server, tmp_path):
    server.ignore_if_range = True
    server.faults[PATH] = [Fault(drop_after=300_000), Fault(replace=DATA[::-1])]
    client().fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA[::-1]
    assert [request.status for request in server.gets(PATH)] == [200, 206, 200]


@pytest.mark.parametrize("lack", ["ignore_range", "no_validator", "no_length"])
def test_servers_that_cannot_resume(server, tmp_path, lack):
    setattr(server, lack, True)
    drop = [] if lack == "no_length" else [Fault(drop_after=300_000)]
    server.faults[PATH] = drop
    client().fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA


def test_a_cut_without_length_is_found_by_the_checksum(server, tmp_path):
    server.no_length = True
    server.faults[PATH] = [Fault(drop_after=300_000)]
    client().fetch(wanted(server, tmp_path, md5=md5(DATA).hexdigest()))
    assert (tmp_path / "genome.bin").read_bytes() == DATA


def test_corruption_is_found_by_the_checksum(server, tmp_path):
    server.faults[PATH] = [Fault(corrupt=True)]
    item = wanted(server, tmp_path, sha256=sha256(DATA).hexdigest())
    client().fetch(item)
    assert item.path.read_bytes() == DATA
    item.path.unlink()
    server.faults[PATH] = [Fault(corrupt=True) for _ in range(9)]
    with pytest.raises(FetchError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}, 2 times"):
        client().fetch(item)
    assert not item.path.exists() and part_size(item.path) == 0


def test_corruption_is_found_by_gzip_where_there_is_no_checksum(server, tmp_path):
    packed = gzip.compress(DATA[:300_000], 1)
    server.files["/g.fna.gz"] = packed
    server.faults["/g.fna.gz"] = [Fault(corrupt=True)]
    client().fetch(wanted(server, tmp_path, "/g.fna.gz"))
    assert (tmp_path / "g.fna.gz").read_bytes() == packed
    server.files["/page.gz"] = b"<!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(FetchError, match="begins with b'<!DOCTYPE html>"):
        client().fetch(wanted(server, tmp_path, "/page.gz"))


def test_the_wrong_size_is_refused_before_the_download(server, tmp_path):
    server.slow = 0.05  # or all of it lies in the buffers of the socket before the client has read the headers
    with pytest.raises(FetchError, match="1,500,000 bytes on the server, but 7 are expected"):
        client().fetch(wanted(server, tmp_path, size=7))
    assert server.gets(PATH)[0].sent < len(DATA)


def test_a_complete_part_needs_its_name_only(server, tmp_path):
    server.faults[PATH] = [Fault(drop_after=1000)]
    with pytest.raises(FetchError):
        client(retries=0).fetch(wanted(server, tmp_path))
    (tmp_path / "genome.bin.part").write_bytes(DATA)  # killed between the last byte and the rename
    client(retries=0).fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA
    assert [request.status for request in server.gets(PATH)] == [200, 416]


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    server.faults[PATH] = [Fault(drop_after=1000)]
    with pytest.raises(FetchError):
        client(retries=0).fetch(wanted(server, tmp_path))
    (tmp_path / "genome.bin.part").write_bytes(DATA + b"x")
    client(retries=1).fetch(wanted(server, tmp_path))
    assert (tmp_path / "genome.bin").read_bytes() == DATA


def test_a_cut_text_is_asked_again(server, tmp_path):
    server.files["/md5checksums.txt"] = b"0123456789 ./x\n" * 1000
    server.faults["/md5checksums.txt"] = [Fault(drop_after=5000)]
    assert client().text(server.url + "/md5checksums.txt") == "0123456789 ./x\n" * 1000


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.files["/mirror"] = DATA[::-1]
    server.faults[PATH] = [Fault(drop_after=1000)]
    with pytest.raises(FetchError):
        client(retries=0).fetch(wanted(server, tmp_path))
    item = Wanted(server.url + "/mirror", tmp_path / "genome.bin", tmp_path / "r.json")
    client(retries=0).fetch(item)
    assert item.path.read_bytes() == DATA[::-1] and server.gets("/mirror")[0].range is None


def test_the_rate_is_limited_over_all_threads(server, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    for name in "abc":
        server.files[f"/{name}"] = DATA[:400_000]
    downloader = client(max_rate=2e6)
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: downloader.fetch(wanted(server, tmp_path / name, f"/{name}")), "abc"))
    assert time.monotonic() - started >= 0.5


def test_adopted_files_are_checked(server, tmp_path):
    item = wanted(server, tmp_path, md5=md5(DATA).hexdigest())
    item.record.parent.mkdir()
    item.path.write_bytes(DATA)
    assert client().adopt(item).sha256 == sha256(DATA).hexdigest() and not server.requests
    item.path.write_bytes(DATA[:-1])
    with pytest.raises(FetchError, match=r"md5 is .* Remove the file"):
        client().adopt(item)


def test_no_server_and_no_folder(tmp_path):
    item = Wanted("http://127.0.0.1:1/x", tmp_path / "x", tmp_path / "r.json")
    with pytest.raises(FetchError, match="refused, 2 times in a row"):
        client(retries=1).fetch(item)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        client().fetch(Wanted("http://127.0.0.1:1/x", tmp_path / "file" / "x", tmp_path / "r.json"))


CHILD = """
import sys
from pathlib import Path
from dnapretrain.data.corpora.download import Downloader
from dnapretrain.data.corpora.fetched import Wanted
Downloader(backoff=0.01).fetch(Wanted(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[2] + ".record")))
"""


def test_kill_in_the_middle_and_resume(server, tmp_path):
    server.slow = 0.03
    path = tmp_path / "genome.bin"
    kept = []
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.url + PATH, str(path)])
        wish = (kept[-1] if kept else 0) + 200_000
        while part_size(path) < wish:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept.append(part_size(path))
        assert not path.exists()
    server.slow = 0
    client().fetch(wanted(server, tmp_path))
    assert path.read_bytes() == DATA
    assert server.gets(PATH)[1].range == f"bytes={kept[0]}-" and server.gets(PATH)[2].range == f"bytes={kept[1]}-"


def test_stop_ends_threads_and_keeps_the_part(server, tmp_path):
    server.slow = 0.05
    downloader = client(on_bytes=lambda _: downloader.stop())
    with pytest.raises(InterruptedError):
        downloader.fetch(wanted(server, tmp_path))
    assert 0 < part_size(tmp_path / "genome.bin") < len(DATA)


faults = st.one_of(
    st.builds(Fault, status=st.sampled_from([429, 500, 503])),
    st.builds(Fault, drop_after=st.integers(0, 50_000)),
    st.builds(Fault, corrupt=st.just(True), drop_after=st.integers(0, 20_000)),
    st.builds(Fault, replace=st.integers(1, 60_000).map(lambda size: DATA[size : 2 * size])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queue=st.lists(faults, max_size=8), ignore=st.sampled_from(["", "ignore_range", "ignore_if_range", "no_validator"]))
def test_any_order_of_faults_ends_in_the_file_of_the_server(server, tmp_path, queue, ignore):
    """The checksum is that of what the server holds at the end: nothing else may get the name."""
    for flag in ("ignore_range", "ignore_if_range", "no_validator"):
        setattr(server, flag, flag == ignore)
    server.files[PATH] = DATA[:60_000]
    final = next((fault.replace for fault in reversed(queue) if fault.replace is not None), DATA[:60_000])
    server.faults[PATH] = list(queue)
    item = wanted(server, tmp_path, md5=md5(final).hexdigest())
    item.path.unlink(missing_ok=True)
    for _ in range(12):
        try:
            client(retries=20, backoff=1e-4).fetch(item)
            break
        except FetchError as error:
            assert "md5" in str(error)  # an older version, whole: refused, and asked again
    assert item.path.read_bytes() == final
    assert json.loads(item.record.read_bytes())["md5"] == md5(final).hexdigest()

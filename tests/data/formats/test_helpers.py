"""Reading ahead and inflating side by side give what one thread gives: bytes, order, errors."""

from __future__ import annotations

import gzip
import random
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import sequence_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.data.formats import blocks, compression
from dnapretrain.data.formats.compression import BGZF_END
from dnapretrain.data.formats.fasta import CutPolicy, FastaFile
from dnapretrain.data.formats.helpers import Helpers, Task
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.errors import DataError


def bgzf_block(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(packed) + 25)
    return head + packed + struct.pack("<II", zlib.crc32(data), len(data))


def bgzf(data: bytes, size: int = 65_000) -> bytes:
    return b"".join(bgzf_block(data[at : at + size]) for at in range(0, len(data), size)) + BGZF_END


def read(path: Path, workers: int) -> tuple[bytes, int, str] | str:
    try:
        with Helpers(workers) as helpers, helpers.slots:
            file = FastaFile(path, CutPolicy(), helpers=helpers)
            return b"".join(block.bases.tobytes() for block in file.blocks()), file.bytes_read, file.xxh3_128
    except DataError as error:
        return str(error)


def text_of(num_bases: int, seed: int = 0) -> bytes:
    bases = np.frombuffer(b"ACGTacgt", np.uint8)[np.random.default_rng(seed).integers(0, 8, num_bases)].tobytes().decode()
    return files.fasta([("a", bases), ("b", bases[::-1])])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd", "xz", "bzip2", "bgzf", "small bgzf"])
def test_any_number_of_helpers_reads_the_same(tmp_path, packing, workers):
    text = text_of(600_000)
    pack = {**files.PACKINGS, "bgzf": bgzf, "small bgzf": lambda data: bgzf(data, 701)}[packing]
    (tmp_path / "x").write_bytes(pack(text))
    (tmp_path / "plain").write_bytes(text)
    found = read(tmp_path / "x", workers)
    assert found[0] == read(tmp_path / "plain", 1)[0]
    assert found[1] == (tmp_path / "x").stat().st_size
    assert found == read(tmp_path / "x", 1)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.sampled_from([1, 50, 3000, 65_000]), block=st.sampled_from([100, 5000, 1 << 20]))
def test_damaged_bgzf_is_the_same_for_all_and_never_passes(tmp_path_factory, data, size, block):
    """Cut anywhere, a byte changed anywhere, blocks left out or doubled at the end: gzip of the standard library is the judge."""
    path = tmp_path_factory.mktemp("bgzf") / "x"
    text = text_of(4000 if size < 100 else 100_000)
    packed = bytearray(bgzf(text[: 400 * size], size))
    how = data.draw(st.sampled_from(["cut", "flip", "member", "junk", "none"]))
    at = data.draw(st.integers(0, len(packed) - 1))
    if how == "cut":
        packed = packed[:at] + BGZF_END
    elif how == "flip":
        packed[at] ^= data.draw(st.integers(1, 255))
    elif how == "member":  # plain gzip among the blocks
        packed = packed[: -len(BGZF_END)] + gzip.compress(b"ACGT\n" * 30_000) + BGZF_END
    elif how == "junk":
        packed = packed[: -len(BGZF_END)] + b"junk" + BGZF_END
    path.write_bytes(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dnapretrain.data.formats.inputs.BLOCK_BYTES", block)
        found = read(path, 3)
        assert found == read(path, 1)
    try:
        expected = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        assert isinstance(found, str)
        return
    (path.parent / "plain").write_bytes(expected)
    plain = read(path.parent / "plain", 1)
    if not isinstance(found, str):
        assert found[0] == plain[0]
    elif not isinstance(plain, str):  # what gzip lets pass in a header
        assert "gzip file is" in found


@pytest.mark.parametrize("packing", ["plain", "gzip", "bgzf"])
def test_errors_name_the_same_place(tmp_path, packing):
    text = text_of(3_000_000) + b">bad\n" + b"ACGT\n" * 7 + b"ACXT\n" + text_of(2_000_000, 1)
    (tmp_path / "x").write_bytes({**files.PACKINGS, "bgzf": bgzf}[packing](text))
    line = text[: text.index(b"X")].count(b"\n") + 1
    for workers in (1, 2, 4):
        assert f"x: line {line}, record 'bad': 'X' is not a nucleotide code" in read(tmp_path / "x", workers)
    with pytest.raises(DataError, match=f"line {line}, record 'bad'"):
        preprocess([tmp_path / "x"], tmp_path / "s", workers=3)
    assert not list(tmp_path.glob("*s*.*"))


def test_bgzf_is_inflated_by_several_threads(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bgzf(text_of(4_000_000)))
    threads, inflate = set(), blocks._inflate

    def slow_inflate(group: bytes, size: int) -> memoryview:
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        return inflate(group, size)

    monkeypatch.setattr(blocks, "_inflate", slow_inflate)
    read(tmp_path / "x", 3)
    assert 2 <= len(threads) <= 3  # the third may come late on a busy machine


class Stream:
    """Gives a text in uneven portions, now and then slowly; an error after it where `fails`."""

    def __init__(self, text: bytes, seed: int, fails: bool) -> None:
        self._text, self._at, self._draw, self._fails = text, 0, random.Random(seed), fails
        self._reading = threading.Lock()

    def readinto(self, buffer: memoryview) -> int:
        assert self._reading.acquire(blocking=False), "two threads read at the same time"
        try:
            if self._draw.random() < 0.05:
                time.sleep(0.002)
            size = min(self._draw.randint(1, 40), len(buffer), len(self._text) - self._at)
            if not size and self._fails:
                raise compression.PackedError("cut")
            buffer[:size] = self._text[self._at : self._at + size]
            self._at += size
            return size
        finally:
            self._reading.release()


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
@pytest.mark.parametrize("fails", [False, True])
def test_streams_read_ahead_give_their_bytes_in_order(workers, fails):
    """Many streams at once share the helpers; some are left in the middle."""
    num_read = threading.Semaphore(0)

    def read_one(helpers: Helpers, seed: int) -> None:
        draw = random.Random(seed)
        text = draw.randbytes(draw.choice([0, 1, 64, 65, 640, 5000]))
        ahead = blocks._StreamBlocks(Stream(text, seed, fails), 64, helpers)
        found, until = b"", draw.choice([None, None, 3])
        with helpers.slots:
            try:
                for number, block in enumerate(ahead):
                    found += bytes(block)
                    if draw.random() < 0.1:
                        time.sleep(0.001)
                    if number == until:
                        break
                else:
                    assert not fails
                    assert found == text
            except compression.PackedError:
                assert fails
                assert found == text
            finally:
                ahead.close()
        assert text.startswith(found)
        num_read.release()

    with Helpers(workers) as helpers:
        for first in range(0, 40, 4):
            readers = [threading.Thread(target=read_one, args=(helpers, seed)) for seed in range(first, first + min(workers, 4))]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(60)
                assert not reader.is_alive()
                assert num_read.acquire(blocking=False)


def test_a_task_is_done_once_whoever_does_it():
    for workers in (1, 2, 4):
        calls: list[int] = []
        with Helpers(workers) as helpers, helpers.slots:
            tasks = [helpers.start(lambda number=number, calls=calls: calls.append(number) or number) for number in range(1000)]
            for number, task in enumerate(tasks):
                if number % 3:
                    assert task.result() == number
                else:
                    task.abandon()
        assert len(calls) == len(set(calls)) >= 666


def test_errors_of_a_task_reach_who_asks():
    with Helpers(2) as helpers, pytest.raises(ZeroDivisionError):
        helpers.start(lambda: 1 // 0).result()
    task = Task(lambda: 1 // 0)
    task.abandon()


def test_no_more_threads_work_than_workers():
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    with Helpers(3) as helpers:

        def reader() -> None:
            with helpers.slots:
                for _ in range(20):
                    ahead = [helpers.start(work) for _ in range(4)]
                    for task in ahead:
                        task.result()

        readers = [threading.Thread(target=reader) for _ in range(3)]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
    assert 2 <= most <= 3

"""Runs that are killed and started again: finished inputs are kept, and the bytes are those of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_preprocess import shard_bytes, write_fasta

from dnapretrain.data.shards import assemble
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.progress import Progress, progress_line
from dnapretrain.data.shards.shard import verify_shard
from dnapretrain.errors import DataError

STOPPED = """
import os, signal, sys
from dnapretrain.data.shards import assemble, journal, preprocess
assemble.SCANNED_AHEAD = 0
assemble.PART_MEMORY = 25_000  # some of what is scanned before its turn is in memory, some in files
left, add = int(sys.argv[1]), journal.Journal.add
def add_and_die(self, piece):
    global left
    add(self, piece)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.add = add_and_die
preprocess.preprocess(sys.argv[4:], sys.argv[3], workers=int(sys.argv[2]))
"""

RUN = """
import sys
from dnapretrain.data.shards import assemble, preprocess
assemble.SCANNED_AHEAD = 0
print(flush=True)
preprocess.preprocess(sys.argv[3:], sys.argv[2], workers=int(sys.argv[1]))
"""


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    return [
        write_fasta(tmp_path / "in" / name, seed, 5_000 * (seed + 1)) for seed, name in enumerate(["b.fa", "a.fa.gz", "d.fa", "c.fa.gz"])
    ]


def stop_after(pieces: int, inputs: list[Path], output: Path, workers: int = 1) -> None:
    """A run that is killed when so many lines are in the journal."""
    command = [sys.executable, "-c", STOPPED, str(pieces), str(workers), str(output), *map(str, inputs)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the inputs that are read from now on."""
    names: list[str] = []
    scan = assemble.scan
    monkeypatch.setattr(assemble, "scan", lambda source, *rest: (names.append(source.path.name), scan(source, *rest))[1])
    return names


@pytest.mark.parametrize("first_workers", [1, 3])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_finished_inputs_are_not_read_again(tmp_path, inputs, monkeypatch, capsys, pieces, workers, first_workers):
    preprocess(inputs, tmp_path / "expected")
    stop_after(pieces, inputs, tmp_path / "s", first_workers)
    finished = {json.loads(line)["source"]["assembly"] for line in (tmp_path / ".s.dnapretrain-tmp" / "journal").open()}
    assert not list(tmp_path.glob("s.*"))
    names = scanned(monkeypatch)
    seen = []
    preprocess(inputs, tmp_path / "s", workers=workers, progress=seen.append)
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")
    assert sorted(names) == sorted(path.name for path in inputs if path.name.partition(".")[0] not in finished)
    assert f"goes on where an earlier run was stopped: {len(finished)} of 4 input(s) are finished already" in capsys.readouterr().err
    assert seen[-1].bytes_read == seen[-1].bytes_total == sum(path.stat().st_size for path in inputs)
    assert seen[0].kept_bytes == sum(path.stat().st_size for path in inputs if path.name not in names)
    assert not list(tmp_path.glob(".s*"))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("change", "again", "said"),
    [
        ("settings", {"b.fa", "a.fa.gz", "d.fa", "c.fa.gz"}, "3 were read with other settings"),
        ("touched", {"b.fa", "c.fa.gz"}, "1 have changed since"),
        ("grown", {"a.fa.gz", "c.fa.gz"}, "1 have changed since"),
        ("order", {"c.fa.gz"}, None),
        ("left out", set(), "2 are no inputs of this run"),
        ("damaged", {"a.fa.gz", "c.fa.gz"}, "1 are damaged or cut"),
        ("cut", {"d.fa", "c.fa.gz"}, "1 are damaged or cut"),
        ("torn", {"d.fa", "c.fa.gz"}, None),
        ("restart", {"b.fa", "a.fa.gz", "d.fa", "c.fa.gz"}, None),
    ],
)
def test_what_is_not_the_same_is_read_again(tmp_path, inputs, monkeypatch, capsys, change, again, said, workers):
    stop_after(3, inputs, tmp_path / "s")
    staging = tmp_path / ".s.dnapretrain-tmp"
    options = {}
    if change == "settings":
        options["min_n_run"] = 3
    elif change == "touched":
        os.utime(inputs[0], ns=(0, 0))
    elif change == "grown":
        write_fasta(inputs[1], 77, 9_000)
    elif change == "order":
        inputs.reverse()
    elif change == "left out":
        inputs = [inputs[1]]
    elif change == "damaged":
        data = bytearray((staging / "bin").read_bytes())
        data[10_200] ^= 2  # in the second piece
        (staging / "bin").write_bytes(data)
    elif change == "cut":
        os.truncate(staging / "bed", (staging / "bed").stat().st_size - 1)
    elif change == "torn":
        os.truncate(staging / "journal", (staging / "journal").stat().st_size - 3)
    else:
        options["restart"] = True
    names = scanned(monkeypatch)
    preprocess(inputs, tmp_path / "s", workers=workers, **options)
    err = capsys.readouterr().err
    options.pop("restart", None)
    assert set(names) == again
    assert said is None or said in err
    preprocess(inputs, tmp_path / "expected", **options)
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_was_finished_outlives_ctrl_c_and_a_full_disk(tmp_path, inputs, monkeypatch, capsys, error):
    def full(source, *rest):
        if source.path == inputs[2]:
            raise error
        return scan(source, *rest)

    scan = assemble.scan
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DataError)):
        patch.setattr(assemble, "scan", full)
        preprocess(inputs, tmp_path / "s")
    assert f"finished inputs are kept in {tmp_path / '.s.dnapretrain-tmp'}" in capsys.readouterr().err
    names = scanned(monkeypatch)
    preprocess(inputs, tmp_path / "s")
    assert names == ["d.fa", "c.fa.gz"]
    preprocess(inputs, tmp_path / "expected")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")


def test_a_refused_input_costs_nothing_of_the_others(tmp_path, inputs, monkeypatch, capsys):
    good = inputs[2].read_bytes()
    inputs[2].write_bytes(b">a\nMKLV\n")
    with pytest.raises(DataError, match=r"d\.fa: line 2"):
        preprocess(inputs, tmp_path / "s")
    assert "finished inputs are kept" in capsys.readouterr().err
    assert not list(tmp_path.glob("s.*"))
    inputs[2].write_bytes(good)
    names = scanned(monkeypatch)
    preprocess(inputs, tmp_path / "s")
    assert names == ["d.fa", "c.fa.gz"]
    preprocess(inputs, tmp_path / "expected")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")


def test_selection_and_skipped_inputs_are_resumed(tmp_path, inputs):
    (tmp_path / "lower.fa").write_bytes(b">l\n" + b"acgt" * 3000 + b"\n")
    (tmp_path / "bad.fa").write_bytes(b">x\nACGT\nMKLV\n")
    inputs = [tmp_path / "lower.fa", tmp_path / "bad.fa", *inputs]
    options = {"on_error": "skip", "max_n_fraction": 0.5, "min_length": 3}
    preprocess(inputs, tmp_path / "expected", **options)
    code = STOPPED.replace("workers=int(sys.argv[2])", f"workers=int(sys.argv[2]), **{options}")
    command = [sys.executable, "-c", code, "2", "1", str(tmp_path / "s"), *map(str, inputs)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    preprocess(inputs, tmp_path / "s", **options)
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_killed_at_any_moment(tmp_path, workers):
    """12 kills for each worker count, at random moments of real runs; what was left is never taken for a shard."""
    inputs = [write_fasta(tmp_path / f"i{number}.fa{'.gz' * (number % 2)}", number, 1_500_000) for number in range(8)]
    preprocess(inputs, tmp_path / "expected")
    expected = shard_bytes(tmp_path / "expected")
    command = [sys.executable, "-c", RUN, str(workers), str(tmp_path / "s"), *map(str, inputs)]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    longest = time.monotonic() - started
    draw, kills = random.Random(workers), 0
    while kills < 12:
        for path in tmp_path.glob("s.*"):
            path.unlink()
        while True:
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            process.stdout.readline()  # imports are done
            try:
                process.wait(draw.uniform(0, longest / 2))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
            if (tmp_path / "s.json").exists():  # killed while it cleaned up
                verify_shard(tmp_path / "s")
                break
        assert shard_bytes(tmp_path / "s") == expected
        if (tmp_path / ".s.dnapretrain-tmp").exists():
            preprocess(inputs, tmp_path / "s", overwrite=True)
            assert shard_bytes(tmp_path / "s") == expected
    assert not list(tmp_path.glob(".s*"))


def test_time_left_comes_from_what_this_run_did():
    line = progress_line(Progress(bytes_read=700, bytes_total=1000, bases=9_000_000, kept_bytes=600, kept_bases=5_000_000), 20.0)
    assert line == " 70.0 % of 1,000 bytes, 9,000,000 bases, 0 Mbases/s, 0:01:00 left"
    assert "left" not in progress_line(Progress(600, 1000, 5, 600, 5), 20.0)

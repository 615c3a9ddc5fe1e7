"""FASTA files to shards: same bytes whatever the workers, nothing half-written, every error one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dnapretrain.data.shards import assemble
from dnapretrain.data.shards.assemble import copy_piece
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.scan import Piece
from dnapretrain.data.shards.shard import open_shard, verify_shard
from dnapretrain.data.shards.staged import STAGED_KINDS, PartFiles, Room, StagedFiles
from dnapretrain.errors import ConfigError, DataError

KINDS = ("bin", "idx", "bed", "json")


def write_fasta(path: Path, seed: int, num_bases: int = 20_000) -> Path:
    bases = np.frombuffer(b"ACGTacgtACGTacgtN", np.uint8)[np.random.default_rng(seed).integers(0, 17, num_bases)].copy()
    bases[1000:1100] = ord("N")
    rows = b"\n".join(bases[start : start + 60].tobytes() for start in range(0, num_bases, 60))
    text = b">c1\n" + rows + b"\n>empty\n>c2\n" + rows[::-1] + b"\n"
    path.write_bytes(gzip.compress(text, 1, mtime=0) if path.suffix == ".gz" else text)
    return path


def shard_bytes(prefix: Path) -> dict[str, bytes]:
    return {kind: Path(f"{prefix}.{kind}").read_bytes() for kind in KINDS}


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    names = ["b.fa", "a.fna.gz", "d.fasta", "c.ffn.gz", "e.fa"]
    folder = tmp_path / "in"
    folder.mkdir()
    return [write_fasta(folder / name, seed, 5_000 * (seed + 1)) for seed, name in enumerate(names)]


def test_same_bytes_for_any_worker_count(tmp_path, inputs):
    first = preprocess(inputs, tmp_path / "one", workers=1)
    assert preprocess(inputs, tmp_path / "three", workers=3) == first
    preprocess(inputs, tmp_path / "nine", workers=9)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "three") == shard_bytes(tmp_path / "nine")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in", *(f"{name}.{kind}" for name in ("one", "three", "nine") for kind in KINDS)]
    )


@pytest.mark.parametrize("memory", [0, 30_000, 1 << 26])
@pytest.mark.parametrize("options", [{}, {"max_n_fraction": 0.5}])
def test_same_bytes_wherever_parts_are_kept(tmp_path, inputs, monkeypatch, memory, options):
    (tmp_path / "in" / "low.fa").write_text(">l\n" + "acgt" * 4000 + "\n")  # rewritten in upper case
    inputs = [inputs[0], tmp_path / "in" / "low.fa", *inputs[1:]]
    preprocess(inputs, tmp_path / "one", **options)
    monkeypatch.setattr(assemble, "PART_MEMORY", memory)
    kinds = []
    move = assemble.Assembler._move
    monkeypatch.setattr(
        assemble.Assembler, "_move", lambda self, piece, part, files: (kinds.append(part.in_memory), move(self, piece, part, files))[1]
    )
    for attempt in range(3):
        preprocess(inputs, tmp_path / "four", workers=4, overwrite=attempt > 0, **options)
        assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "four")
    assert kinds
    assert set(kinds) == {memory > 0} or memory == 30_000


@pytest.mark.parametrize(
    ("names", "workers", "width"),
    [
        (["a.fa", "b.fa.gz", "c.fa"], 1, 1),
        (["a.fa", "b.fa.gz", "c.fa"], 2, 1),  # one unpacks, one scans
        (["a.fa", "b.fa.gz", "c.fa"], 4, 2),
        (["a.fa", "b.fa.gz", "c.fa"], 16, 3),
        (["a.fa", "b.fa.xz"], 2, 2),  # nobody can help
        (["a.fa.bz2", "b.fa", "c.fa"], 2, 2),
    ],
)
def test_inputs_scanned_at_the_same_time(tmp_path, monkeypatch, names, workers, width):
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".fa": bytes}
    for name in names:
        (tmp_path / name).write_bytes(pack[Path(name).suffix](b">x\n" + b"ACGT" * 9 + b"\n"))
    widths = []
    monkeypatch.setattr(assemble, "ThreadPoolExecutor", lambda width: (widths.append(width), ThreadPoolExecutor(width))[1])
    preprocess([tmp_path / name for name in names], tmp_path / "s", workers=workers)
    monkeypatch.setattr(assemble, "SCANNED_AHEAD", 1_000)
    preprocess([tmp_path / name for name in names], tmp_path / "t", workers=workers)
    assert widths == [width, 1]


@pytest.mark.parametrize("turn", [True, False, None])
def test_a_part_leaves_the_memory(tmp_path, turn):
    """To the shard where its turn has come, else to files; None: it stays. Either way the shard holds the same in the end."""
    room = Room(1_000 if turn is not None else 10_000)
    with StagedFiles(tmp_path) as shard, PartFiles(tmp_path, "part-1", room, shard, lambda: bool(turn)) as part:
        for writer in shard.all:
            writer.write(b"before")
        part.begin()
        for block in (b"A" * 600, b"C" * 600, b"G" * 10):
            part.make_room(len(block))
            part.bases.write(block)
            part.lines.write(b"line\n")
        assert part.in_memory == (turn is None)
        assert part.stem == ("" if turn else "part-1")
        assert (tmp_path / "part-1.bin").exists() == (turn is False)
        with part.bases.reader() as file:
            assert file.read().endswith(b"A" * 600 + b"C" * 600 + b"G" * 10)
        for writer in part.all:
            writer.flush()
        places = {kind: writer.section() for kind, writer in zip(STAGED_KINDS, part.all, strict=True)}
        piece = Piece({}, 0, part.stem, places, {})
        if turn is None:
            places = part.move_to(shard)
        elif not turn:
            places = copy_piece(tmp_path, piece, shard).places
        assert room.take(1_000)  # all of it was given back
    assert (tmp_path / "bin").read_bytes() == b"before" + b"A" * 600 + b"C" * 600 + b"G" * 10
    assert (tmp_path / "bed").read_bytes() == b"before" + b"line\n" * 3
    assert {kind: place[:2] for kind, place in places.items()} == {"bin": (6, 1210), "bed": (6, 15), "lengths": (6, 0)}
    assert places["bin"][2] == xxhash.xxh3_128_hexdigest(b"A" * 600 + b"C" * 600 + b"G" * 10)


def test_a_part_that_is_taken_back(tmp_path):
    """An input left out, in each of the three places."""
    for turn in (True, False, None):
        folder = tmp_path / str(turn)
        folder.mkdir()
        room = Room(100 if turn is not None else 10_000)
        with StagedFiles(folder) as shard, PartFiles(folder, "part-1", room, shard, lambda turn=turn: bool(turn)) as part:
            shard.bases.write(b"before")
            part.begin()
            part.make_room(600)
            part.bases.write(b"A" * 600)
            part.take_back()
            shard.bases.write(b"after")
            assert room.take(100)
        assert (folder / "bin").read_bytes() == b"beforeafter"


def test_manifest(tmp_path, inputs):
    manifest = preprocess(inputs, tmp_path / "s", min_n_run=20, min_length=5, sha256=True)
    assert manifest == json.loads((tmp_path / "s.json").read_text())
    shard = open_shard(tmp_path / "s")
    assert [source["assembly"] for source in manifest["sources"]] == ["b", "a", "d", "c", "e"]
    assert [source["path"] for source in manifest["sources"]] == [str(path) for path in inputs]
    for source, path in zip(manifest["sources"], inputs, strict=True):
        data = path.read_bytes()
        assert (source["size"], source["xxh3_128"]) == (len(data), xxhash.xxh3_128_hexdigest(data))
        assert len(source["sha256"]) == 64
    counts = manifest["counts"]
    assert counts["records"] == 15
    assert counts["empty_records"] == 5
    assert counts["documents"] == len(shard.lengths)
    assert counts["kept_bases"] == len(shard.bases)
    assert counts["total_bases"] == 2 * sum(5_000 * (seed + 1) for seed in range(5))
    assert counts["total_bases"] == counts["kept_bases"] + sum(counts["dropped_bases"].values())
    assert counts["dropped_bases"]["n_run"] >= 10 * 100
    assert counts["lower_case"] == int(((shard.bases & 0x20) != 0).sum())
    assert counts["n"] == int(((shard.bases & 0xDF) == ord("N")).sum())
    for key in ("records", "total_bases", "n"):
        assert counts[key] == sum(source["counts"][key] for source in manifest["sources"])
    assert manifest["cleaning"]["min_n_run"] == 20
    assert manifest["longest_document"] == shard.lengths.max()
    assert manifest["shortest_document"] == shard.lengths.min()
    assert manifest["files"]["bin"]["xxh3_128"] == xxhash.xxh3_128_hexdigest((tmp_path / "s.bin").read_bytes())
    verify_shard(tmp_path / "s")


def test_documents_lie_at_their_coordinates(tmp_path):
    path = write_fasta(tmp_path / "g.fa", 7)
    records = {part.split(b"\n", 1)[0].decode(): part.split(b"\n", 1)[1].replace(b"\n", b"") for part in path.read_bytes().split(b">")[1:]}
    preprocess([path], tmp_path / "s")
    shard = open_shard(tmp_path / "s")
    where = shard.coordinates
    for number, contig in enumerate(where.contig):
        document = shard.bases[shard.offsets[number] :][: shard.lengths[number]].tobytes()
        assert document == records[contig][where.start[number] : where.end[number]]


def test_folder_is_read_in_order_of_names(tmp_path, inputs):
    (tmp_path / "in" / "notes.txt").write_text("no FASTA")
    manifest = preprocess([tmp_path / "in"], tmp_path / "s")
    assert [source["assembly"] for source in manifest["sources"]] == ["a", "b", "c", "d", "e"]


def test_assembly_name_is_given(tmp_path):
    preprocess([write_fasta(tmp_path / "x.fa", 1)], tmp_path / "s", assembly="GRCh38")
    assert set(open_shard(tmp_path / "s").coordinates.assembly) == {"GRCh38"}


def test_existing_output_is_kept_without_overwrite(tmp_path):
    first, second = write_fasta(tmp_path / "x.fa", 1), write_fasta(tmp_path / "y.fa", 2)
    preprocess([first], tmp_path / "s")
    before = shard_bytes(tmp_path / "s")
    with pytest.raises(DataError, match=r"exists already.*--overwrite"):
        preprocess([second], tmp_path / "s")
    assert shard_bytes(tmp_path / "s") == before
    preprocess([second], tmp_path / "s", overwrite=True)
    assert open_shard(tmp_path / "s").manifest["sources"][0]["assembly"] == "y"


def test_foreign_files_are_kept_without_overwrite(tmp_path):
    (tmp_path / "s.bin").write_bytes(b"someone's tokens")
    with pytest.raises(DataError, match=r"s\.bin exists already"):
        preprocess([write_fasta(tmp_path / "x.fa", 1)], tmp_path / "s")
    assert (tmp_path / "s.bin").read_bytes() == b"someone's tokens"


@pytest.mark.parametrize("workers", [1, 3])
def test_error_keeps_the_old_shard_and_leaves_nothing_where_nothing_was_finished(tmp_path, inputs, workers):
    preprocess(inputs[:1], tmp_path / "s")
    before = shard_bytes(tmp_path / "s")
    (tmp_path / "in" / "bad.fa").write_bytes(b">p\nACGT\nMKLV\n")
    with pytest.raises(DataError, match=r"bad\.fa: line 3, record 'p'"):
        preprocess([*inputs[:3], tmp_path / "in" / "bad.fa", *inputs[3:]], tmp_path / "s", workers=workers, overwrite=True)
    assert shard_bytes(tmp_path / "s") == before
    preprocess(inputs, tmp_path / "s", overwrite=True)
    with pytest.raises(DataError, match=r"bad\.fa"):
        preprocess([tmp_path / "in" / "bad.fa", *inputs], tmp_path / "t")
    with pytest.raises(DataError, match="nothing is left"):
        preprocess(inputs, tmp_path / "u", workers=workers, min_length=1_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", *sorted(f"s.{kind}" for kind in KINDS)]


KILLED = """
import os, sys, time
from pathlib import Path
from dnapretrain.data.shards import preprocess as module, writer
if sys.argv[2] == "scan":
    def wait(progress):
        print("ready", flush=True); time.sleep(60)
    module.preprocess([sys.argv[1]], sys.argv[3], progress=wait)
else:  # after so many renames
    left, replace = int(sys.argv[2]), Path.replace
    def replace_then_wait(path, target):
        global left
        if left == 0:
            print("ready", flush=True); time.sleep(60)
        left -= 1
        return replace(path, target)
    Path.replace = replace_then_wait
    module.preprocess([sys.argv[1]], sys.argv[3])
"""


@pytest.mark.parametrize("when", ["scan", "0", "1", "2", "3"])
def test_killed_run_leaves_no_manifest_and_the_next_succeeds(tmp_path, when):
    path = write_fasta(tmp_path / "x.fa", 1)
    preprocess([path], tmp_path / "expected")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), when, str(tmp_path / "s")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(DataError, match="another run is writing this shard"):
        preprocess([path], tmp_path / "s")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "s.json").exists()
    with pytest.raises(DataError):
        open_shard(tmp_path / "s")
    preprocess([path], tmp_path / "s")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "expected")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def make_cases(tmp_path: Path) -> dict[str, tuple[list[Path], str]]:
    good = write_fasta(tmp_path / "good.fa", 1, 2000)
    (tmp_path / "empty.fa").write_bytes(b"")
    (tmp_path / "empty.fa.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "no_folder").mkdir()
    (tmp_path / "n.fa").write_bytes(b">n\n" + b"N" * 50 + b"\n")
    (tmp_path / "other").mkdir()
    write_fasta(tmp_path / "other" / "good.fna.gz", 2, 2000)
    (tmp_path / "a:b.fa").write_bytes(b">n\nACGT\n")
    os.mkfifo(tmp_path / "pipe.fa")
    return {
        "missing": ([tmp_path / "none.fa"], "none.fa: no such file or folder"),
        "no input": ([], "no input"),
        "empty folder": ([tmp_path / "no_folder"], "no_folder: no FASTA files"),
        "empty file": ([tmp_path / "empty.fa"], "empty.fa: line 1: the file is empty"),
        "empty gzip": ([tmp_path / "empty.fa.gz"], "empty.fa.gz: line 1: the file is empty"),
        "nothing left": ([tmp_path / "n.fa"], "nothing is left of 1 input(s): of 50 bases, 50 lie in N runs and 0 in documents"),
        "same assembly": ([good, tmp_path / "other" / "good.fna.gz"], "good.fna.gz: assembly 'good' is the name of"),
        "same file twice": ([good, good], "good.fa: assembly 'good' is the name of"),
        "colon": ([tmp_path / "a:b.fa"], "assembly name 'a:b' holds ':'"),
        "pipe": ([tmp_path / "pipe.fa"], "pipe.fa: not a regular file"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "no input",
        "empty folder",
        "empty file",
        "empty gzip",
        "nothing left",
        "same assembly",
        "same file twice",
        "colon",
        "pipe",
    ],
)
def test_input_errors(tmp_path, case):
    paths, message = make_cases(tmp_path)[case]
    with pytest.raises(DataError) as caught:
        preprocess(paths, tmp_path / "s")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("s.", "."))]


def test_output_errors(tmp_path):
    path = write_fasta(tmp_path / "x.fa", 1, 2000)
    with pytest.raises(DataError, match="a folder, not a prefix"):
        preprocess([path], tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        preprocess([path], path / "below_a_file" / "s")
    preprocess([path], tmp_path / "new" / "folder" / "s")
    assert open_shard(tmp_path / "new" / "folder" / "s")


@pytest.mark.parametrize("setting", [{"workers": 0}, {"min_n_run": 0}, {"min_length": 0}, {"min_length": 2_000_000_000}])
def test_setting_errors(tmp_path, setting):
    with pytest.raises(ConfigError, match="--"):
        preprocess([write_fasta(tmp_path / "x.fa", 1, 2000)], tmp_path / "s", **setting)


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_reaches_the_total(tmp_path, inputs, workers):
    seen = []
    manifest = preprocess(inputs, tmp_path / "s", workers=workers, progress=seen.append)
    assert seen[-1].bytes_read == seen[-1].bytes_total == sum(path.stat().st_size for path in inputs)
    assert seen[-1].bases == manifest["counts"]["kept_bases"]


def test_starts_fast_without_torch_or_pydantic():
    code = (
        "import sys, time, dnapretrain.data.shards.preprocess, dnapretrain.data.look.inspect; "
        "print(time.process_time() < 1, [name for name in ('torch', 'pydantic', 'megatron', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True []"

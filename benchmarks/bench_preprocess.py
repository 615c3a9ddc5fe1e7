"""FASTA to shards beside what the machine can do and what others do: CPU seconds, wall seconds of two workers, peak memory.

    python benchmarks/bench_preprocess.py                 all parts, about 10 minutes and 8 GB of disk
    python benchmarks/bench_preprocess.py --parts plain gzip --mbases 200 --rounds 3

Synthetic sequence, page cache warm. What is compared takes turns in every round, the first round is not counted, medians are
printed. Commands run as processes of their own; the CPU time of the same command on a FASTA of 100 bases (start-up) is
subtracted. Parts: plain, gzip, builder, megatron, workers, memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

LINE = 60
CONTIGS = 20
PREPROCESS = [sys.executable, "-m", "dnapretrain", "preprocess"]
SMALL_FILES, SMALL_BASES = 1_500, 60_000
MEGATRON_BASES = 4_000_000
"""The slow rivals get a part of the file: they are linear in it."""


def write_fasta(path: Path, num_bases: int, contigs: int = CONTIGS) -> int:
    """Contigs with soft-masked parts and 4 % N in runs; returns the number of bases."""
    rng = np.random.default_rng(0)
    rows = num_bases // contigs // LINE
    at_once = 1_000_000
    with path.open("wb") as file:
        for contig in range(contigs):
            file.write(b">contig%d\n" % contig)
            for first in range(0, rows, at_once):
                here = min(at_once, rows - first)
                bases = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, here * LINE, dtype=np.uint8)]
                for start in range(0, len(bases), 10_000):
                    bases[start : start + 4_500] |= 0x20
                bases[: len(bases) // 25] = ord("N")
                text = np.full((here, LINE + 1), ord("\n"), np.uint8)
                text[:, :LINE] = bases.reshape(here, LINE)
                file.write(text.tobytes())
    return rows * LINE * contigs


def write_bgzf(plain: Path, packed: Path) -> None:
    """BGZF, as bgzip writes it: gzip members of 65,280 bytes that carry their own size."""
    with plain.open("rb") as source, packed.open("wb") as out:
        while True:
            data = source.read(65_280)
            squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
            body = squeeze.compress(data) + squeeze.flush()
            out.write(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + (len(body) + 25).to_bytes(2, "little"))
            out.write(body + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little"))
            if not data:
                return


def run(command: list[str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in MB of a command and its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {said}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start, usage.ru_maxrss / 1e3


def in_turns(paths: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each returns, in seconds; without the first round."""
    seconds: dict[str, list[float]] = {what: [] for what in paths}
    for number in range(rounds + 1):
        for what, measured in paths.items():
            value = measured()
            if number:
                seconds[what].append(value)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    for what, values in seconds.items():
        print(f"    {what}: {statistics.median(values):.3f} s (median of {len(values)}, {min(values):.3f}-{max(values):.3f})")
    return {what: statistics.median(values) for what, values in seconds.items()}


def in_process(function: Callable[[], object]) -> Callable[[], float]:
    def measured() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return measured


class Bench:
    """The files of one run of this script, and its parts."""

    def __init__(self, folder: Path, num_bases: int, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.plain = folder / "plain.fa"
        self.num_bases = write_fasta(self.plain, num_bases)
        (folder / "start.fa").write_text(">a\n" + "ACGT" * 25 + "\n")
        print(f"{self.num_bases:,} bases in {CONTIGS} contigs, {self.plain.stat().st_size:,} bytes")

    def ours(self, inputs: list[Path], *options: str) -> tuple[float, float, float]:
        prefix = self.folder / "out"
        return run([*PREPROCESS, *map(str, inputs), "--output", str(prefix), "--overwrite", *options])

    def start_up(self) -> float:
        return self.ours([self.folder / "start.fa"])[0]

    def digest(self) -> None:
        state = xxhash.xxh3_128()
        with self.plain.open("rb", buffering=0) as file:
            while data := file.read(1 << 20):
                state.update(data)

    def part_plain(self) -> None:
        """The limit: `cp` of the file and the digest of its content."""
        found = medians(
            in_turns(
                {
                    "start-up": self.start_up,
                    "preprocess, plain": lambda: self.ours([self.plain])[0],
                    "cp": lambda: run(["cp", str(self.plain), str(self.folder / "copy")])[0],
                    "XXH3-128 of the file": in_process(self.digest),
                },
                self.rounds,
            )
        )
        (self.folder / "copy").unlink()
        work = found["preprocess, plain"] - found["start-up"]
        limit = found["cp"] + found["XXH3-128 of the file"]
        print(f"plain: {self.num_bases / work / 1e6:,.0f} Mbases per CPU-second; {work / limit:.2f} x cp and digest")

    def part_gzip(self) -> None:
        """The limit: `igzip -dc` and the plain path."""
        packed = self.folder / "packed.fa.gz"
        with self.plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as out:
            shutil.copyfileobj(source, out, 1 << 20)
        program = shutil.which("igzip")
        inflate = [program, "-dc", str(packed)] if program else [sys.executable, "-m", "isal.igzip", "-dc", str(packed)]
        found = medians(
            in_turns(
                {
                    "start-up": self.start_up,
                    "preprocess, plain": lambda: self.ours([self.plain])[0],
                    "preprocess, gzip -6": lambda: self.ours([packed])[0],
                    f"{'igzip' if program else 'python -m isal.igzip'} -dc": lambda: run(inflate)[0],
                },
                self.rounds,
            )
        )
        start, plain, ours, igzip = found.values()
        rate, ratio = self.num_bases / (ours - start) / 1e6, (ours - start) / (igzip + plain - start)
        print(f"gzip: {rate:,.0f} Mbases per CPU-second; {ratio:.2f} x igzip -dc and the plain path")

    def part_builder(self) -> None:
        """The strong rival: a numpy table and Megatron-core's builder, in this process, imports left out."""
        from dnapretrain.data.shards.preprocess import preprocess

        found = medians(
            in_turns(
                {
                    "preprocess, in this process": in_process(lambda: preprocess([self.plain], self.folder / "out", overwrite=True)),
                    "numpy table + IndexedDatasetBuilder": in_process(lambda: numpy_and_builder(self.plain, self.folder / "megatron")),
                },
                self.rounds,
            )
        )
        ours, theirs = found.values()
        print(f"numpy and IndexedDatasetBuilder take {theirs / ours:.1f} times our CPU time")

    def part_megatron(self) -> None:
        """What Megatron's preprocess_data.py does with each line of JSONL, byte by byte or by a Hugging Face tokenizer of characters."""
        from dnapretrain.data.shards.preprocess import preprocess

        small = self.folder / "small.fa"
        num_bases = write_fasta(small, MEGATRON_BASES, 4)
        lines = self.folder / "small.jsonl"
        with lines.open("w") as out:
            for record in small.read_text().split(">")[1:]:
                text = record.partition("\n")[2].replace("\n", "")
                out.writelines(json.dumps({"text": text[start : start + 100_000]}) + "\n" for start in range(0, len(text), 100_000))
        characters = character_tokenizer()
        found = medians(
            in_turns(
                {
                    "preprocess, all bases": in_process(lambda: preprocess([self.plain], self.folder / "out", overwrite=True)),
                    "byte level": in_process(lambda: json_lines(lines, self.folder / "m", lambda text: list(text.encode()))),
                    "Hugging Face characters": in_process(
                        lambda: json_lines(lines, self.folder / "m", lambda text: characters(text, add_special_tokens=False).input_ids)
                    ),
                },
                min(self.rounds, 3),
            )
        )
        ours = self.num_bases / found.pop("preprocess, all bases") / 1e6
        for what, seconds in found.items():
            theirs = num_bases / seconds / 1e6
            print(f"Megatron's way, {what}: {theirs:.2f} Mbases per CPU-second, ours {ours:,.0f}: {ours / theirs:,.0f} times that")

    def part_workers(self) -> None:
        """Wall seconds of one and of two workers, on four files, on many small ones and on one file of BGZF; and of two processes."""
        parts = []
        for number in range(4):
            parts.append(self.folder / f"part{number}.fa.gz")
            write_fasta(self.folder / "part.fa", self.num_bases // 4)
            with (self.folder / "part.fa").open("rb") as source, gzip.open(parts[-1], "wb", compresslevel=6) as out:
                shutil.copyfileobj(source, out, 1 << 20)
        write_fasta(self.folder / "small.fa", SMALL_BASES, 1)
        packed = gzip.compress((self.folder / "small.fa").read_bytes(), 6)
        small = self.folder / "small"
        small.mkdir()
        for number in range(SMALL_FILES):
            (small / f"s{number}.fa.gz").write_bytes(packed)
        write_bgzf(self.plain, self.folder / "one.fa.bgz")
        for what, inputs in (
            ("four gzip files", parts),
            (f"{SMALL_FILES:,} gzip files of {SMALL_BASES:,} bases", [small]),
            ("one BGZF file", [self.folder / "one.fa.bgz"]),
        ):
            paths = {
                f"{what}, {count} worker(s)": lambda inputs=inputs, count=count: self.ours(inputs, "--workers", str(count))[1]
                for count in (1, 2)
            }
            if inputs is parts:
                paths["two processes of one worker, two files each"] = lambda: self.two_processes(parts)
            found = medians(in_turns({"start-up": lambda: self.ours([self.folder / "start.fa"])[1], **paths}, self.rounds))
            start, one, two, *processes = found.values()
            print(f"{what}: two workers are {(one - start) / (two - start):.2f} times as fast as one")
            for alone in processes:
                print(f"{what}: two processes, which share nothing but the machine, {(one - start) / (alone - start):.2f} times")

    def two_processes(self, parts: list[Path]) -> float:
        """Wall seconds until both are done."""
        start = time.perf_counter()
        running = [
            subprocess.Popen(
                [*PREPROCESS, *map(str, half), "--output", str(self.folder / f"half{number}"), "--overwrite"], stdout=subprocess.DEVNULL
            )
            for number, half in enumerate((parts[:2], parts[2:]))
        ]
        if any(process.wait() for process in running):
            raise SystemExit("preprocess failed")
        return time.perf_counter() - start

    def part_memory(self) -> None:
        """Peak memory with one contig of 2 Gbases, and with ten million contigs."""
        long, many = self.folder / "long.fa", self.folder / "many.fa"
        num_bases = write_fasta(long, 2_000_000_000, 1)
        print(f"one contig of {num_bases:,} bases: {self.ours([long])[2]:,.0f} MB at most")
        long.unlink()
        bases = b"ACGTTGCA" * 5
        with many.open("wb") as out:
            for first in range(0, 10_000_000, 100_000):
                out.write(b"".join(b">c%d\n%s\n" % (number, bases) for number in range(first, first + 100_000)))
        cpu, _, memory = self.ours([many])
        print(f"10,000,000 contigs of {len(bases)} bases: {memory:,.0f} MB at most, {cpu:.1f} CPU-seconds")


def numpy_and_builder(fasta: Path, prefix: Path) -> None:
    """What a short script does: whole file in memory, a table look-up for each contig, no checks, no N runs."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    table = np.full(256, 255, np.uint8)
    for code in b"ACGTNacgtn":
        table[code] = code
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint8)
    for record in fasta.read_bytes().split(b">")[1:]:
        mapped = table[np.frombuffer(record, np.uint8, offset=record.index(b"\n"))]
        bases = mapped[mapped != 255]
        builder.add_document(torch.from_numpy(bases), [len(bases)])
    builder.finalize(f"{prefix}.idx")


def json_lines(lines: Path, prefix: Path, tokenize: Callable[[str], list[int]]) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint8)
    with lines.open() as file:
        for line in file:
            ids = tokenize(json.loads(line)["text"])
            builder.add_document(torch.tensor(ids, dtype=torch.int32), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def character_tokenizer() -> Callable[..., object]:
    """One token per character, built as the usual fast tokenizer is."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({chr(code): code for code in range(256)}, unk_token="\0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="\0")


PARTS = {name.removeprefix("part_"): method for name, method in vars(Bench).items() if name.startswith("part_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        bench = Bench(Path(name), arguments.mbases * 1_000_000, arguments.rounds)
        for part in arguments.parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()

"""FASTA to shards: CPU seconds per base of `preprocess` beside numpy and Megatron's IndexedDatasetBuilder.

Prints a row for BENCHMARKS.md. Both run in this process, in turns, on the same synthetic file (page cache
warm); the first round is not counted. Start-up (imports) is left out, which favours the other path.

    python benchmarks/bench_preprocess.py --mbases 100 --rounds 5
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

LINE = 60
CONTIGS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbases", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bases = write_fasta(folder / "plain.fa", arguments.mbases * 1_000_000)
        with gzip.open(folder / "packed.fa.gz", "wb", compresslevel=6) as packed:
            packed.write((folder / "plain.fa").read_bytes())
        paths: dict[str, Callable[[], None]] = {
            "dnapretrain preprocess, plain": lambda: ours(folder / "plain.fa", folder / "ours"),
            "dnapretrain preprocess, gzip -6": lambda: ours(folder / "packed.fa.gz", folder / "ours_gzip"),
            "numpy table + megatron IndexedDatasetBuilder, plain": lambda: numpy_and_megatron(folder / "plain.fa", folder / "megatron"),
        }
        seconds = measure(paths, arguments.rounds)
    row = "; ".join(
        f"{what}: {num_bases / 1e6 / statistics.median(values):,.0f} Mbases/CPU-s (median of {len(values)}, "
        f"{min(values):.3f}-{max(values):.3f} CPU s)"
        for what, values in seconds.items()
    )
    command = f"python benchmarks/bench_preprocess.py --mbases {arguments.mbases} --rounds {arguments.rounds}"
    print(f"| {datetime.date.today()} | FASTA to shards, {num_bases:,} bases | {hardware()} | {commit()} | `{command}` | {row} |")


def write_fasta(path: Path, num_bases: int) -> int:
    """Contigs with soft-masked halves and 4 % N in runs; returns the number of bases."""
    rng = np.random.default_rng(0)
    rows = num_bases // CONTIGS // LINE
    with path.open("wb") as file:
        for contig in range(CONTIGS):
            bases = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, rows * LINE)]
            for start in range(0, len(bases), 10_000):
                bases[start : start + 4_500] |= 0x20
            bases[: len(bases) // 25] = ord("N")
            text = np.full((rows, LINE + 1), ord("\n"), np.uint8)
            text[:, :LINE] = bases.reshape(rows, LINE)
            file.write(b">contig%d\n" % contig + text.tobytes())
    return rows * LINE * CONTIGS


def ours(fasta: Path, prefix: Path) -> None:
    from dnapretrain.data.shards.preprocess import preprocess

    preprocess([fasta], prefix, overwrite=True)


def numpy_and_megatron(fasta: Path, prefix: Path) -> None:
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


def measure(paths: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {what: [] for what in paths}
    for number in range(rounds + 1):
        for what, run in paths.items():
            start = time.process_time()
            run()
            if number:
                seconds[what].append(time.process_time() - start)
    return seconds


def hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"1 thread of {model}"


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no git"


if __name__ == "__main__":
    main()

"""Speed of batches and of sample look-ups on random bases: one thread, page cache warm, medians.

    python benchmarks/bench_samples.py [--bases 200_000_000]

A row gives bases read per second, and the bytes of tokens, labels and loss mask written per second. Each row of the causal
objective has one of the masked objective beside it; the two take turns, so that a busy machine slows both. Last come shards on disk,
ASCII and 2 bits per base in turns (CPU time of the thread): soft-masked bases as the human genome has them, half of them in runs of 300.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dnapretrain._core import SampleIndex
from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.data.shards.encode import convert_shard
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import Shard, open_shard, shard_file
from dnapretrain.data.tokens.bpe import train_bpe
from dnapretrain.data.tokens.tokenizers import build_tokenizer

BATCH = 32


def median_seconds(function: Callable[[int], Any], rounds: int = 15) -> float:
    return median_seconds_in_turns([function], rounds)[0]


def median_seconds_in_turns(
    functions: Sequence[Callable[[int], Any]], rounds: int = 15, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = clock()
            function(number)
            times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


def random_shard(bases: int, documents: int) -> Any:
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"ACGTacgtACGTACGN", np.uint8)[rng.integers(0, 16, bases, dtype=np.uint8)]
    lengths = np.full(documents, bases // documents, np.int64)
    return SimpleNamespace(prefix=Path("random"), lengths=lengths, offsets=np.cumsum(lengths) - lengths, bases=text, digest="random")


def bench_batches(bases: int) -> None:
    for documents in (10, bases // 3000):
        shard = random_shard(bases, documents)
        for kind, sampling in (("nucleotide", "windows"), ("nucleotide", "packed"), ("kmer", "windows"), ("kmer", "packed")):
            tokenizer = build_tokenizer(TokenizerConfig(kind=kind, k=6))
            settings: dict[str, Any] = {"train": "random", "sequence_length": 8192, "sampling": sampling, "reverse_complement": 0.5}
            settings["random_phase"] = kind == "kmer"
            sources = [Source(shard, whole_documents(shard))]
            objectives = ("causal", {}), ("masked", {"mlm_probability": 0.15})
            streams = [SampleStream("train", sources, DataConfig(**settings, masking=masking), tokenizer) for _, masking in objectives]
            seconds_per_objective = median_seconds_in_turns(
                [lambda number, stream=stream: stream.batch(np.arange(number * BATCH, (number + 1) * BATCH)) for stream in streams]
            )
            for (objective, _), stream, seconds in zip(objectives, streams, seconds_per_objective, strict=True):
                used = float((stream.batch(np.arange(BATCH)).labels > 4).mean()) * BATCH * 8192 * tokenizer.bases_per_token
                written = BATCH * 8192 * 20
                print(
                    f"{kind:10} {sampling:8} {objective} {documents:6} documents: {used / seconds / 1e6:8.0f} Mbase/s "
                    f"{written / seconds / 1e9:6.2f} GB/s written {seconds / BATCH * 1e6:7.2f} us/sample"
                )


def soft_masked(bases: int) -> np.ndarray:
    """Random letters, half of them lower case in runs of 300 on average, and an N in every 100,000."""
    rng = np.random.default_rng(1)
    text = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, bases, dtype=np.uint8)]
    borders = np.zeros(bases, np.uint8)
    borders[rng.integers(0, bases, bases // 300)] = 1
    text |= (np.bitwise_xor.accumulate(borders) << 5).astype(np.uint8)
    text[rng.integers(0, bases, bases // 100_000)] = ord("N")
    return text


def write_shards(folder: Path, name: str, text: np.ndarray) -> dict[str, Shard]:
    with (folder / f"{name}.fa").open("wb") as file:
        for number, part in enumerate(np.array_split(text, 10)):
            file.write(b">%d\n%b\n" % (number, part.tobytes()))
    ascii_prefix, packed_prefix = folder / f"{name}-ascii", folder / f"{name}-2bit"
    preprocess([folder / f"{name}.fa"], ascii_prefix)
    (folder / f"{name}.fa").unlink()
    start = time.perf_counter()
    convert_shard(ascii_prefix, packed_prefix, "2bit")
    seconds = time.perf_counter() - start
    sizes = [shard_file(ascii_prefix, "bin"), shard_file(packed_prefix, "bin"), shard_file(packed_prefix, "exceptions")]
    plain, packed, exceptions = (path.stat().st_size for path in sizes)
    print(
        f"{name}: {plain:,} bytes of ASCII, {packed:,} packed + {exceptions:,} of exceptions, {plain / (packed + exceptions):.2f} times "
        f"less; packed at {plain / seconds / 1e6:.0f} Mbase/s"
    )
    return {"ascii": open_shard(ascii_prefix), "2bit": open_shard(packed_prefix)}


def bench_encodings(bases: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soft = write_shards(folder, "soft-masked", soft_masked(bases))
        worst = write_shards(folder, "case-at-random", random_shard(bases // 10, 10).bases)
        train_bpe([soft["ascii"].prefix], folder / "bpe.json", max_bases=2_000_000)
        kinds: dict[str, dict[str, Any]] = {"nucleotide": {}, "kmer": {"k": 6}, "bpe": {"file": folder / "bpe.json"}}
        for kind, settings in kinds.items():
            bench_encoding(kind, build_tokenizer(TokenizerConfig(kind=kind, **settings)), soft)
        bench_encoding("nucleotide, case at random", build_tokenizer(TokenizerConfig(kind="nucleotide")), worst)


def bench_encoding(name: str, tokenizer: Any, shards: dict[str, Shard]) -> None:
    bases = 8192 if tokenizer.bases_per_token == 1 else 6144
    data = DataConfig(
        train="random",
        sequence_length=bases // tokenizer.bases_per_token,
        reverse_complement=0.0 if tokenizer.bases_per_token == 1 else 0.5,
        random_phase=not tokenizer.is_variable and tokenizer.bases_per_token > 1,
    )
    streams = [SampleStream("train", [Source(shard, whole_documents(shard))], data, tokenizer) for shard in shards.values()]
    if streams[0].digest != streams[1].digest:
        raise RuntimeError("the two encodings have different digests")
    for shard in shards.values():
        for start in range(0, len(shard.bases), 1 << 24):
            np.asarray(shard.bases[start : start + (1 << 24)]).sum()  # into the page cache
    calls = [lambda number, stream=stream: stream.batch(np.arange(number * BATCH, (number + 1) * BATCH)) for stream in streams]
    plain, packed = median_seconds_in_turns(calls, rounds=101, clock=time.thread_time)
    print(
        f"{name:26} windows of {bases} bases: ascii {bases * BATCH / plain / 1e6:6.0f} Mbase/s {plain / BATCH * 1e6:7.2f} us/sample, "
        f"2bit {bases * BATCH / packed / 1e6:6.0f} Mbase/s {packed / BATCH * 1e6:7.2f} us/sample, ratio {plain / packed:.3f}"
    )


def bench_copy() -> None:
    """What the machine can do: the same three arrays, filled with a constant."""
    shape = (BATCH, 8192)
    seconds = median_seconds(lambda _: (np.full(shape, 5), np.full(shape, 5), np.full(shape, 1, np.float32)))
    print(f"numpy.full of the same arrays: {BATCH * 8192 * 20 / seconds / 1e9:.2f} GB/s written")


def bench_lookup() -> None:
    for documents in (10, 1_000_000):
        lengths = np.random.default_rng(0).integers(1000, 5000, documents)
        rules = {"packed": False, "shuffle": True, "add_bos": True, "random_phase": False, "k": 1, "min_length": 1}
        rules |= {"sequence_length": 512, "stride": 512, "reverse_complement": 0.5, "seed": 0, "source": 0}
        start = time.perf_counter()
        index = SampleIndex(lengths, **rules)
        build = time.perf_counter() - start
        stream_of_one = stream_lookup(index, lengths)
        print(
            f"{documents} documents: index built in {build * 1e3:.1f} ms, {stream_of_one * 1e9:.0f} ns per sample of 2 tokens, batch filled"
        )


def stream_lookup(index: SampleIndex, lengths: np.ndarray) -> float:
    """Seconds per sample when samples are so short that finding them is all the work."""
    shard: Any = SimpleNamespace(prefix=Path("random"), lengths=lengths, offsets=np.zeros(len(lengths), np.int64), digest="random")
    shard.bases = np.full(5000, ord("A"), np.uint8)
    data = DataConfig(train="random", sequence_length=2, stride=512, reverse_complement=0.5)
    stream = SampleStream("train", [Source(shard, whole_documents(shard))], data, build_tokenizer(TokenizerConfig()))
    ids = np.arange(min(100_000, stream.num_samples))
    return median_seconds(lambda _: stream.batch(ids), rounds=5) / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=200_000_000)
    bench_copy()
    arguments = parser.parse_args()
    bench_batches(arguments.bases)
    bench_lookup()
    bench_encodings(arguments.bases)


if __name__ == "__main__":
    main()

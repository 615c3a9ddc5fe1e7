"""Speed of batches and of sample look-ups on random bases: one thread, page cache warm, medians.

    python benchmarks/bench_samples.py [--bases 200_000_000]

A row gives bases read per second, and the bytes of tokens, labels and loss mask written per second. Each row of the causal
objective has one of the masked objective beside it; the two take turns, so that a busy machine slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dnapretrain._core import SampleIndex
from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import SampleStream, Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.data.tokens.tokenizers import build_tokenizer

BATCH = 32


def median_seconds(function: Callable[[int], Any], rounds: int = 15) -> float:
    return median_seconds_in_turns([function], rounds)[0]


def median_seconds_in_turns(functions: Sequence[Callable[[int], Any]], rounds: int = 15) -> list[float]:
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(number)
            times.append(time.perf_counter() - start)
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
    bench_batches(parser.parse_args().bases)
    bench_lookup()


if __name__ == "__main__":
    main()

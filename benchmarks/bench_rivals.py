"""Samples and tokens beside those of others: Megatron-core's GPTDataset, and the published 6-mer tokenizers. CPU seconds, in turns.

    python benchmarks/bench_rivals.py [--documents 10_000_000]

1. Index of many documents for 6 epochs: ours beside `numpy.cumsum` over the lengths and Megatron's (built for the first time, and
   what it leaves on disk); a random sample of it; sample numbers near 10^13 tokens.
2. Batches of 8,192 single bases: tokens, labels and loss mask, beside `GPTDataset.__getitem__` over the same shard.
3. 6-mers with phase, strand and masking from bases, beside the tokenizers that Nucleotide Transformer and GENERator publish
   (EsmTokenizer of `transformers`; a Python slice-and-look-up).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.shard import open_shard
from dnapretrain.data.tokens.tokenizers import build_tokenizer

ROUNDS = 5
EPOCHS = 6
BATCH = 32


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU seconds of each; the first round is not counted."""
    seconds: dict[str, list[float]] = {what: [] for what in functions}
    for number in range(rounds + 1):
        for what, function in functions.items():
            start = time.process_time()
            function()
            if number:
                seconds[what].append(time.process_time() - start)
    return {what: statistics.median(values) for what, values in seconds.items()}


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def stream_of(lengths: np.ndarray, bases: np.ndarray, offsets: np.ndarray, **settings: Any) -> SampleStream:
    shard: Any = SimpleNamespace(prefix=Path("random"), lengths=lengths, offsets=offsets, bases=bases, digest="random")
    tokenizer = build_tokenizer(settings.pop("tokenizer", TokenizerConfig()))
    return SampleStream("train", [Source(shard, whole_documents(shard))], DataConfig(train="random", **settings), tokenizer)


def gpt_dataset(prefix: Path, sequence_length: int, samples: int, cache: Path) -> Any:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    tokenizer = SimpleNamespace(vocab_size=256, eod=0, pad=0, unique_identifiers={"kind": "bytes"})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=sequence_length,
        blend=([str(prefix)], None),
        split="1,0,0",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(cache),
        mid_level_dataset_surplus=0.005,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def bench_index(folder: Path, documents: int) -> None:
    """Both of packed samples: Megatron knows no others."""
    from dnapretrain.data.shards.indexed_dataset import index_bytes

    lengths = np.random.default_rng(0).integers(200, 400, documents)
    total = int(lengths.sum())
    offsets = np.cumsum(lengths) - lengths
    bases = np.full(total, ord("A"), np.uint8)
    streams: list[SampleStream] = []
    for sampling in ("windows", "packed"):

        def build(sampling: str = sampling) -> None:
            streams[:] = [stream_of(lengths, bases, offsets, sequence_length=128 if sampling == "windows" else 1024, sampling=sampling)]

        before = memory()
        found = in_turns({"ours": build, "numpy.cumsum": lambda: np.cumsum(lengths)})
        grown = memory() - before
        stream = streams[0]
        ids = np.random.default_rng(1).integers(0, EPOCHS * stream.num_samples, 1_000_000)
        short = stream_of(lengths, bases, offsets, sequence_length=2, stride=128, sampling="windows")
        few = np.random.default_rng(1).integers(0, EPOCHS * short.num_samples, 1_000_000)
        resolve = in_turns({"": lambda few=few, short=short: short.batch(few)}, 2)[""] / len(few)
        print(
            f"index of {documents:,} documents, {sampling}: ours {found['ours']:.3f} CPU-s, + {grown:,.0f} MB, nothing on disk; "
            f"numpy.cumsum {found['numpy.cumsum']:.3f}; {found['ours'] - 2 * found['numpy.cumsum']:+.3f} s from twice that; "
            f"a random sample of 2 tokens in {resolve * 1e9:.0f} ns"
        )
        del ids
    prefix = folder / "many"
    prefix.with_suffix(".idx").write_bytes(b"".join([index_bytes(lengths)]))
    with prefix.with_suffix(".bin").open("wb") as file:
        file.truncate(total)
    before, start = memory(), time.process_time()
    gpt_dataset(prefix, 1024, EPOCHS * total // 1024 - EPOCHS, folder / "cache")
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    seconds, grown = time.process_time() - start, memory() - before
    print(f"Megatron's index of the same, {EPOCHS} epochs: {seconds:.2f} CPU-s, + {grown:,.0f} MB, {size / 1e6:.0f} MB of cache")


def bench_batches(folder: Path) -> None:
    rng = np.random.default_rng(0)
    fasta = folder / "random.fa"
    with fasta.open("wb") as file:
        for contig in range(10):
            file.write(b">c%d\n" % contig + np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 10_000_000)].tobytes() + b"\n")
    preprocess([fasta], folder / "random")
    shard = open_shard(folder / "random")
    dataset = gpt_dataset(folder / "random", 8192, 12_000, folder / "cache")
    stream = SampleStream(
        "train",
        [Source(shard, whole_documents(shard))],
        DataConfig(train="random", sequence_length=8192),
        build_tokenizer(TokenizerConfig()),
    )
    ids = rng.integers(0, 12_000, 20 * BATCH).reshape(20, BATCH)
    found = in_turns(
        {
            "ours": lambda: [stream.batch(batch) for batch in ids],
            "ours, 1 a batch": lambda: [stream.batch(one) for one in ids.reshape(-1, 1)],
            "GPTDataset": lambda: [dataset[int(one)] for one in ids.ravel()],
            "GPTDataset, stacked": lambda: [stacked([dataset[int(one)] for one in batch]) for batch in ids],
        }
    )
    tokens = ids.size * 8192
    rate = {what: tokens / seconds / 1e6 for what, seconds in found.items()}
    print("batches of 8,192 single bases, Mtokens per CPU-second: " + "; ".join(f"{what} {value:.0f}" for what, value in rate.items()))
    print(f"  ours over GPTDataset, each into batches of {BATCH}: {rate['ours'] / rate['GPTDataset, stacked']:.2f}; "
          f"ours into batches over its samples one by one: {rate['ours'] / rate['GPTDataset']:.2f}")  # fmt: skip


def stacked(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def bench_tokenizers(folder: Path) -> None:
    from transformers import EsmTokenizer

    words = ["".join(word) for word in product("ATCG", repeat=6)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["<unk>", "<pad>", "<mask>", "<cls>", *words, *"ATCGN"]) + "\n")
    esm = EsmTokenizer(str(vocabulary), eos_token=None)
    number = {word: 32 + place for place, word in enumerate(words)}
    bases = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, 60_000_000, dtype=np.uint8)]
    text = bases[:600_000].tobytes().decode()
    pieces = [text[start : start + 6000] for start in range(0, len(text), 6000)]
    lengths = np.full(10, len(bases) // 10)
    stream = stream_of(
        lengths,
        bases,
        np.cumsum(lengths) - lengths,
        tokenizer=TokenizerConfig(kind="generator"),
        sequence_length=1000,
        reverse_complement=0.5,
        random_phase=True,
        masking={"mlm_probability": 0.15},
    )
    ids = np.arange(1024).reshape(-1, BATCH)
    found = in_turns(
        {
            "ours": lambda: [stream.batch(batch) for batch in ids],
            "EsmTokenizer": lambda: [esm(piece).input_ids for piece in pieces],
            "slices": lambda: [[number.get(piece[at : at + 6], 0) for at in range(0, len(piece), 6)] for piece in pieces],
        },
        3,
    )
    ours = ids.size * 999 * 6 / found["ours"] / 1e6
    for what in ("EsmTokenizer", "slices"):
        theirs = len(text) / found[what] / 1e6
        ratio = f"{what} without {theirs:.1f}: {ours / theirs:.0f} x"
        print(f"6-mers with phase, strand and masks: ours {ours:.0f} Mbases per CPU-second; {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench_batches(Path(folder))
        bench_tokenizers(Path(folder))
        bench_index(Path(folder), arguments.documents)


if __name__ == "__main__":
    main()

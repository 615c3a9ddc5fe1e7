"""Shards held in memory and streams over them, for tests."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.data.shards.shard import Coordinates
from dnapretrain.data.tokens.tokenizers import build_tokenizer

ALPHABET = "ACGTACGTACGTACGTacgtacgtNnRYKMBDHVryswW"


def random_documents(seed, count=12, longest=120):
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(1, longest))) for _ in range(count)]


def make_shard(texts, prefix="shard", strands=None, contigs=None):
    """A shard held in memory: document i is contig c<i> (or contigs[i]) from base 1000 i on."""
    lengths = np.array([len(text) for text in texts], np.int64)
    start = np.arange(len(texts), dtype=np.int64) * 1000
    contig = contigs or [f"c{number}" for number in range(len(texts))]
    coordinates = Coordinates(contig, start, start + lengths, strands or ["+"] * len(texts), ["asm"] * len(texts))
    bases = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum(lengths) - lengths
    return SimpleNamespace(prefix=Path(prefix), lengths=lengths, offsets=offsets, bases=bases, digest=prefix, coordinates=coordinates)


def make_data(**settings):
    return DataConfig(**({"train": "shard", "sequence_length": 8, "seed": 11} | settings))


def make_stream(texts, tokenizer, name="train", contigs=None, **settings):
    shard = make_shard(texts, contigs=contigs)
    return SampleStream(name, [Source(shard, whole_documents(shard))], make_data(**settings), tokenizer)


def tokenizer_of(kind="nucleotide", k=6, base_order="ACGT", add_bos=True, add_eos=False):
    return build_tokenizer(TokenizerConfig(kind=kind, k=k, base_order=base_order, add_bos=add_bos, add_eos=add_eos))


def assert_rows(batch, row, expected):
    tokens, labels, weights, _ = expected
    assert batch.tokens[row].tolist() == tokens
    assert batch.labels[row].tolist() == labels
    assert batch.loss_mask[row].tolist() == weights

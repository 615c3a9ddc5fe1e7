"""Count models on the targets of held-out losses: each equals a slow one written from its definition, for every kind of tokenizer."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from families import bpe_of

from dnapretrain._core import reverse_complement
from dnapretrain.config import DataConfig, TokenizerConfig
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError
from dnapretrain.evaluate.baselines import bridge_bits, fit_segments, flank_bits, markov_bits, set_baselines, token_bits
from dnapretrain.evaluate.counted import counted_text, spread, token_bases

KINDS = {
    "nucleotide": {"kind": "nucleotide"},
    "kmer": {"kind": "kmer", "k": 3},
    "generator": {"kind": "generator"},
    "nt": {"kind": "nt_v1"},
    "aido": {"kind": "aido_dna"},
    "bpe": None,
}


def tokenizer_of(kind):
    return build_tokenizer(TokenizerConfig.model_validate(KINDS[kind])) if KINDS[kind] else bpe_of(None)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    rng = np.random.default_rng(3)
    bases = rng.choice(list("ACGT"), 700, p=[0.4, 0.1, 0.2, 0.3])
    bases[[50, 51, 300, 407]] = "N"
    text = "".join(bases)
    (folder / "held.fa").write_text(f">a\n{text[:400]}{text[400:600].lower()}\n>b\n{text[600:]}\n")
    preprocess([folder / "held.fa"], folder / "held")
    return folder / "held"


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(4)
    bases = rng.choice(np.frombuffer(b"ACGTacgtN", np.uint8), 900, p=[0.3, 0.1, 0.1, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01])
    return [bases[:600], bases[600:]]


def stream_of(shard, tokenizer, masked, **data):
    masking = {"masking": {"mlm_probability": 0.3}} if masked else {}
    config = DataConfig.model_validate({"train": [str(shard)], "valid": {"held": str(shard)}, "sequence_length": 40, **masking, **data})
    return held_out_streams(config, replace(tokenizer, add_eos=tokenizer.add_eos and masked))["held"]


def strands(train):
    return [piece.tobytes().decode().upper() for part in train for piece in (part, reverse_complement(part))]


def count(texts, length):
    return Counter(
        text[i : i + length] for text in texts for i in range(len(text) - length + 1) if set(text[i : i + length]) <= set("ACGT")
    )


def targets(text):
    """(whole text, start, end, weight) of each target."""
    flat = text.bases.tobytes().decode()
    return [(flat, start, start + length, weight) for start, length, weight in zip(text.start, text.length, text.weight, strict=True)]


def weighted(text, bits):
    return sum(b * t[3] for b, t in zip(bits, targets(text), strict=True)) / sum((t[2] - t[1]) * t[3] for t in targets(text))


def known(flat, start, end):
    return start >= 0 and len(flat[start:end]) == end - start and set(flat[start:end]) <= set("ACGT")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lowercase_weight", [1.0, 0.5])
def test_targets_are_the_samples_own_bases(shard, kind, masked, lowercase_weight):
    tokenizer = tokenizer_of(kind)
    stream = stream_of(shard, tokenizer, masked, lowercase_weight=lowercase_weight)
    text = counted_text(stream, masked)
    flat = text.bases.tobytes().decode()
    read = [bases.tobytes().decode().upper() for number in range(stream.num_samples) for _, bases in stream.read(number)]
    assert all(any(known_piece in sample for sample in read) for known_piece in flat.split("N"))
    number = 0
    for sample in range(stream.num_samples):
        batch = stream.batch(np.array([sample]))
        for label, weight in zip(batch.labels[0].tolist(), batch.loss_mask[0].tolist(), strict=True):
            if weight > 0:
                start, length = text.start[number], text.length[number]
                assert flat[start : start + length] == tokenizer.tokens[label] and text.weight[number] == weight
                assert length == token_bases(tokenizer)[label]
                number += 1
    assert number == len(text.start)
    assert len(counted_text(stream, masked, 3).start) < number
    if not masked and kind in ("nucleotide", "aido"):
        assert number == sum(letter in "ACGT" for sample in read for letter in sample)  # each base once, of which none is lost


@pytest.mark.parametrize("kind", ["nucleotide", "kmer", "nt", "bpe"])
def test_markov(shard, train, kind):
    text = counted_text(stream_of(shard, tokenizer_of(kind), False, lowercase_weight=0.5), False)
    counts = {length: count(strands(train), length) for length in range(5)}

    def bits(flat, at, order):
        order = max(o for o in range(order + 1) if known(flat, at - o, at))
        context = flat[at - order : at]
        total = sum(counts[order + 1][context + base] for base in "ACGT")
        return -math.log2((counts[order + 1][context + flat[at]] + 1) / (total + 4))

    found = markov_bits(text, train, range(4))
    for order in range(4):
        slow = [sum(bits(flat, at, order) for at in range(start, end)) for flat, start, end, _ in targets(text)]
        assert found[str(order)] == pytest.approx(weighted(text, slow), abs=1e-9)


def test_flanks(shard, train):
    text = counted_text(stream_of(shard, tokenizer_of("aido"), True), True)
    found = flank_bits(text, train, range(3))
    for flanks in range(3):
        slow = []
        for flat, at, _, _ in targets(text):
            f = max(f for f in range(flanks + 1) if known(flat, at - f, at + f + 1))
            counts = count(strands(train), 2 * f + 1)
            left, right = flat[at - f : at], flat[at + 1 : at + f + 1]
            total = sum(counts[left + base + right] for base in "ACGT")
            slow.append(-math.log2((counts[left + flat[at] + right] + 1) / (total + 4)))
        assert found[str(flanks)] == pytest.approx(weighted(text, slow), abs=1e-9)


@pytest.mark.parametrize("kind", ["kmer", "bpe"])
def test_bridge_is_the_chain_given_both_ends(shard, train, kind):
    """By the sum over all words that could stand there."""
    text = counted_text(stream_of(shard, tokenizer_of(kind), True), True)
    keep = text.length <= 4
    text = type(text)(text.bases, text.start[keep], text.length[keep], text.weight[keep])
    counts = {length: count(strands(train), length) for length in range(1, 4)}

    def chance(context, word, order):
        product = 1.0
        for base in word:
            state = context[len(context) - order :]
            product *= (counts[order + 1][state + base] + 1) / (sum(counts[order + 1][state + other] for other in "ACGT") + 4)
            context += base
        return product

    found = bridge_bits(text, train, range(3))
    for order in range(3):
        slow = []
        for flat, start, end, _ in targets(text):
            n = max(n for n in range(order + 1) if known(flat, start - n, end + n))
            left, right = flat[start - n : start], flat[end : end + n]
            every = sum(chance(left, "".join(word) + right, n) for word in itertools.product("ACGT", repeat=end - start))
            slow.append(-math.log2(chance(left, flat[start:end] + right, n) / every))
        assert found[str(order)] == pytest.approx(weighted(text, slow), abs=1e-9)


@pytest.mark.parametrize("kind", ["kmer", "nt", "bpe"])
def test_token_frequencies(shard, train, kind):
    tokenizer = tokenizer_of(kind)
    text = counted_text(stream_of(shard, tokenizer, True), True)
    counts = Counter(tokenizer.tokens[token] for strand in strands(train) for token in tokenizer.encode(strand))
    words = [token for token in tokenizer.tokens if set(token) <= set("ACGT")]
    total = sum(counts[word] + 1 for word in words)
    slow = [-math.log2((counts[flat[start:end]] + 1) / total) for flat, start, end, _ in targets(text)]
    assert token_bits(tokenizer, text, train) == pytest.approx(weighted(text, slow), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "masked", "wanted"),
    [
        ("nucleotide", False, {"markov": 13}),
        ("bpe", False, {"markov": 13, "tokens": 1}),
        ("aido", True, {"flanks": 6}),
        ("generator", True, {"bridge": 7, "tokens": 1}),
    ],
)
def test_which_models_a_tokenizer_gets_and_the_best_of_them(shard, train, kind, masked, wanted):
    tokenizer = tokenizer_of(kind)
    stream = stream_of(shard, tokenizer, masked)
    found = set_baselines(stream, counted_text(stream, masked), train, masked, 10_000)
    assert {name: len(ladder) for name, ladder in found["bits_per_base"].items()} == wanted
    everything = [bits for ladder in found["bits_per_base"].values() for bits in ladder.values()]
    assert found["best_bits_per_base"] == min(everything) > 1.0 and max(everything) < 6
    assert (found["fitted_bases"], found["training_bases"]) == (900, 900)


def test_fitting_to_a_part_of_the_bases():
    segments = [np.full(200_000, 65, np.uint8), np.full(10, 67, np.uint8), np.full(300_000, 71, np.uint8)]
    assert fit_segments(segments, 600_000)[1:] == (500_010, 500_010)
    pieces, used, total = fit_segments(segments, 140_000)
    assert total == 500_010 and used == sum(map(len, pieces)) <= 140_000
    assert {piece[0] for piece in pieces} >= {65, 71}
    with pytest.raises(ConfigError, match="fit_bases = 0"):
        fit_segments(segments, 0)


def test_spread_is_even():
    assert spread(10, None).tolist() == list(range(10))
    assert spread(10, 4).tolist() == [0, 2, 5, 7] and spread(3, 7).tolist() == [0, 1, 2]

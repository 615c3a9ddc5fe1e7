"""Slow, plain Python version of tokenizers, sample order and batches, written from the rules rather than from the C++."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ORDER, SEGMENTS, STRAND, PHASE, BLEND, MASKING = 1, 2, 3, 4, 5, 6
BLOCK = 65536
PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A", "R": "Y", "Y": "R", "S": "S", "W": "W", "K": "M", "M": "K"}
PAIRS |= {"B": "V", "V": "B", "D": "H", "H": "D", "N": "N"}
COMPLEMENT = PAIRS | {a.lower(): b.lower() for a, b in PAIRS.items()}


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def keyed_hash(seed: int, stream: int, a: int, b: int) -> int:
    value = mix((seed + GOLDEN) & MASK)
    for part in (stream, a, b):
        value = mix(((value ^ part) + GOLDEN) & MASK)
    return value


def permute(size: int, key: int, i: int) -> int:
    bits = (size - 1).bit_length()
    low_bits = (bits + 1) // 2
    high_bits = bits - low_bits
    while True:
        low, high = i % 2**low_bits, i // 2**low_bits
        for turn in range(1, 7):
            round_key = (key + turn * GOLDEN) & MASK
            if turn % 2:
                low ^= mix(high ^ round_key) % 2**low_bits
            else:
                high ^= mix(low ^ round_key) % 2**high_bits
        i = high * 2**low_bits + low
        if i < size:
            return i


def reverse_complement(bases: str) -> str:
    return "".join(COMPLEMENT[base] for base in reversed(bases))


@dataclass
class Slow:
    """One source: the texts of its segments, and the rules."""

    segments: list[str]
    kind: str = "nucleotide"
    k: int = 1
    base_order: str = "ACGT"
    add_bos: bool = True
    sequence_length: int = 8
    packed: bool = False
    stride: int | None = None
    min_length: int = 1
    reverse_complement: float = 0.0
    random_phase: bool = False
    lowercase_weight: float = 1.0
    shuffle: bool = True
    seed: int = 0
    source: int = 0
    masking: tuple[float, float, float] | None = None
    """Share chosen; shares of the chosen that read <mask>, and a standard token. None: the causal objective."""
    add_eos: bool = False

    def vocabulary(self) -> list[str]:
        words = ["".join(word) for word in itertools.product(self.base_order, repeat=self.k)]
        return ["<pad>", "<bos>", "<eos>", "<unk>", "<mask>"] + words + (["N"] if self.kind == "nucleotide" else [])

    def encode(self, bases: str) -> list[tuple[int, float]]:
        """(id, weight) of each k-mer; the rest at the end is one <unk>."""
        vocabulary = {text: i for i, text in enumerate(self.vocabulary())}
        tokens = []
        for at in range(0, len(bases), self.k):
            word = bases[at : at + self.k]
            token = vocabulary.get(word.upper(), 3)
            plain = len(word) == self.k and set(word.upper()) <= set("ACGT")
            weight = sum(self.lowercase_weight if base.islower() else 1.0 for base in word) / self.k if plain else 0.0
            tokens.append((token, weight))
        return tokens

    def reversed(self, draw: int) -> bool:
        return keyed_hash(self.seed, STRAND, self.source, draw) >> 11 < int(self.reverse_complement * 2**53)

    def phase(self, draw: int) -> int:
        return keyed_hash(self.seed, PHASE, self.source, draw) % self.k if self.random_phase else 0

    def label_tokens(self) -> int:
        return self.sequence_length - (self.add_bos + self.add_eos if self.masking else 0)

    def context_tokens(self) -> int:
        return 0 if self.masking or self.add_bos else 1

    def windows(self) -> list[tuple[int, int, int]]:
        """(segment, start, end) of every window of an epoch, in order."""
        slack = self.k - 1 if self.random_phase else 0
        size = (self.label_tokens() + self.context_tokens()) * self.k + slack
        stride = self.stride or self.label_tokens() * self.k
        windows = []
        for number, text in enumerate(self.segments):
            if len(text) < self.min_length:
                continue
            start, read = 0, 0
            while start + size <= len(text):
                windows.append((number, start, start + size))
                start, read = start + stride, start + size
            left = len(text) - start
            readable = left if self.random_phase else left - left % self.k
            enough = left >= max(self.min_length, self.k * (1 + self.context_tokens()) + slack)
            if enough and start + readable > read:
                windows.append((number, start, len(text)))
        return windows

    def sample(self, draw: int) -> tuple[list[int], list[int], list[float], int]:
        """Tokens, labels, weights and the epoch of the n-th draw."""
        pieces = self.stream_pieces if self.packed else self.window_pieces
        count = self.num_samples()
        epoch, j = divmod(draw, count)
        if self.shuffle:
            j = permute(count, keyed_hash(self.seed, ORDER, self.source, epoch), j)
        stream = ([(1, 0.0)] if self.add_bos else []) + pieces(j, draw, epoch)
        size = self.sequence_length if self.masking else self.sequence_length + 1
        stream = stream[: size - self.add_eos] + ([(2, 0.0)] if self.add_eos else [])
        stream += [(0, 0.0)] * (size - len(stream))
        tokens = [token for token, _ in stream]
        weights = [struct.unpack("f", struct.pack("f", weight))[0] for _, weight in stream]
        if not self.masking:
            return tokens[:-1], tokens[1:], weights[1:], epoch
        read = self.read_at_chosen(draw, tokens, weights)
        tokens_read = [read.get(place, token) for place, token in enumerate(tokens)]
        return tokens_read, tokens, [weight if place in read else 0.0 for place, weight in enumerate(weights)], epoch

    def read_at_chosen(self, draw: int, tokens: list[int], weights: list[float]) -> dict[int, int]:
        """What each chosen place of a masked sample reads, by place."""
        share, mask_share, random_share = self.masking
        key = keyed_hash(self.seed, MASKING, self.source, draw)
        read = {}
        for place, weight in enumerate(weights):
            choice = mix((key + (place + 1) * GOLDEN) & MASK)
            if weight > 0 and choice >> 11 < int(share * 2**53):
                kind, number = divmod(mix((choice + GOLDEN) & MASK), 2**32)
                if kind < round(mask_share * 2**32):
                    read[place] = 4
                elif kind < round((mask_share + random_share) * 2**32):
                    read[place] = 5 + number * 4**self.k // 2**32
                else:
                    read[place] = tokens[place]
        return read

    def window_pieces(self, j: int, draw: int, epoch: int) -> list[tuple[int, float]]:
        segment, start, end = self.windows()[j]
        window = self.segments[segment][start:end]
        if self.reversed(draw):
            window = reverse_complement(window)
        window = window[self.phase(draw) :]
        return self.encode(window[: len(window) // self.k * self.k])

    def stream(self, epoch: int) -> list[tuple[int, float]]:
        slack = self.k - 1 if self.random_phase else 0
        long_enough = [text for text in self.segments if len(text) >= max(self.min_length, self.k + slack)]
        stream: list[tuple[int, float]] = []
        for slot in range(len(long_enough)):
            number = slot
            if self.shuffle:
                number = permute(len(long_enough), keyed_hash(self.seed, SEGMENTS, self.source, epoch), slot)
            text, draw = long_enough[number], epoch * len(long_enough) + slot
            if self.reversed(draw):
                text = reverse_complement(text)
            tokens = (len(text) - slack) // self.k
            phase = self.phase(draw)
            stream += ([(2, 0.0)] if slot else []) + self.encode(text[phase : phase + tokens * self.k])
        return stream

    def stream_pieces(self, j: int, draw: int, epoch: int) -> list[tuple[int, float]]:
        first = j * self.label_tokens()
        return self.stream(epoch)[first : first + self.label_tokens() + self.context_tokens()]

    def num_samples(self) -> int:
        if not self.packed:
            return len(self.windows())
        stream = self.stream(0)
        return max(0, -(-(len(stream) - self.context_tokens()) // self.label_tokens()))


def blend(shares: list[int], seed: int, sample: int) -> tuple[int, int]:
    """(source, n-th draw) of a blended sample."""
    if len(shares) == 1:
        return 0, sample
    block, position = divmod(sample, BLOCK)
    rank = permute(BLOCK, keyed_hash(seed, BLEND, block, 0), position)
    for source, share in enumerate(shares):
        if rank < share:
            return source, block * share + rank
        rank -= share
    raise ValueError("shares do not add up to a block")

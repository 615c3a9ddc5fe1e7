"""Slow, plain Python version of tokenizers, sample order and batches, written from the rules rather than from the C++."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ORDER, SEGMENTS, STRAND, PHASE, BLEND, MASKING, JITTER = 1, 2, 3, 4, 5, 6, 7
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
    window_length: int | None = None
    window_jitter: int = 0
    contigs: list[str] | None = None
    """Packed: the contig of each segment, where segments of one stay together."""
    span_length: int = 1

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

    def content(self) -> int:
        """Bases that a window reads at most."""
        return self.window_length or (self.label_tokens() + self.context_tokens()) * self.k

    def stretches(self) -> list[tuple[int, int, int]]:
        """(segment, start, end) of what each sample of an epoch is cut from, in order: a window and the room it moves in."""
        slack = self.k - 1 if self.random_phase else 0
        size = self.content() + slack
        stride = self.stride or self.content() - self.context_tokens() * self.k
        stretches = []
        for number, text in enumerate(self.segments):
            if len(text) < self.min_length:
                continue
            start, read = 0, 0
            while start + size + self.window_jitter <= len(text):
                stretches.append((number, start, start + size + self.window_jitter))
                start, read = start + stride, stretches[-1][2]
            left = len(text) - start
            readable = left if self.random_phase or left >= size else left - left % self.k
            enough = left >= max(self.min_length, self.k * (1 + self.context_tokens()) + slack)
            if enough and start + readable > read:
                stretches.append((number, start, len(text)))
        return stretches

    def window(self, j: int, draw: int) -> tuple[int, int, int]:
        """(segment, start, end) of the window that draw `draw`, the j-th of an epoch, reads within."""
        return self.window_of(self.stretches()[j], draw)

    def window_of(self, stretch: tuple[int, int, int], draw: int) -> tuple[int, int, int]:
        number, start, end = stretch
        size = min(end - start, self.content() + (self.k - 1 if self.random_phase else 0))
        offset = keyed_hash(self.seed, JITTER, self.source, draw) % (end - start - size + 1) if self.window_jitter else 0
        return number, start + offset, start + offset + size

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

        def draws(place: int) -> tuple[int, int, int]:
            choice = mix((key + (place + 1) * GOLDEN) & MASK)
            return choice, *divmod(mix((choice + GOLDEN) & MASK), 2**32)

        read = {}
        for span in self.spans(mix(key), weights):
            choice, kind, _ = draws(span[0])
            if choice >> 11 >= int(share * 2**53):
                continue
            for place in span:
                if kind < round(mask_share * 2**32):
                    read[place] = 4
                elif kind < round((mask_share + random_share) * 2**32):
                    read[place] = 5 + draws(place)[2] * 4**self.k // 2**32
                else:
                    read[place] = tokens[place]
        return read

    def spans(self, offset: int, weights: list[float]) -> list[list[int]]:
        """Places that are chosen together: neighbours that weigh something, split at offset, offset + span_length, ..."""
        spans: list[list[int]] = []
        for place, weight in enumerate(weights):
            if weight > 0:
                if place and weights[place - 1] > 0 and (place - offset) % self.span_length:
                    spans[-1].append(place)
                else:
                    spans.append([place])
        return spans

    def window_pieces(self, j: int, draw: int, epoch: int) -> list[tuple[int, float]]:
        segment, start, end = self.window(j, draw)
        window = self.segments[segment][start:end]
        if self.reversed(draw):
            window = reverse_complement(window)
        window = window[self.phase(draw) :]
        return self.encode(window[: len(window) // self.k * self.k])

    def slots(self, epoch: int) -> list[int]:
        """Segments of an epoch of the token stream, in order."""
        slack = self.k - 1 if self.random_phase else 0
        long_enough = [n for n, text in enumerate(self.segments) if len(text) >= max(self.min_length, self.k + slack)]
        if not self.shuffle:
            return long_enough
        contigs = self.contigs or list(range(len(self.segments)))
        runs = [list(run) for _, run in itertools.groupby(range(len(self.segments)), key=lambda n: contigs[n])]
        kept = [[n for n in run if n in long_enough] for run in runs]
        groups = [group for group in kept if group]
        key = keyed_hash(self.seed, SEGMENTS, self.source, epoch)
        return [n for place in range(len(groups)) for n in groups[permute(len(groups), key, place)]]

    def stream(self, epoch: int) -> list[tuple[int, float]]:
        slack = self.k - 1 if self.random_phase else 0
        slots = self.slots(epoch)
        stream: list[tuple[int, float]] = []
        for slot, number in enumerate(slots):
            text, draw = self.segments[number], epoch * len(slots) + slot
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
            return len(self.stretches())
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

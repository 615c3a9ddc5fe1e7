"""Types of the native core (csrc/)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_COUNTS: tuple[str, ...]
"""Names of the columns of the counts that FastaScanner.take() returns."""

class FastaScanner:
    """FASTA text to documents, fed block by block (csrc/dnacore.h). Raises ValueError naming line and record."""

    def __init__(self, min_n_run: int, min_length: int, max_length: int) -> None: ...
    def feed(self, block: bytes | bytearray | memoryview) -> None:
        """Scan the next block of text; blocks may end anywhere."""

    def finish(self) -> None:
        """Close the last record."""

    def take(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[bytes], NDArray[np.int64]]:
        """What became ready since the last call.

        Returns bases; documents (n, 3): record number, start, end; header lines and counts (records, len(RECORD_COUNTS))
        of the records that ended.
        """

    def watch(self, name: str) -> None:
        """Note the line of the first record of this name."""

    @property
    def watched_line(self) -> int:
        """0: no such record so far."""

    @property
    def repeats(self) -> list[tuple[str, int]]:
        """Name and line of records whose name was seen before, but for one chance in 2^64: `watch` for it in a second pass."""

    @property
    def line(self) -> int: ...
    @property
    def record_name(self) -> str: ...

def reverse_complement(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse complement, case and IUPAC codes kept, U read as T. Raises ValueError at any other byte."""

def count_bytes(bases: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Occurrences of each of the 256 byte values."""

PACKED_BLOCK: int
"""Bases of a block of packed bases: changes are told from the start of their block, in 16 bits."""

def pack_bases(
    bases: NDArray[np.uint8], state: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8], NDArray[np.int64], int]:
    """Bases at 2 bits each; offset and new state of each change; changes of each block; state of the last base.

    `bases` begin at a border of blocks; `state` is that of the base before them. States: FORMAT.md. Raises ValueError at a byte
    that is no letter.
    """

def unpack_bytes(packed: NDArray[np.uint8], plain: bool) -> NDArray[np.uint8]:
    """Four upper-case letters for each byte, by the path of this processor or by the plain one: for tests."""

class PackedBases:
    """Letters of bases that are held at 2 bits each: a slice is decoded, nothing else is copied.

    before: changes before each block, then all of them. Raises ValueError for arrays that do not fit each other.
    """

    def __init__(
        self,
        packed: NDArray[np.uint8],
        size: int,
        before: NDArray[np.int64],
        offsets: NDArray[np.uint16],
        states: NDArray[np.uint8],
    ) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        """ASCII, case kept. Raises ValueError for a step other than 1."""

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """All letters, in memory."""

BLEND_BLOCK: int
"""Samples per block of a blend; within each block the sources have exact counts."""

def keyed_hash(seed: int, stream: int, a: int, b: int) -> int:
    """64 bits that are a pure function of the arguments (unsigned 64-bit each). Streams: enum Stream in csrc/dnacore.h."""

MAX_BLEND_BLOCK: int
"""The most samples per block: for very many sources, or very rare ones."""

def permute(size: int, key: int, positions: NDArray[np.int64], inverse: bool = False) -> NDArray[np.int64]:
    """Images of `positions` under the keyed permutation of [0, size), or its inverse. Raises IndexError for a position outside."""

class Encoder:
    """Bases to token ids by table look-up. k-mers are numbered from first_id in Cartesian order of base_order."""

    def __init__(
        self, *, k: int, base_order: str, first_id: int, pad: int, bos: int, eos: int, unk: int, n: int, lowercase_weight: float
    ) -> None: ...
    def encode(self, bases: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Token ids; bases left over at the end are one <unk>."""

class VariableEncoder:
    """Bases to tokens that stand for different numbers of bases."""

    def encode(self, bases: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Token ids."""

class SplitEncoder(VariableEncoder):
    """k-mers as in Encoder, one of `singles` (numbered from first_single) where none fits, a run of anything else one <unk>.

    Raises ValueError for letters outside ACGTUN, or a letter without the one across from it.
    """

    def __init__(
        self,
        *,
        k: int,
        base_order: str,
        first_id: int,
        singles: str,
        first_single: int,
        pad: int,
        bos: int,
        eos: int,
        unk: int,
        lowercase_weight: float,
    ) -> None: ...

MAX_TRAINED_BPE_TOKENS: int
"""Tokens of a BpeTrainer, A, C, G and T included."""

class BpeEncoder(VariableEncoder):
    """Byte-pair encoding: runs of A, C, G, T merged by rank, leftmost first; any other byte is one <unk>, nothing merges across.

    merges: rows (left id, right id, product id) by rank. base_ids: ids of A, C, G, T. upper_case: lower case reads as upper case.
    Raises ValueError where a part is made by no earlier merge, or one text by two.
    """

    def __init__(
        self,
        *,
        merges: NDArray[np.int64],
        base_ids: list[int],
        k: int,
        pad: int,
        bos: int,
        eos: int,
        unk: int,
        lowercase_weight: float,
        upper_case: bool,
    ) -> None: ...
    def encode(self, bases: NDArray[np.uint8], reverse: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int32]]:  # type: ignore[override]
        """Token ids, and the bases each stands for; `reverse` reads the other strand."""

    def encode_window(self, bases: NDArray[np.uint8], reverse: bool, max_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """As batches are filled: ids of the first max_tokens tokens of what all bases encode to, loss weights, bases they stand for."""

class BpeTrainer:
    """Learns BPE merges. Feed documents, then learn. Raises ValueError for settings out of range, and for feeding after learning."""

    def __init__(self, *, num_merges: int, max_length: int, min_count: int, capacity: int) -> None: ...
    def feed(self, bases: NDArray[np.uint8], reverse: bool = False) -> int:
        """Add a document, or its other strand; returns the bases among A, C, G, T in either case."""

    def learn(self, most: int) -> list[tuple[int, int, int]]:
        """Up to `most` more merges: numbers of the parts (A, C, G, T, then products in order) and the count of the pair."""

class Masking:
    """The masked objective: which tokens are chosen, and what they read. Raises ValueError for values that are no probabilities."""

    def __init__(
        self,
        *,
        mlm_probability: float,
        mask_replace_prob: float,
        random_replace_prob: float,
        mask_id: int,
        first_standard: int,
        num_standard: int,
        span_length: int = 1,
    ) -> None: ...

class SampleIndex:
    """Draws of one source, from segment lengths alone; a draw is resolved in O(log segments)."""

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        packed: bool,
        shuffle: bool,
        add_bos: bool,
        random_phase: bool,
        sequence_length: int,
        k: int,
        stride: int,
        min_length: int,
        reverse_complement: float,
        seed: int,
        source: int,
        masked: bool = False,
        add_eos: bool = False,
        variable: bool = False,
        window: int = 0,
        jitter: int = 0,
        groups: NDArray[np.int64] | None = None,
    ) -> None: ...
    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""

    def coverage(self) -> dict[str, int]:
        """Bases used and bases left out by reason; they add up to the bases of the segments."""

    def used_segments(self) -> NDArray[np.int64]:
        """Segments that at least one sample reads."""

    def resolve(self, draw: int) -> tuple[int, list[tuple[int, int, int, int, bool, bool]]]:
        """Epoch, and (segment, start, length, phase, reverse, separator_after) of each run of bases the sample reads."""

class BatchFiller:
    """Sample ids to batches. With samples_per_block the sources are blended; without, they follow each other.

    later_stages are (first sample id, samples per block) of blends that follow. `masking` goes with indexes that are masked:
    all or none, else ValueError.
    """

    def __init__(
        self,
        encoder: Encoder | VariableEncoder,
        sources: list[tuple[SampleIndex, NDArray[np.int64], NDArray[np.uint8] | PackedBases]],
        samples_per_block: list[int],
        seed: int,
        masking: Masking | None = None,
        later_stages: list[tuple[int, list[int]]] = [],
    ) -> None: ...
    def draw(self, sample: int) -> tuple[int, int]:
        """(source, n-th draw from it) of a sample id. Raises IndexError outside the samples."""

    def locate(self, sample: int) -> tuple[int, int, list[tuple[int, int, int, int, bool, bool]]]:
        """Source, epoch and runs (as SampleIndex.resolve has them) of a sample id, without bases cut because tokens run out."""

    def samples(self, source: int, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids of draws of a source; -1 where no sample ever is that draw."""

    def progress(self, source: int, num_samples: int) -> tuple[int, NDArray[np.int64]]:
        """(n, others): the first `num_samples` samples of a blend read the draws below n of a source, but for the others."""

    def readers(
        self,
        source: int,
        segments: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        first_epoch: int,
        last_epoch: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Query, draw, start, length and reverse of every run in [first_epoch, last_epoch) that reads bases [starts, ends) of segments."""

    def cut(self) -> tuple[int, int]:
        """Bases cut because tokens ran out, of all samples filled so far, and how many samples these were."""

    def fill(self, ids: NDArray[np.int64], documents: bool = False) -> tuple[NDArray[Any], ...]:
        """Tokens and labels (int64) and loss weights (float32), each (len(ids), sequence_length).

        With `documents` (packed samples only), also the number of each token's document within its sample, int32; -1: padding.
        """

MIN_SKETCH_K: int
MAX_SKETCH_K: int

def begin_writeback(file: int, start: int, size: int) -> None:
    """Have the system begin to put `size` bytes of an open file on disk, without waiting (sync_file_range): a later fsync is short."""

def keep_freed_memory(size: int) -> None:
    """Let the process keep up to `size` bytes that it has freed, for its next blocks (glibc's mallopt; elsewhere nothing)."""

def sketch(
    bases: NDArray[np.uint8] | PackedBases,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    limits: NDArray[np.int64],
    *,
    k: int,
    scale: int,
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Kept hashes of pieces, one piece after another, and how many each has: distinct, in order, the same on either strand.

    A piece has the k-mers that begin in [start, end) and end at or before its limit, without those that hold a letter other than
    A, C, G, T in either case; one of `scale` is kept, on average. Raises ValueError for pieces outside of `bases`.
    """

class KeptSketches:
    """Pieces taken in one after another, each only if it is new: if less than the share `near` of its hashes is held already.

    Pieces with fewer than `min_hashes` hashes are always taken in. Raises ValueError for settings out of range.
    """

    def __init__(self, near: float, min_hashes: int) -> None: ...
    def offer(self, hashes: NDArray[np.uint64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The next pieces, `counts` distinct hashes each; pieces are numbered from 0 in the order of all calls.

        Returns for each how many of its hashes were held before, and the piece that holds the most of them; -1: taken in.
        """

    @property
    def num_hashes(self) -> int:
        """Hashes held."""

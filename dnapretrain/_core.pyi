"""Types of the native core (csrc/)."""

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

    @property
    def line(self) -> int: ...
    @property
    def record_name(self) -> str: ...

def reverse_complement(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse complement, case and IUPAC codes kept, U read as T. Raises ValueError at any other byte."""

def count_bytes(bases: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Occurrences of each of the 256 byte values."""

BLEND_BLOCK: int
"""Samples per block of a blend; within each block the sources have exact counts."""

def keyed_hash(seed: int, stream: int, a: int, b: int) -> int:
    """64 bits that are a pure function of the arguments (unsigned 64-bit each). Streams: enum Stream in csrc/dnacore.h."""

def permute(size: int, key: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images of `positions` under the keyed permutation of [0, size). Raises IndexError for a position outside."""

class Encoder:
    """Bases to token ids by table look-up. k-mers are numbered from first_id in Cartesian order of base_order."""

    def __init__(
        self, *, k: int, base_order: str, first_id: int, pad: int, bos: int, eos: int, unk: int, n: int, lowercase_weight: float
    ) -> None: ...
    def encode(self, bases: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Token ids; bases left over at the end are one <unk>."""

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

    `masking` goes with indexes that are masked: all or none, else ValueError.
    """

    def __init__(
        self,
        encoder: Encoder,
        sources: list[tuple[SampleIndex, NDArray[np.int64], NDArray[np.uint8]]],
        samples_per_block: list[int],
        seed: int,
        masking: Masking | None = None,
    ) -> None: ...
    def draw(self, sample: int) -> tuple[int, int]:
        """(source, n-th draw from it) of a sample id. Raises IndexError outside the samples."""

    def fill(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Tokens, labels and loss weights, each (len(ids), sequence_length)."""

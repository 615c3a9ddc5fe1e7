"""Reverse complement and composition by known answers."""

from __future__ import annotations

import numpy as np
import pytest

from dnapretrain import _core


def as_bases(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


@pytest.mark.parametrize(
    ("forward", "reverse"),
    [
        (b"", b""),
        (b"A", b"T"),
        (b"AACGT", b"ACGTT"),
        (b"AACGTacgttNn", b"nNaacgtACGTT"),
        (b"ABCDGHKMNRSTUVWY", b"RWBAASYNKMDCHGVT"),
        (b"abcdghkmnrstuvwy", b"rwbaasynkmdchgvt"),
        (b"UuA", b"TaA"),
    ],
)
def test_reverse_complement(forward, reverse):
    assert _core.reverse_complement(as_bases(forward)).tobytes() == reverse


@pytest.mark.parametrize("byte", [0, ord("\n"), ord("-"), ord("X"), ord("e"), 255])
def test_reverse_complement_refuses_other_bytes(byte):
    with pytest.raises(ValueError, match=f"base 2: byte {byte} is not an IUPAC nucleotide code"):
        _core.reverse_complement(as_bases(b"AC" + bytes([byte]) + b"G"))


def test_reverse_complement_twice_gives_the_bases_back():
    bases = as_bases(b"ACGTNRYKMSWBDHVacgtnrykmswbdhv")[np.random.default_rng(3).integers(0, 30, 1001)]
    assert np.array_equal(_core.reverse_complement(_core.reverse_complement(bases)), bases)


def test_count_bytes_equals_numpy():
    data = np.random.default_rng(4).integers(0, 256, 10_003).astype(np.uint8)
    assert np.array_equal(_core.count_bytes(data), np.bincount(data, minlength=256))


def test_only_flat_arrays_of_bytes():
    with pytest.raises(ValueError, match="1 dimension"):
        _core.reverse_complement(np.zeros((2, 2), np.uint8))
    with pytest.raises(TypeError):
        _core.count_bytes(np.zeros(3, np.int64))

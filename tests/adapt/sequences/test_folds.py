"""Folds: copies and reverse complements together, classes even, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from dnapretrain.adapt.sequences.folds import deal_folds, same_sequence_groups, shared_rows
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.errors import DataError


def test_groups_by_hand():
    # AACG and its reverse complement CGTT; ACGT is its own; R is complemented to Y
    assert same_sequence_groups(["AACG", "ACGT", "CGTT", "AACG", "RAC", "GTY", "CGT"]).tolist() == [0, 1, 0, 0, 2, 2, 3]
    assert shared_rows(["AACG", "TTTT", "ACGT"], ["CGTT", "AAAA"]).tolist() == [0, 1]


def test_no_sequence_is_on_two_sides():
    rng = np.random.default_rng(0)
    unique = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(300)]
    rows = [sequence if rng.random() < 0.5 else reverse_complement_text(sequence) for sequence in unique * 3]
    rng.shuffle(rows)
    classes = rng.choice(3, len(rows), p=[0.6, 0.3, 0.1])
    folds = deal_folds(same_sequence_groups(rows), 10, seed=4, classes_N=classes)
    side = {}
    for sequence, fold in zip(rows, folds.tolist(), strict=True):
        assert side.setdefault(min(sequence, reverse_complement_text(sequence)), fold) == fold
    assert (folds == deal_folds(same_sequence_groups(rows), 10, seed=4, classes_N=classes)).all()
    assert (folds != deal_folds(same_sequence_groups(rows), 10, seed=5, classes_N=classes)).any()
    assert np.ptp(np.bincount(folds)) <= 12


def test_single_rows_are_dealt_evenly_by_class():
    classes = np.array([0] * 50 + [1] * 20 + [2] * 10)
    folds = deal_folds(np.arange(80), 10, seed=1, classes_N=classes)
    assert [np.bincount(folds[classes == number], minlength=10).tolist() for number in range(3)] == [[5] * 10, [2] * 10, [1] * 10]


def test_too_few_to_deal():
    with pytest.raises(DataError, match="2 different sequences cannot be dealt to 3 folds"):
        deal_folds(np.array([0, 0, 1, 1]), 3)
    with pytest.raises(DataError, match="class number 1 has a single sequence"):
        deal_folds(np.arange(6), 2, classes_N=np.array([0, 0, 0, 0, 0, 1]))

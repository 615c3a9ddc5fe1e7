"""Splits of a task: no copy of a sequence on two sides, and what tables share, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.sequences.splits import (
    OVERLAP_BASES,
    leakage,
    leakage_lines,
    make_splits,
    overlapping_rows,
    table_digest,
    window_hashes,
)
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.errors import ConfigError


def random_sequences(count, length, seed=0):
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("ACGT"), length)) for _ in range(count)]


def table_of(sequences, source="t"):
    return SequenceTable(
        source, tuple(map(str, range(len(sequences)))), tuple(sequences), {"label": tuple("01"[i % 2] for i in range(len(sequences)))}
    )


def canonical(sequences):
    return {min(one, reverse_complement_text(one)) for one in sequences}


@pytest.mark.parametrize(("num_folds", "has_test"), [(0, False), (4, False), (4, True)])
def test_no_sequence_is_on_two_sides(num_folds, has_test):
    once = random_sequences(30, 12)
    table = table_of([*once, *once[:10], *(reverse_complement_text(one) for one in once[5:15])])
    splits = make_splits(table, False, has_test, num_folds, 0.2, seed=3)
    assert len(splits) == max(1, num_folds)
    for split in splits:
        parts = [part for part in (split.train, split.valid, split.test) if part is not None]
        assert sorted(np.concatenate(parts).tolist()) == list(range(50))
        sides = [canonical(table.sequences[row] for row in part) for part in parts]
        assert all(sides) and not any(one & other for at, one in enumerate(sides) for other in sides[:at])
        assert (split.test is None) == (has_test or not num_folds)
    if num_folds:
        held = [split.valid if has_test else split.test for split in splits]
        assert sorted(np.concatenate(held).tolist()) == list(range(50))


def test_a_table_of_validation_rows_leaves_the_training_rows_whole():
    [split] = make_splits(table_of(random_sequences(9, 8)), True, True, 0, 0.1, 0)
    assert split.train.tolist() == list(range(9)) and split.valid is None
    with pytest.raises(ConfigError, match="Leave one out"):
        make_splits(table_of(random_sequences(9, 8)), True, False, 3, 0.1, 0)


def test_shared_windows_against_a_plain_search():
    there = random_sequences(20, 90)
    given = [there[0][5:60], reverse_complement_text(there[1])[20:80], there[2][:49], there[3][:30] + "N" + there[3][31:70], "N" * 70]
    given += [there[4][:49] + "A" * 20 + there[4][69:], *random_sequences(5, 80, seed=1), there[5]]
    windows = {one[at : at + 50] for sequence in there for one in (sequence, reverse_complement_text(sequence)) for at in range(41)}
    plain = [row for row, one in enumerate(given) if any(one[at : at + 50] in windows for at in range(len(one) - 49))]
    assert plain == overlapping_rows(given, window_hashes(there)).tolist() and OVERLAP_BASES == 50
    assert set(plain) >= {0, 1, len(given) - 1} and 2 not in plain
    assert len(window_hashes(["ACGT"])) == 0 and len(overlapping_rows(given, window_hashes([]))) == 0


def test_leakage_is_counted_and_said():
    one = random_sequences(10, 60)
    found = leakage(
        {"train": table_of(one), "test": table_of([reverse_complement_text(one[0]), one[1][4:58], *random_sequences(3, 60, 8)])}
    )
    assert found == {"test in train": {"rows": 5, "equal": 1, "share_50_bases": 2}}
    [line] = leakage_lines(found)
    assert "1 of 5 rows are there too" in line and "2 share 50 bases" in line


def test_digests_see_sequences_and_labels():
    one = table_of(random_sequences(4, 10))
    other = SequenceTable("x", one.names, one.sequences, {"label": ("1", "1", "0", "1")})
    assert table_digest(one) == table_digest(table_of(random_sequences(4, 10), "y")) and table_digest(one) != table_digest(other)

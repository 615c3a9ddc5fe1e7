import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate import flank
from dnapretrain.evaluate.flank import flank_ladder

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def as_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def random_bases(seed: int, length: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def runs(text: str) -> list[str]:
    return "".join(base if base in "ACGT" else " " for base in text.upper().replace("U", "T")).split()


def slow_ladder(train: list[str], held_out: list[str], flanks: list[int], pseudocount: float, both_strands: bool) -> dict[int, float]:
    train_runs = [run for text in train for run in runs(text)]
    if both_strands:
        train_runs += [run[::-1].translate(COMPLEMENT) for run in train_runs]
    ladder = {}
    for sides in flanks:
        seen: Counter[tuple[str, str, str]] = Counter()
        contexts: Counter[tuple[str, str]] = Counter()
        for run in train_runs:
            for at in range(sides, len(run) - sides):
                left, right = run[at - sides : at], run[at + 1 : at + 1 + sides]
                seen[left, run[at], right] += 1
                contexts[left, right] += 1
        bits = []
        for run in (run for text in held_out for run in runs(text)):
            for at in range(max(flanks), len(run) - max(flanks)):
                left, right = run[at - sides : at], run[at + 1 : at + 1 + sides]
                bits.append(-math.log2((seen[left, run[at], right] + pseudocount) / (contexts[left, right] + 4 * pseudocount)))
        ladder[sides] = sum(bits) / len(bits)
    return ladder


texts = st.lists(st.text(alphabet="ACGTacgtNRuA", min_size=0, max_size=60), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(texts, texts, st.sets(st.integers(0, 4), min_size=1), st.sampled_from([0.1, 1.0]), st.booleans(), st.sampled_from([5, 17, 1 << 22]))
def test_equals_a_slow_dictionary(train, held_out, flanks, pseudocount, both_strands, piece):
    """Also when segments are cut into pieces on the way."""
    train = [*train, "ACGTTGCAACGTT"]
    held_out = [*held_out, "GATTACAGATTACA"]
    expected = slow_ladder(train, held_out, sorted(flanks), pseudocount, both_strands)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flank, "PIECE", piece)
        found = flank_ladder(map(as_array, train), map(as_array, held_out), flanks, pseudocount, both_strands)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)


def test_random_bases_cost_two_bits_and_a_period_almost_none():
    random = as_array(random_bases(0, 400_000))
    ladder = flank_ladder([random[:300_000]], [random[300_000:]])
    assert list(ladder) == [1, 2, 3, 4, 5]
    assert all(1.99 < ladder[sides] < 2.01 for sides in (1, 2))
    assert min(ladder[3], ladder[4], ladder[5]) > 2.005 and max(ladder.values()) < 2.3  # more flanks than the bases can fill
    periodic = as_array("ACGTTGCA" * 10_000)
    ladder = flank_ladder([periodic[:60_000]], [periodic[60_000:]], range(5))
    assert ladder[0] == pytest.approx(2.0, abs=1e-3)
    assert max(ladder[1], ladder[4]) < 0.01  # in this period one base each side tells the middle


def test_known_counts():
    """ACA three times, AGA once: C between two A costs -log2((3 + 1) / (4 + 4)), one bit."""
    train = [as_array(text) for text in ("ACA", "aca", "ACANAGA")]
    assert flank_ladder(train, [as_array("ACA")], [1]) == {1: 1.0}
    assert flank_ladder(train, [as_array("CCC")], [1]) == {1: 2.0}  # C.C was never seen


def test_both_sides_know_more_than_the_left():
    """Each base is the sum of its neighbours, mod 4, as far as flanks go: the left alone says nothing, both sides all."""
    rng = np.random.default_rng(5)
    ends = rng.integers(0, 4, (20_000, 2))
    codes = np.stack([ends[:, 0], ends.sum(axis=1) % 4, ends[:, 1], np.full(20_000, 4)], axis=1).reshape(-1)
    text = np.frombuffer(b"ACGTN", dtype=np.uint8)[codes]
    assert flank_ladder([text], [text], [0])[0] > 1.99
    assert flank_ladder([text], [text], [1])[1] < 0.01


@pytest.mark.parametrize("flanks", [[0], [3], [5], [1, 4]])
def test_both_strands_make_the_strand_indifferent(flanks):
    train, held_out = random_bases(1, 3000) + "N" + random_bases(2, 500), random_bases(1, 900)
    other = (train[::-1]).translate(COMPLEMENT)
    expected = flank_ladder([as_array(train)], [as_array(held_out)], flanks, both_strands=True)
    assert flank_ladder([as_array(other)], [as_array(held_out)], flanks, both_strands=True) == expected
    twice = flank_ladder([as_array(train), as_array(other)], [as_array(held_out)], flanks)
    assert twice == expected
    assert flank_ladder([as_array(train)], [as_array(held_out)], flanks) != expected


def test_the_widest_table():
    text = random_bases(3, 2000)
    assert flank_ladder([as_array(text)], [as_array(text)], [6])[6] == pytest.approx(slow_ladder([text], [text], [6], 1.0, False)[6])


def test_words_never_span_two_segments():
    train = [as_array("A" * 10), as_array("C" * 10)]
    assert flank_ladder(train, [as_array("AAC")], [1]) == {1: 2.0}
    assert flank_ladder([np.concatenate(train)], [as_array("AAC")], [1])[1] == pytest.approx(-math.log2(2 / 6))


def test_mistakes_are_named():
    bases = as_array("ACGTACGT")
    with pytest.raises(ConfigError, match=r"flanks = \[7\].*from 0 to 6"):
        flank_ladder([bases], [bases], [7])
    with pytest.raises(ConfigError, match=r"flanks = \[-1, 2\]"):
        flank_ladder([bases], [bases], [-1, 2])
    with pytest.raises(ConfigError, match="at least one"):
        flank_ladder([bases], [bases], [])
    with pytest.raises(ConfigError, match="pseudocount = 0"):
        flank_ladder([bases], [bases], [1], pseudocount=0.0)
    with pytest.raises(DataError, match="no held-out base has 4 unbroken"):
        flank_ladder([bases], [bases], [4])
    with pytest.raises(DataError, match="no training base has 1 unbroken"):
        flank_ladder([as_array("NNNNAA")], [bases], [1])

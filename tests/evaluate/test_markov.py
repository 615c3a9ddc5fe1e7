import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnapretrain.errors import ConfigError, DataError
from dnapretrain.evaluate.markov import markov_ladder

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def as_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def runs(text: str) -> list[str]:
    letters = (base if base in "ACGT" else " " for base in text.upper().replace("U", "T"))
    return "".join(letters).split()


def slow_ladder(train: list[str], held_out: list[str], orders: list[int], pseudocount: float, both_strands: bool) -> dict[int, float]:
    train_runs = [run for text in train for run in runs(text)]
    if both_strands:
        train_runs += [run[::-1].translate(COMPLEMENT) for run in train_runs]
    ladder = {}
    for order in orders:
        pairs: Counter[tuple[str, str]] = Counter()
        contexts: Counter[str] = Counter()
        for run in train_runs:
            for end in range(order, len(run)):
                context = run[end - order : end]
                pairs[context, run[end]] += 1
                contexts[context] += 1
        bits = []
        for run in (run for text in held_out for run in runs(text)):
            for end in range(max(orders), len(run)):
                context = run[end - order : end]
                bits.append(-math.log2((pairs[context, run[end]] + pseudocount) / (contexts[context] + 4 * pseudocount)))
        ladder[order] = sum(bits) / len(bits)
    return ladder


texts = st.lists(st.text(alphabet="ACGTacgtNRuA", min_size=0, max_size=60), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(texts, texts, st.sets(st.integers(0, 5), min_size=1), st.sampled_from([0.1, 1.0]), st.booleans())
def test_equals_a_slow_dictionary(train, held_out, orders, pseudocount, both_strands):
    train = [*train, "ACGTT"]
    held_out = [*held_out, "GATTACAGATTACA"]
    expected = slow_ladder(train, held_out, sorted(orders), pseudocount, both_strands)
    found = markov_ladder(map(as_array, train), map(as_array, held_out), orders, pseudocount, both_strands)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize("orders", [[15], [16], [30]])
def test_long_words_keep_every_digit(orders):
    rng = np.random.default_rng(3)
    text = "".join(rng.choice(list("ACGT"), 300)) + "T" * 50
    expected = slow_ladder([text], [text], orders, 1.0, False)
    assert markov_ladder([as_array(text)], [as_array(text)], orders)[orders[0]] == pytest.approx(expected[orders[0]], rel=1e-12)


def test_random_bases_cost_two_bits_and_a_period_almost_none():
    rng = np.random.default_rng(0)
    random = rng.choice(np.frombuffer(b"ACGT", dtype=np.uint8), 400_000)
    ladder = markov_ladder([random[:300_000]], [random[300_000:]])
    assert list(ladder) == list(range(13))
    assert all(1.99 < ladder[order] < 2.01 for order in range(5))
    assert max(ladder.values()) < 2.3
    periodic = np.frombuffer(b"ACGTTGCA" * 10_000, dtype=np.uint8)
    ladder = markov_ladder([periodic[:60_000]], [periodic[60_000:]], range(9))
    assert ladder[0] == pytest.approx(2.0, abs=1e-3)
    assert ladder[8] < 0.001


def test_an_unseen_context_costs_two_bits():
    assert markov_ladder([as_array("A" * 50)], [as_array("C" * 20)], [3]) == {3: 2.0}


def test_both_strands_learn_the_other_strand():
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("ACGT"), 3000))
    other = text[::-1].translate(COMPLEMENT)
    one = markov_ladder([as_array(text)], [as_array(other)], [8])[8]
    both = markov_ladder([as_array(text)], [as_array(other)], [8], both_strands=True)[8]
    assert one > 1.9
    assert both < 1.5


def test_words_never_span_two_segments():
    joined = markov_ladder([as_array("A" * 40 + "C" * 40)], [as_array("AAAC")], [3])[3]
    apart = markov_ladder([as_array("A" * 40), as_array("C" * 40)], [as_array("AAAC")], [3])[3]
    assert joined == pytest.approx(-math.log2(2 / (38 + 4)))
    assert apart == pytest.approx(-math.log2(1 / (37 + 4)))


def test_mistakes_are_named():
    bases = as_array("ACGTACGT")
    with pytest.raises(ConfigError, match="31"):
        markov_ladder([bases], [bases], [31])
    with pytest.raises(ConfigError, match="pseudocount = 0"):
        markov_ladder([bases], [bases], [1], pseudocount=0.0)
    with pytest.raises(DataError, match="no held-out base has 12"):
        markov_ladder([bases], [bases])
    with pytest.raises(DataError, match="no A, C, G or T"):
        markov_ladder([as_array("NNNN")], [bases], [1])

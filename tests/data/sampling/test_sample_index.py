"""Order, index arithmetic and sizes: against plain Python with big integers."""

import time

import numpy as np
import pytest
import slow

from dnapretrain import _core

SIZES = sorted({1, 2, 3, 5, 1000} | {2**bits + delta for bits in range(1, 17, 3) for delta in (-1, 0, 1)})
HUGE = [2**31 - 1, 2**31 + 1, 2**32 - 1, 2**32 + 1, 10**13 + 7, 2**62 - 1]


def index(lengths, **rules):
    defaults = {"packed": False, "shuffle": True, "add_bos": True, "random_phase": False, "sequence_length": 8, "k": 1}
    defaults |= {"stride": 8, "min_length": 1, "reverse_complement": 0.0, "seed": 0, "source": 0}
    return _core.SampleIndex(np.array(lengths, np.int64), **(defaults | rules))


def test_hash_equals_plain_python_and_streams_differ():
    values = [_core.keyed_hash(7, stream, 2, 10**13) for stream in range(1, 7)]
    assert values == [slow.keyed_hash(7, stream, 2, 10**13) for stream in range(1, 7)]
    assert len({*values, _core.keyed_hash(2, 3, 7, 10**13), _core.keyed_hash(7, 3, 10**13, 2)}) == 8


@pytest.mark.parametrize("size", SIZES)
def test_order_is_a_permutation(size):
    images = _core.permute(size, 123, np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))
    assert images[:50].tolist() == [slow.permute(size, 123, i) for i in range(min(size, 50))]


@pytest.mark.parametrize("size", HUGE)
def test_order_of_huge_ranges_equals_big_integers(size):
    positions = [0, 1, size // 2, size - 1]
    images = _core.permute(size, 5, np.array(positions, np.int64)).tolist()
    assert images == [slow.permute(size, 5, i) for i in positions]
    assert len(set(images)) == 4


def test_order_depends_on_the_key_and_spreads():
    a, b = (_core.permute(1000, key, np.arange(1000)) for key in (1, 2))
    assert (a == b).sum() < 15
    assert abs(np.corrcoef(np.arange(1000), a)[0, 1]) < 0.15
    first_images = [int(_core.permute(4, key, np.array([0]))[0]) for key in range(4000)]
    assert np.bincount(first_images).min() > 850


@pytest.mark.parametrize("size, position", [(0, 0), (2**62, 0), (5, 5), (5, -1)])
def test_order_refuses(size, position):
    with pytest.raises((ValueError, IndexError)):
        _core.permute(size, 0, np.array([position]))


def test_windows_past_32_bits_and_10_to_the_13():
    lengths = [2**31 + 5, 3, 2**32 + 1, 10**13]  # virtual: the index never looks at bases
    counts = [-(-length // 8192) for length in lengths]
    built = index(lengths, sequence_length=8192, stride=8192, shuffle=False)
    assert built.num_samples == sum(counts)
    assert sum(built.coverage().values()) == sum(lengths)
    for segment in range(4):
        for window in {0, counts[segment] // 2, counts[segment] - 1}:
            _, [run] = built.resolve(sum(counts[:segment]) + window)
            start = window * 8192
            assert run == (segment, start, min(8192, lengths[segment] - start), 0, False, False)


@pytest.mark.parametrize("objective", [{}, {"masked": True, "sequence_length": 4097}, {"masked": True, "add_bos": False}])
def test_packed_past_10_to_the_13(objective):
    lengths = [10**13, 2**31 + 5, 7]
    built = index(lengths, **({"packed": True, "sequence_length": 4096, "shuffle": False} | objective))
    tokens = sum(lengths) + 2
    assert built.num_samples == -(-tokens // 4096)
    at = 10**13 // 4096
    inside = 10**13 - at * 4096
    _, runs = built.resolve(at)
    assert runs == [(0, at * 4096, inside, 0, False, True), (1, 0, 4096 - inside - 1, 0, False, False)]
    epoch, runs = built.resolve(5 * built.num_samples + built.num_samples - 1)
    assert epoch == 5
    assert runs[-1] == (2, 0, 7, 0, False, False)


def test_shuffled_virtual_sizes_follow_the_epoch():
    built = index([10**13], sequence_length=8192, stride=8192, seed=3, source=2)
    size = built.num_samples
    for draw in (0, size - 1, size, 7 * size + 12345):
        epoch, [run] = built.resolve(draw)
        j = slow.permute(size, slow.keyed_hash(3, slow.ORDER, 2, draw // size), draw % size)
        assert (epoch, run[1]) == (draw // size, j * 8192)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("k, phase", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("stride", [1, 7, 8, 24, 40])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_coverage_counts_each_base(packed, k, phase, stride, add_bos, masked):
    lengths = [*range(0, 90), 500]
    rules = {"packed": packed, "k": k, "random_phase": phase, "stride": stride, "add_bos": add_bos, "masked": masked}
    built = index(lengths, min_length=5, shuffle=False, **rules)
    counts = built.coverage()
    assert sum(counts.values()) == sum(lengths)
    if phase:
        return
    read = [np.zeros(length, bool) for length in lengths]
    for draw in range(built.num_samples):
        for segment, start, length, *_ in built.resolve(draw)[1]:
            read[segment][start : start + length] = True
    assert counts["used"] == sum(int(seen.sum()) for seen in read)
    assert built.used_segments().tolist() == [number for number, seen in enumerate(read) if seen.any()]


def test_many_segments_are_found_and_quickly():
    lengths = np.random.default_rng(0).integers(0, 60, 20_000)
    built = index(lengths, shuffle=False)
    starts = [(segment, start) for segment, length in enumerate(lengths) for start in range(0, length, 8)]
    assert [built.resolve(draw)[1][0][:2] for draw in range(built.num_samples)] == starts
    begin = time.perf_counter()
    for draw in range(0, 20_000):
        built.resolve(draw)
    assert (time.perf_counter() - begin) / 20_000 < 50e-6  # Python call and tuples included


@pytest.mark.parametrize(
    "rules",
    [
        {"sequence_length": 0},
        {"k": 0},
        {"k": 9},
        {"stride": 0},
        {"min_length": 0},
        {"reverse_complement": 1.5},
        {"reverse_complement": float("nan")},
    ],
)
def test_bad_rules_are_refused(rules):
    with pytest.raises(ValueError, match="must be"):
        index([100], **rules)


def test_bad_lengths_and_draws_are_refused():
    with pytest.raises(ValueError, match="segment lengths"):
        index([-1])
    with pytest.raises(ValueError, match="2\\^61"):
        index([2**60, 2**60, 2**60])
    with pytest.raises(IndexError, match="negative"):
        index([100]).resolve(-1)
    with pytest.raises(IndexError, match="no samples"):
        index([]).resolve(0)


def test_filler_checks_bounds():
    encoder = _core.Encoder(k=1, base_order="ACGT", first_id=5, pad=0, bos=1, eos=2, unk=3, n=9, lowercase_weight=1.0)
    bases = np.full(10, ord("A"), np.uint8)
    with pytest.raises(ValueError, match="does not lie within 10 bases"):
        _core.BatchFiller(encoder, [(index([8]), np.array([3]), bases)], [], 0)
    with pytest.raises(ValueError, match="different k"):
        _core.BatchFiller(encoder, [(index([8], k=2), np.array([0]), bases)], [], 0)
    with pytest.raises(ValueError, match="add up to 5"):
        _core.BatchFiller(encoder, [(index([8]), np.array([0]), bases)], [5], 0)

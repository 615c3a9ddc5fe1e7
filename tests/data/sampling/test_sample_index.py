"""Order, index arithmetic and sizes: against plain Python with big integers."""

import time

import numpy as np
import pytest
import slow
from slow import Slow

from dnapretrain import _core

SIZES = sorted({1, 2, 3, 5, 1000} | {2**bits + delta for bits in range(1, 17, 3) for delta in (-1, 0, 1)})
HUGE = [2**31 - 1, 2**31 + 1, 2**32 - 1, 2**32 + 1, 10**13 + 7, 2**62 - 1]


def index(lengths, **rules):
    defaults = {"packed": False, "shuffle": True, "add_bos": True, "random_phase": False, "sequence_length": 8, "k": 1}
    defaults |= {"stride": 8, "min_length": 1, "reverse_complement": 0.0, "seed": 0, "source": 0}
    return _core.SampleIndex(np.array(lengths, np.int64), **(defaults | rules))


def test_hash_equals_plain_python_and_streams_differ():
    values = [_core.keyed_hash(7, stream, 2, 10**13) for stream in range(1, 8)]
    assert values == [slow.keyed_hash(7, stream, 2, 10**13) for stream in range(1, 8)]
    assert len({*values, _core.keyed_hash(2, 3, 7, 10**13), _core.keyed_hash(7, 3, 10**13, 2)}) == 9


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


def bases_within_reach(plain):
    """Of each segment, the bases that some offset and some phase of a window have, tried one by one."""
    reach = [np.zeros(len(text), bool) for text in plain.segments]
    size = plain.content() + (plain.k - 1 if plain.random_phase else 0)
    for segment, start, end in plain.stretches():
        bases = min(size, end - start)
        for offset in range(end - start - bases + 1):
            for phase in range(plain.k if plain.random_phase else 1):
                tokens = min(plain.content(), bases - phase) // plain.k
                reach[segment][start + offset + phase : start + offset + phase + tokens * plain.k] = True
    return reach


@pytest.mark.parametrize("k, phase", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("stride", [1, 7, 15, 24, 40])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_coverage_with_jitter_counts_what_can_be_read(k, phase, stride, add_bos, masked):
    """And every place of every window is drawn within some epochs, none outside its stretch."""
    lengths = [*range(0, 60), 200]
    for tokens, jitter, min_length in ((0, 3, 5), (2, 2, 1), (4, 0, 5), (0, 60, 1), (3, 11, 25)):
        rules = {"k": k, "random_phase": phase, "stride": stride, "add_bos": add_bos, "min_length": min_length}
        built = index(lengths, shuffle=False, masked=masked, window=tokens * k, jitter=jitter, **rules)
        plain = Slow(["A" * length for length in lengths], "kmer", shuffle=False, masking=(1, 1, 0) if masked else None, **rules)
        plain.window_length, plain.window_jitter = tokens * k or None, jitter
        counts, reach = built.coverage(), bases_within_reach(plain)
        assert sum(counts.values()) == sum(lengths)
        assert counts["used"] == sum(int(seen.sum()) for seen in reach)
        stretches = plain.stretches()
        assert built.num_samples == len(stretches)
        assert built.used_segments().tolist() == sorted({segment for segment, _, _ in stretches})
        read = [np.zeros(length, bool) for length in lengths]
        for draw in range(3 * built.num_samples):
            _, [(segment, start, length, *_)] = built.resolve(draw)
            number, first, last = plain.window_of(stretches[draw % built.num_samples], draw)
            assert segment == number and first <= start and start + length <= last <= lengths[segment]
            read[segment][start : start + length] = True
        assert all((seen <= can).all() for seen, can in zip(read, reach, strict=True))


@pytest.mark.parametrize("length, places", [(25, 6), (23, 4), (20, 1)])
def test_jitter_is_uniform_and_independent_of_the_epoch_before(length, places):
    """A window of 20 bases with a jitter of 5: of the room in its document, every place equally often; nothing beyond it."""
    built = index([length], sequence_length=20, stride=20, jitter=5)
    assert built.num_samples == 1
    starts = np.array([built.resolve(epoch)[1][0][1] for epoch in range(6000)])
    assert all(run[2] == 20 for epoch in range(50) for run in built.resolve(epoch)[1])
    counts = np.bincount(starts, minlength=places)
    assert len(counts) == places
    assert abs(counts - 6000 / places).max() <= 5 * (6000 / places * (1 - 1 / places)) ** 0.5
    if places > 1:
        assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 5 / 6000**0.5


def test_known_stretches():
    """Windows of 8 bases with a jitter of 4 every 10: stretches at 0 to 12 and 10 to 22, then what is left of 29 bases from 20 on."""
    built = index([29, 32, 7], sequence_length=8, stride=10, jitter=4, shuffle=False)
    assert built.num_samples == 3 + 3 + 1
    seen = [set() for _ in range(7)]
    for draw in range(7 * 200):
        [(segment, start, length, *_)] = built.resolve(draw)[1]
        seen[draw % 7].add((segment, start, length))
    assert seen[:3] == [{(0, at + offset, 8) for offset in range(room + 1)} for at, room in ((0, 4), (10, 4), (20, 1))]
    assert seen[3:6] == [{(1, at + offset, 8) for offset in range(5)} for at in (0, 10, 20)]
    assert seen[6] == {(2, 0, 7)}
    # 33 bases: stretches end at 32, and what begins at 30 has 3 bases, one of them new: a sample if it is long enough.
    assert index([33], sequence_length=8, stride=10, jitter=4).num_samples == 4
    built = index([33], sequence_length=8, stride=10, jitter=4, min_length=4)
    assert built.num_samples == 3
    assert built.coverage() == {"used": 32, "short_segments": 0, "short_tails": 1, "gaps": 0, "remainders": 0}


def test_readers_with_jitter_find_every_draw():
    """All bases of small segments, one by one, against looking at every draw; strands, phases, overlaps, gaps and shuffling."""
    lengths = np.array([31, 4, 57, 12])
    for k, phase, stride, window, jitter in (
        (1, False, 7, 0, 9),
        (3, True, 5, 0, 4),
        (3, False, 40, 12, 3),
        (1, False, 1, 5, 2),
        (2, True, 8, 6, 30),
    ):
        built = index(lengths, k=k, random_phase=phase, stride=stride, window=window, jitter=jitter, reverse_complement=0.5)
        encoder = _core.Encoder(k=k, base_order="ACGT", first_id=5, pad=0, bos=1, eos=2, unk=3, n=9, lowercase_weight=1.0)
        starts = np.cumsum(lengths) - lengths
        filler = _core.BatchFiller(encoder, [(built, starts, np.full(lengths.sum(), ord("A"), np.uint8))], [], 0)
        per_epoch = built.num_samples
        runs = [(draw, *built.resolve(draw)[1][0][:3]) for draw in range(4 * per_epoch)]
        for segment, length in enumerate(lengths):
            at = np.arange(length)
            query, draws, *_ = filler.readers(0, np.full(length, segment), at, at + 1, 1, 4)
            found = sorted(zip(query.tolist(), draws.tolist(), strict=True))
            expected = [
                (base, draw) for draw, on, start, count in runs[per_epoch:] if on == segment for base in range(start, start + count)
            ]
            assert found == sorted(expected)


def test_groups_keep_their_segments_together():
    lengths = [5, 7, 2, 9, 4, 1, 6]
    rules = {"packed": True, "sequence_length": 1000, "min_length": 2, "seed": 3}
    orders = set()
    for epoch in range(40):
        built = index(lengths, groups=np.array([0, 3, 5, 6]), **rules)
        runs = built.resolve(epoch)[1]
        order = [run[0] for run in runs]
        assert sorted(order) == [0, 1, 2, 3, 4, 6]
        at = order.index(0)
        assert order[at : at + 3] == [0, 1, 2] and order[order.index(3) + 1] == 4
        assert all(run[5] for run in runs[:-1]) and not runs[-1][5]
        orders.add(tuple(order))
    assert len(orders) == 6  # of three groups: the one whose only segment is too short is none
    by_one = index(lengths, groups=np.arange(7), **rules)
    assert [by_one.resolve(n) for n in range(9)] == [index(lengths, **rules).resolve(n) for n in range(9)]


def test_many_segments_are_found_and_quickly():
    lengths = np.random.default_rng(0).integers(0, 60, 20_000)
    built = index(lengths, shuffle=False)
    starts = [(segment, start) for segment, length in enumerate(lengths) for start in range(0, length, 8)]
    assert [built.resolve(draw)[1][0][:2] for draw in range(built.num_samples)] == starts
    begin = time.process_time()
    for draw in range(0, 20_000):
        built.resolve(draw)
    assert (time.process_time() - begin) / 20_000 < 50e-6  # Python call and tuples included


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
        {"jitter": -1},
        {"window": -1},
        {"window": 9},
        {"window": 4, "k": 3},
        {"window": 1, "add_bos": False},
    ],
)
def test_bad_rules_are_refused(rules):
    with pytest.raises(ValueError, match=r"must (be|have)"):
        index([100], **rules)


def test_rules_that_are_not_for_this_sampling():
    with pytest.raises(ValueError, match="window and jitter are for windows"):
        index([100], packed=True, jitter=1)
    with pytest.raises(ValueError, match="groups of segments are for packed samples"):
        index([100], groups=np.array([0]))
    for groups in ([1], [0, 2, 1]):
        with pytest.raises(ValueError, match="must begin with the first one and be in order"):
            index([100, 100, 100], packed=True, groups=np.array(groups))


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

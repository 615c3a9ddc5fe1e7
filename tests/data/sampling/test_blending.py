"""Shares, blocks that grow, stages, and the way back from a draw to its sample: against plain counting."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import make_data, make_shard, random_documents, tokenizer_of

from dnapretrain import _core
from dnapretrain.config_file import load_config
from dnapretrain.data.sampling.blending import FAIR_SHARE, Stage, blend_shares, blend_stages, one_epoch
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.errors import ConfigError

BLOCK = _core.BLEND_BLOCK
CONFIG = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "gpt.yaml"


def filler(stages, num_sources=None, seed=5):
    """A blend over sources of one segment each, whose bases nobody reads."""
    encoder = _core.Encoder(k=1, base_order="ACGT", first_id=5, pad=0, bos=1, eos=2, unk=3, n=9, lowercase_weight=1.0)
    rules = {"packed": False, "shuffle": True, "add_bos": True, "random_phase": False, "sequence_length": 8, "k": 1, "stride": 8}
    rules |= {"min_length": 1, "reverse_complement": 0.0, "seed": 0, "source": 0}
    source = (_core.SampleIndex(np.array([8]), **rules), np.array([0]), np.full(8, ord("A"), np.uint8))
    count = num_sources or len(stages[0][1])
    return _core.BatchFiller(encoder, [source] * count, stages[0][1], seed, None, stages[1:])


def stream_of(weights, **settings):
    shards = [make_shard(random_documents(number, count=3 + number), f"s{number}") for number in range(len(weights))]
    sources = [Source(shard, whole_documents(shard), weight) for shard, weight in zip(shards, weights, strict=True)]
    return SampleStream("train", sources, make_data(**settings), tokenizer_of())


# The inverse of orders


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_inverse_of_a_permutation(size, key):
    everything = np.arange(size)
    there = _core.permute(size, key, everything)
    assert np.array_equal(_core.permute(size, key, there, inverse=True), everything)
    assert np.array_equal(_core.permute(size, key, _core.permute(size, key, everything, inverse=True)), everything)


@pytest.mark.parametrize("size", [2**31 - 1, 2**31 + 1, 2**32 + 1, 10**13 + 7, 2**62 - 1])
def test_inverse_of_huge_permutations(size):
    some = np.random.default_rng(1).integers(0, size, 200)
    assert np.array_equal(_core.permute(size, 7, _core.permute(size, 7, some), inverse=True), some)
    with pytest.raises(IndexError, match=f"image {size} is not in"):
        _core.permute(size, 7, np.array([size]), inverse=True)


# Shares


def test_shares_of_thousands_of_sources():
    weights = np.random.default_rng(0).lognormal(0, 2.0, 10_000).tolist()  # as genomes are: from 10^-4 to 10^4
    shares = blend_shares(weights)
    block = sum(shares)
    assert block & (block - 1) == 0 and BLOCK < block <= _core.MAX_BLEND_BLOCK
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * block / total for weight in weights]
    assert min(exact) < 0.5 and min(shares) == 1 and block == _core.MAX_BLEND_BLOCK
    assert max(abs(share - due) for share, due in zip(shares, exact, strict=True)) < 2
    less_rare = blend_shares([max(weight, 0.1) for weight in weights])
    assert FAIR_SHARE - 1 <= min(less_rare) <= 2 * FAIR_SHARE and sum(less_rare) < block


def test_equal_sources_fill_a_block_of_the_usual_size():
    shares = blend_shares([1.0] * 10_000)
    assert sum(shares) == BLOCK and set(shares) == {6, 7}


def test_a_block_grows_only_where_it_must():
    assert sum(blend_shares([1.0, 0.6 / BLOCK])) == BLOCK
    grown = blend_shares([1.0, 0.4 / BLOCK])
    assert sum(grown) == 32 * BLOCK and grown[1] == 13
    assert blend_shares([1.0, 0.0]) == [BLOCK, 0]
    assert blend_shares([1.0, 1e-8]) == [_core.MAX_BLEND_BLOCK - 1, 1]
    with pytest.raises(ConfigError, match=r"number 2\) has weight 1e-09"):
        blend_shares([1.0, 1e-9])


def test_alpha_smooths_sizes():
    data = make_data(train=["a", "b"], blend_alpha=0.5)
    assert blend_stages(data, [1.0, 1.0], [100, 10_000])[0].shares == blend_shares([10.0, 100.0])
    assert blend_stages(data, [5.0, 1.0], [100, 10_000])[0].shares == blend_shares([50.0, 100.0])
    plain = make_data(train=["a", "b"])
    assert blend_stages(plain, [1.0, 3.0], [100, 10_000]) == [Stage(0, blend_shares([1.0, 3.0]))]
    proportional = make_data(train=["a", "b"], blend_alpha=1)
    assert blend_stages(proportional, [1.0, 1.0], [100, 300])[0].shares == [BLOCK // 4, BLOCK * 3 // 4]


def test_large_blocks_are_exact_and_invertible():
    shares = blend_shares([1.0, 0.4 / BLOCK, 0.5])
    block, blend = sum(shares), filler([(0, shares)])
    for start in (0, 3 * block):
        first = start // block * shares[1]
        ids = blend.samples(1, np.arange(first, first + shares[1]))
        assert len(set(ids.tolist())) == shares[1] and start <= ids.min() and ids.max() < start + block
        assert [blend.draw(int(sample)) for sample in ids] == [(1, first + i) for i in range(shares[1])]
    for sample in (0, block - 1, block, 10**13):
        source, n = blend.draw(sample)
        assert blend.samples(source, np.array([n])).tolist() == [sample]


def test_block_sizes_that_are_refused():
    for shares in ([5], [BLOCK, 1], [3 * BLOCK], [2 * _core.MAX_BLEND_BLOCK]):
        with pytest.raises(ValueError, match=f"add up to {sum(shares)}, not to a power of two"):
            filler([(0, shares)])


# Stages


STARTS = st.lists(st.integers(1, 90_000), min_size=1, max_size=3, unique=True).map(sorted)
WEIGHTS = st.lists(st.lists(st.sampled_from([0, 1, 2, 5, 0.001]), min_size=3, max_size=3).filter(any), min_size=4, max_size=4)


@given(STARTS, WEIGHTS)
@settings(max_examples=5, deadline=None)
def test_stages_read_each_draw_once_and_in_turn(starts, weights):
    shares = [blend_shares(of_stage) for of_stage in weights]
    stages = list(zip([0, *starts], shares, strict=False))
    blend = filler(stages)
    end = starts[-1] + 70_000
    drawn = np.array([blend.draw(sample) for sample in range(end)])
    for source in range(3):
        of_source = np.flatnonzero(drawn[:, 0] == source)
        draws = drawn[of_source, 1]
        assert len(set(draws.tolist())) == len(draws)
        assert np.array_equal(blend.samples(source, draws), of_source)
        for limit in [*starts, end]:  # draws below a number, but for a few of the block that is open
            read = np.sort(draws[of_source < limit])
            upper, left = blend.progress(source, limit)
            assert np.array_equal(read, np.setdiff1d(np.arange(upper), left))
            assert np.array_equal(left, np.sort(left))
        _, left = blend.progress(source, starts[-1])
        if (end - starts[-1]) // BLOCK * shares[len(starts)][source] >= len(left):  # what was left over comes first
            assert set(left) <= set(draws.tolist())
    for (start, of_stage), stop in zip(stages, [*starts, end], strict=True):
        for block in range((stop - start) // BLOCK):
            at = start + block * BLOCK
            counts = np.bincount(drawn[at : at + BLOCK, 0], minlength=3)
            assert counts.tolist() == of_stage


def test_a_later_stage_changes_nothing_before_it():
    shares = blend_shares([1.0, 3.0])
    plain, staged = filler([(0, shares)]), filler([(0, shares), (70_001, blend_shares([3.0, 1.0]))])
    before = [plain.draw(sample) for sample in range(70_001)]
    assert [staged.draw(sample) for sample in range(70_001)] == before
    assert before[:500] == [slow.blend(shares, 5, sample) for sample in range(500)]
    assert [staged.draw(sample) for sample in range(70_001, 71_000)] != [plain.draw(sample) for sample in range(70_001, 71_000)]


def test_draws_of_a_source_that_ends():
    blend = filler([(0, blend_shares([1, 1])), (1000, blend_shares([1, 0]))])
    upper, left = blend.progress(1, 1000)
    never = np.concatenate([left, [upper, upper + 10**9]])
    assert set(blend.samples(1, never).tolist()) == {-1}
    assert blend.draw(10**12)[0] == 0
    one = filler([(0, [BLOCK]), (10, [BLOCK])], num_sources=1)
    assert one.draw(12345) == (0, 12345) and one.samples(0, np.array([12345])).tolist() == [12345]
    with pytest.raises(ValueError, match="must begin after"):
        filler([(0, [BLOCK]), (10, [BLOCK]), (10, [BLOCK])], num_sources=1)


def test_one_epoch_over_stages():
    half, rare = blend_shares([1, 1]), blend_shares([1, 3])
    assert one_epoch([Stage(0, rare)], [1000, 300]) == 4000
    assert one_epoch([Stage(0, rare), Stage(400, half)], [1000, 300]) == 400 + 2 * 900
    assert one_epoch([Stage(0, rare), Stage(400, [BLOCK, 0])], [200, 10**9]) == 400 + 100


STAGES = [{"until_samples": 300, "weights": [1, 0]}, {"until_samples": 500, "weights": [1, 3]}, {"blend_alpha": 0.5}]


def test_the_digest_covers_the_stages_that_have_begun():
    staged = stream_of([1.0, 1.0], train=["a", "b"], stages=STAGES)
    changed = stream_of([1.0, 1.0], train=["a", "b"], stages=[*STAGES[:2], {"weights": [9, 1]}])
    moved = stream_of([1.0, 1.0], train=["a", "b"], stages=[STAGES[0], STAGES[1] | {"until_samples": 501}, STAGES[2]])
    assert staged.digest_at(500) == changed.digest_at(500) == moved.digest_at(500) != staged.digest_at(501)
    assert len({staged.digest_at(501), changed.digest_at(501), moved.digest_at(502)}) == 3
    assert staged.digest == staged.digest_at(501) != staged.digest_at(300)


def test_stages_may_be_added_to_a_run_that_had_none():
    plain = stream_of([1.0, 2.0], train=["a", {"prefix": "b", "weight": 2}])
    staged = stream_of([1.0, 2.0], train=["a", {"prefix": "b", "weight": 2}], stages=[{"until_samples": 300}, {"weights": [1, 1]}])
    assert plain.digest == plain.digest_at(10**9) == staged.digest_at(300) != staged.digest_at(301)
    ids = np.arange(300)
    assert np.array_equal(plain.batch(ids).tokens, staged.batch(ids).tokens)
    assert "stages" not in plain.report() and [stage["start"] for stage in staged.report()["stages"]] == [0, 300]


def test_digests_of_old_configurations_stay():
    """As written by the version before stages: checkpoints of it must still load."""
    assert stream_of([1.0, 2.5, 0.5], train=["a", "b", "c"]).digest == "f38f47904fe160dc4f42821172fb8660"
    assert stream_of([1.0]).digest == "e759d65e65a1403c6da5fce9cee74bac"


# Settings


def config_with(*overrides):
    return load_config(CONFIG, ["data.train=[a, b]", "data.valid={}", "data.split={}", "train.eval_interval=0", *overrides])


def test_stages_in_steps_are_counted_in_samples():
    ramp = ["train.global_batch_size=16", "train.micro_batch_size=4", "train.rampup_batch_size=[4, 4, 100]"]
    config = config_with(*ramp, "data.stages=[{until_step: 30, weights: [1, 2]}, {until_samples: 9999}, {}]")
    data = config.data_by_samples()
    assert [stage.until_samples for stage in data.stages] == [config.samples_after(30), 9999, None]
    assert data.stages[0].weights == (1, 2) and data.model_copy(update={"stages": ()}) == config.data.model_copy(update={"stages": ()})
    with pytest.raises(ConfigError, match="until_step, which needs"):
        blend_stages(config.data, [1, 1], [10, 10])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{until_step: 5}]", "stage 1 of data.stages is the last one"),
        ("[{}, {}]", "stage 1 of data.stages needs an end"),
        ("[{until_step: 5, until_samples: 5}, {}]", "needs an end. Give one of"),
        ("[{until_samples: 50}, {until_samples: 50}, {}]", r"stage 2 of data.stages ends at sample 50, where .* \(50\)"),
        ("[{until_step: 5, weights: [1]}, {}]", "has 1 weights for the 2 sources"),
        ("[{until_step: 5, weights: [0, 0]}, {}]", "no weight above 0"),
        ("[{until_step: 5, weights: [1, 0]}, {weights: [1, 0]}]", "source b of data.train has weight 0 in every stage"),
        ("[{until_step: 5, weights: [1, -1]}, {}]", "greater than or equal to 0"),
        ("[{until_stp: 5}, {}]", "Did you mean 'data.stages.until_step'"),
    ],
)
def test_stages_that_are_refused(stages, message):
    with pytest.raises(ConfigError, match=message):
        config_with(f"data.stages={stages}")

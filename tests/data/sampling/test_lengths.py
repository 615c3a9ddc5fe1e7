"""Stages of several lengths: which sample of which stream an id is, what digests cover, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash
from streams import make_data, make_shard, random_documents, tokenizer_of

from dnapretrain.config_file import load_config
from dnapretrain.data.sampling.blending import blend_stages
from dnapretrain.data.sampling.lengths import TrainStream
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.errors import ConfigError, DataError

CONFIG = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "gpt.yaml"
STAGES = [
    {"until_samples": 40, "sequence_length": 8},
    {"until_samples": 70, "sequence_length": 20},
    {"until_samples": 90},
    {"until_samples": 100, "sequence_length": 20},
    {"until_samples": 130, "sequence_length": 20},
    {"sequence_length": 8},
]
LENGTHS = [8] * 40 + [20] * 30 + [12] * 20 + [20] * 40 + [8] * 60
"""Of the first samples, with a data.sequence_length of 12."""
TRAIN = ["a", "b"]


def sources_of(count=2):
    shards = [make_shard(random_documents(number, count=5 + number), f"s{number}") for number in range(count)]
    return [Source(shard, whole_documents(shard), 1.0 + number) for number, shard in enumerate(shards)]


def stream_of(stages, count=2, tokenizer=None, **settings):
    data = make_data(**({"train": TRAIN[:count], "sequence_length": 12, "stages": stages} | settings))
    return TrainStream(sources_of(count), data, tokenizer or tokenizer_of())


def key_of(length, first=8, seed=11):
    return seed if length == first else xxhash.xxh3_64_intdigest(f"{seed} {length}".encode())


def plain_streams(tokenizer=None, **settings):
    """One stream per length, over one source, that knows no stages."""
    return {
        length: SampleStream(
            "train",
            sources_of(1),
            make_data(**({"train": ["a"], "sequence_length": length, "seed": key_of(length)} | settings)),
            tokenizer or tokenizer_of(),
        )
        for length in (8, 12, 20)
    }


MASKED = {"masking": {"mlm_probability": 0.3}}


@pytest.mark.parametrize(
    ("settings", "tokenizer"),
    [
        ({"reverse_complement": 0.5}, ("nucleotide",)),
        ({"window_jitter": 5, "random_phase": True, "reverse_complement": 0.5}, ("kmer", 3)),
        ({"sampling": "packed", "document_attention": True}, ("nucleotide",)),
        (MASKED, ("nucleotide",)),
    ],
    ids=["windows", "k-mers with jitter", "packed", "masked"],
)
def test_each_length_is_read_on_where_it_stopped(settings, tokenizer):
    stream = stream_of(STAGES, 1, tokenizer_of(*tokenizer), **settings)
    plain = plain_streams(tokenizer_of(*tokenizer), **settings)
    read = Counter()
    for sample, length in enumerate(LENGTHS):
        batch, number = stream.batch(np.array([sample])), np.array([read[length]])
        expected = plain[length].batch(number)
        assert stream.length_at(sample) == length == batch.tokens.shape[1]
        for name in ("tokens", "labels", "loss_mask", "documents"):
            assert np.array_equal(getattr(batch, name), getattr(expected, name))
        assert stream.locate(sample) == plain[length].locate(read[length])
        read[length] += 1
    ids = np.array([150, 3, 131, 39])  # two stages of one length in one batch
    rows = [stream.batch(ids[row : row + 1]).tokens[0] for row in range(4)]
    assert np.array_equal(stream.batch(ids).tokens, rows)
    cut, samples = stream.cut()
    assert cut == samples == 0


def test_samples_of_a_batch_have_one_length():
    stream = stream_of(STAGES)
    with pytest.raises(DataError, match=r"have \[8, 20\] tokens"):
        stream.batch(np.array([39, 40]))
    for read in (stream.locate, stream.length_at, lambda sample: stream.batch(np.array([0, sample]))):
        with pytest.raises(DataError, match="sample id -1"):
            read(-1)
    assert stream.batch(np.array([], np.int64)).tokens.shape[0] == 0


def test_parts_say_which_samples_have_a_length():
    stream = stream_of(STAGES)
    for limit in (0, 1, 40, 41, 70, 95, 100, 130, 131, 190):
        found = {}
        for part in stream.parts(limit):
            found[part.stream.sequence_length] = part.run_ids(np.arange(part.num_samples)).tolist()
        assert {length: ids for length, ids in found.items() if ids} == {
            length: [sample for sample in range(limit) if LENGTHS[sample] == length] for length in dict.fromkeys(LENGTHS[:limit])
        }


def test_a_blend_may_change_with_the_length_and_repeats_nothing():
    stages = [
        {"until_samples": 3000, "sequence_length": 8, "weights": [1, 3]},
        {"until_samples": 6000, "sequence_length": 20, "weights": [3, 1]},
        {"sequence_length": 8, "weights": [1, 1]},
    ]
    stream = stream_of(stages)
    of_8 = [{"until_samples": 3000, "weights": [1, 3]}, {"weights": [1, 1]}]
    of_20 = {"sequence_length": 20, "seed": key_of(20)}
    plain = {
        8: SampleStream("train", sources_of(), make_data(train=TRAIN, stages=of_8), tokenizer_of()),
        20: SampleStream("train", sources_of(), make_data(train=TRAIN, stages=[{"weights": [3, 1]}], **of_20), tokenizer_of()),
    }
    read, prefixes = [], []
    for sample in range(9000):
        loci, length = stream.locate(sample), stream.length_at(sample)
        assert loci == plain[length].locate(sample if sample < 3000 else sample - 3000)
        read.append((length, loci[0].prefix, loci[0].epoch, loci[0].contig, loci[0].start))
        prefixes.append(loci[0].prefix)
    assert len(set(read)) == 9000, "no window twice in an epoch of a source at a length"
    share = [np.mean([prefix == "s0" for prefix in prefixes[start : start + 3000]]) for start in (0, 3000, 6000)]
    assert share == pytest.approx([0.25, 0.75, 0.5], abs=0.05)


def test_the_digest_covers_the_lengths_that_have_begun():
    stream = stream_of(STAGES)
    moved = stream_of([STAGES[0], STAGES[1] | {"until_samples": 60}, *STAGES[2:]])
    longer = stream_of([*STAGES[:2], {"sequence_length": 30}])
    assert stream.digest_at(60) == moved.digest_at(60) == longer.digest_at(60)
    assert len({stream.digest_at(70), moved.digest_at(70), stream.digest_at(71), longer.digest_at(71), stream.digest_at(40)}) == 5
    assert stream.digest == stream.digest_at(131) != stream.digest_at(130)
    other_blend = stream_of([STAGES[0], STAGES[1] | {"weights": [5, 1]}, *STAGES[2:]])
    assert other_blend.digest_at(40) == stream.digest_at(40) and other_blend.digest_at(41) != stream.digest_at(41)


def test_longer_samples_may_follow_in_a_run_that_had_one_length():
    """Whether data.sequence_length stays and the stage says the longer one, or the other way round."""
    plain = SampleStream("train", sources_of(), make_data(train=TRAIN, sequence_length=12), tokenizer_of())
    up = stream_of([{"until_samples": 40}, {"sequence_length": 20}])
    down = stream_of([{"until_samples": 40, "sequence_length": 12}, {}], sequence_length=20)
    assert plain.digest == up.digest_at(40) == down.digest_at(40) == stream_of([]).digest == stream_of([{"sequence_length": 12}]).digest
    assert up.digest == down.digest == up.digest_at(41) != plain.digest
    ids = np.arange(40)
    assert np.array_equal(plain.batch(ids).tokens, up.batch(ids).tokens)
    assert np.array_equal(up.batch(ids + 40).tokens, down.batch(ids + 40).tokens)


def test_reports_of_lengths():
    stream, plain = stream_of(STAGES), stream_of([])
    report = stream.report()
    assert [(stage["start"], stage["sequence_length"]) for stage in report["length_stages"]] == [
        (0, 8),
        (40, 20),
        (70, 12),
        (90, 20),
        (130, 8),
    ]
    assert [of_length["sequence_length"] for of_length in report["lengths"]] == [8, 20, 12]
    assert report["lengths"][2]["samples"] == plain.num_samples and "lengths" not in plain.report()
    of_last = report["lengths"][0]["samples"]
    assert (
        report["samples"] == stream.num_samples == [n for n, length in enumerate([*LENGTHS, *[8] * 9999]) if length == 8][of_last - 1] + 1
    )
    assert sum(len(bases) for bases in stream.segments()) == report["bases_used"] + report["bases_left_out"]["short_tails"]


def config_with(*overrides):
    plain = ["data.train=[a, b]", "data.valid={}", "data.split={}", "train.eval_interval=0", "train.global_batch_size=16"]
    return load_config(CONFIG, [*plain, "train.micro_batch_size=4", "data.sequence_length=64", *overrides])


def test_what_follows_from_the_lengths():
    config = config_with("data.stages=[{until_step: 5}, {sequence_length: 256}]")
    assert config.data.training_lengths == (64, 256) and config.data.longest_length == config.max_positions == 256
    assert config_with().max_positions == config_with("data.stages=[{sequence_length: 32}]").max_positions == 64
    with pytest.raises(ConfigError, match="in a stream of 64 tokens"):
        blend_stages(config.data_by_samples(), [1, 1], [10, 10])


RAMP = ["train.rampup_batch_size=[4, 4, 100]"]


@pytest.mark.parametrize("ramp", [[], RAMP], ids=["one batch size", "ramp"])
def test_a_length_begins_with_a_step(ramp):
    config = config_with(*ramp)
    starts = {config.samples_after(step) for step in range(1, 40)}
    consumed = [config.samples_after(step) for step in range(40)]
    for samples in range(1, 300):
        stages = f"data.stages=[{{until_samples: {samples}}}, {{sequence_length: 128}}]"
        steps = max(step for step in range(40) if consumed[step] <= samples)
        assert config.steps_before(samples) == (steps, samples - consumed[steps])
        if samples in starts:
            config_with(*ramp, stages)
        else:
            near = " or ".join(str(consumed[step]) for step in (steps, steps + 1) if step)
            message = rf"ends at sample {samples}, within step {steps + 1}, .* from 64 to 128 tokens.*until_samples={near}\."
            with pytest.raises(ConfigError, match=message):
                config_with(*ramp, stages)
    config_with(*ramp, "data.stages=[{until_samples: 37, weights: [1, 2]}, {until_step: 90}, {sequence_length: 128}]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.max_position_embeddings=64"],
            "sequence_length of stage 2 of data.stages = 130 exceeds model.max_position_embeddings = 64",
        ),
        (["parallel.tp=4", "parallel.sequence_parallel=true"], "stage 2 of data.stages = 130 is not divisible by"),
        (["data.stride=10"], r"data.stride = 10 bases is for samples of one length; those here have \[64, 130\]"),
        (["data.window_length=10"], "data.window_length = 10 bases is for samples of one length"),
    ],
)
def test_lengths_that_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config_with("model.num_attention_heads=4", "data.stages=[{until_step: 5}, {sequence_length: 130}]", *overrides)

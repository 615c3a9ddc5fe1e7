"""Streams of samples: equal to plain Python, exact proportions, coordinates that lead back to the tokens."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slow
from slow import Slow
from streams import assert_rows, make_data, make_shard, make_stream, random_documents, tokenizer_of

from dnapretrain import _core
from dnapretrain.config import SplitConfig
from dnapretrain.data.sampling import samples, sources
from dnapretrain.data.sampling.blending import blend_shares
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.sampling.samples import SampleStream, held_out_streams
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import split_documents, whole_documents
from dnapretrain.errors import ConfigError, DataError


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("kind, k", [("nucleotide", 1), *(("kmer", k) for k in range(1, 7))])
def test_batches_equal_plain_python(kind, k, sampling, add_bos):
    for case in range(6):
        rng = random.Random(case * 100 + k)
        settings = {
            "sequence_length": rng.choice([2, 5, 8, 31]),
            "min_length": rng.choice([1, 1, 20]),
            "reverse_complement": rng.choice([0.0, 0.5, 1.0]),
            "random_phase": kind == "kmer" and case % 2 == 1,
            "lowercase_weight": rng.choice([1.0, 0.1, 0.0]),
            "seed": rng.choice([0, 11, -3, 2**63]),
        }
        stride = rng.choice([None, None, 1, 13, 40]) if sampling == "windows" else None
        texts = random_documents(case, longest=rng.choice([30, 200]))
        tokenizer = tokenizer_of(kind, k, rng.choice(["ACGT", "ATCG"]), add_bos)
        stream = make_stream(texts, tokenizer, sampling=sampling, stride=stride, **settings)
        rules = settings | {"seed": settings["seed"] % 2**64, "stride": stride, "packed": sampling == "packed"}
        plain = Slow(texts, kind, k, tokenizer.base_order, add_bos, **rules)
        assert stream.num_samples == plain.num_samples()
        ids = [*range(min(stream.num_samples, 40)), stream.num_samples, 7 * stream.num_samples + 3]
        batch = stream.batch(np.array(ids))
        assert (batch.tokens.dtype, batch.labels.dtype, batch.loss_mask.dtype) == (np.int64, np.int64, np.float32)
        for row, sample_id in enumerate(ids):
            expected = plain.sample(sample_id)
            assert_rows(batch, row, expected)
            assert {locus.epoch for locus in stream.locate(sample_id)} == {expected[3]}


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("kind, k", [("nucleotide", 1), ("kmer", 2), ("kmer", 6)])
def test_window_length_jitter_and_pack_order_equal_plain_python(kind, k, add_bos):
    for case in range(12):
        rng = random.Random(case * 100 + k)
        packed = case % 3 == 2
        settings = {
            "sequence_length": rng.choice([3, 8, 31]),
            "min_length": rng.choice([1, 1, 20]),
            "reverse_complement": rng.choice([0.0, 0.5]),
            "random_phase": kind == "kmer" and case % 2 == 1,
            "seed": rng.choice([0, 11, -3]),
        }
        if not packed:
            settings |= {"window_length": rng.choice([None, 2 * k, 3 * k]), "window_jitter": rng.choice([0, 1, 7, 50])}
            settings |= {"stride": rng.choice([None, 1, 13, 40])}
        texts = random_documents(case, longest=rng.choice([30, 200]))
        contigs = [f"c{number // 4}" for number in range(len(texts))]
        stream = make_stream(
            texts,
            tokenizer_of(kind, k, add_bos=add_bos),
            contigs=contigs,
            **settings,
            **({"sampling": "packed", "pack_order": "contig"} if packed else {}),
        )
        plain = Slow(texts, kind, k, "ACGT", add_bos, packed=packed, contigs=contigs, **(settings | {"seed": settings["seed"] % 2**64}))
        assert stream.num_samples == plain.num_samples()
        ids = [*range(min(stream.num_samples, 40)), stream.num_samples, 7 * stream.num_samples + 3]
        batch = stream.batch(np.array(ids))
        for row, sample_id in enumerate(ids):
            assert_rows(batch, row, plain.sample(sample_id))


def test_jitter_is_for_training_only_and_moves_every_epoch():
    texts, settings = ["".join(random.Random(3).choices("ACGT", k=600))], {"sequence_length": 20, "stride": 60, "window_jitter": 40}
    stream = make_stream(texts, tokenizer_of(), **settings)
    assert stream.num_samples == 10
    starts = {}
    for sample_id in range(20 * 10):
        (locus,) = stream.locate(sample_id)
        starts.setdefault(locus.start // 60, set()).add(locus.start % 60)
        assert locus.end - locus.start == 20
    assert sorted(starts) == list(range(10)) and all(len(places) > 10 and max(places) <= 40 for places in starts.values())
    assert not stream.reads_alike and make_stream(texts, tokenizer_of(), sequence_length=20, stride=60).reads_alike
    held_out = make_stream(texts, tokenizer_of(), name="valid", **settings)
    assert [held_out.locate(n)[0].start for n in range(held_out.num_samples)] == list(range(0, 600, 20))
    assert held_out.digest == make_stream(texts, tokenizer_of(), name="valid", sequence_length=20).digest


def test_contigs_change_places_and_their_documents_do_not():
    """A token of documents a1 a2 a3 | b1 b2 | c1: six orders of contigs, one order within each; other documents in between are others."""
    texts, contigs = ["A" * 3, "A" * 4, "A" * 5, "C" * 3, "C" * 4, "G" * 3], list("aaabbc")
    stream = make_stream(texts, tokenizer_of(), contigs=contigs, sampling="packed", pack_order="contig", sequence_length=100)
    assert stream.num_samples == 1
    orders = {tuple((locus.contig, locus.start // 1000) for locus in stream.locate(epoch)) for epoch in range(60)}
    parts = [(("a", 0), ("a", 1), ("a", 2)), (("b", 3), ("b", 4)), (("c", 5),)]
    assert orders == {sum(order, ()) for order in itertools.permutations(parts)}
    held_out = make_stream(texts, tokenizer_of(), "valid", contigs, sampling="packed", pack_order="contig", sequence_length=100)
    assert [locus.start // 1000 for locus in held_out.locate(0)] == list(range(6))


def test_known_batch():
    stream = make_stream(["ACgN", "TT"], tokenizer_of(), name="valid", sequence_length=5, sampling="packed", lowercase_weight=0.5)
    batch = stream.batch(np.array([0, 1]))
    assert batch.tokens.tolist() == [[1, 5, 6, 7, 9], [1, 8, 8, 0, 0]]
    assert batch.labels.tolist() == [[5, 6, 7, 9, 2], [8, 8, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 0.5, 0, 0], [1, 1, 0, 0, 0]]


def test_known_reverse_complement():
    stream = make_stream(["AACgTN"], tokenizer_of(), sequence_length=6, reverse_complement=1.0)
    batch = stream.batch(np.array([0]))
    assert batch.labels.tolist() == [[9, 5, 6, 7, 8, 8]]  # NAcGTT
    sixmers = make_stream(["AACGTC"], tokenizer_of("kmer", 3), sequence_length=2, reverse_complement=1.0)
    assert tokenizer_of("kmer", 3).decode(sixmers.batch(np.array([0])).labels[0].tolist()) == "GACGTT"


@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_each_base_is_a_target_once_per_epoch(sampling, add_bos):
    texts = random_documents(5)
    stream = make_stream(texts, tokenizer_of(add_bos=add_bos), sampling=sampling)
    for epoch in range(3):
        batch = stream.batch(np.arange(epoch * stream.num_samples, (epoch + 1) * stream.num_samples))
        targets = np.bincount(batch.labels.ravel(), minlength=10)
        expected = np.bincount(np.concatenate([stream.tokenizer.encode(text) for text in texts]), minlength=10)
        if add_bos:
            assert targets[[3, *range(5, 10)]].tolist() == expected[[3, *range(5, 10)]].tolist()
        elif sampling == "windows":  # the first base of each document is context only
            first = sum(len(text) >= 2 for text in texts) + sum(len(text) == 1 for text in texts)
            assert targets[[3, *range(5, 10)]].sum() == expected.sum() - first


def test_order_is_shuffled_anew_each_epoch_and_never_changes():
    stream = make_stream(random_documents(6, count=40), tokenizer_of())
    size = stream.num_samples
    epochs = [[str(stream.locate(i)[0]) for i in range(epoch * size, (epoch + 1) * size)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    short, long = stream.batch(np.arange(10)), stream.batch(np.arange(10 * size))
    assert np.array_equal(short.tokens, long.tokens[:10])


def test_packed_neighbours_change_between_epochs():
    stream = make_stream(random_documents(7, count=30, longest=6), tokenizer_of(), sampling="packed", sequence_length=16)
    neighbours = []
    for epoch in range(2):
        loci = [[locus.contig for locus in stream.locate(epoch * stream.num_samples + i)] for i in range(stream.num_samples)]
        neighbours.append({pair for contigs in loci for pair in itertools.pairwise(contigs)})
    assert len(neighbours[0] & neighbours[1]) < len(neighbours[0]) / 2


@pytest.mark.parametrize("data_parallel_size", [1, 2, 4])
def test_ranks_together_read_the_global_batch(data_parallel_size):
    stream = make_stream(random_documents(8), tokenizer_of(), reverse_complement=0.5)
    global_ids = np.arange(40, 48)
    whole = stream.batch(global_ids)
    per_rank = np.split(global_ids, data_parallel_size)
    parts = [make_stream(random_documents(8), tokenizer_of(), reverse_complement=0.5).batch(ids) for ids in per_rank]
    for name in ("tokens", "labels", "loss_mask"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def blended(weights, **settings):
    shards = [make_shard(random_documents(number, count=3 + number), f"s{number}") for number in range(len(weights))]
    sources = [Source(shard, whole_documents(shard), weight) for shard, weight in zip(shards, weights, strict=True)]
    return SampleStream("train", sources, make_data(**settings), tokenizer_of()), shards


def test_blend_is_exact_in_each_block():
    weights = [1.0, 2.5, 0.001]
    shares = blend_shares(weights)
    assert sum(shares) == _core.BLEND_BLOCK == slow.BLOCK
    assert all(abs(share - weight / sum(weights) * slow.BLOCK) < 1 for share, weight in zip(shares, weights, strict=True))
    stream, _ = blended(weights)
    for block in (0, 3):
        draws = [stream._filler.draw(i) for i in range(block * slow.BLOCK, (block + 1) * slow.BLOCK)]
        for source, share in enumerate(shares):
            assert sorted(n for s, n in draws if s == source) == list(range(block * share, (block + 1) * share))
    for sample in (0, 1, slow.BLOCK + 5, 10**13 + 1):
        assert stream._filler.draw(sample) == slow.blend(shares, 11, sample)
    first = np.array([stream._filler.draw(i)[0] for i in range(2000)])
    assert abs((first == 1).mean() - 2.5 / 3.501) < 0.05


def test_blended_batches_equal_plain_python():
    stream, _ = blended([1.0, 2.0], reverse_complement=0.5)
    ids = np.arange(100)
    batch = stream.batch(ids)
    plain = [Slow(random_documents(n, count=3 + n), seed=11, source=n, reverse_complement=0.5) for n in range(2)]
    for row, sample_id in enumerate(ids):
        source, draw = slow.blend(blend_shares([1.0, 2.0]), 11, int(sample_id))
        assert_rows(batch, row, plain[source].sample(draw))


def test_one_epoch_of_a_blend_reads_each_source():
    stream, _ = blended([1.0, 3.0])
    counts = [source["samples"] for source in stream.report()["sources"]]
    assert stream.num_samples == max(counts[0] * 4, -(-counts[1] * 4 // 3))


def test_ties_and_equal_weights_are_settled_by_position():
    assert blend_shares([1, 1, 1]) == [21846, 21845, 21845]
    assert blend_shares([0.1] * 10) == [6554] * 6 + [6553] * 4
    with pytest.raises(ConfigError, match=r"weight 1e-09 of 1\.000000001"):
        blend_shares([1.0, 1e-9])


@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("kind, k, phase", [("nucleotide", 1, False), ("kmer", 3, True)])
@pytest.mark.parametrize("add_bos", [True, False])
def test_loci_lead_back_to_the_tokens(sampling, kind, k, phase, add_bos):
    texts = random_documents(9, count=8)
    strands = ["+-"[number % 2] for number in range(8)]
    shard = make_shard(texts, strands=strands)
    split = split_documents([shard], SplitConfig(by="block", block_size=40, valid_fraction=0.3))[0]
    tokenizer = tokenizer_of(kind, k, "ATCG", add_bos)
    data = make_data(sampling=sampling, reverse_complement=0.5, random_phase=phase)
    stream = SampleStream("train", [Source(shard, split["train"])], data, tokenizer)
    strands_seen, phases_seen = set(), set()
    contigs = [slow.reverse_complement(text) if strand == "-" else text for text, strand in zip(texts, strands, strict=True)]
    for sample_id in range(3 * stream.num_samples):
        batch = stream.batch(np.array([sample_id]))
        stream_of_tokens = [*batch.tokens[0].tolist(), int(batch.labels[0, -1])]
        found = []
        for locus in stream.locate(sample_id):
            number = int(locus.contig[1:])
            text = contigs[number][locus.start - 1000 * number : locus.end - 1000 * number]
            assert len(text) == locus.end - locus.start
            found += tokenizer.encode(slow.reverse_complement(text) if locus.strand == "-" else text).tolist()
            strands_seen.add(locus.strand)
            phases_seen.add(locus.phase)
            assert (locus.prefix, locus.assembly, locus.epoch) == ("shard", "asm", sample_id // stream.num_samples)
        assert [token for token in stream_of_tokens if token not in (0, 1, 2)] == found
    assert strands_seen == {"+", "-"}
    assert phases_seen == (set(range(k)) if phase else {0})


def test_sides_of_a_split_never_share_a_base():
    shard = make_shard(random_documents(10, count=20, longest=400))
    split = split_documents([shard], SplitConfig(by="block", block_size=50, valid_fraction=0.3, test_fraction=0.2))[0]
    read = {}
    for side in ("train", "valid", "test"):
        stream = SampleStream(side, [Source(shard, split[side])], make_data(stride=3), tokenizer_of())
        loci = [locus for i in range(stream.num_samples) for locus in stream.locate(i)]
        read[side] = {(locus.contig, position) for locus in loci for position in range(locus.start, locus.end)}
        assert len(read[side]) == stream.report()["bases_used"] == split[side].bases
    assert sum(map(len, read.values())) == len(set.union(*read.values())) == int(shard.lengths.sum())


def test_held_out_sets_are_read_once_in_order_on_the_forward_strand():
    texts = random_documents(12)
    settings = {"reverse_complement": 1.0, "random_phase": True, "stride": 1, "sequence_length": 4}
    stream = make_stream(texts, tokenizer_of("kmer", 2), name="valid", **settings)
    loci = [stream.locate(i)[0] for i in range(stream.num_samples)]
    assert all(locus.strand == "+" and locus.phase == 0 for locus in loci)
    places = [(int(locus.contig[1:]), locus.start) for locus in loci]
    assert places == sorted(places)
    assert all(a.end == b.start for a, b in itertools.pairwise(loci) if a.contig == b.contig)
    with pytest.raises(DataError, match=f"sample id {stream.num_samples} is not below the {stream.num_samples} samples of 'valid'"):
        stream.batch(np.array([0, stream.num_samples]))


def test_held_out_sources_follow_each_other_even_where_one_is_too_short():
    shards = [make_shard(["ACGTACGTAC"], "a"), make_shard(["AC"], "b"), make_shard(["GGGGGGGG"], "c")]
    sources = [Source(shard, whole_documents(shard)) for shard in shards]
    stream = SampleStream("valid", sources, make_data(sequence_length=5, min_length=5), tokenizer_of())
    assert [stream.locate(i)[0].prefix for i in range(stream.num_samples)] == ["a", "a", "c"]
    assert stream.report()["bases_left_out"] == {"short_segments": 2, "short_tails": 3, "gaps": 0, "remainders": 0}


def test_report_books_every_base():
    texts = random_documents(13, count=30, longest=300)
    shard = make_shard(texts)
    split = split_documents([shard], SplitConfig(by="block", block_size=64, valid_fraction=0.3))[0]
    for settings in ({}, {"stride": 100}, {"stride": 7}, {"sampling": "packed"}, {"min_length": 40}):
        stream = SampleStream("train", [Source(shard, split["train"])], make_data(**settings), tokenizer_of("kmer", 3))
        report = stream.report()
        assert report["bases"] == sum(map(len, texts))
        assert report["bases_other_sides"] == split["valid"].bases
        assert report["bases"] == report["bases_used"] + report["bases_other_sides"] + sum(report["bases_left_out"].values())
        assert report["samples"] == stream.num_samples == report["sources"][0]["samples"]


def test_segments_give_the_bases_that_samples_read():
    texts = ["ACGTacgtNN", "AC", "GGGGGTTTTT"]
    stream = make_stream(texts, tokenizer_of(), min_length=5)
    assert [segment.tobytes().decode() for segment in stream.segments()] == ["ACGTacgtNN", "GGGGGTTTTT"]
    assert [s.tobytes().decode() for s in make_stream(texts, tokenizer_of(), sampling="packed").segments()] == texts


def test_digest_names_the_data_and_the_rules():
    def digest(texts=("ACGT" * 9,), tokenizer=None, name="train", weights=None, **settings):
        shards = [make_shard(texts, prefix) for prefix in "ab"[: len(weights or [1])]]
        sources = [Source(shard, whole_documents(shard), weight) for shard, weight in zip(shards, weights or [1.0], strict=True)]
        return SampleStream(name, sources, make_data(**settings), tokenizer or tokenizer_of()).digest

    same = [digest(), digest(train="elsewhere"), digest(stride=8), digest(window_jitter=0, pack_order="document")]
    assert len(set(same)) == 1
    assert digest(weights=[1, 1]) == digest(weights=[2, 2])
    others = [
        digest(texts=["ACGT" * 10]),
        digest(tokenizer=tokenizer_of("kmer", 3)),
        digest(weights=[1, 1]),
        digest(weights=[1, 2]),
        digest(seed=12),
        digest(sequence_length=9),
        digest(stride=4),
        digest(sampling="packed"),
        digest(min_length=2),
        digest(reverse_complement=0.5),
        digest(lowercase_weight=0.5),
        digest(tokenizer=tokenizer_of("kmer", 3), random_phase=True),
        digest(name="valid"),
        digest(window_jitter=1),
        digest(window_length=4),
        digest(sampling="packed", pack_order="contig"),
    ]
    assert len({same[0], *others}) == 1 + len(others)
    assert digest(name="valid", seed=1) == digest(name="valid", seed=2)


def test_user_errors():
    tokenizer = tokenizer_of("kmer", 6, add_bos=False)
    with pytest.raises(
        ConfigError, match="shard shard gives no sample for 'train': its longest segment there has 11 bases and 12 are needed"
    ):
        make_stream(["ACGTACGTACG"], tokenizer)
    with pytest.raises(ConfigError, match="17 are needed"):
        make_stream(["ACGTACGTACGTA"], tokenizer, random_phase=True)
    stream = make_stream(["ACGT" * 10], tokenizer_of())
    for sample_id in (-1, 2**62):
        with pytest.raises(DataError, match=f"sample id {sample_id} is not in"):
            stream.batch(np.array([sample_id]))
        with pytest.raises(DataError, match=f"sample id {sample_id} is not in"):
            stream.locate(sample_id)
    assert stream.batch(np.array([], np.int64)).tokens.shape == (0, 8)


def test_streams_of_a_configuration(monkeypatch):
    shards = {Path(name): make_shard(random_documents(seed), name) for seed, name in enumerate(("a", "b", "extra"))}
    for module in (samples, sources):
        monkeypatch.setattr(module, "open_shard", shards.__getitem__)
    split = SplitConfig(by="contig", valid_contigs=("c1",), test_contigs=("c2",))
    data = make_data(train=("a", {"prefix": "b", "weight": 3}), valid={"other": "extra"}, split=split)
    train = train_stream(data, tokenizer_of())
    assert [source["share"] for source in train.report()["sources"]] == [0.25, 0.75]
    assert {locus.contig for i in range(500) for locus in train.locate(i)} == {f"c{n}" for n in range(12)} - {"c1", "c2"}
    held_out = held_out_streams(data, tokenizer_of())
    assert list(held_out) == ["valid", "test", "other"]
    contigs = {name: {stream.locate(i)[0].contig for i in range(stream.num_samples)} for name, stream in held_out.items()}
    assert contigs == {"valid": {"c1"}, "test": {"c2"}, "other": {f"c{n}" for n in range(12)}}
    assert held_out["other"].report()["bases_other_sides"] == 0
    with pytest.raises(ConfigError, match="names a set 'valid', which is also a side"):
        held_out_streams(data.model_copy(update={"valid": {"valid": Path("extra")}}), tokenizer_of())


def test_import_needs_no_torch():
    code = "import sys, dnapretrain.data.sampling.samples; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

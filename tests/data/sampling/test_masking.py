"""The masked objective: equal to plain Python, shares as set, standard tokens only, each base once per epoch."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import Slow
from streams import assert_rows, make_data, make_shard, make_stream, random_documents, tokenizer_of

from dnapretrain import _core
from dnapretrain.data.sampling.blending import blend_shares
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.data.sampling.sources import Source
from dnapretrain.data.sampling.split import whole_documents
from dnapretrain.errors import ConfigError

ALMOST_ONE = math.nextafter(1.0, 0.0)
PAD, BOS, EOS, MASK = 0, 1, 2, 4
KINDS = [("nucleotide", 1), ("kmer", 1), ("kmer", 2), ("kmer", 3), ("kmer", 6)]


def masking(chosen=0.15, masked=0.8, random=0.1):
    return {"mlm_probability": chosen, "mask_replace_prob": masked, "random_replace_prob": random}


def all_of(stream, epoch=0):
    return stream.batch(np.arange(epoch * stream.num_samples, (epoch + 1) * stream.num_samples))


def random_bases(count, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), count))


@st.composite
def cases(draw):
    """Texts, tokenizer and settings of a stream, whatever they give."""
    kind, k = draw(st.sampled_from(KINDS))
    masked = draw(st.sampled_from([0.0, 0.5, 0.8, 1.0]))
    sampling = draw(st.sampled_from(["windows", "packed"]))
    windows = {
        "stride": draw(st.sampled_from([None, 1, 13, 40])),
        "window_length": draw(st.sampled_from([None, k])),
        "window_jitter": draw(st.sampled_from([0, 0, 5])),
    }
    return {
        "texts": draw(st.lists(st.text("ACGTACGTacgtNnRy", min_size=1, max_size=90), min_size=1, max_size=8)),
        "tokenizer": tokenizer_of(kind, k, draw(st.sampled_from(["ACGT", "ATCG", "AGCT"])), draw(st.booleans()), draw(st.booleans())),
        "name": draw(st.sampled_from(["train", "valid"])),
        "masking": masking(
            draw(st.sampled_from([1e-3, 0.15, 0.5, ALMOST_ONE])), masked, draw(st.sampled_from([0.0, (1 - masked) / 2, 1 - masked]))
        )
        | {"span_length": draw(st.sampled_from([1, 1, 2, 3, 6, 100]))},
        "sampling": sampling,
        **(windows if sampling == "windows" else {"pack_order": draw(st.sampled_from(["document", "contig"]))}),
        "sequence_length": draw(st.integers(3, 20)),
        "min_length": draw(st.sampled_from([1, 1, 20])),
        "reverse_complement": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "random_phase": draw(st.booleans()) and kind == "kmer",
        "lowercase_weight": draw(st.sampled_from([1.0, 0.3, 0.0])),
        "seed": draw(st.sampled_from([0, 11, -3, 2**63])),
    }


def contigs_of(case):
    return [f"c{number // 3}" for number in range(len(case["texts"]))]


def plain_version(case):
    """Plain Python with the rules of the stream of this case; held-out sets are in order, forward and of seed 0."""
    rules = {name: case[name] for name in ("sequence_length", "min_length", "lowercase_weight", "window_length") if name in case}
    if case["name"] == "train":
        training = ("stride", "reverse_complement", "random_phase", "window_jitter")
        rules |= {name: case[name] for name in training if name in case} | {"seed": case["seed"] % 2**64}
        if case.get("pack_order") == "contig":
            rules |= {"contigs": contigs_of(case)}
    tokenizer, packed = case["tokenizer"], case["sampling"] == "packed"
    rules |= {"packed": packed, "shuffle": case["name"] == "train", "masking": tuple(case["masking"].values())[:3]}
    rules |= {"add_eos": tokenizer.add_eos, "span_length": case["masking"]["span_length"]}
    return Slow(case["texts"], tokenizer.kind, tokenizer.k, tokenizer.base_order, tokenizer.add_bos, **rules)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_batches_equal_plain_python(case):
    plain = plain_version(case)
    count = plain.num_samples()
    settings_of_stream = {name: value for name, value in case.items() if name not in ("texts", "tokenizer", "name")}
    if not count:
        with pytest.raises(ConfigError, match="gives no sample"):
            make_stream(case["texts"], case["tokenizer"], case["name"], contigs_of(case), **settings_of_stream)
        return
    stream = make_stream(case["texts"], case["tokenizer"], case["name"], contigs_of(case), **settings_of_stream)
    assert stream.num_samples == count
    ids = [*range(min(count, 12)), count - 1, *([count, 7 * count + 3] if case["name"] == "train" else [])]
    batch = stream.batch(np.array(ids))
    for row, sample_id in enumerate(ids):
        assert_rows(batch, row, plain.sample(sample_id))


def test_long_samples_equal_plain_python():
    """Longer than the block in which the core draws places."""
    texts = [random_bases(5000).replace("GA", "ga")]
    for span in (1, 6):
        shares = masking() | {"span_length": span}
        stream = make_stream(texts, tokenizer_of(), sequence_length=2600, lowercase_weight=0.0, masking=shares)
        plain = Slow(texts, sequence_length=2600, lowercase_weight=0.0, masking=(0.15, 0.8, 0.1), span_length=span, seed=11)
        batch = stream.batch(np.array([0, 1]))
        for row in range(2):
            assert_rows(batch, row, plain.sample(row))


def runs_of(flags):
    """(start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("span", [2, 6, 17])
def test_spans_have_the_share_of_single_tokens(span, sampling):
    """Every place with probability 0.15, at the ends of documents too; margins: 5 sigma of sums of spans, all cut ones counted as whole."""
    texts = [random_bases(700 + 13 * n, n) for n in range(300)] + [
        random_bases(50, n) + "N" * (1 + n % 9) + random_bases(31, n) for n in range(300)
    ]
    rules = {"sampling": sampling, "sequence_length": 256, "random_phase": False}
    stream = make_stream(texts, tokenizer_of(), masking=masking() | {"span_length": span}, **rules)
    chosen, weighted = 0, 0
    kinds, hidden = np.zeros(3, int), []
    single = make_stream(texts, tokenizer_of(), masking=masking(ALMOST_ONE, 0.0, 0.0), **rules)
    first = np.zeros((2, 2), int)  # chosen and all of first and last tokens of stretches
    for epoch in range(2):
        batch, every = all_of(stream, epoch), all_of(single, epoch)
        may, is_chosen = every.loss_mask > 0, batch.loss_mask > 0
        assert np.array_equal(batch.labels, every.labels) and not (is_chosen & ~may).any()
        chosen, weighted = chosen + int(is_chosen.sum()), weighted + int(may.sum())
        for row in range(len(may)):
            for start, end in runs_of(may[row]):
                first[0] += is_chosen[row, start], 1
                first[1] += is_chosen[row, end - 1], 1
                for from_, to in runs_of(is_chosen[row, start:end]):
                    if from_ > 0 and to < end - start:
                        hidden.append(to - from_)
                        if to - from_ == span:
                            read, was = batch.tokens[row, start + from_ : start + to], batch.labels[row, start + from_ : start + to]
                            kinds += (
                                bool((read == MASK).all()),
                                bool((read == was).all()),
                                bool((read != MASK).all() and (read != was).any()),
                            )

    def near(count, of, share, size):
        return abs(count - of * share) < 5 * math.sqrt(of * share * (1 - share) * size)

    assert weighted > 400_000 and near(chosen, weighted, 0.15, span)
    assert all(near(count, of, 0.15, 1) for count, of in first) and first[0, 1] > 1000
    assert all(length % span == 0 for length in hidden), "whole spans, and spans that touch"
    assert near(sum(length == span for length in hidden), len(hidden), 0.85, 1)
    same = 0.1 * 0.25**span  # drawn at random, and by chance what stood there
    assert kinds.sum() > 1000 and kinds.sum() == sum(length == span for length in hidden), "a span is read in one way"
    assert near(kinds[0], kinds.sum(), 0.8, 1) and near(kinds[1], kinds.sum(), 0.1 + same, 1)


def test_spans_end_at_separators_and_begin_at_every_offset():
    """Documents of 3 bases: a span of 8 is 3 bases long, and those on both sides of a separator are chosen apart from each other."""
    shares = masking(0.5, 1.0, 0.0) | {"span_length": 8}
    batch = all_of(make_stream(["ACG"] * 4000, tokenizer_of(), "valid", sampling="packed", sequence_length=81, masking=shares))
    rows = (batch.loss_mask[:, 1:] > 0).reshape(len(batch.labels), -1)
    counts, pairs = np.zeros(4, int), np.zeros((2, 2), int)
    for row, labels in zip(rows, batch.labels[:, 1:], strict=True):
        documents = [row[start:end] for start, end in runs_of(labels > MASK)]
        whole = [int(document.sum()) for document in documents if len(document) == 3]
        counts += np.bincount(whole, minlength=4)
        for left, right in itertools.pairwise(whole):
            pairs[left // 3, right // 3] += left in (0, 3) and right in (0, 3)
    # Cut at one of its two inner borders with probability 2/8: then 0 to 3 of its bases, by two coins; else all or none.
    total = counts.sum()
    for number, share in enumerate((3 / 8 + 1 / 16, 1 / 16, 1 / 16, 3 / 8 + 1 / 16)):
        assert abs(counts[number] - share * total) < 8 * math.sqrt(share * total), counts
    assert abs(pairs[0, 0] * pairs[1, 1] / (pairs[0, 1] * pairs[1, 0]) - 1) < 0.35
    single = make_stream([random_bases(2000)], tokenizer_of(), sequence_length=2000, masking=masking(0.15, 1.0, 0.0) | {"span_length": 6})
    offsets = {start % 6 for n in range(60) for start, end in runs_of(single.batch(np.array([n])).loss_mask[0] > 0) if end - start == 6}
    assert offsets == set(range(6))


@pytest.mark.parametrize(
    "add_bos, labels", [(True, [[1, 5, 6, 7, 9, 2], [1, 8, 8, 0, 0, 0]]), (False, [[5, 6, 7, 9, 2, 8], [8, 0, 0, 0, 0, 0]])]
)
def test_known_batch(add_bos, labels):
    """'ACgN' and 'TT', packed, every token that may be chosen hidden: all but N, <bos>, <eos> and <pad>."""
    rules = {"name": "valid", "sequence_length": 6, "sampling": "packed", "lowercase_weight": 0.5}
    batch = all_of(make_stream(["ACgN", "TT"], tokenizer_of(add_bos=add_bos), masking=masking(ALMOST_ONE, 1.0, 0.0), **rules))
    weight = {PAD: 0, BOS: 0, EOS: 0, 9: 0, 7: 0.5}
    assert batch.labels.tolist() == labels
    assert batch.loss_mask.tolist() == [[weight.get(label, 1) for label in row] for row in labels]
    assert batch.tokens.tolist() == [[MASK if weight.get(label, 1) else label for label in row] for row in labels]


def core_batch(lengths, bases, count, sequence_length=64, **shares):
    """Tokens, labels and weights straight from the core: probabilities of 0 and 1 are no settings of a run, but hold there."""
    rules = {"packed": False, "shuffle": False, "add_bos": False, "random_phase": False, "k": 1, "min_length": 1}
    rules |= {
        "sequence_length": sequence_length,
        "stride": sequence_length,
        "reverse_complement": 0.0,
        "seed": 0,
        "source": 0,
        "masked": True,
    }
    index = _core.SampleIndex(np.array(lengths), **rules)
    encoder = tokenizer_of().core_encoder(1.0)
    core = _core.Masking(**(masking() | shares), mask_id=MASK, first_standard=5, num_standard=4)
    starts = np.cumsum(lengths) - lengths
    return _core.BatchFiller(encoder, [(index, starts, np.frombuffer(bases.encode(), np.uint8))], [], 0, core).fill(np.arange(count))


def test_the_ends_are_exact():
    bases = random_bases(200_000)
    tokens, labels, weights = core_batch([200_000], bases, 3125, mlm_probability=0.0)
    assert np.array_equal(tokens, labels) and not weights.any()
    tokens, labels, weights = core_batch([200_000], bases, 3125, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)
    assert (tokens == MASK).all() and weights.all()
    tokens, labels, weights = core_batch([200_000], bases, 3125, mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=0.0)
    assert np.array_equal(tokens, labels) and weights.all()
    tokens, _, _ = core_batch([200_000], bases, 3125, mlm_probability=1.0, mask_replace_prob=0.7, random_replace_prob=0.3)
    replaced = tokens[tokens != MASK]  # none is left to stay: what was not masked is uniform, whatever stood there
    assert abs(np.bincount(replaced, minlength=9)[5:9] / len(replaced) - 0.25).max() < 0.01


@pytest.mark.parametrize("kind, k", [("nucleotide", 1), ("kmer", 3)])
@pytest.mark.parametrize("sampling", ["windows", "packed"])
def test_shares_and_replacements(kind, k, sampling):
    """15 % of the tokens that weigh something; of them 80 % <mask>, 10 % any standard token, 10 % as they were. Margins: 5 sigma."""
    tokenizer = tokenizer_of(kind, k)
    texts = [random_bases(400_000 * k, seed) + "N" * 60 + random_bases(600, seed + 10).lower() for seed in range(2)]
    stream = make_stream(texts, tokenizer, sampling=sampling, sequence_length=512, lowercase_weight=0.0, masking=masking())
    batch = all_of(stream)
    chosen = batch.loss_mask > 0
    causal = all_of(make_stream(texts, tokenizer, sampling=sampling, sequence_length=511, lowercase_weight=0.0))
    weighted, number = int((causal.loss_mask > 0).sum()), int(chosen.sum())
    assert weighted > 790_000

    def near(count, of, share):
        return abs(count - of * share) < 5 * math.sqrt(of * share * (1 - share))

    assert near(number, weighted, 0.15)
    read, was = batch.tokens[chosen], batch.labels[chosen]
    standard = tokenizer.standard_ids
    assert {tokenizer.tokens[i] for i in standard} == {text for text in tokenizer.tokens if set(text) <= set("ACGT")}
    assert np.isin(was, standard).all() and np.isin(read, [MASK, *standard]).all()
    assert near((read == MASK).sum(), number, 0.8)
    changed = read[(read != MASK) & (read != was)]
    assert near(len(changed), number, 0.1 * (1 - 1 / len(standard)))
    kinds = np.bincount(changed - standard.start, minlength=len(standard))
    assert all(near(count, len(changed), 1 / len(standard)) for count in kinds)
    same = ~chosen  # all else is as it was
    assert np.array_equal(batch.tokens[same], batch.labels[same])
    by_place = chosen[:, 1:].mean(axis=0)  # no place is favoured, and neighbours are independent
    assert abs(by_place - 0.15).max() < 0.06
    pairs = chosen[:, 1:-1] & chosen[:, 2:]
    assert near(pairs.sum(), pairs.size, 0.15**2)


def test_masks_change_between_epochs_and_samples_but_not_with_the_grouping_of_ids():
    rules = {"sequence_length": 33, "masking": masking(0.5)}
    stream = make_stream(["ACGT" * 200], tokenizer_of(), **rules)
    places = {}
    for epoch in range(2):
        batch = all_of(stream, epoch)
        for row in range(stream.num_samples):
            start = stream.locate(epoch * stream.num_samples + row)[0].start
            places.setdefault(start, []).append(tuple(batch.loss_mask[row]))
    assert len(places) == 25
    assert len({mask for masks in places.values() for mask in masks}) == 50
    ids = np.array([5, 49, 3, 77, 5, 10**13])
    whole = stream.batch(ids)
    parts = [make_stream(["ACGT" * 200], tokenizer_of(), **rules).batch(ids[start : start + 2]) for start in (0, 2, 4)]
    for name in ("tokens", "labels", "loss_mask"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert np.array_equal(whole.tokens[0], whole.tokens[4])


def test_blends_do_not_disturb_the_masks():
    documents = [random_documents(n, count=3 + n) for n in range(2)]
    sources = [Source(shard, whole_documents(shard), weight) for shard, weight in zip(map(make_shard, documents), (1.0, 2.0), strict=True)]
    stream = SampleStream("train", sources, make_data(masking=masking(0.4)), tokenizer_of())
    batch = stream.batch(np.arange(80))
    plain = [Slow(documents[n], seed=11, source=n, masking=(0.4, 0.8, 0.1)) for n in range(2)]
    assert blend_shares([1.0, 2.0]) == stream._stages[0].shares
    drawn = [stream._filler.draw(sample) for sample in range(80)]
    assert {source for source, _ in drawn} == {0, 1}
    for row, (source, draw) in enumerate(drawn):
        assert_rows(batch, row, plain[source].sample(draw))


def test_held_out_masks_are_one_yardstick():
    """The same at every evaluation, and in runs of another seed, which their digest says too."""
    streams = [make_stream(random_documents(3), tokenizer_of(), name="valid", seed=seed, masking=masking(0.4)) for seed in (1, 2)]
    first, second = map(all_of, streams)
    assert np.array_equal(first.tokens, second.tokens) and np.array_equal(first.loss_mask, second.loss_mask)
    assert streams[0].digest == streams[1].digest
    train = [make_stream(random_documents(3), tokenizer_of(), seed=seed, masking=masking(0.4)) for seed in (1, 2)]
    assert train[0].digest != train[1].digest


@pytest.mark.parametrize("sampling", ["windows", "packed"])
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("kind, k", [("nucleotide", 1), ("kmer", 3)])
def test_each_base_is_in_one_sample_of_each_epoch(sampling, add_bos, kind, k):
    texts = random_documents(5)
    stream = make_stream(texts, tokenizer_of(kind, k, add_bos=add_bos), sampling=sampling, reverse_complement=0.5, masking=masking())
    for epoch in range(3):
        read = [np.zeros(len(text), int) for text in texts]
        for sample_id in range(epoch * stream.num_samples, (epoch + 1) * stream.num_samples):
            for locus in stream.locate(sample_id):
                number = int(locus.contig[1:])
                read[number][locus.start - 1000 * number : locus.end - 1000 * number] += 1
        assert all(seen.max() == 1 and seen.sum() == len(seen) // k * k for seen in read if len(seen) >= k)
        labels = all_of(stream, epoch).labels
        assert (labels == BOS).sum() == (stream.num_samples if add_bos else 0)
        assert (labels > MASK).sum() + (labels == 3).sum() == sum(len(text) // k for text in texts)
    report = stream.report()
    assert report["bases_used"] == sum(len(text) // k * k for text in texts)
    assert report["bases"] == report["bases_used"] + sum(report["bases_left_out"].values())


@pytest.mark.parametrize("add_bos", [True, False])
def test_packed_samples_follow_each_other_without_a_gap(add_bos):
    texts = random_documents(6, count=20, longest=30)
    tokenizer = tokenizer_of(add_bos=add_bos)
    labels = all_of(make_stream(texts, tokenizer, name="valid", sampling="packed", sequence_length=9, masking=masking())).labels
    stream = [token for row in labels.tolist() for token in row if token not in (PAD, BOS)]
    assert stream == [token for text in texts for token in [*tokenizer.encode(text).tolist(), EOS]][:-1]
    assert not (labels[:-1] == PAD).any()


def test_one_token_is_enough_for_a_window():
    for add_bos in (True, False):
        tokenizer = tokenizer_of("kmer", 6, add_bos=add_bos)
        stream = make_stream(["ACGTACGTACG", "ACGTA"], tokenizer, name="valid", masking=masking(ALMOST_ONE, 1.0, 0.0))
        batch = all_of(stream)
        assert stream.num_samples == 1
        assert batch.tokens.tolist() == [[BOS, MASK] + [PAD] * 6 if add_bos else [MASK] + [PAD] * 7]
        assert batch.loss_mask.sum() == 1
        assert stream.report()["bases_left_out"] == {"short_segments": 5, "short_tails": 0, "gaps": 0, "remainders": 5}
        with pytest.raises(ConfigError, match="has 5 bases and 6 are needed"):
            make_stream(["ACGTA"], tokenizer, masking=masking())


def test_digest_names_the_masking_and_older_digests_stay():
    def digest(**shares):
        return make_stream(["ACGT" * 9], tokenizer_of(), **({"masking": masking(**shares)} if shares else {})).digest

    causal = digest()
    assert causal == "90ee4669cf639b31f177c2c7a081e98f"  # as before there was masking
    assert digest(chosen=0.0, masked=0.5) == causal  # no masking: its settings do not matter
    assert digest(chosen=0.15) == "ca1db136fa666bf956dc47486c3df4e4"  # as before there were spans
    spans = [make_stream(["ACGT" * 9], tokenizer_of(), masking=masking() | {"span_length": n}).digest for n in (1, 2, 6)]
    assert spans[0] == digest(chosen=0.15) and len(set(spans)) == 3
    assert len({causal, digest(chosen=0.15), digest(chosen=0.2), digest(masked=0.7), digest(random=0.2)}) == 5


@pytest.mark.parametrize(
    "values, message",
    [
        ({"mlm_probability": -0.1}, "mlm_probability must be 0 to 1, got -0.1"),
        ({"mlm_probability": float("nan")}, "mlm_probability must be 0 to 1, got nan"),
        ({"mask_replace_prob": 1.5}, "mask_replace_prob must be 0 to 1, got 1.5"),
        ({"random_replace_prob": -1}, "random_replace_prob must be 0 to 1, got -1"),
        ({"random_replace_prob": 0.3}, "must be at most 1 together, got 1.1"),
        ({"num_standard": 0}, "number of standard tokens must be 1 to"),
        ({"span_length": 0}, "span length must be 1 to 2\\^31 - 1 tokens, got 0"),
    ],
)
def test_bad_masking_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        _core.Masking(**(masking() | {"mask_id": 4, "first_standard": 5, "num_standard": 4} | values))


def test_rules_and_filler_must_agree():
    rules = {"packed": False, "shuffle": False, "add_bos": True, "random_phase": False, "sequence_length": 8, "k": 1, "stride": 8}
    rules |= {"min_length": 1, "reverse_complement": 0.0, "seed": 0, "source": 0}
    encoder, bases = tokenizer_of().core_encoder(1.0), np.full(10, ord("A"), np.uint8)
    core = _core.Masking(**masking(), mask_id=4, first_standard=5, num_standard=4)
    for masked, filler in ((True, None), (False, core)):
        index = _core.SampleIndex(np.array([10]), **rules, masked=masked)
        with pytest.raises(ValueError, match="masked and the filler has no masking"):
            _core.BatchFiller(encoder, [(index, np.array([0]), bases)], [], 0, filler)
    with pytest.raises(ValueError, match="begins with <bos> must be at least 2 tokens, got 1"):
        _core.SampleIndex(np.array([10]), **(rules | {"sequence_length": 1}), masked=True)

"""What the published models read of a genome and what they predict of it, as settings: cases worked out by hand, and shares counted."""

import math

import numpy as np
import pytest
from slow_published import published
from streams import make_stream
from test_masking import all_of, masking, random_bases, runs_of

from dnapretrain.config import TokenizerConfig
from dnapretrain.data.tokens.bpe import vocabulary_of_merges
from dnapretrain.data.tokens.tokenizers import Tokenizer, build_tokenizer

NT_V1 = {"sequence_length": 1000, "stride": 6000, "window_jitter": 206, "min_length": 6200}
NT_V2 = {"sequence_length": 2048, "stride": 12_000, "window_length": 12_200, "min_length": 12_200}
AIDO = {"sequence_length": 4002, "min_length": 4000}
GENERATOR_V1 = {"sequence_length": 16_384, "random_phase": True}
GENERATOR_V2 = GENERATOR_V1 | {"sampling": "packed", "pack_order": "contig"}
DNABERT2 = {"sequence_length": 128}
SHARES = {"nt_v1": masking(), "nt_v1 1000G": masking(random=0.0), "nt_v2": masking(), "bpe": masking(), "aido_dna": masking()}
SETTINGS = {"nt_v1": NT_V1, "nt_v1 1000G": NT_V1, "nt_v2": NT_V2, "bpe": DNABERT2, "aido_dna": AIDO}


def tokenizer_of(kind):
    if kind == "bpe":
        merges = [("A", "A"), ("C", "G"), ("AA", "AA"), ("T", "G"), ("CG", "CG"), ("C", "A"), ("CA", "TG")]  # under 5 bases a token
        return Tokenizer("bpe", 5, "ACGT", True, True, bpe=vocabulary_of_merges(merges))
    return build_tokenizer(TokenizerConfig(kind=kind, add_eos=kind == "aido_dna"))


def spans(stream, epochs):
    """By sample in the order of the text: the (start, end) that it reads in each epoch."""
    loci = [[stream.locate(epoch * stream.num_samples + n)[0] for n in range(stream.num_samples)] for epoch in range(epochs)]
    return [sorted((locus.start, locus.end) for locus in of_epoch) for of_epoch in loci]


def test_nucleotide_transformer_v1():
    """19,000 bases: (19000 - 200) // 6000 = 3 items, at 0, 6000 and 12,000, of 6200 bases; 999 6-mers from a place in each.

    The last 800 bases begin no item, and no sample reads beyond 18,200.
    """
    stream = make_stream([random_bases(19_000)], tokenizer_of("nt_v1"), masking=masking(), **NT_V1)
    read = spans(stream, 400)
    assert stream.num_samples == (19_000 - 2 * 100) // 6000 == 3
    for item in range(3):
        offsets = [of_epoch[item][0] - 6000 * item for of_epoch in read]
        assert {of_epoch[item][1] - of_epoch[item][0] for of_epoch in read} == {5994}
        assert min(offsets) >= 0 and max(offsets) <= 206 == 6200 - 5994
        assert min(offsets) < 10 and max(offsets) > 196 and abs(np.mean(offsets) - 103) < 5 * 60 / math.sqrt(400)
    report = stream.report()
    assert (report["bases_used"], report["bases_left_out"]["short_tails"]) == (18_200, 800)
    for length, items in ((6199, 0), (6200, 1), (12_199, 1), (12_200, 2)):  # the first one is beside a long contig: no error
        texts = [random_bases(length), random_bases(6200)]
        assert make_stream(texts, tokenizer_of("nt_v1"), masking=masking(), **NT_V1).num_samples == items + 1
    batch = stream.batch(np.array([5]))
    assert batch.labels[0, 0] == stream.tokenizer.bos_id and (batch.labels[0, 1:] >= 4).all() and batch.labels.shape == (1, 1000)


def test_nucleotide_transformer_v2():
    """Items of 12,200 bases at 0 and 12,000 of 24,300, whole: <cls>, 2033 6-mers, 2 single bases and 12 <pad>; 100 bases are no item."""
    text = random_bases(24_300)
    stream = make_stream([text], tokenizer_of("nt_v2"), masking=masking(), **NT_V2)
    assert spans(stream, 2) == [[(0, 12_200), (12_000, 24_200)]] * 2
    for row, start in enumerate(sorted(range(2), key=lambda n: stream.locate(n)[0].start)):
        labels = stream.batch(np.array([start])).labels[0].tolist()
        assert labels == [3, *published("nt_v2", text[12_000 * row : 12_000 * row + 12_200]), *([1] * 12)]
        assert labels[2034] > 4101 and labels[2033] <= 4101  # the last two are single bases
    assert stream.report()["bases_used"] == 24_200


def test_aido_dna():
    """4000 bases between [CLS] and [SEP], side by side; the 999 bases at the end are no chunk."""
    text = random_bases(8999)
    stream = make_stream([text], tokenizer_of("aido_dna"), masking=masking(), **AIDO)
    assert spans(stream, 1) == [[(0, 4000), (4000, 8000)]]
    batch, starts = stream.batch(np.arange(2)), [stream.locate(n)[0].start for n in range(2)]
    assert batch.labels.tolist() == [[2, *published("aido_dna", text[start : start + 4000]), 3] for start in starts]


def test_generator_reads_every_frame():
    """98,304 bases a sample, from 0 to 5 bases behind its place, so that every 6-mer of the text is a token in some epoch."""
    stream = make_stream([random_bases(2 * 98_304 + 5)], tokenizer_of("generator"), **GENERATOR_V1)
    assert stream.num_samples == 2
    read = spans(stream, 60)
    assert {(start - place, end - start) for of_epoch in read for (start, end), place in zip(of_epoch, (0, 98_304), strict=True)} == {
        (offset, 98_304) for offset in range(6)
    }


def test_generator_packs_the_genes_of_a_contig_in_their_order():
    """Genes of 48, 30 and 24 bases on c1 and 36 on c2; samples of 16 tokens go on where the one before ended, whatever the contig."""
    genes, contigs = [random_bases(length, length) for length in (48, 30, 24, 36)], ["c1", "c1", "c1", "c2"]
    stream = make_stream(
        genes, tokenizer_of("generator"), contigs=contigs, **(GENERATOR_V2 | {"sequence_length": 16, "random_phase": False})
    )
    assert stream.num_samples == 2  # 8 + 5 + 4 + 6 tokens and 3 separators
    orders = set()
    for epoch in range(20):
        loci = [stream.locate(2 * epoch + n) for n in (0, 1)]
        orders.add(frozenset(tuple((locus.contig, locus.start % 1000, locus.end % 1000) for locus in of_sample) for of_sample in loci))
    assert orders == {
        frozenset({(("c1", 0, 48), ("c1", 0, 30), ("c1", 0, 6)), (("c1", 6, 24), ("c2", 0, 36))}),
        frozenset({(("c2", 0, 36), ("c1", 0, 48)), (("c1", 0, 30), ("c1", 0, 24))}),
    }


def test_dnabert2():
    """Documents end at N, so that no sample has one: windows of 126 x 5 bases side by side, cut where 126 tokens are reached."""
    texts = [random_bases(1500), random_bases(640, 1)]
    stream = make_stream(texts, tokenizer_of("bpe"), masking=masking(), **DNABERT2)
    assert stream.num_samples == 3 + 2
    places = [(0, 630), (630, 1260), (1260, 1500), (1000, 1630), (1630, 1640)]
    for sample_id in range(5):
        (locus,) = stream.locate(sample_id)
        place = [(start, end) for start, end in places if start == locus.start and (locus.contig == "c1") == (start in (1000, 1630))]
        assert len(place) == 1 and locus.end <= place[0][1]
        labels = stream.batch(np.array([sample_id])).labels[0]
        assert locus.end - locus.start < 630 and (labels[126] not in (2, 3)) == (place[0][1] - place[0][0] > 10)
        number = int(locus.contig[1:])
        text = texts[number][locus.start - 1000 * number : locus.end - 1000 * number]
        assert labels.tolist()[: np.flatnonzero(labels == 2)[0] + 1] == [1, *stream.tokenizer.encode(text).tolist(), 2]


@pytest.mark.parametrize("name", SHARES)
def test_shares_of_the_published_masking(name):
    """15 % of the tokens that are bases; 80 % <mask> and 10 % others, for 1000G none; specials never; margins: 5 sigma."""
    kind = name.split()[0]
    tokenizer = tokenizer_of(kind)
    texts = [random_bases(40 * 6200, seed) + "N" * 40 + random_bases(20_000, seed) for seed in range(4)]
    stream = make_stream(texts, tokenizer, masking=SHARES[name], **SETTINGS[name])
    batches = [all_of(stream, epoch) for epoch in range(3)]
    tokens, labels, weights = (np.concatenate([getattr(batch, part) for batch in batches]) for part in ("tokens", "labels", "loss_mask"))
    specials = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id, tokenizer.unk_id}
    n_token = [value for value, text in enumerate(tokenizer.tokens) if text == "N"]
    may = ~np.isin(labels, [*specials, *n_token])
    chosen = weights > 0
    assert set(np.unique(weights)) == {0.0, 1.0}, "a chosen token weighs 1, every other 0"
    assert not (chosen & ~may).any() and (labels[~may] == tokens[~may]).all() and not may.all()
    if n_token:
        assert (labels == n_token[0]).any(), "N is read, and never predicted"

    def near(count, of, share):
        return abs(count - of * share) <= 5 * math.sqrt(of * share * (1 - share))

    assert near(chosen.sum(), may.sum(), 0.15)
    read, was = tokens[chosen], labels[chosen]
    changed = (read != was) & (read != tokenizer.mask_id)
    random = SHARES[name]["random_replace_prob"]
    assert near((read == tokenizer.mask_id).sum(), len(read), 0.8)
    assert (
        near(changed.sum(), len(read), random * (1 - 1 / len(tokenizer.standard_ids)))
        if kind != "bpe"
        else changed.sum() < 0.11 * len(read)
    )
    assert (changed.sum() == 0) == (name == "nt_v1 1000G")
    assert not np.isin(read[changed], [*specials - {tokenizer.mask_id}]).any()
    assert np.array_equal(tokens[~chosen], labels[~chosen])


def test_whole_6_mers_of_single_bases():
    """AIDO.DNA's tokens, hidden six at a time: what a 6-mer model hides."""
    shares = masking(0.15, 1.0, 0.0) | {"span_length": 6}
    stream = make_stream([random_bases(400_000)], tokenizer_of("aido_dna"), masking=shares, **AIDO)
    batch = all_of(stream)
    hidden = batch.tokens == stream.tokenizer.mask_id
    assert np.array_equal(hidden, batch.loss_mask > 0)
    assert abs(hidden[:, 1:-1].mean() - 0.15) < 5 * math.sqrt(0.15 * 0.85 * 6 / hidden[:, 1:-1].size)
    inner = [end - start for row in hidden for start, end in runs_of(row) if start > 1 and end < 4001]
    assert len(inner) > 5000 and all(length % 6 == 0 for length in inner)

"""Zero-shot scores against plain sums over the vocabulary, one sequence at a time; strands, indels, ends of contigs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_folders import write_folder

from dnapretrain.adapt.backbones.backbone import load_backbone
from dnapretrain.adapt.sequences.intervals import reverse_complement_text
from dnapretrain.adapt.variants.score import ScoreSettings, score_sites
from dnapretrain.adapt.variants.variant_sites import Site, trimmed
from dnapretrain.adapt.variants.variant_windows import all_phases, token_starts, tokens_over, windows, word_bases
from dnapretrain.adapt.variants.zero_shot import base_marginals, sequence_ratio
from dnapretrain.config import TokenizerConfig
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import ConfigError, DataError

MODELS = ("generator", "nt-v2", "aido-dna", "dnabert2")
RANDOM = np.random.default_rng(5)
CONTIG = "".join(RANDOM.choice(list("ACGT"), 400))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {name: load_backbone(write_folder(tmp_path_factory.mktemp(name), name)[0]) for name in MODELS}


def site_at(start, ref, alt, contig=CONTIG, flank=400):
    assert contig[start : start + len(ref)] == ref
    return trimmed(contig[max(0, start - flank) : start], ref, alt, contig[start + len(ref) :][:flank], flank)


def snv(start):
    return site_at(start, CONTIG[start], "ACGT"[("ACGT".index(CONTIG[start]) + 1) % 4])


def log_softmax(backbone, ids):
    with torch.no_grad():
        return backbone.model(torch.tensor([ids])).logits[0, :, : backbone.encoder.tokenizer.vocab_size].double().log_softmax(-1)


def framed(backbone, text):
    tokenizer = backbone.encoder.tokenizer
    first, last = backbone.encoder.specials
    return [tokenizer.bos_id] * first + tokenizer.encode(text).tolist() + [tokenizer.eos_id] * last


def settings(backbone, *scores, **others):
    return ScoreSettings(scores=scores or ("llr",), **{"window": 36, **others})


def test_a_decoder_sums_next_words_by_their_first_base(backbones):
    """GENERator's protocol, token by token: the left flank of whole 6-mers behind <s>, and P(b) the sum over words that begin with b."""
    backbone = backbones["generator"]
    site = snv(100)
    rows = log_softmax(backbone, framed(backbone, CONTIG[100 - 36 : 100]))[-1]
    mass = dict.fromkeys("ACGT", 0.0)
    for value, text in enumerate(backbone.encoder.tokenizer.tokens):
        if not text.startswith("<"):
            mass[text[0]] += math.exp(rows[value])
    [found] = score_sites(backbone, [site], settings(backbone, window=38))  # 38 are 36 in whole words
    assert found.values["llr"] == pytest.approx(math.log(mass[site.alt] / mass[site.ref]), abs=1e-5)
    assert (found.method, found.strands) == ("marginal", 1)


@pytest.mark.parametrize("all_of_them", [False, True])
def test_an_encoder_of_words_masks_the_one_over_the_variant(all_of_them, backbones):
    backbone, tokenizer = backbones["nt-v2"], backbones["nt-v2"].encoder.tokenizer
    site, at = snv(150), 150
    ratios = []
    for phase in range(6) if all_of_them else [3]:
        before = 17 - (17 - phase) % 6  # of 35 other bases, those before the variant, down to a whole word and the phase
        text = CONTIG[at - before : at - before + 36]
        ids = framed(backbone, text)
        assert tokenizer.tokens[ids[1 + before // 6]][phase] == site.ref
        ids[1 + before // 6] = tokenizer.mask_id
        row = log_softmax(backbone, ids)[1 + before // 6]
        mass = dict.fromkeys("ACGT", 0.0)
        for value in tokenizer.vocabulary.words:
            mass[tokenizer.tokens[value][phase]] += math.exp(row[value])
        ratios.append(math.log(mass[site.alt] / mass[site.ref]))
    [found] = score_sites(backbone, [site], settings(backbone, all_phases=all_of_them))
    assert found.values["llr"] == pytest.approx(np.mean(ratios), abs=1e-5)
    assert found.method == "marginal"


def test_an_encoder_masks_all_bases_of_a_substitution_at_once(backbones):
    backbone, tokenizer = backbones["aido-dna"], backbones["aido-dna"].encoder.tokenizer
    ref = CONTIG[200:203]
    alt = {"A": "C", "C": "G", "G": "T", "T": "A"}
    site = site_at(200, ref, "".join(alt[base] for base in ref))
    before = (36 - 3) // 2
    ids = framed(backbone, CONTIG[200 - before : 200 - before + 36])
    ids[1 + before : 4 + before] = [tokenizer.mask_id] * 3
    rows = log_softmax(backbone, ids)[1 + before : 4 + before]
    value = {base: tokenizer.tokens.index(base) for base in "ACGT"}
    wanted = sum(float(row[value[other]] - row[value[base]]) for row, base, other in zip(rows, ref, site.alt, strict=True))
    assert score_sites(backbone, [site], settings(backbone))[0].values["llr"] == pytest.approx(wanted, abs=1e-5)


def test_a_decoder_scores_indels_by_all_tokens_of_windows_of_one_length(backbones):
    backbone = backbones["generator"]
    deletion = site_at(100, CONTIG[100:103], CONTIG[100])
    insertion = site_at(100, CONTIG[100], CONTIG[100] + "TTGACAGG")
    for site in (deletion, insertion):
        longest = max(len(site.ref), len(site.alt))
        before = (36 - longest) // 2 // 6 * 6
        sums = [
            sum(float(log_softmax(backbone, ids)[at, ids[at + 1]]) for at in range(len(ids) - 1))
            for ids in (framed(backbone, (site.left[-before:] + allele + site.right)[:36]) for allele in (site.ref, site.alt))
        ]
        [found] = score_sites(backbone, [site], settings(backbone, "llr", "likelihood"))
        assert found.method == "likelihood"
        assert found.values["llr"] == found.values["likelihood"] == pytest.approx(sums[1] - sums[0], abs=1e-4)


@pytest.mark.parametrize(("name", "near"), [("aido-dna", 5), ("nt-v2", 1000), ("dnabert2", 1000)])
def test_an_encoder_scores_indels_by_pseudo_likelihood(name, near, backbones):
    """Each token masked by itself, those within reach only."""
    backbone, tokenizer = backbones[name], backbones[name].encoder.tokenizer
    site = site_at(201, CONTIG[201:204], CONTIG[201])
    found = windows(site, 36, word_bases(tokenizer), all_phases(word_bases(tokenizer), word_bases(tokenizer) // 2))
    sums = []
    for window in (found.ref, found.alt):
        ids = framed(backbone, window.text)
        starts = token_starts(tokenizer, np.array(tokenizer.encode(window.text)))
        total = 0.0
        for number in range(len(starts) - 1):
            if near == 1000 or (starts[number + 1] > window.start - near and starts[number] < window.end + near):
                at = number + 1
                masked = [*ids[:at], tokenizer.mask_id, *ids[at + 1 :]]
                total += float(log_softmax(backbone, masked)[at, ids[at]])
        sums.append(total)
    [scored] = score_sites(backbone, [site], settings(backbone, pseudo_bases=near))
    assert scored.method == "pseudo"
    assert scored.values["llr"] == pytest.approx(sums[1] - sums[0], abs=1e-4)


def test_byte_pairs_are_summed_over_the_same_flanks(backbones):
    backbone, tokenizer = backbones["dnabert2"], backbones["dnabert2"].encoder.tokenizer
    for start in range(60, 300, 7):
        site = site_at(start, CONTIG[start : start + 3], CONTIG[start])
        plan = sequence_ratio(backbone, site, 60, pseudo_bases=6)
        places = [query.at[0] for query in plan.queries]
        second = next(at for at in range(1, len(places)) if places[at] <= places[at - 1])
        texts = [tokenizer.tokens[query.targets[0]] for query in plan.queries]
        covered = {"ref": "".join(texts[:second]), "alt": "".join(texts[second:])}
        pair = windows(site, 60)
        before = pair.ref.text.index(covered["ref"])
        left = pair.ref.text[before : pair.ref.start]
        right = covered["ref"][len(left) + len(site.ref) :]
        assert covered == {"ref": left + site.ref + right, "alt": left + site.alt + right}
        assert len(left) >= 6 and len(right) >= 6


@pytest.mark.parametrize("name", MODELS)
def test_both_strands_are_those_of_the_reverse_complement(name, backbones):
    backbone = backbones[name]
    contig = reverse_complement_text(CONTIG)
    sites = [snv(90), snv(3), snv(398), site_at(120, CONTIG[120:124], CONTIG[120]), site_at(130, CONTIG[130], CONTIG[130] + "ACCA")]
    mirrored = [site.reverse() for site in sites]
    spans = [(len(site.left), len(site.left) + len(site.ref)) for site in sites]
    assert [(one.left, one.right) for one in mirrored] == [(contig[: 400 - end], contig[400 - start :]) for start, end in spans]
    chosen = settings(backbone, "llr", "likelihood", "distance", both_strands=True, pseudo_bases=10, layers=(0, -1))
    found, other = (score_sites(backbone, some, chosen) for some in (sites, mirrored))
    for one, two in zip(found, other, strict=True):
        assert (one.method, one.strands) == (two.method, two.strands) and one.values == pytest.approx(two.values, abs=1e-4)
        assert len(one.values) == 2 + 2 * 2 * 4 and all(map(math.isfinite, one.values.values()))
    forward = score_sites(backbone, sites, settings(backbone, pseudo_bases=10))
    assert any(abs(one.values["llr"] - two.values["llr"]) > 1e-5 for one, two in zip(forward, found, strict=True))


def test_a_model_uniform_over_bases_has_ratio_zero():
    tokenizer = build_tokenizer(TokenizerConfig.model_validate({"kind": "generator"}))
    logits = torch.full((2, tokenizer.vocab_size), -3.0)
    logits[0, :32] = 9.0  # what specials get is of no base
    assert base_marginals(tokenizer, logits.double(), [0, 5]).exp().numpy() == pytest.approx(0.25)
    words = tokenizer.vocabulary.words
    logits[0, words.start + tokenizer.tokens[words.start :].index("GAAAAA")] = 10.0
    by_hand = np.full(4, 4.0**5 * math.exp(-3))
    by_hand[2] += math.exp(10) - math.exp(-3)
    assert base_marginals(tokenizer, logits.double(), [0, 5])[0].exp().numpy() == pytest.approx(by_hand / by_hand.sum())


def test_distances_equal_the_plain_loop(backbones):
    for name in ("generator", "aido-dna", "nt-v2"):
        backbone = backbones[name]
        word = word_bases(backbone.encoder.tokenizer)
        site = site_at(100, CONTIG[100:102], "ACGT"[("ACGT".index(CONTIG[100]) + 1) % 4] + CONTIG[101])
        pair = windows(site, 36, word, all_phases(word, word // 2 if backbone.is_encoder else 0))
        vectors = []
        for window in (pair.ref, pair.alt):
            ids = framed(backbone, window.text)
            with torch.no_grad():
                states = backbone.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
            states = states[1 : 1 + len(window.text) // word]
            vectors.append((states.mean(axis=0), states[window.start // word]))
        [found] = score_sites(backbone, [site], settings(backbone, "distance"))
        for place, pooling in enumerate(("mean", "token")):
            one, other = vectors[0][place], vectors[1][place]
            norms = np.linalg.norm(one) * np.linalg.norm(other)
            between = one - other
            wanted = {"cosine": 1 - one @ other / norms, "l1": abs(between).sum(), "l2": np.linalg.norm(between), "dot": one @ other}
            for metric, value in wanted.items():
                assert found.values[f"{metric}_{pooling}"] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, metric, pooling)
        assert found.method == "embedding"


def test_batches_change_nothing(backbones):
    sites = [snv(start) for start in range(0, 400, 13)] + [site_at(50, CONTIG[50:53], CONTIG[50])]
    for name in ("generator", "aido-dna"):
        one_by_one = [score_sites(backbones[name], [site], settings(None, "llr", "distance", pseudo_bases=4))[0] for site in sites]
        together = score_sites(backbones[name], sites, settings(None, "llr", "distance", pseudo_bases=4, tokens_per_batch=200))
        for one, other in zip(one_by_one, together, strict=True):
            assert one.method == other.method and one.values == pytest.approx(other.values, abs=1e-4)


def test_ends_of_contigs(backbones):
    """Every base of a contig has a score; a decoder without a begin token has none for the first; windows keep their length."""
    for name in MODELS:
        found = score_sites(backbones[name], [snv(start) for start in (0, 1, 5, 6, 393, 394, 398, 399)], settings(None, "llr", "distance"))
        assert [one.reason for one in found] == [""] * 8 and all(math.isfinite(one.values["llr"]) for one in found), name
    for start in (0, 2, 100, 396, 399):
        for word in (1, 6):
            pair = windows(snv(start), 36, word, all_phases(word, word // 2))
            assert {len(pair.ref.text), len(pair.alt.text)} <= ({36} if word == 1 else {30, 36})
            assert pair.ref.text[pair.ref.start : pair.ref.end] == CONTIG[start] and pair.ref.text in CONTIG
    short = Site("AC", "A", "C", "GT")
    assert [one.reason for one in score_sites(backbones["generator"], [short], settings(None, "distance"))] == ["no room for a window"]
    long = Site(CONTIG[:100], CONTIG[100:150], "", CONTIG[150:])
    assert [one.reason for one in score_sites(backbones["aido-dna"], [long], settings(None))] == ["longer than the window"]


def test_an_n_in_the_word_leaves_the_sequence(backbones):
    """The masked word of a k-mer encoder holds an N: no base marginals, but a pseudo-likelihood."""
    site = Site(CONTIG[:99] + "N", CONTIG[100], "A" if CONTIG[100] != "A" else "C", "N" + CONTIG[102:200])
    [found] = score_sites(backbones["nt-v2"], [site], settings(None, pseudo_bases=6))
    assert found.method == "pseudo" and math.isfinite(found.values["llr"])
    [strip] = score_sites(backbones["generator"], [Site("N" * 60, "A", "C", "ACGT" * 10)], settings(None))
    [begin] = score_sites(backbones["generator"], [Site("", "A", "C", "ACGT" * 10)], settings(None))
    assert strip.values["llr"] == pytest.approx(begin.values["llr"])  # leading N are not read


def test_alleles_are_trimmed_to_what_differs():
    assert trimmed("AC", "GTTA", "GTA", "CC", 9) == Site("ACG", "T", "", "TACC")
    assert trimmed("AC", "GAT", "GCT", "RC", 9) == Site("ACG", "A", "C", "TNC")
    assert trimmed("AC", "G", "GTT", "CC", 3) == Site("ACG", "", "TT", "CC")
    assert trimmed("AC", "G", "G", "CC", 9) == "REF equals ALT"
    assert tokens_over(np.array([0, 6, 12]), 6, 6) == range(0, 2) and tokens_over(np.array([0, 6, 12]), 0, 0) == range(0, 1)
    assert tokens_over(np.array([0, 6, 12]), 5, 6) == range(0, 1) and tokens_over(np.array([0, 6, 12]), 12, 12) == range(1, 2)


def test_settings_that_do_not_fit(backbones):
    for name, others, message in (
        ("generator", {"window": 5}, "window = 5 bases; the model reads 6 to"),
        ("generator", {"window": 10**6}, "window = 1000000 bases"),
        ("generator", {"all_phases": True}, "all phases"),
        ("aido-dna", {"all_phases": True}, "all phases"),
        ("aido-dna", {"scores": ("llr", "cosine")}, "scores = llr,cosine"),
        ("aido-dna", {"scores": ("distance",), "layers": (9,)}, "layer 9"),
        ("aido-dna", {"pseudo_bases": -1}, "pseudo_bases"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScoreSettings(**others).check(backbones[name])
    with pytest.raises(DataError, match=r"tokens; the model reads .*Lower --window"):
        long = Site("N" * 5000, "A", "C", "A")
        score_sites(backbones["dnabert2"], [long], ScoreSettings(scores=("llr",), window=ScoreSettings().size(backbones["dnabert2"])))

"""Pairs of windows for probes: against the text of the genome, hand-made places, and a slow translation."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from dnapretrain.data.genes.codons import START_CODONS, STOP_CODONS, amino_acids
from dnapretrain.data.genes.gene_models import read_genes
from dnapretrain.data.genes.gene_regions import Extraction, ExtractSettings
from dnapretrain.data.genes.probe_pairs import Pair, PairBuilder
from dnapretrain.data.genes.probe_places import GenePlaces, reverse_of
from dnapretrain.data.shards.contigs import Assembly
from dnapretrain.data.shards.preprocess import preprocess
from dnapretrain.data.shards.selection import read_bed
from dnapretrain.data.shards.shard import open_shard

SIZE = 60
GENE, INTRON = 600, 40
"""Bases of a coding sequence, and of the intron in it."""


def planted(folder: Path, genes: int = 24, seed: int = 5) -> tuple[Path, Path, str]:
    """(shard prefix, annotation, text of its contig) of random genes on both strands, the first intron after 200 bases of each."""
    rng = random.Random(seed)
    amino = [codon for codon, letter in amino_acids(11).items() if letter != "*"]
    text, rows = "".join(rng.choices("ACGT", k=300)), []
    for number in range(genes):
        coding = "ATG" + "".join(rng.choices(amino, k=GENE // 3 - 2)) + rng.choice(["TAA", "TAG", "TGA"])
        gene = coding[:200] + "GT" + "".join(rng.choices("ACGT", k=INTRON - 4)) + "AG" + coding[200:]
        strand, start = "+-"[number % 2], len(text)
        text += (gene if strand == "+" else reverse_of(gene)) + "".join(rng.choices("ACGT", k=200))
        spans = [(0, 200), (200 + INTRON, GENE + INTRON)]
        placed = [(start + a, start + b) if strand == "+" else (start + len(gene) - b, start + len(gene) - a) for a, b in spans]
        rows += [("gene", start, start + len(gene), ".", f"ID=g{number};gene_biotype=protein_coding")]
        rows[-1] += (strand,)
        rows += [("mRNA", start, start + len(gene), ".", f"ID=m{number};Parent=g{number}", strand)]
        for (a, b), phase in zip(placed, (0, 1), strict=True):
            rows += [("exon", a, b, ".", f"Parent=m{number}", strand)]
            rows += [("CDS", a, b, phase, f"ID=p{number};Parent=m{number};transl_table=11", strand)]
    text = text[:150] + "NN" + text[152:]
    lines = [f"chr\tx\t{kind}\t{a + 1}\t{b}\t.\t{strand}\t{phase}\t{more}" for kind, a, b, phase, more, strand in rows]
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(lines) + "\n")
    (folder / "genome.fa").write_text(f">chr\n{text}\n")
    preprocess([folder / "genome.fa"], folder / "genome")
    return folder / "genome", folder / "genes.gff3", text


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> tuple[Path, Path, str]:
    return planted(tmp_path_factory.mktemp("planted"))


def builder(genome, sites: int = 20, word: int = 1, within: Path | None = None, controls: bool = True) -> PairBuilder:
    prefix, annotation, _ = genome
    extraction = Extraction(Assembly(open_shard(prefix), None), read_genes(annotation), ExtractSettings(), None)
    return PairBuilder(GenePlaces(extraction, read_bed(within) if within else None), SIZE, word, sites, controls)


def place_of(pair: Pair) -> tuple[int, str]:
    """First base of the site (0-based), strand."""
    position, strand = pair.locus.removeprefix("chr:").removesuffix(")").split("(")
    return int(position) - 1, strand


def site_in(pair: Pair, text: str) -> int:
    """Where the site begins in the window, found by the window's own text in the genome."""
    at, strand = place_of(pair)
    whole = text if strand == "+" else reverse_of(text)
    at = at if strand == "+" else len(text) - 1 - at
    starts = [start for start in range(max(0, at - SIZE), at + 1) if whole[start : start + SIZE] == pair.true.text]
    assert len(starts) == 1
    return at - starts[0]


def annotated(text: str) -> dict[str, set[tuple[int, str]]]:
    """First bases of the sites of each kind, from the way the genome was made."""
    found = {kind: set() for kind in ("start", "stop", "donor", "acceptor")}
    for number in range(24):
        start, size, strand = 300 + number * (GENE + INTRON + 200), GENE + INTRON, "+-"[number % 2]
        for kind, offset in (("start", 0), ("stop", size - 3), ("donor", 200), ("acceptor", 200 + INTRON - 2)):
            found[kind].add((start + offset if strand == "+" else start + size - 1 - offset, strand))
    return found


@pytest.mark.parametrize("name", ["start_codon", "stop_codon", "splice_donor", "splice_acceptor"])
def test_one_base_of_each_annotated_site_is_changed(genome, name):
    kind = name.removesuffix("_codon").removeprefix("splice_")
    forbidden = {"start": START_CODONS[11], "stop": STOP_CODONS[11], "donor": {"GT", "GC", "AT"}, "acceptor": {"AG", "AC"}}[kind]
    width, text = 2 if name.startswith("splice") else 3, genome[2]
    probe = builder(genome).build(name)
    assert probe.candidates == 24 and len(probe.pairs) == len(probe.controls) == 20
    assert {place_of(pair) for pair in probe.pairs} < annotated(text)[kind]
    for pair, control in zip(probe.pairs, probe.controls, strict=True):
        site = site_in(pair, text)
        assert pair.true.spans == pair.other.spans == ((site, site + width),)
        true, other = pair.true.text[site : site + width], pair.other.text[site : site + width]
        assert true in forbidden and other not in forbidden
        assert sum(one != two for one, two in zip(pair.true.text, pair.other.text, strict=True)) == 1
        at = site_in(control, text)
        assert control.true.spans == ((at, at + width),) and place_of(control) not in annotated(text)[kind]
        assert (control.true.text[at : at + width], control.other.text[at : at + width]) == (true, other)
        assert control.true.text[:at] + other + control.true.text[at + width :] == control.other.text
        assert SIZE // 3 < site < 2 * SIZE // 3


@pytest.mark.parametrize("name", ["start_frame", "stop_frame"])
def test_a_moved_codon_keeps_its_letters(genome, name):
    text, codons = genome[2], {"start_frame": START_CODONS, "stop_frame": STOP_CODONS}[name][11]
    sides = set()
    probe = builder(genome).build(name)
    for pair, control in zip(probe.pairs, probe.controls, strict=True):
        [(start, end)] = pair.true.spans
        site = site_in(pair, text)
        sides.add(start - site)
        codon, four = pair.true.text[site : site + 3], pair.true.text[start:end]
        assert pair.other.text[start:end] == (four[1:] + four[0] if start < site else four[3] + four[:3])
        assert codon in codons and codon in pair.other.text[start:end] and pair.other.text[site : site + 3] not in codons
        assert pair.true.text[:start] == pair.other.text[:start] and pair.true.text[end:] == pair.other.text[end:]
        [(first, last)] = control.true.spans
        assert (control.true.text[first:last], control.other.text[first:last]) == (four, pair.other.text[start:end])
    assert sides == {-1, 0}


def coding_sequences(text: str) -> list[str]:
    """Of each gene, from the way the genome was made."""
    found = []
    for number in range(24):
        start = 300 + number * (GENE + INTRON + 200)
        gene = text[start : start + GENE + INTRON]
        gene = reverse_of(gene) if number % 2 else gene
        found.append(gene[:200] + gene[200 + INTRON :])
    return found


def offset_in_coding(pair: Pair) -> tuple[int, int]:
    """(gene, place in its coding sequence) of a site behind the intron, in the longest piece."""
    at, strand = place_of(pair)
    number = (at - 300) // (GENE + INTRON + 200)
    begin = 300 + number * (GENE + INTRON + 200)
    return number, (at - begin if strand == "+" else begin + GENE + INTRON - 1 - at) - INTRON


def test_synonymous_and_missense_changes_have_the_same_letters(genome):
    text, table = genome[2], amino_acids(11)
    coding = coding_sequences(text)
    probe = builder(genome, sites=60).build("synonymous")
    assert len(probe.pairs) == 60 and probe.candidates == 24  # more than one of a gene
    for pair in probe.pairs:
        number, offset = offset_in_coding(pair)
        assert offset % 3 == 0 and coding[number][offset : offset + 3] == text_at(pair, 0, text)
        site = site_in_original(pair, text)
        places = sorted(place for span in pair.true.spans for place in range(*span))
        silent, loud = places if places[0] == site + 2 else places[::-1]
        assert silent == site + 2 and (loud - site) % 3 in (0, 1) and pair.true.spans == pair.other.spans
        changes = []
        for window, place in ((pair.true.text, silent), (pair.other.text, loud)):
            [before] = {base for base in "ACGT" if window[:place] + base + window[place + 1 :] in (original(pair, text),)}
            changes.append((before, window[place]))
            codon = place - (place - site) % 3
            old, new = table[original(pair, text)[codon : codon + 3]], table[window[codon : codon + 3]]
            assert (old == new) == (place == silent) and "*" not in (old, new)
        assert changes[0] == changes[1]


def test_stop_codons_in_frame_and_out_of_frame_are_the_same_letters(genome):
    text, stops = genome[2], STOP_CODONS[11]
    coding = coding_sequences(text)
    probe = builder(genome, sites=60).build("nonsense")
    assert len(probe.pairs) == 60 and probe.candidates == 24 and not probe.controls
    sides = set()
    for pair in probe.pairs:
        number, offset = offset_in_coding(pair)
        before, site = original(pair, text), site_in_original(pair, text)
        assert offset % 3 == 0 and coding[number][offset : offset + 3] == before[site : site + 3]
        [out] = [at for at in range(SIZE) if pair.true.text[at] != before[at]]
        [inside] = [at for at in range(SIZE) if pair.other.text[at] != before[at]]
        assert pair.true.spans == pair.other.spans == tuple((at, at + 1) for at in sorted((out, inside)))
        word = out - (inside - site)  # of the three bases out of frame
        assert (word - site) % 3 and 0 <= inside - site < 3
        assert before[word : word + 3] == before[site : site + 3] not in stops
        assert pair.true.text[word : word + 3] == pair.other.text[site : site + 3] in stops
        frames = {name: window[site % 3 :] for name, window in (("true", pair.true.text), ("other", pair.other.text))}
        inner = {name: [frame[at : at + 3] for at in range(0, SIZE - 5, 3)] for name, frame in frames.items()}
        end = (GENE - 3 - offset + site - site % 3) // 3  # codons of the window that come before the stop of the gene
        begin = max(0, -(-(200 - offset + site - site % 3) // 3))  # and behind the intron
        assert not stops & set(inner["true"][begin:end])
        assert stops & set(inner["other"][begin:end])
        sides.add(word > site)
    assert sides == {True, False}


def original(pair: Pair, text: str) -> str:
    at, strand = place_of(pair)
    places = sorted(place for span in pair.true.spans for place in range(*span))
    whole, at = (text, at) if strand == "+" else (reverse_of(text), len(text) - 1 - at)
    for start in range(at - SIZE, at + 1):
        window = whole[start : start + SIZE]
        if len(window) == SIZE and all(window[n] == pair.true.text[n] for n in range(SIZE) if n not in places):
            return window
    raise AssertionError("not a window of the genome")


def site_in_original(pair: Pair, text: str) -> int:
    at, strand = place_of(pair)
    whole, at = (text, at) if strand == "+" else (reverse_of(text), len(text) - 1 - at)
    return at - whole.index(original(pair, text))


def text_at(pair: Pair, offset: int, text: str) -> str:
    site = site_in_original(pair, text) + offset
    return original(pair, text)[site : site + 3]


@pytest.mark.parametrize("word", [1, 6])
def test_strands(genome, word):
    probe = builder(genome, word=word).build("reverse_complement")
    assert len(probe.pairs) == 20
    for pair in probe.pairs:
        assert pair.other.text == reverse_of(pair.true.text) and site_in(pair, genome[2]) == 0
        assert [(SIZE - end, SIZE - start) for start, end in pair.other.spans[::-1]] == list(pair.true.spans)
        assert all(end - start == word and start % word == 0 for start, end in pair.true.spans)
        assert sum(end - start for start, end in pair.true.spans) == (9 if word == 1 else 12)


def test_the_choice_is_keyed(genome, tmp_path):
    few, many = builder(genome, sites=7), builder(genome, sites=15)
    for name in ("start_codon", "stop_frame", "synonymous", "nonsense", "reverse_complement"):
        assert many.build(name).pairs[:7] == few.build(name).pairs == builder(genome, sites=7).build(name).pairs
    assert builder(genome, controls=False).build("start_codon").controls == []
    (tmp_path / "part.bed").write_text("chr\t0\t3000\n")
    part = builder(genome, within=tmp_path / "part.bed")
    for name in ("start_codon", "synonymous", "nonsense", "reverse_complement"):
        probe = part.build(name)
        assert probe.pairs and all(place_of(pair)[0] < 3000 for pair in itertools.chain(probe.pairs, probe.controls))


def test_windows_with_other_letters_and_ends_are_left_out(genome):
    places = builder(genome)._places
    probe = PairBuilder(places, 700, 1, 50, True).build("start_codon")  # the N stand 150 bases before the first gene
    assert probe.left_out["other letters, or the end of a contig"] >= 1 and len(probe.pairs) < 24

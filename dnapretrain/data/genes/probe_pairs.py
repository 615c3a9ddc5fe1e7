"""Pairs of windows that zero-shot probes compare: the sequence as it is at an annotated place, and the same with a change in it.

  start_codon, stop_codon           one base of the codon changed, so that it is none (in the genetic code of its gene)
  start_frame, stop_frame           the codon moved by one base: the base before it comes behind it, or the base behind it before it.
                                    All letters stay, the reading frame is lost
  splice_donor, splice_acceptor     one base of GT (AG) of an intron changed; not into GC or AT (AC), which introns have too
  synonymous                        a change X to Y at a third codon position that keeps the amino acid, against the same X to Y at a
                                    first or second position of a codon nearby that changes it
  nonsense                          a change X to Y that makes a stop codon of a word of three bases out of the reading frame, against the
                                    same change of the same word nearby in frame, which ends the protein
  reverse_complement                a window anywhere, against its reverse complement

All windows have one length, the site is near the middle, and they hold A, C, G and T alone. A control is the same change at a place
where the letters are the same, on either strand, that is not annotated: what a model that knew the letters alone would make of it.

Which sites are taken, and how each is changed, is a hash of where it lies: the same in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from dnapretrain.data.genes.codons import START_CODONS, STOP_CODONS, amino_acids
from dnapretrain.data.genes.gene_models import Cds
from dnapretrain.data.genes.probe_places import GenePlaces, Place, keyed, reverse_of
from dnapretrain.data.shards.contigs import Contig

ACGT = "ACGT"
KIND_OF = {
    "start_codon": "start",
    "start_frame": "start",
    "stop_codon": "stop",
    "stop_frame": "stop",
    "splice_donor": "donor",
    "splice_acceptor": "acceptor",
}
"""The places that a probe with controls is about."""
OF_CODONS = ("synonymous", "nonsense")
"""The probes about codons inside genes."""
SPLICE = {"donor": ("GT", ("GT", "GC", "AT")), "acceptor": ("AG", ("AG", "AC"))}
"""What introns begin (end) with, and what a change must not give."""
MASKED_SHARE = 0.15
"""Of the bases of a reverse_complement window that encoders must predict."""
CHUNK = 1024
"""Bases that are searched at a time for the letters of a control."""
TRIES = 64
"""Chunks that are searched for one control, and draws for each pair of the probes that are not about places."""
OTHER_LETTERS, OUTSIDE = "other letters, or the end of a contig", "outside data.probes.within"

Span = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Bases that the model reads, on the strand of the site, and those of them that an encoder must predict."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Pair:
    """What is compared: the model is right where `true` is likelier."""

    true: Window
    other: Window
    locus: str
    """Where the site begins (`Place.locus`)."""


@dataclass
class Probe:
    """All pairs of one question."""

    name: str
    candidates: int = 0
    """Annotated places, or coding sequences, that there are; of reverse_complement none."""
    pairs: list[Pair] = field(default_factory=list)
    controls: list[Pair] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Why places were passed over on the way to these pairs."""


@dataclass(frozen=True)
class Change:
    """Letters in place of others, as many, from an offset to the site on."""

    offset: int
    true: str
    other: str


class PairBuilder:
    """Makes the pairs. `size`: bases of a window; `word`: bases of a token, where all have as many; `sites`: pairs of a probe."""

    def __init__(self, places: GenePlaces, size: int, word: int, sites: int, controls: bool) -> None:
        self._places, self._size, self._word, self._sites, self._controls = places, size, word, sites, controls

    def build(self, name: str) -> Probe:
        """The pairs of one probe, and their controls. Fewer than asked for, or none, where there are no more."""
        if name == "reverse_complement":
            return self._strands()
        if name in OF_CODONS:
            return self._in_coding(name)
        places = self._places.of_kind[KIND_OF[name]]
        probe = Probe(name, len(places))
        for place in sorted(places, key=lambda place: keyed(KIND_OF[name], *place.key)):
            if len(probe.pairs) == self._sites:
                break
            change = self._change(name, place)
            made = change if isinstance(change, str) else self._pair(place, change, name)
            if isinstance(change, str) or isinstance(made, str):
                probe.left_out[str(made)] += 1
                continue
            probe.pairs.append(made)
            if self._controls:
                probe.controls += self._control(name, place, change)
        return probe

    def _change(self, name: str, place: Place) -> Change | str:
        """How the site is altered, or why it is not."""
        kind = KIND_OF[name]
        if kind in SPLICE:
            letters, forbidden = SPLICE[kind]
            if self._places.read(place, 0, 2) != letters:
                return f"not {letters}"
        else:
            letters = self._places.read(place, 0, 3)
            forbidden = tuple(sorted((START_CODONS if kind == "start" else STOP_CODONS)[place.code]))
            if letters not in forbidden:
                return f"no {kind} codon"
        if name.endswith("_frame"):
            before, behind = self._places.read(place, -1, 0), self._places.read(place, 3, 4)
            moved = [Change(-1, before + letters, letters + before), Change(0, letters + behind, behind + letters)]
            changes = [change for change in moved if change.other[-change.offset :][:3] not in forbidden]
        else:
            texts = [letters[:at] + base + letters[at + 1 :] for at in range(len(letters)) for base in ACGT if base != letters[at]]
            changes = [Change(0, letters, text) for text in texts if text not in forbidden]
        return changes[keyed(name, "change", *place.key) % len(changes)] if changes else "every change gives another such codon"

    def _pair(self, place: Place, change: Change, name: str) -> Pair | str:
        """The windows with and without the change, or why there are none."""
        found = self._window(place, name)
        if isinstance(found, str):
            return found
        text, site = found
        start, end = site + change.offset, site + change.offset + len(change.true)
        spans = ((start, end),)
        return Pair(Window(text, spans), Window(text[:start] + change.other + text[end:], spans), place.locus)

    def _window(self, place: Place, name: str) -> tuple[str, int] | str:
        """The bases of a window, and the site in it: near the middle, at any place of a word. Or why there is none."""
        site = self._size // 2 - self._word + keyed(name, "phase", *place.key) % self._word
        text = self._places.read(place, -site, self._size - site)
        return (text, site) if set(text) <= set(ACGT) else OTHER_LETTERS

    def _control(self, name: str, place: Place, change: Change) -> list[Pair]:
        """The same change where the same letters stand without annotation; nothing where none was found."""
        for attempt in range(TRIES):
            start = self._places.anywhere(name, *place.key, attempt)
            found = self._places.read(start, 0, CHUNK).find(change.true)
            there = start.shifted(found - change.offset)
            if found < 0 or there.key in self._places.known[KIND_OF[name]] or not self._places.is_within(there):
                continue
            made = self._pair(there, change, name)
            if isinstance(made, Pair):
                return [made]
        return []

    def _strands(self) -> Probe:
        """Windows against their reverse complements."""
        probe, num_words = Probe("reverse_complement"), self._size // self._word
        for number in range(self._sites * TRIES):
            if len(probe.pairs) == self._sites:
                break
            place = self._places.anywhere("reverse_complement", number)
            text = self._places.read(place, 0, self._size)
            if not self._places.is_within(place) or not set(text) <= set(ACGT):
                probe.left_out[OTHER_LETTERS if self._places.is_within(place) else OUTSIDE] += 1
                continue
            order = sorted((keyed("mask", *place.key, word), word) for word in range(num_words))
            chosen = sorted(word * self._word for _, word in order[: max(1, round(MASKED_SHARE * num_words))])
            spans = tuple((start, start + self._word) for start in chosen)
            mirrored = tuple((self._size - end, self._size - start) for start, end in reversed(spans))
            probe.pairs.append(Pair(Window(text, spans), Window(reverse_of(text), mirrored), place.locus))
        return probe

    def _in_coding(self, name: str) -> Probe:
        """One pair of each coding sequence, then a second one of each, and so on."""
        coding = self._coding()
        probe, order, seen = Probe(name, len(coding)), sorted(coding, key=lambda key: keyed(name, *key)), set()
        for draw in range(TRIES):
            for key in order:
                if len(probe.pairs) == self._sites:
                    return probe
                made = self._of_codons(name, *coding[key], draw)
                if isinstance(made, str):
                    probe.left_out[made] += 1
                elif made.locus not in seen:
                    seen.add(made.locus)
                    probe.pairs.append(made)
        return probe

    def _coding(self) -> dict[tuple[object, ...], tuple[Contig, str, Cds]]:
        """Distinct coding sequences of whole codons."""
        found: dict[tuple[object, ...], tuple[Contig, str, Cds]] = {}
        for gene, contig in self._places.extraction.genes:
            for transcript in gene.transcripts:
                for cds in transcript.coding if gene.type == "cds" and transcript.strand in "+-" else ():
                    if not cds.partial5 and not cds.exception and sum(end - start for start, end in cds.pieces) % 3 == 0:
                        found.setdefault((contig.name, transcript.strand, *cds.pieces), (contig, transcript.strand, cds))
        return found

    def _of_codons(self, name: str, contig: Contig, strand: str, cds: Cds, draw: int) -> Pair | str:
        """A pair of one coding sequence, its codon drawn from those of the longest piece but its first and last."""
        sizes = [end - start for start, end in cds.pieces]
        piece = sizes.index(max(sizes))
        start, end = cds.pieces[piece]
        skipped = -sum(sizes[:piece]) % 3  # of a codon that began in the piece before
        num_codons = (sizes[piece] - skipped) // 3
        if num_codons < 5:
            return "too short"
        number = 1 + keyed("codon", contig.name, strand, start, end, draw) % (num_codons - 2)
        code = self._places.extraction.code_of(cds)
        place = Place(contig, strand, end - 1 if strand == "-" else start, code).shifted(skipped + 3 * number)
        if not self._places.is_within(place):
            return OUTSIDE
        window = self._window(place, name)
        if isinstance(window, str):
            return window
        text, site = window
        codons = range(max(1 - number, -(site // 3)), min(num_codons - number, (len(text) - site) // 3))
        if name == "synonymous":
            sites = _matched_sites(text, site, codons, amino_acids(code) | dict.fromkeys(STOP_CODONS[code], "*"), place)
        else:
            sites = _stop_sites(text, site, codons, STOP_CODONS[code], place)
        if sites is None:
            return "no such two changes"
        *both, base = sites
        spans = tuple(sorted((at, at + 1) for at in both))
        kept, altered = (text[:at] + base + text[at + 1 :] for at in both)
        return Pair(Window(kept, spans), Window(altered, spans), place.locus)


def _matched_sites(text: str, site: int, codons: range, table: dict[str, str], place: Place) -> tuple[int, int, str] | None:
    """(third base of the codon at `site`, a first or second base of another codon, what both become): the first change is silent, the
    second is not, and both have the same letters. The nearest of `codons`, which are counted from that at `site`."""
    codon = text[site : site + 3]
    silent = [base for base in ACGT if base != codon[2] and table[codon[:2] + base] == table[codon]]
    for base in sorted(silent, key=lambda base: keyed("base", base, *place.key)):
        for by in sorted(filter(None, codons), key=lambda by: (abs(by), keyed("side", by > 0, *place.key))):
            start = site + 3 * by
            for at in (start, start + 1):
                altered = (text[:at] + base + text[at + 1 :])[start : start + 3]
                meanings = table[text[start : start + 3]], table[altered]
                if text[at] == codon[2] and meanings[0] != meanings[1] and "*" not in meanings:
                    return site + 2, at, base
    return None


def _stop_sites(text: str, site: int, codons: range, stops: Collection[str], place: Place) -> tuple[int, int, str] | None:
    """(base out of frame, base of the codon at `site`, what both become): either change makes the same stop codon of the same three
    letters, but the first makes none in the reading frame. The nearest of `codons`, which are counted from that at `site`."""
    codon = text[site : site + 3]
    changes = [(at, base) for at in range(3) for base in ACGT if codon not in stops and codon[:at] + base + codon[at + 1 :] in stops]
    others = range(site + 3 * codons.start, site + 3 * codons.stop - 2)
    for at, base in sorted(changes, key=lambda change: keyed("stop", *change, *place.key)):
        for start in sorted(others, key=lambda start: (abs(start - site), keyed("side", start > site, *place.key))):
            changed = start + at
            frame = changed - (changed - site) % 3
            if (start - site) % 3 and text[start : start + 3] == codon:
                altered = text[:changed] + base + text[changed + 1 :]
                if altered[frame : frame + 3] not in stops:
                    return changed, site + at, base
    return None

"""Whether sequences are coding sequences: frame, start, stop, no stop within; and what proteins they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dnapretrain.data.genes.codons import START_CODONS, STOP_CODONS, amino_acids, translate

CHECKS = ("whole", "start", "stop", "no_inner_stop", "valid")
"""What a coding sequence has; `valid` is all of them, and no letters other than A, C, G, T."""


@dataclass(frozen=True)
class CodingCheck:
    """One sequence, read from its first base on."""

    length: int
    whole: bool
    """Its length is a multiple of three."""
    start: bool
    """It begins with a start codon of the genetic code."""
    stop: bool
    """Its last whole codon, and its last base, is a stop codon's."""
    inner_stops: int
    """Stop codons in frame before the last whole codon. (Codes 27, 28 and 31 read theirs as amino acids there: none.)"""
    other_letters: int
    """Letters other than A, C, G, T."""
    protein: str
    """Up to the first stop in frame; M for a start codon, X for a codon with other letters."""
    behind_stop: int
    """Bases behind the first stop in frame; 0 where there is none."""

    @property
    def no_inner_stop(self) -> bool:
        """Whether it can be read to its end."""
        return not self.inner_stops

    @property
    def valid(self) -> bool:
        """Whether it is a coding sequence."""
        return self.whole and self.start and self.stop and self.no_inner_stop and not self.other_letters


def check_coding(bases: str, code: int) -> CodingCheck:
    """Judge a sequence by one of NCBI's genetic codes. Raises ConfigError for an unknown code."""
    text = translate(bases, code)  # of codes where a codon is both, `*` is only what always stops
    whole = len(bases) % 3 == 0
    ends = bases[len(text) * 3 - 3 : len(text) * 3] in STOP_CODONS[code]
    body = text[:-1] if ends else text
    start = bases[:3] in START_CODONS[code]
    first = body.find("*")
    length = first if first >= 0 else len(body)
    behind = len(bases) - 3 * (length + 1) if first >= 0 or ends else 0
    protein = ("M" + body[1:length] if start else body[:length]) if length else ""
    other = sum(count for letter, count in Counter(bases).items() if letter not in "ACGT")
    return CodingCheck(len(bases), whole, start, ends and whole, body.count("*"), other, protein, behind)


def trim_to_stop(bases: str, code: int) -> str:
    """Up to the end of the first stop in frame; the whole where there is none. (Codons that are amino acids too end nothing.)"""
    stop = translate(bases, code).find("*")
    return bases if stop < 0 else bases[: 3 * stop + 3]


def sense_codons(sequences: Sequence[str], code: int) -> Counter[str]:
    """Codons in frame of A, C, G, T, up to the first stop of each sequence, which does not count."""
    found: Counter[str] = Counter()
    table, stops = amino_acids(code), STOP_CODONS[code]
    for bases in sequences:
        for at in range(0, len(bases) - 2, 3):
            codon = bases[at : at + 3]
            if codon in stops and (table[codon] == "*" or at + 6 > len(bases)):
                break
            if codon in table:
                found[codon] += 1
    return found

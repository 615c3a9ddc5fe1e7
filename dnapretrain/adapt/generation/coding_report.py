"""Generated coding sequences beside natural ones: a table, one JSON, a picture, and the proteins for other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain import __version__
from dnapretrain.adapt.generation.codon_checks import CHECKS, CodingCheck, check_coding, sense_codons, trim_to_stop
from dnapretrain.adapt.generation.compositions import (
    CODONS,
    MAX_K,
    compare_counts,
    counts_of,
    gc_share,
    kmer_counts,
    ks_distance,
    quantiles,
    wilson,
)
from dnapretrain.adapt.metrics import plain
from dnapretrain.adapt.sequences.folds import same_sequence_groups, shared_rows
from dnapretrain.adapt.sequences.splits import OVERLAP_BASES, overlapping_rows, window_hashes
from dnapretrain.adapt.sequences.tables import SequenceTable
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.genes.codons import STOP_CODONS, amino_acids
from dnapretrain.errors import ConfigError

RESULT, TABLE, PROTEINS = "check_cds.json", "check_cds.tsv", "proteins.fa"
LINE_WIDTH = 60


@dataclass(frozen=True)
class CodingSettings:
    """How sequences are judged."""

    code: int = 1
    """Of NCBI; 11 of bacteria and archaea."""
    trim_to_stop: bool = False
    """Generated sequences end at their first stop in frame: for models that were asked for a number of bases."""
    kmers: tuple[int, ...] = (3, 6)
    """Compared with the natural ones."""
    proteins: str = "valid"
    """Which are written: of valid sequences, or of all up to their first stop."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        amino_acids(self.code)
        if not self.kmers or not all(1 <= k <= MAX_K for k in self.kmers):
            raise ConfigError(f"kmers = {self.kmers}: name lengths of 1 to {MAX_K}.")
        if self.proteins not in ("valid", "all"):
            raise ConfigError(f"proteins = {self.proteins} is neither valid nor all.")


def run_check_cds(
    generated: SequenceTable,
    natural: SequenceTable | None,
    training: SequenceTable | None,
    output: Path,
    settings: CodingSettings | None = None,
) -> dict[str, Any]:
    """Judge, and write `output`/check_cds.json, check_cds.tsv and proteins.fa; returns what the JSON holds. Raises ConfigError."""
    settings = settings or CodingSettings()
    settings.check()
    sequences = list(generated.sequences)
    if settings.trim_to_stop:
        sequences = [trim_to_stop(bases, settings.code) for bases in sequences]
    checks = [check_coding(bases, settings.code) for bases in sequences]
    found: dict[str, Any] = {
        "dnapretrain": __version__,
        "settings": asdict(settings),
        "generated": {"source": generated.source, **_summary(checks, sequences)},
        "trimmed": sum(len(new) < len(old) for new, old in zip(sequences, generated.sequences, strict=True)),
        "duplicates": _duplicates(sequences, training),
    }
    if natural:
        own = [check_coding(bases, settings.code) for bases in natural.sequences]
        found["natural"] = {"source": natural.source, **_summary(own, natural.sequences)}
        found["compared"] = compare_sets(sequences, natural.sequences, settings)
        found["natural_halves"] = compare_halves(natural.sequences, len(sequences), settings)
        found["codon_usage"] = {
            "generated": _shares(sequences, settings.code),
            "natural": _shares(natural.sequences, settings.code),
        }
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / PROTEINS, _proteins(generated.names, checks, settings))
    write_whole(output / TABLE, _table(generated.names, sequences, checks))
    write_whole(output / RESULT, json.dumps(plain(found), indent=1) + "\n")
    return found


def _summary(checks: Sequence[CodingCheck], sequences: Sequence[str]) -> dict[str, Any]:
    shares = {name: wilson(sum(getattr(check, name) for check in checks), len(checks)) for name in CHECKS}
    return {
        "sequences": len(checks),
        **shares,
        "other_letters": sum(check.other_letters > 0 for check in checks),
        "length": quantiles([check.length for check in checks]),
        "gc": quantiles([gc for gc in map(gc_share, sequences) if not np.isnan(gc)] or [float("nan")]),
        "lengths": [check.length for check in checks],
    }


def compare_sets(one: Sequence[str], other: Sequence[str], settings: CodingSettings) -> dict[str, Any]:
    """Jensen-Shannon divergence (bits) and Pearson correlation of k-mers, codons and amino acids; of lengths the distance of Kolmogorov
    and Smirnov. A set without a codon before its stops is compared by the rest."""
    found: dict[str, Any] = {f"{k}-mers": compare_counts(kmer_counts(one, k), kmer_counts(other, k)) for k in settings.kmers}
    codons = [sense_codons(some, settings.code) for some in (one, other)]
    if all(codons):
        found["codons"] = compare_counts(*(counts_of(counter, _sense(settings.code)) for counter in codons))
        table = amino_acids(settings.code)
        letters = sorted(set(table.values()) - {"*"})
        usages = [{aa: sum(count for codon, count in one.items() if table[codon] == aa) for aa in letters} for one in codons]
        found["amino_acids"] = compare_counts(*(counts_of(usage, letters) for usage in usages))
    found["length_ks"] = ks_distance([len(bases) for bases in one], [len(bases) for bases in other])
    return found


def compare_halves(natural: Sequence[str], count: int, settings: CodingSettings, seed: int = 0) -> dict[str, Any] | None:
    """The same of as many natural sequences as were generated (half of them at most) against the others: what chance alone makes.

    None where there are fewer than four.
    """
    if len(natural) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(natural)).tolist()
    cut = min(count, len(natural) // 2)
    return compare_sets([natural[row] for row in order[:cut]], [natural[row] for row in order[cut:]], settings)


def _sense(code: int) -> list[str]:
    table = amino_acids(code)
    return [codon for codon in CODONS if table[codon] != "*"]


def _shares(sequences: Sequence[str], code: int) -> dict[str, float]:
    """Of each sense codon, its share of all."""
    counts = sense_codons(sequences, code)
    total = max(1, sum(counts.values()))
    return {codon: counts.get(codon, 0) / total for codon in _sense(code)}


def _duplicates(sequences: Sequence[str], training: SequenceTable | None) -> dict[str, int]:
    found = {"sequences": len(sequences), "repeated": len(sequences) - len(set(same_sequence_groups(sequences).tolist()))}
    if training:
        found["training_sequences"] = len(training)
        found["equal_to_training"] = len(shared_rows(sequences, training.sequences))
        found[f"share_{OVERLAP_BASES}_bases_with_training"] = len(overlapping_rows(sequences, window_hashes(training.sequences)))
    return found


def _table(names: Sequence[str], sequences: Sequence[str], checks: Sequence[CodingCheck]) -> str:
    columns = ("length", *CHECKS, "inner_stops", "other_letters", "behind_stop")
    lines = ["\t".join(["name", *columns, "gc", "protein_length"])]
    for name, bases, check in zip(names, sequences, checks, strict=True):
        values = (getattr(check, column) for column in columns)
        cells = [("yes" if value else "no") if isinstance(value, bool) else str(value) for value in values]
        gc = gc_share(bases)
        lines.append("\t".join([name, *cells, "NA" if np.isnan(gc) else f"{gc:.4f}", str(len(check.protein))]))
    return "\n".join(lines) + "\n"


def _proteins(names: Sequence[str], checks: Sequence[CodingCheck], settings: CodingSettings) -> str:
    lines = []
    for name, check in zip(names, checks, strict=True):
        if check.protein and (check.valid or settings.proteins == "all"):
            lines.append(f">{name} valid={'yes' if check.valid else 'no'} genetic_code={settings.code} length={len(check.protein)}")
            lines += [check.protein[at : at + LINE_WIDTH] for at in range(0, len(check.protein), LINE_WIDTH)]
    return "\n".join(lines) + "\n" if lines else ""


def format_check_cds(found: dict[str, Any]) -> str:
    """The result for the terminal."""
    says = {
        "whole": "length is a multiple of three",
        "start": "begins with a start codon",
        "stop": f"ends in {'/'.join(sorted(STOP_CODONS[found['settings']['code']]))}",
        "no_inner_stop": "no stop within the frame",
        "valid": "all of these: valid",
    }
    sides = [side for side in ("generated", "natural") if side in found]
    width = max(map(len, says.values()))
    lines = [f"{'genetic code ' + str(found['settings']['code']):<{width}}  " + "  ".join(f"{side:<25}" for side in sides).rstrip()]
    for name, text in {"sequences": "sequences", **says, "length": "bases, median (quartiles)"}.items():
        lines.append(f"{text:<{width}}  " + "  ".join(f"{_cell(found[side], name):<25}" for side in sides).rstrip())
    for name, values in found.get("compared", {}).items():
        halves = (found["natural_halves"] or {}).get(name)
        lines.append(f"{name.replace('_', ' ')}: {_compared(values)}" + (f"   (natural halves: {_compared(halves)})" if halves else ""))
    if found["trimmed"]:
        lines.append(f"{found['trimmed']:,} of {found['generated']['sequences']:,} were cut behind their first stop")
    shown = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in found["duplicates"].items())
    lines.append(f"duplicates: {shown}")
    return "\n".join(lines)


def _cell(side: dict[str, Any], name: str) -> str:
    if name == "sequences":
        return f"{side[name]:,}"
    if name == "length":
        return f"{side[name]['median']:.0f} ({side[name]['q25']:.0f} to {side[name]['q75']:.0f})"
    return f"{side[name]['value']:.3f} [{side[name]['low']:.3f}, {side[name]['high']:.3f}]"


def _compared(values: Any) -> str:
    if isinstance(values, dict):
        return f"JSD {values['js_divergence']:.4f} bits, r {values['pearson']:.3f}"
    return f"distance {values:.3f}"

"""Scores of all variants of a VCF, or of every substitution of a region, as a table in the order of the input."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from dnapretrain.adapt.backbones.backbone import Backbone
from dnapretrain.adapt.metrics import Interval
from dnapretrain.adapt.variants.score import ScoreSettings, SiteScores, score_sites, sign_of
from dnapretrain.adapt.variants.variant_labels import Labeller, Separation, separation
from dnapretrain.adapt.variants.variant_sites import Reference, Site, Variant
from dnapretrain.errors import ConfigError

CHUNK_VARIANTS = 256
FIRST_COLUMNS = ("chrom", "pos", "id", "ref", "alt")
LAST_COLUMNS = ("method", "strands", "reason")
MISSING = "NA"


@dataclass
class Scored:
    """What `score_variants` did."""

    columns: list[str]
    num_alleles: int = 0
    methods: dict[str, int] = field(default_factory=dict)
    """How scores came about -> alleles."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why there is none -> alleles."""
    separations: dict[str, Separation] = field(default_factory=dict)
    """By column, where there are labels."""
    rows: list[tuple[Variant, SiteScores]] = field(default_factory=list)
    """Where they are to be kept."""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the console."""
        said = [", ".join(f"{count:,} by {method}" for method, count in sorted(self.methods.items())) or "no allele has a score"]
        said += [f"{count:,} of {self.num_alleles:,} alleles have no score: {reason}" for reason, count in sorted(self.reasons.items())]
        width = max(map(len, self.separations), default=0)
        for column, found in self.separations.items():
            sign = "-" if sign_of(column) < 0 else " "
            sizes = f"{found.positives:,} positives, {found.negatives:,} negatives"
            said.append(f"{sign}{column:<{width}}  AUROC {found.auroc}  AUPRC {found.auprc}  {sizes}")
        return said + self.notes


def score_variants(
    backbone: Backbone,
    variants: Iterator[Variant],
    reference: Reference,
    output: Path,
    settings: ScoreSettings,
    source: str,
    labels: Labeller | None = None,
    keep: bool = False,
    about: dict[str, Any] | None = None,
) -> Scored:
    """Write a row for each variant to `output` (.tsv, .tsv.gz), and what was done to `output`.json; both appear whole or not at all.

    source: what variants come from, for messages. keep: hold the rows in memory too. about: what else the JSON says.
    Raises ConfigError, and DataError with the locus.
    """
    settings.check(backbone)
    done = Scored(settings.columns(backbone))
    known: list[tuple[int, list[float]]] = []
    flank = 2 * settings.size(backbone)  # a deletion reads on beyond its window
    with _table(output) as table:
        header = [*FIRST_COLUMNS, *(["label"] if labels else []), *done.columns, *LAST_COLUMNS]
        table.write("\t".join(header) + "\n")
        while chunk := list(islice(variants, CHUNK_VARIANTS)):
            sites = [reference.site(variant, flank, source) for variant in chunk]
            scored = _scored(backbone, sites, settings)
            for variant, scores in zip(chunk, scored, strict=True):
                label = labels.label(variant) if labels else None
                table.write(_row(variant, label, labels is not None, scores, done.columns))
                _count(done, scores)
                if label is not None:
                    known.append((label, [scores.values.get(column, np.nan) for column in done.columns]))
                if keep:
                    done.rows.append((variant, scores))
    if labels:
        _separate(done, known, labels)
    _write_json(output, done, settings, about or {})
    return done


def _scored(backbone: Backbone, sites: Sequence[Site | str], settings: ScoreSettings) -> list[SiteScores]:
    real = iter(score_sites(backbone, [site for site in sites if isinstance(site, Site)], settings))
    return [next(real) if isinstance(site, Site) else SiteScores({}, "", 0, site) for site in sites]


def _count(done: Scored, scores: SiteScores) -> None:
    done.num_alleles += 1
    counts, key = (done.methods, scores.method) if scores.method else (done.reasons, scores.reason)
    counts[key] = counts.get(key, 0) + 1


def _row(variant: Variant, label: int | None, has_labels: bool, scores: SiteScores, columns: Sequence[str]) -> str:
    cells = [variant.contig, str(variant.start + 1), variant.id, variant.ref, variant.alt]
    if has_labels:
        cells.append(MISSING if label is None else str(label))
    cells += [f"{scores.values[column]:.6g}" if column in scores.values else MISSING for column in columns]
    return "\t".join([*cells, scores.method or MISSING, str(scores.strands), scores.reason or "."]) + "\n"


def _separate(done: Scored, known: Sequence[tuple[int, list[float]]], labels: Labeller) -> None:
    truth = np.array([label for label, _ in known], np.int64)
    scores = np.array([values for _, values in known], np.float64).reshape(len(known), len(done.columns))
    for at, column in enumerate(done.columns):
        if found := separation(truth, scores[:, at], sign_of(column)):
            done.separations[column] = found
    if not done.separations:
        done.notes.append(f"no AUROC: {int(truth.sum()):,} positives and {int((truth == 0).sum()):,} negatives; both are needed")
    if unused := labels.unused():
        done.notes.append(unused)


@contextmanager
def _table(output: Path) -> Iterator[IO[str]]:
    if not output.name.endswith((".tsv", ".tsv.gz")):
        raise ConfigError(f"--output {output} ends neither in .tsv nor in .tsv.gz. Rename it.")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.parent}. Make it first.")
    unfinished = output.with_name(f".{output.name}.unfinished")
    opener = gzip.open if output.suffix == ".gz" else open
    try:
        with opener(unfinished, "wt", encoding="utf-8") as table:
            yield table
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(output)


def _write_json(output: Path, done: Scored, settings: ScoreSettings, about: dict[str, Any]) -> None:
    def interval(found: Interval) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else value for name, value in asdict(found).items()}

    found = {
        column: {
            "auroc": interval(one.auroc),
            "auprc": interval(one.auprc),
            "positives": one.positives,
            "negatives": one.negatives,
            "sign": sign_of(column),
        }
        for column, one in done.separations.items()
    }
    values = {
        **about,
        "settings": asdict(settings),
        "num_alleles": done.num_alleles,
        "methods": done.methods,
        "reasons": done.reasons,
        "separations": found,
        "notes": done.notes,
    }
    unfinished = output.with_name(f".{output.name}.json.unfinished")
    unfinished.write_text(json.dumps(values, indent=2) + "\n")
    unfinished.replace(output.with_name(output.name + ".json"))

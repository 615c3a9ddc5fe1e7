"""Labels of variants, from INFO or from a table, and how well scores tell them apart."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain.adapt.metrics import Interval, auroc, average_precision, with_intervals
from dnapretrain.adapt.sequences.table_files import open_text
from dnapretrain.adapt.variants.variant_sites import Variant
from dnapretrain.errors import ConfigError, DataError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
COLUMNS = ("chrom", "pos", "ref", "alt", "label")


@dataclass(frozen=True)
class Rule:
    """A condition on INFO: `AF<0.001`, or `CLNSIG=Pathogenic|Likely_pathogenic`."""

    key: str
    comparison: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Raises ConfigError for text that is no such rule."""
        found = re.fullmatch(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|>|<|=)\s*(.+?)\s*", text)
        if not found:
            raise ConfigError(f"rule {text!r} is not KEY=VALUE|VALUE, KEY<NUMBER or KEY>=NUMBER, on the INFO of the VCF.")
        key, comparison, value = found.groups()
        if comparison != "=" and _number(value) is None:
            raise ConfigError(f"rule {text!r} compares with {value!r}, which is no number.")
        return cls(key, comparison, tuple(value.split("|")) if comparison == "=" else (value,))

    def holds(self, variant: Variant) -> bool | None:
        """Whether INFO says so for this allele; None where it says nothing. Where INFO has a value per ALT allele, its own counts."""
        found = info_value(variant, self.key)
        if found is None or found == ".":
            return None
        if self.comparison == "=":
            return found in self.values
        number = _number(found)
        return None if number is None else COMPARISONS[self.comparison](number, float(self.values[0]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def info_value(variant: Variant, key: str) -> str | None:
    """The value of a key in INFO; None where it is not there."""
    for part in variant.info.split(";"):
        name, _, value = part.partition("=")
        if name == key:
            values = value.split(",")
            return values[variant.allele] if len(values) == variant.num_alleles else value
    return None


@dataclass
class Labeller:
    """Gives a variant 1, 0 or no label."""

    positive: Rule | None = None
    negative: Rule | None = None
    """None: all that have the key of `positive`, and for which it does not hold."""
    table: dict[tuple[str, int, str, str], int] | None = None
    used: set[tuple[str, int, str, str]] = field(default_factory=set)

    def label(self, variant: Variant) -> int | None:
        """Raises DataError where both rules hold."""
        if self.table is not None:
            key = (variant.contig, variant.start + 1, variant.ref, variant.alt)
            if key in self.table:
                self.used.add(key)
            return self.table.get(key)
        if self.positive is None:
            return None
        is_positive = self.positive.holds(variant)
        is_negative = self.negative.holds(variant) if self.negative else is_positive is False
        if is_positive and is_negative:
            raise DataError(
                f"{variant.locus} {variant.ref}>{variant.alt} is positive and negative by INFO ({variant.info[:60]}). Change a rule."
            )
        return 1 if is_positive else 0 if is_negative else None

    def unused(self) -> str:
        """A line on rows of the table that no variant has, or nothing."""
        count = len(self.table) - len(self.used) if self.table is not None else 0
        return f"{count:,} of {len(self.table or ()):,} labels of the table are of no allele in the VCF" if count else ""


def labeller(positive: str | None, negative: str | None, table: Path | None) -> Labeller | None:
    """What the options ask for; None where they ask for nothing. Raises ConfigError, DataError."""
    if table and (positive or negative):
        raise ConfigError("labels come from --labels or from --positive and --negative, not both. Leave one out.")
    if negative and not positive:
        raise ConfigError(f"--negative {negative} alone gives one class. Add --positive.")
    if table:
        return Labeller(table=read_labels(table))
    return Labeller(Rule.parse(positive), Rule.parse(negative) if negative else None) if positive else None


def read_labels(path: Path) -> dict[tuple[str, int, str, str], int]:
    """(contig, 1-based position, REF, ALT) -> 0 or 1, from CSV or TSV with the columns chrom, pos, ref, alt, label. Raises DataError."""
    if not path.is_file():
        raise DataError(f"no such table of labels: {path}.")
    found: dict[tuple[str, int, str, str], int] = {}
    with open_text(path) as lines:
        header = next(iter(lines), "").rstrip("\r\n")
        mark = "\t" if "\t" in header else ","
        names = [name.strip().lstrip("#").lower() for name in header.split(mark)]
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise DataError(f"{path} has no column '{missing[0]}'; it has {', '.join(names)}. Labels need {', '.join(COLUMNS)}.")
        for number, line in enumerate(lines, 2):
            if not line.strip():
                continue
            cells = dict(zip(names, (cell.strip() for cell in line.rstrip("\r\n").split(mark)), strict=False))
            key, label = _labelled(path, number, cells)
            if found.setdefault(key, label) != label:
                raise DataError(f"{path}: line {number}: {key[0]}:{key[1]} {key[2]}>{key[3]} has both labels. Remove one.")
    if not found:
        raise DataError(f"{path} has no row.")
    return found


def _labelled(path: Path, number: int, cells: Mapping[str, str]) -> tuple[tuple[str, int, str, str], int]:
    try:
        position, label = int(cells["pos"]), cells["label"].lower()
        key = (cells["chrom"], position, cells["ref"].upper(), cells["alt"].upper())
    except (KeyError, ValueError):
        raise DataError(f"{path}: line {number} has no position, or too few columns. Mend it.") from None
    values = {"0": 0, "1": 1, "false": 0, "true": 1}
    if label not in values:
        raise DataError(f"{path}: line {number} has label {cells['label']!r}; it is 0 or 1. Mend it.")
    return key, values[label]


@dataclass(frozen=True)
class Separation:
    """How well one score tells positives from negatives."""

    auroc: Interval
    auprc: Interval
    positives: int
    negatives: int


def separation(labels: NDArray[np.int64], scores: NDArray[np.float64], sign: int) -> Separation | None:
    """Of the labelled alleles with that score; sign -1: positives are expected to score low. None without both classes."""
    known = ~np.isnan(scores)
    labels, scores = labels[known], sign * scores[known]
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return None

    def both(labels: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
        return {"auroc": auroc(labels == 1, scores), "auprc": average_precision(labels == 1, scores)}

    found = with_intervals(both, labels, scores)
    return Separation(found["auroc"], found["auprc"], positives, len(labels) - positives)

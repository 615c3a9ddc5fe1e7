"""The reference of a VCF: the documents of a shard, by the names that contigs have in the VCF."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dnapretrain.data.shards.shard import Shard
from dnapretrain.data.variants.vcf import VcfFile
from dnapretrain.errors import ConfigError, DataError


class Reference:
    """The documents of the reference by contig, under the names of the VCF."""

    def __init__(self, shard: Shard, names: dict[str, str]) -> None:
        self.shard, self.names = shard, names
        where = shard.coordinates
        if shard.edits is not None:
            raise DataError(f"{shard.prefix}: a shard of haplotypes. Give the shard of the reference itself")
        self._documents: dict[str, list[int]] = {}
        for document, contig in enumerate(where.contig):
            self._documents.setdefault(contig, []).append(document)
        for contig, documents in self._documents.items():
            documents.sort(key=lambda document: int(where.start[document]))
            for before, document in zip([None, *documents], documents, strict=False):
                self._check_document(contig, before, document)
        unknown = sorted(set(names.values()) - set(self._documents))
        if unknown:
            raise ConfigError(f"--contig-names gives '{unknown[0]}', which is no contig of {shard.prefix}. Known: {self._some_contigs()}")

    def _check_document(self, contig: str, before: int | None, document: int) -> None:
        where, shard = self.shard.coordinates, self.shard
        if where.strand[document] != "+" or where.end[document] - where.start[document] != shard.lengths[document]:
            raise DataError(f"{shard.prefix}: {where.locus(document)} is spliced or reversed. Give a shard of whole contigs")
        if before is not None and where.assembly[before] != where.assembly[document]:
            both = f"'{where.assembly[before]}' and '{where.assembly[document]}'"
            raise DataError(f"{shard.prefix}: contig '{contig}' is in the assemblies {both}. Preprocess the reference of the VCF alone")
        if before is not None and where.start[document] < where.end[before]:
            raise DataError(f"{shard.prefix}: {where.locus(before)} and {where.locus(document)} overlap. Give a shard of whole contigs")

    def _some_contigs(self) -> str:
        return ", ".join(list(self._documents)[:5])

    def documents(self, contig: str) -> list[int] | None:
        """Documents of a contig of the VCF by position; None where the shard has none of this name."""
        return self._documents.get(self.names.get(contig, contig))

    def documents_of(self, file: VcfFile, contig: str) -> list[int]:
        """The same; raises DataError where there are none, or the contig is shorter in the VCF's header."""
        documents = self.documents(contig)
        if documents is None:
            file.fail(
                f"contig '{contig}' is not in {self.shard.prefix} ({self._some_contigs()}). State what it is called there with "
                "--contig-names, or leave its records out, for example with bcftools view -t"
            )
        length, last = file.contig_lengths.get(contig), documents[-1]
        if length is not None and length < self.shard.coordinates.end[last]:
            file.fail(
                f"contig '{contig}' has {length} bases in the header, but {self.shard.coordinates.locus(last)} lies beyond. The VCF was "
                "made on another assembly: give its reference"
            )
        return documents

    def bases(self, document: int, start: int = 0, end: int | None = None) -> NDArray[np.uint8]:
        """Bases of a document, or those of [start, end) that it has."""
        offset, length = int(self.shard.offsets[document]), int(self.shard.lengths[document])
        return self.shard.bases[offset + start : offset + (length if end is None else min(end, length))]


def read_contig_names(path: Path) -> dict[str, str]:
    """The table of --contig-names: name in the VCF -> name in the shard. Raises ConfigError where it is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--contig-names {path}: cannot be read: {error}. Give a table 'name in the VCF<tab>name in the shard'") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not all(fields) or fields[0] in names:
            _fail_names(path, number)
        names[fields[0]] = fields[1]
    return names


def _fail_names(path: Path, number: int) -> NoReturn:
    raise ConfigError(f"{path}: line {number} is not 'name in the VCF<tab>name in the shard', each name of the VCF once. Mend it")

"""Gene-centric corpora: a base shard and an annotation -> a shard of genes, transcripts, coding sequences, promoter windows.

Each document is read 5' to 3' on its strand; the `.bed` holds its blocks on the contig, strand '-' where the reverse complement is
stored, and `PREFIX.labels.tsv` its feature, type, strand, clade, gene and transcript. Documents follow the contigs of the base
shard and, on each, their first base. Every rule that leaves something out counts it in `extraction` of the manifest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__, _core
from dnapretrain.data.genes.gene_models import read_genes
from dnapretrain.data.genes.gene_regions import Extraction, ExtractSettings, Region, read_bases
from dnapretrain.data.shards.contigs import Assembly
from dnapretrain.data.shards.indexed_dataset import index_bytes
from dnapretrain.data.shards.manifest import letter_counts, write_manifest
from dnapretrain.data.shards.shard import FORMAT, FORMAT_VERSION, LABELS, open_shard
from dnapretrain.data.shards.writer import FileWriter, commit, staging_folder
from dnapretrain.errors import DataError

COLUMNS = ("feature", "type", "strand", "clade", "gene", "transcript", "partial")
DROPS = ("short", "long", "no_bases")
SHOWN = 5
"""Coding sequences without start or stop codon that are printed; the manifest has more."""


def extract(
    prefix: str | Path,
    annotation: str | Path,
    output: str | Path,
    settings: ExtractSettings | None = None,
    assembly: str | None = None,
    contig_names: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the shard `output`.bin, .idx, .bed, .labels.tsv, .json and return its manifest.

    `contig_names`: see data.contig_names. Raises ConfigError for settings, DataError for files that cannot be used, contigs that
    have no counterpart, and an annotation that does not fit the assembly.
    """
    settings, output = settings or ExtractSettings(), Path(output)
    genome = Assembly(open_shard(prefix), assembly)
    models = read_genes(Path(annotation))
    extraction = Extraction(genome, models, settings, contig_names)
    codons = extraction.check_codons()
    regions = extraction.regions()
    with staging_folder(output, overwrite) as staging:
        written = _write(staging, genome, regions, settings, extraction.counts)
        manifest = _manifest(genome, settings, written) | {"extraction": extraction.summary(codons) | _documents(written)}
        write_manifest(staging, manifest)
        commit(staging, output)
    return manifest


@dataclass
class _Written:
    lengths: list[int]
    contigs: set[str]
    dropped: dict[str, list[int]]
    """For each of DROPS: documents, bases."""
    letters: NDArray[np.int64]
    labels: dict[str, Counter[str]]
    files: dict[str, Any]


def _write(staging: Path, genome: Assembly, regions: list[Region], settings: ExtractSettings, counts: Counter[str]) -> _Written:
    """Stage `.bin`, `.idx`, `.bed` and the labels. Raises DataError where no document is left."""
    labels: dict[str, Counter[str]] = {column: Counter() for column in ("feature", "type", "strand")}
    written = _Written([], set(), {reason: [0, 0] for reason in DROPS}, np.zeros(256, np.int64), labels, {})
    with FileWriter(staging / "bin") as bin_writer, FileWriter(staging / "bed") as bed_writer, FileWriter(staging / LABELS) as label_writer:
        label_writer.write(("\t".join(COLUMNS) + "\n").encode())
        for region in regions:
            reason, bases, filled = _judge(genome, region, settings)
            if reason:
                written.dropped[reason][0] += 1
                written.dropped[reason][1] += region.length
                continue
            bin_writer.write(bases.data)
            bed_writer.write(_bed_line(region, genome.name).encode())
            row = (region.feature, region.type, region.strand, settings.clade or "", region.gene, region.transcript, region.partial)
            label_writer.write(("\t".join(_escaped(value) or "." for value in row) + "\n").encode())
            written.lengths.append(len(bases))
            written.contigs.add(region.contig.name)
            written.letters += _core.count_bytes(bases)
            for column, value in zip(COLUMNS, row[:3], strict=False):
                labels[column][value] += 1
            counts["clipped_documents"] += region.clipped > 0
            counts["clipped_bases"] += region.clipped
            counts["filled_with_n"] += filled
    if not written.lengths:
        dropped = ", ".join(f"{reason} {number}" for reason, (number, _) in written.dropped.items())
        raise DataError(f"no document is left of {len(regions)}: {dropped}. Change --features, --types, --min-length or --max-length")
    with FileWriter(staging / "idx") as idx_writer:
        idx_writer.write(index_bytes(np.array(written.lengths, np.int64)))
    writers = {"bin": bin_writer, "idx": idx_writer, "bed": bed_writer, LABELS: label_writer}
    written.files = {kind: writer.entry() for kind, writer in writers.items()}
    return written


def _judge(genome: Assembly, region: Region, settings: ExtractSettings) -> tuple[str, NDArray[np.uint8], int]:
    """Why a document is left out ('': it is not), its bases, and those of them that are filled."""
    nothing = np.zeros(0, np.uint8)
    if region.length < settings.min_length:
        return "short", nothing, 0
    if region.length > settings.max_length:
        return "long", nothing, 0
    bases, filled = read_bases(genome, region)
    return ("no_bases" if filled == len(bases) else ""), bases, filled


def _bed_line(region: Region, assembly: str) -> str:
    start, end = region.span
    sizes = ",".join(str(last - first) for first, last in region.pieces)
    starts = ",".join(str(first - start) for first, _ in region.pieces)
    sign = "-" if region.strand == "-" else "+"
    return f"{region.contig.name}\t{start}\t{end}\t{assembly}\t0\t{sign}\t{start}\t{start}\t0\t{len(region.pieces)}\t{sizes}\t{starts}\n"


def _escaped(value: str) -> str:
    """`value` with control characters and '%' as %XX, so that it fits a cell."""
    return "".join(f"%{ord(letter):02X}" if letter < " " or letter in "%\x7f" else letter for letter in value)


def _manifest(genome: Assembly, settings: ExtractSettings, written: _Written) -> dict[str, Any]:
    letters, kept = written.letters, sum(written.lengths)
    dropped_bases = {reason: bases for reason, (_, bases) in written.dropped.items()}
    counts = {
        "records": len(written.contigs),
        "empty_records": 0,
        "documents": len(written.lengths),
        "dropped_documents": {reason: documents for reason, (documents, _) in written.dropped.items()},
        "total_bases": kept + sum(dropped_bases.values()),
        "kept_bases": kept,
        "dropped_bases": dropped_bases,
        **letter_counts(letters),
        "u_converted": 0,
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "content": "bases",
        "cleaning": genome.shard.manifest["cleaning"],
        "counts": counts,
        "longest_document": max(written.lengths),
        "shortest_document": min(written.lengths),
        "files": written.files,
        "sources": [genome.source] if genome.source else [],
    }


def _documents(written: _Written) -> dict[str, Any]:
    return {"documents": {column: dict(sorted(counts.items())) for column, counts in written.labels.items()}}


def format_extraction(manifest: dict[str, Any]) -> str:
    """The text that `dnapretrain extract` prints."""
    found, counts = manifest["extraction"], manifest["counts"]
    codons, annotation = found["codons"], found["annotation"]
    share = "none to judge" if codons["share"] is None else f"{codons['valid']:,} of {codons['complete']:,} ({100 * codons['share']:.2f} %)"
    renamed = [f"{name} {f'= {places}' if places else 'left out'}" for name, places in found["contigs"].items() if places != [name]]
    lines = [
        f"annotation   {annotation['path']} ({annotation['format']}), genes {found['genes']['genes']:,}, "
        f"transcripts {found['genes']['transcripts']:,}, coding sequences {found['genes']['coding_sequences']:,}",
        f"documents    {counts['documents']:,} with {counts['kept_bases']:,} bases",
        *(f"  {key:10s} {', '.join(f'{name} {number:,}' for name, number in kinds.items())}" for key, kinds in found["documents"].items()),
        f"left out     {', '.join(f'{key} {number:,}' for key, number in (found['left_out'] | counts['dropped_documents']).items())}",
        f"repeats      {found['repeats']:,} documents of the same gene have the bases of another one (see --isoforms)",
        f"clipped      {found['clipped']['bases']:,} bases of flanks beyond contigs, of {found['clipped']['documents']:,} documents",
        f"filled       {found['filled_with_n']:,} bases that the shard left out are N",
        f"codons       complete coding sequences with start and stop codon: {share}",
    ]
    lines += [
        f"  {item['name']} {item['locus']}: {item['first']} ... {item['last']} {item['note']}".rstrip() for item in codons["exceptions"]
    ]
    if renamed:
        lines.insert(1, f"contigs      {'; '.join(renamed)}")
    return "\n".join(lines)

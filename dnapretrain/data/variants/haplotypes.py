"""Phased variants on a reference shard -> a shard of haplotypes, each base traceable to the reference.

The VCF is read once, in bounded memory (data/variants/variant_store.py); then each haplotype of each sample is written, document by
document. A document keeps contig, start, end and assembly of its reference document, so that splits put it on the same side;
column 13 of the BED names sample and haplotype, and the edit list (data/shards/edits.py) says which bases differ.
"""

from __future__ import annotations

import shutil
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__, _core
from dnapretrain.data.shards.edits import HEADER, ROW_BYTES, edits_tail
from dnapretrain.data.shards.indexed_dataset import MAX_LENGTH, index_bytes
from dnapretrain.data.shards.manifest import write_manifest
from dnapretrain.data.shards.progress import Meter, TerminalProgress
from dnapretrain.data.shards.shard import FORMAT, FORMAT_VERSION, HAPLOTYPES, open_shard
from dnapretrain.data.shards.writer import FileWriter, commit, staging_folder
from dnapretrain.data.variants.apply_edits import NO_EDITS, edit_rows, haplotype_blocks
from dnapretrain.data.variants.reference import Reference, read_contig_names
from dnapretrain.data.variants.variant_store import VariantStore, without_overlaps
from dnapretrain.data.variants.vcf import CallReader, Calls, VcfFile, VcfRecord, is_sequence
from dnapretrain.errors import ConfigError, DataError

BYTES_PER_DOCUMENT = 200
"""Of `.idx` and `.bed`, at most, as the room on the disk is checked."""
ON_UNPHASED = ("error", "skip")


def make_haplotypes(
    shard: str | Path,
    vcfs: Sequence[str | Path],
    output: str | Path,
    samples: str = "all",
    contig_names: str | Path | None = None,
    on_unphased: str = "error",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the shard `output` with both haplotypes of each sample on the contigs of the VCF files; return its manifest.

    `shard` is the reference, whole contigs as `preprocess` writes them. `samples` is 'all', names with commas between, or @file with one on
    each line. `contig_names` is a table 'name in the VCF<tab>name in the shard'. `on_unphased` 'skip' keeps REF at calls whose phase is
    not known, and counts them. `say` gets the size before it is written. Raises ConfigError for settings; DataError for
    files that cannot be used, naming the line, and where the disk has not the room.
    """
    output = Path(output)
    if on_unphased not in ON_UNPHASED:
        raise ConfigError(f"--on-unphased = '{on_unphased}' is not known. Choose one of {', '.join(ON_UNPHASED)}")
    reference = Reference(open_shard(shard), read_contig_names(Path(contig_names)) if contig_names else {})
    files = [VcfFile(Path(path)).open() for path in vcfs]
    if not files:
        raise ConfigError("no VCF is given. Name one or more with --vcf")
    names = _chosen_samples(samples, files[0])
    for file in files[1:] if samples == "all" else []:
        if set(file.samples) != set(names):
            raise DataError(f"{file.path}: its samples are not those of {files[0].path}. Name those of both with --samples")
    progress = TerminalProgress() if sys.stderr.isatty() else None
    try:
        with staging_folder(output, overwrite) as staging:
            build = _Build(reference, names, staging, on_unphased == "skip")
            try:
                meter = Meter(sum(file.path.stat().st_size for file in files), progress)
                for file in files:
                    build.read(file, meter)
                build.store.finish()
            finally:
                build.store.close()
            size = build.check_room()
            say(f"{len(names)} samples x 2 haplotypes x {build.reference_bases:,} bases: about {size:,} bytes to write")
            manifest = build.write(Meter(size, progress), files)
            write_manifest(staging, manifest)
            commit(staging, output)
    finally:
        if progress:
            progress.end()
    return manifest


def format_haplotypes(manifest: dict[str, Any]) -> str:
    """What became of records and alleles, as `dnapretrain haplotypes` prints it."""
    made, counts = manifest["haplotypes"], manifest["counts"]
    records = ", ".join(f"{key.replace('_', ' ')} {count:,}" for key, count in made["records"].items())
    alleles = ", ".join(f"{key.replace('_', ' ')} {count:,}" for key, count in made["alleles"].items())
    documents = made["reference_documents"]
    return "\n".join(
        [
            f"documents    {counts['documents']:,}, {counts['kept_bases']:,} bases; second haplotypes left out (haploid calls) "
            f"{made['second_haplotypes_left_out']:,}",
            f"reference    {documents['used']:,} documents; {documents['without_records']:,} on contigs without records left out",
            f"records      {records}",
            f"alleles      {alleles}",
        ]
    )


class _Build:
    """One run: read the files into the store, then write the shard."""

    def __init__(self, reference: Reference, samples: list[str], staging: Path, skip_unphased: bool) -> None:
        self.reference, self.samples, self._staging = reference, samples, staging
        self.store = VariantStore(staging, 2 * len(samples))
        self.documents: list[int] = []
        """Of the reference, on the contigs of the VCF files."""
        self.reference_bases = 0
        self.records: Counter[str] = Counter({"total": 0, "used": 0, "outside_documents": 0, "no_alternative": 0})
        self.alleles: Counter[str] = Counter(
            dict.fromkeys(
                ("total", "reference", "missing", "unphased", "absent", "symbolic", "deleted_by_another_record", "overlapping", "applied"),
                0,
            )
        )
        self._skip_unphased = skip_unphased
        self._haploid: dict[int, NDArray[np.bool_]] = {}  # by document: samples without a second haplotype there
        self._contigs: set[str] = set()

    def read(self, file: VcfFile, meter: Meter) -> None:
        """Read one file into the store."""
        reader = CallReader(file, self.samples, self._skip_unphased)
        where, contig, documents, starts, seen = self.reference.shard.coordinates, "", [], [], 0
        for record in file.records():
            if record.contig != contig:
                contig = record.contig
                documents = self._begin_contig(file, contig)
                starts = [int(where.start[document]) for document in documents]
            self.records["total"] += 1
            number = bisect_right(starts, record.start) - 1
            if number < 0 or record.end > where.end[documents[number]]:
                self.records["outside_documents"] += 1
            else:
                self._add(file, record, documents[number], reader)
            if file.bytes_read != seen:
                meter.add(file.bytes_read - seen, 0)
                seen = file.bytes_read

    def _begin_contig(self, file: VcfFile, contig: str) -> list[int]:
        name = self.reference.names.get(contig, contig)
        if name in self._contigs:
            file.fail(f"contig '{contig}' was in another file, or has another name there, already. Join its records into one file")
        documents = self.reference.documents_of(file, contig)
        self._contigs.add(name)
        self.documents += documents
        self.reference_bases += sum(int(self.reference.shard.lengths[document]) for document in documents)
        self.check_room()
        return documents

    def check_room(self) -> int:
        """Bytes of the shard, an estimate (insertions and deletions move it a little). Raises DataError where they do not fit."""
        haplotypes = 2 * len(self.samples)
        size = haplotypes * (self.reference_bases + BYTES_PER_DOCUMENT * len(self.documents)) + ROW_BYTES * self.store.num_carried
        free = shutil.disk_usage(self._staging).free
        if size > free:
            raise DataError(
                f"{self._staging.parent}: {haplotypes} haplotypes of {self.reference_bases:,} bases need {size:,} bytes, but {free:,} are "
                "free. Choose fewer --samples, fewer contigs or another disk"
            )
        return size

    def _add(self, file: VcfFile, record: VcfRecord, document: int, reader: CallReader) -> None:
        start = record.start - int(self.reference.shard.coordinates.start[document])
        found = self.reference.bases(document, start, start + len(record.ref)).tobytes().upper()
        if found != record.ref:
            where = f"{record.contig}:{record.start + 1}"
            if record.end > record.start + 1:
                where += f"-{record.end}"
            assembly = self.reference.shard.coordinates.assembly[document]
            file.fail(
                f"REF is '{_short(record.ref)}' at {where}, but {assembly} of {self.reference.shard.prefix} has '{_short(found)}' there. "
                "The VCF was made on another assembly, or positions are shifted: give the reference that its header names, or mend the VCF "
                "with bcftools norm -c"
            )
        calls = reader.read(record)
        self.records["used" if record.alts else "no_alternative"] += 1
        self._count(calls)
        self._note_haploid(document, calls)
        for alt in np.unique(calls.alleles).tolist():
            haplotypes = calls.haplotypes[calls.alleles == alt]
            bases = record.alts[alt - 1]
            if is_sequence(bases):
                self.store.add(document, start, record, alt, haplotypes)
            else:
                self.alleles["deleted_by_another_record" if bases == b"*" else "symbolic"] += len(haplotypes)

    def _count(self, calls: Calls) -> None:
        total = 2 * len(self.samples)
        self.alleles["total"] += total
        self.alleles["reference"] += total - len(calls.haplotypes) - calls.missing - calls.absent - calls.unphased
        for key in ("missing", "absent", "unphased"):
            self.alleles[key] += getattr(calls, key)

    def _note_haploid(self, document: int, calls: Calls) -> None:
        """A sample has no second haplotype of a document if all its calls there are haploid."""
        haploid = self._haploid.get(document)
        if haploid is None:
            self._haploid[document] = np.zeros(len(self.samples), np.bool_) if calls.haploid is None else calls.haploid
        elif haploid.any():
            self._haploid[document] = haploid & calls.haploid if calls.haploid is not None else np.zeros_like(haploid)

    def write(self, meter: Meter, files: Sequence[VcfFile]) -> dict[str, Any]:
        """Write `.bin`, `.idx`, `.bed` and the edit list to the staging folder; return the manifest."""
        if not self.records["used"] + self.records["no_alternative"]:
            raise DataError(
                f"{files[0].path}: none of {self.records['total']} records lies in a document of {self.reference.shard.prefix}. "
                "Give the reference of this VCF, or positions that fit it"
            )
        shard, where = self.reference.shard, self.reference.shard.coordinates
        lengths, edit_counts, composition = array("q"), array("q"), np.zeros(256, np.int64)
        haploid_documents = 0
        self.documents.sort()
        with (
            FileWriter(self._staging / "bin") as bin_writer,
            FileWriter(self._staging / "bed") as bed_writer,
            FileWriter(self._staging / "edits") as edits_writer,
        ):
            edits_writer.write(HEADER)
            for haplotype in range(2 * len(self.samples)):
                sample, second = divmod(haplotype, 2)
                carried = self._applied(haplotype)
                for document in self.documents:
                    if second and document in self._haploid and self._haploid[document][sample]:
                        haploid_documents += 1
                        continue
                    edits, before = carried.get(document, NO_EDITS), bin_writer.size
                    for block in haplotype_blocks(self.reference.bases(document), edits, self.store.bases):
                        bin_writer.write(block.data)
                        composition += _core.count_bytes(block)
                        meter.add(len(block), len(block))
                    edits_writer.write(edit_rows(edits).tobytes())
                    lengths.append(self._checked_length(bin_writer.size - before, document))
                    edit_counts.append(len(edits))
                    start, end = int(where.start[document]), int(where.end[document])
                    place = f"{where.contig[document]}\t{start}\t{end}\t{where.assembly[document]}\t0\t+\t{start}\t{start}\t0"
                    bed_writer.write(f"{place}\t1\t{end - start}\t0\t{self.samples[sample]}.{second + 1}\n".encode())
            edits_writer.write(edits_tail(edit_counts))
        with FileWriter(self._staging / "idx") as idx_writer:
            idx_writer.write(index_bytes(np.array(lengths, np.int64)))
        writers = {"bin": bin_writer, "idx": idx_writer, "bed": bed_writer, "edits": edits_writer}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tool_version": __version__,
            "content": HAPLOTYPES,
            "cleaning": shard.manifest["cleaning"],
            "counts": _counts(lengths, composition),
            "longest_document": max(lengths),
            "shortest_document": min(lengths),
            "files": {kind: writer.entry() for kind, writer in writers.items()},
            "sources": shard.manifest["sources"],
            "haplotypes": {
                "reference_digest": shard.digest,
                "vcf": [{"path": str(file.path), "size": file.bytes_read, "xxh3_128": file.xxh3_128} for file in files],
                "samples": self.samples,
                "contig_names": self.reference.names,
                "on_unphased": "skip" if self._skip_unphased else "error",
                "records": dict(self.records),
                "alleles": dict(self.alleles),
                "reference_documents": {"used": len(self.documents), "without_records": len(shard.lengths) - len(self.documents)},
                "second_haplotypes_left_out": haploid_documents,
            },
        }

    def _applied(self, haplotype: int) -> dict[int, NDArray[np.void]]:
        """Alleles that are applied to a haplotype, by document."""
        rows = self.store.carried_by(haplotype)
        kept = without_overlaps(rows)
        self.alleles["overlapping"] += int((~kept).sum())
        self.alleles["applied"] += int(kept.sum())
        rows = rows[kept]
        if not len(rows):
            return {}
        bounds = np.flatnonzero(np.concatenate([[True], rows["document"][1:] != rows["document"][:-1], [True]])).tolist()
        return {int(rows["document"][low]): rows[low:high] for low, high in pairwise(bounds)}

    def _checked_length(self, length: int, document: int) -> int:
        if length > MAX_LENGTH:
            locus = self.reference.shard.coordinates.locus(document)
            raise DataError(f"{locus}: a haplotype of {length} bases; an index holds {MAX_LENGTH}. Cut the contig into shorter documents")
        return length


def _counts(lengths: array[int], composition: NDArray[np.int64]) -> dict[str, Any]:
    """What `preprocess` counts; nothing is dropped here."""
    bases = sum(lengths)
    per_letter = composition[65:91] + composition[97:123]
    plain = sum(int(per_letter[ord(base) - 65]) for base in "ACGTN")
    return {
        "records": len(lengths),
        "empty_records": 0,
        "documents": len(lengths),
        "dropped_documents": {"short": 0},
        "total_bases": bases,
        "kept_bases": bases,
        "dropped_bases": {"n_run": 0, "short": 0},
        "lower_case": int(composition[97:123].sum()),
        "n": int(per_letter[ord("N") - 65]),
        "ambiguous": bases - plain,
        "u_converted": 0,
    }


def _chosen_samples(samples: str, file: VcfFile) -> list[str]:
    if samples == "all":
        return file.samples
    if samples.startswith("@"):
        try:
            names = [line.strip() for line in Path(samples[1:]).read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--samples {samples}: the list cannot be read: {error}. Give @FILE with one name on each line") from None
    else:
        names = [name for name in samples.split(",") if name]
    if not names:
        raise ConfigError(f"--samples '{samples}' names no sample. Give names with commas between, @FILE, or all")
    if len(set(names)) < len(names):
        raise ConfigError(f"--samples names '{next(name for name in names if names.count(name) > 1)}' twice. Name it once")
    return names


def _short(bases: bytes) -> str:
    return bases.decode("ascii") if len(bases) <= 30 else f"{bases[:30].decode('ascii')}... ({len(bases)} bases)"

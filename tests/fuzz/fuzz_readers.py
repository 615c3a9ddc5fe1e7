"""Fuzzes the readers of every file format: a damaged file is read, with every count adding up, or refused with one of our errors.

Anything else is a fault: another exception, counts that do not add up, a result that depends on block sizes, or a valid file that is
refused or read wrongly. Seeded: the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import mutate

from dnapretrain import _core
from dnapretrain.data.formats import inputs
from dnapretrain.data.formats.fasta import CutPolicy, FastaFile
from dnapretrain.data.genes.annotation import LANDMARKS, AnnotationFile
from dnapretrain.data.genes.gene_models import read_genes
from dnapretrain.data.shards.selection import read_bed
from dnapretrain.data.tokens.bpe import load_bpe
from dnapretrain.data.tokens.files import load_hf_tokenizer
from dnapretrain.data.variants.vcf import CallReader, VcfFile
from dnapretrain.errors import DnaPretrainError

KEEP_ALL = CutPolicy(min_n_run=10**9)
Outcome = tuple[list[tuple[str, str]], list[list[int]], bytes, list[list[int]]]


class FaultError(Exception):
    """A property that does not hold."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise FaultError(what)


def read_sequence(path: Path, policy: CutPolicy, block_bytes: int) -> Outcome | str:
    """Headers, counts, bases and documents, or the error, where the text comes in blocks of this size."""
    usual = inputs._sniff
    inputs._sniff = lambda blocks: usual(block[at : at + block_bytes] for block in blocks for at in range(0, len(block), block_bytes))
    try:
        blocks = list(FastaFile(path, policy).blocks())
    except DnaPretrainError as error:
        return str(error)
    finally:
        inputs._sniff = usual
    headers = [header for block in blocks for header in block.headers]
    documents = [document for block in blocks for document in block.documents.tolist()]
    counts = [count for block in blocks for count in block.counts.tolist()]
    return headers, counts, b"".join(block.bases.tobytes() for block in blocks), documents


def check_sequence(rng: random.Random, path: Path, name: str, packed: bool, truth: mutate.Records | None) -> bool:
    """Whether the file was read."""
    policy = KEEP_ALL if truth else CutPolicy(rng.randint(1, 12), rng.randint(1, 40))
    found = read_sequence(path, policy, 1 << 16)
    other = read_sequence(path, policy, rng.choice((1, 7, 64, 300)))
    if isinstance(found, str) or isinstance(other, str):
        require(truth is None, f"a valid file is refused: {found if isinstance(found, str) else other}")
        require(
            isinstance(found, str) and isinstance(other, str), f"read or not by the block size: {str(found)[:300]} != {str(other)[:300]}"
        )
        require(name != "fasta" or packed or found == other, f"errors differ by the block size: {found} != {other}")
        return False
    require(found == other, f"what is read depends on the block size: {found} != {other}")
    headers, counts, bases, documents = found
    require(len(headers) == len(counts) > 0, "headers and counts are not equally many")
    kept = [0] * len(counts)
    for record, start, end in documents:
        require(0 <= start < end, f"document {start} to {end}")
        kept[record] += end - start
    for record, row in enumerate(counts):
        count = dict(zip(_core.RECORD_COUNTS, row, strict=True))
        require(count["kept"] + count["n_run"] + count["short_bases"] == count["total"], f"kept + dropped != in: {count}")
        require(count["kept"] == kept[record], f"documents hold {kept[record]} bases: {count}")
    require(sum(kept) == len(bases), "bases and documents differ")
    require(not bases.translate(None, b"ABCDGHKMNRSTVWYabcdghkmnrstvwy"), "a byte that is no base came out")
    if truth:
        wanted = "".join(text for _, text in truth).replace("U", "T").replace("u", "t")
        require([header[0] for header in headers] == [title for title, _ in truth], f"names {headers}")
        require(bases.decode() == wanted, "a valid file is read wrongly")
    return True


def check_annotation(rng: random.Random, path: Path, data: bytes) -> bool:
    """Every row is a gene's, counted by type, or about a contig."""
    file = AnnotationFile(path)
    rows = list(file.rows())
    lines = []
    for line in data.decode("utf-8", "replace").split("\n"):
        if line.startswith(">") or line.rstrip() == "##FASTA":
            break
        if line.strip() and not line.startswith(("#", "track ", "browser ")):
            lines.append(line.split("\t"))
    other = sum(count for kind, count in file.other_types.items() if kind not in LANDMARKS)
    require(len(rows) + other == sum(fields[2] not in LANDMARKS for fields in lines), "rows read and passed over do not add up")
    for row in rows:
        require(0 <= row.start < row.end < 2**63, f"row {row}")
    models = read_genes(path)
    for gene in models.genes:
        for start, end in (piece for transcript in gene.transcripts for piece in transcript.exons):
            np.array([start, end], np.int64)
    return True


def check_bed(rng: random.Random, path: Path, data: bytes) -> bool:
    """Intervals are those of the lines, merged."""
    bed = read_bed(path)
    covered: dict[str, list[tuple[int, int]]] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split()
        if fields and not line.startswith(("#", "track", "browser")):
            covered.setdefault(fields[0], []).append((int(fields[1]), int(fields[2])))
    require(covered.keys() == bed.intervals.keys(), "contigs differ")
    for contig, pairs in covered.items():
        merged: list[list[int]] = []
        for start, end in sorted(pairs):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        require(merged == bed.intervals[contig].tolist(), f"intervals {merged} != {bed.intervals[contig].tolist()}")
    return True


def check_vcf(rng: random.Random, path: Path, data: bytes) -> bool:
    """Calls are those of a reading field by field, on the fast path as on the slow one."""
    vcf = VcfFile(path).open()
    chosen = rng.sample(vcf.samples, rng.randint(1, len(vcf.samples)))
    reader = CallReader(vcf, chosen, skip_unphased=rng.random() < 0.7)
    for record in vcf.records():
        calls, slow = reader.read(record), reader._read_slowly(record)
        require(
            calls.haplotypes.tolist() == slow.haplotypes.tolist() and calls.alleles.tolist() == slow.alleles.tolist(), "fast is not slow"
        )
        fields = dict(zip(vcf.samples, record.calls.split(b"\t"), strict=True))
        carried, missing, absent, unphased = {}, 0, 0, 0
        for number, sample in enumerate(chosen):
            text = fields[sample].split(b":")[0]
            alleles = re.split(rb"[|/]", text)
            absent += len(alleles) == 1
            if b"/" in text and len(set(alleles)) > 1 and {*map(int_or_missing, alleles)} != {int_or_missing(alleles[0])}:
                unphased += 2
                continue
            for side, allele in enumerate(alleles):
                missing += allele == b"."
                if int_or_missing(allele) > 0:
                    carried[2 * number + side] = int(allele)
        require(dict(zip(calls.haplotypes.tolist(), calls.alleles.tolist(), strict=True)) == carried, f"carriers {carried} != {calls}")
        require((calls.missing, calls.absent, calls.unphased) == (missing, absent, unphased), f"{missing} {absent} {unphased} != {calls}")
        require(all(allele <= len(record.alts) for allele in carried.values()), "an allele that ALT does not list")
    return True


def int_or_missing(allele: bytes) -> int:
    return -1 if allele == b"." else int(allele)


def check_tokenizer(rng: random.Random, path: Path, data: bytes) -> bool:
    """What is loaded encodes every base, as merging by rank does."""
    vocabulary = load_bpe(path)
    encoder = vocabulary.encoder()
    bases = "".join(rng.choices("ACGTACGTACGTN", k=60))
    ids, lengths = encoder.encode(np.frombuffer(bases.encode(), np.uint8))
    require(lengths.sum() == len(bases), "bases are lost")
    expected = []
    for word in re.findall("[ACGT]+|N", bases):
        parts = list(word)
        for left, right in vocabulary.merges:
            at = 0
            while at + 1 < len(parts):
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
        expected += [vocabulary.ids.get(part, vocabulary.ids["[UNK]"]) for part in parts]
    require(ids.tolist() == expected, f"{ids.tolist()} != {expected} for {bases} and {vocabulary.merges}")
    load_hf_tokenizer(path.parent)
    return True


TABLES: dict[str, Callable[[random.Random, Path, bytes], bool]] = {
    "gff3": check_annotation,
    "gtf": check_annotation,
    "bed": check_bed,
    "vcf": check_vcf,
    "tokenizer": check_tokenizer,
}
FILES = {"tokenizer": "tokenizer.json"}
PACKED_TABLES = {"gff3": ("gzip", "two members", "bgzf"), "gtf": ("gzip", "bgzf"), "vcf": tuple(mutate.PACKINGS)}
KINDS = [("sequence", name) for name in mutate.SEQUENCE_FORMATS] + [("table", name) for name in TABLES]


def one(rng: random.Random, kind: str, name: str, folder: Path) -> tuple[bool, bytes]:
    """Make, damage, pack, damage and read one file: whether it was read, and the file. Raises for a fault."""
    truth = None
    path = folder / FILES.get(name, "input")
    words = mutate.WORDS[name]
    if kind == "sequence":
        letters, write = mutate.SEQUENCE_FORMATS[name]
        truth = mutate.records(rng, letters)
        data = write(truth)
        packings = () if name == "2bit" else tuple(mutate.PACKINGS)
    else:
        data, packings = mutate.TABLE_FORMATS[name](rng), PACKED_TABLES.get(name, ())
    valid = rng.random() < 0.1
    if not valid:
        data = mutate.damage(rng, data, words)
    text, packed = data, bool(packings) and rng.random() < 0.3
    if packed:
        data = mutate.PACKINGS[rng.choice(packings)](data)
        if not valid and rng.random() < 0.5:
            data = mutate.damage(rng, data, words)
            text = b""
    path.write_bytes(data)
    try:
        if kind == "sequence":
            return check_sequence(rng, path, name, packed, truth if valid else None), data
        if packed and not text:  # what is inside is not known
            return TABLES[name](rng, path, b"") if name in ("vcf",) else not list(AnnotationFile(path).rows()), data
        return TABLES[name](rng, path, text), data
    except DnaPretrainError as error:
        require(not valid or name in ("vcf", "tokenizer"), f"a valid file is refused: {error}")  # those two are made at random
        return False, data
    except Exception as error:
        error.add_note(f"{kind} {name}: {data[:2000]!r}")
        raise


def fuzz(runs: int, seed: int, folder: Path | None = None, most_faults: int = 20) -> tuple[dict[str, Counter[str]], list[str]]:
    """Executions by format and outcome, and the faults found; the files of the faults are left in `folder`."""
    outcomes: dict[str, Counter[str]] = {f"{kind} {name}": Counter() for kind, name in KINDS}
    faults: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(runs):
            kind, name = KINDS[number % len(KINDS)]
            rng = random.Random(f"{seed} {number}")
            try:
                was_read, _ = one(rng, kind, name, Path(scratch))
                outcomes[f"{kind} {name}"]["read" if was_read else "refused"] += 1
            except Exception as error:
                outcomes[f"{kind} {name}"]["FAULTS"] += 1
                place = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "require"][-1]
                where = f"{kind} {name}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
                if where in faults or len(faults) == most_faults:
                    continue
                faults[where] = f"{where} (seed {seed}, number {number}): {str(error)[:600]}"
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    data = (Path(scratch) / FILES.get(name, "input")).read_bytes()
                    (folder / f"fault-{name}-{seed}-{number}").write_bytes(data)
    return outcomes, list(faults.values())


def main() -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of sequence, annotation, variant, BED and tokenizer files")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where files that show a fault are left")
    given = parser.parse_args()
    start = time.perf_counter()
    outcomes, faults = fuzz(given.runs, given.seed, given.folder)
    for name, counts in outcomes.items():
        print(f"{name:<18} {counts.total():>8,} executions: " + ", ".join(f"{counts[what]:,} {what}" for what in sorted(counts)))
    print(f"readers: {given.runs:,} executions in {time.perf_counter() - start:.0f} s, {len(faults)} faults")
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

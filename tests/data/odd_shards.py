"""Shards of spliced documents and of haplotypes, written by hand: the place of each base is known from the making."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import slow
import xxhash


@dataclass
class Document:
    """A document, base by base."""

    assembly: str
    contig: str
    bases: str
    places: list[int]
    """Where each base lies on the contig; the base before it, of inserted ones."""
    strand: str = "+"
    blocks: list[tuple[int, int]] = field(default_factory=list)
    """On the contig, in the order of the plus strand."""
    haplotype: str = ""
    edits: list[tuple[int, int, int, int]] = field(default_factory=list)


def spliced(rng: random.Random, contigs: dict[tuple[str, str], str], count: int, circular: bool = True) -> list[Document]:
    """Genes: one block or several, in order, across the origin of a circular contig, trans-spliced, or with a base read twice."""
    documents = []
    for _ in range(count):
        (assembly, contig), text = rng.choice(list(contigs.items()))
        edges = sorted(rng.sample(range(len(text) + 1), 2 * rng.randint(1, 4)))
        blocks = list(zip(edges[::2], edges[1::2], strict=True))
        kind = rng.choice(["plain", "plain", "origin", "trans", "slippage"])
        if kind == "origin" and circular:
            blocks = [(max(blocks[-1]), len(text)), (0, min(blocks[0][1], 30))] if max(blocks[-1]) < len(text) else blocks
        elif kind == "trans":
            rng.shuffle(blocks)
        elif kind == "slippage" and blocks[-1][1] - blocks[-1][0] > 2:
            start, end = blocks[-1]
            blocks[-1:] = [(start, start + 2), (start + 1, end)]
        places = [place for start, end in blocks for place in range(start, end)]
        bases, strand = "".join(text[place] for place in places), rng.choice("+-")
        if strand == "-":
            bases, places = slow.reverse_complement(bases), places[::-1]
        documents.append(Document(assembly, contig, bases, places, strand, blocks))
    return documents


def haplotypes(rng: random.Random, contigs: dict[tuple[str, str], str], samples: int) -> list[Document]:
    """Each contig in one or two documents, for each haplotype: changed bases, insertions, deletions, replacements of another length."""
    documents = []
    for name in [f"s{number}.{side}" for number in range(samples) for side in (1, 2)]:
        for (assembly, contig), text in contigs.items():
            for start, end in ((0, len(text) // 2), (len(text) // 2 + 3, len(text))):
                documents.append(haplotype(rng, assembly, contig, text, start, end, name))
    return documents


def haplotype(rng: random.Random, assembly: str, contig: str, text: str, start: int, end: int, name: str) -> Document:
    bases, places, edits = [], [], []
    at = start
    while at <= end:
        if rng.random() < 0.12:
            old, new = rng.choice([(0, rng.randint(1, 6)), (rng.randint(1, 9), 0), (1, 1), (rng.randint(1, 4), rng.randint(1, 4))])
            if at + old <= end and not (old == 0 and edits and edits[-1][0] + edits[-1][1] == at - start and rng.random() < 0.5):
                edits.append((at - start, old, len(bases), new))
                for number in range(new):
                    places.append(at + number if number < old else max(at + old - 1, start))
                    bases.append(rng.choice("ACGT"))
                at += old
                continue
        if at < end:
            bases.append(text[at])
            places.append(at)
        at += 1
    return Document(assembly, contig, "".join(bases), places, "+", [(start, end)], name, edits)


def write(prefix: Path, documents: list[Document]) -> Path:
    """As FORMAT.md says."""
    bases = "".join(document.bases for document in documents).encode()
    lengths = [len(document.bases) for document in documents]
    pointers = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    index = (
        b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\1" + len(lengths).to_bytes(8, "little") + (len(lengths) + 1).to_bytes(8, "little")
    )
    index += np.array(lengths, "<i4").tobytes() + np.array(pointers, "<i8").tobytes() + np.arange(len(lengths) + 1).astype("<i8").tobytes()
    files = {"bin": bases, "idx": index, "bed": "".join(_bed_line(document) for document in documents).encode()}
    if documents[0].haplotype:
        rows = np.array([row for document in documents for row in document.edits], "<i4").reshape(-1, 4)
        first = np.cumsum([0, *(len(document.edits) for document in documents)])
        files["edits"] = b"DNAEDITS" + (1).to_bytes(8, "little") + rows.tobytes() + first.astype("<i8").tobytes()
    for kind, data in files.items():
        prefix.with_name(f"{prefix.name}.{kind}").write_bytes(data)
    sizes = {kind: {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for kind, data in files.items()}
    manifest = {"format": "dnapretrain-shard", "format_version": 1, "content": "bases", "files": sizes}
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(manifest))
    return prefix


def _bed_line(document: Document) -> str:
    start, end = min(start for start, _ in document.blocks), max(end for _, end in document.blocks)
    sizes = ",".join(str(to - from_) for from_, to in document.blocks)
    starts = ",".join(str(from_ - start) for from_, _ in document.blocks)
    count = len(document.blocks)
    row = [document.contig, start, end, document.assembly, 0, document.strand, start, start, 0, count, sizes, starts]
    return "\t".join(map(str, [*row, document.haplotype] if document.haplotype else row)) + "\n"

"""Writers of the sequence formats, for tests: from [(name, bases)] to the bytes of a file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import sys

import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Records = list[tuple[str, str]]

PACKINGS = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": lambda data: zstd.compress(data),
    "xz": lambda data: lzma.compress(data),
    "bzip2": lambda data: bz2.compress(data),
}
SUFFIXES = {"plain": "", "gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2"}


def fasta(records: Records, width: int = 60, newline: str = "\n") -> bytes:
    return "".join(f">{name} text{newline}" + "".join(row + newline for row in rows(bases, width)) for name, bases in records).encode()


def fastq(records: Records, width: int = 10**9, newline: str = "\n", repeat_title: bool = False) -> bytes:
    lines = []
    for number, (name, bases) in enumerate(records):
        qualities = "".join("@+>I5"[(number + place) % 5] for place in range(len(bases)))
        lines += [f"@{name} text", *rows(bases, width), f"+{name} text" if repeat_title else "+", *rows(qualities, width)]
    return "".join(line + newline for line in lines).encode()


def genbank(records: Records, newline: str = "\n") -> bytes:
    lines = []
    for name, bases in records:
        lines += [f"LOCUS       {name.split('.')[0]}    {len(bases)} bp    DNA     linear   UNK 01-JAN-2000"]
        lines += ["DEFINITION  text", f"VERSION     {name}", "FEATURES             Location/Qualifiers", "     source          1..2"]
        lines += ["ORIGIN      ", *(f"{at + 1:>9} {' '.join(rows(row, 10))}" for at, row in numbered(bases.lower())), "//"]
    return "".join(line + newline for line in lines).encode()


def embl(records: Records, newline: str = "\n") -> bytes:
    lines = []
    for name, bases in records:
        accession, _, version = name.partition(".")
        lines += [f"ID   {accession}; SV {version}; linear; genomic DNA; STD; PRO; {len(bases)} BP.", "XX", "DE   text", "FH   Key"]
        lines += [f"SQ   Sequence {len(bases)} BP;"]
        lines += [f"     {' '.join(rows(row, 10)):<66}{at + len(row):>9}" for at, row in numbered(bases.lower())]
        lines += ["//"]
    return "".join(line + newline for line in lines).encode()


def gff3(records: Records, newline: str = "\n") -> bytes:
    head = "".join(f"{name}\t.\tgene\t1\t2\t.\t+\t.\tID={name}{newline}" for name, _ in records)
    return f"##gff-version 3{newline}{head}##FASTA{newline}".encode() + fasta(records, newline=newline)


def two_bit(records: Records, order: str = "<", version: int = 0) -> bytes:
    """Bases may be A, C, G, T and N of either case."""
    width = {0: 4, 1: 8}[version]
    at = 16 + sum(1 + len(name) + width for name, _ in records)
    index, data = b"", b""
    for name, bases in records:
        index += bytes([len(name)]) + name.encode() + struct.pack(order + {4: "I", 8: "Q"}[width], at + len(data))
        codes = np.array(["TCAG".index(base) if base in "TCAG" else 0 for base in bases.upper()] + [0] * (-len(bases) % 4), int)
        packed = (codes.reshape(-1, 4) * [64, 16, 4, 1]).sum(axis=1).astype(np.uint8).tobytes()
        data += struct.pack(order + "I", len(bases)) + blocks("[Nn]+", bases, order) + blocks("[a-z]+", bases, order) + bytes(4) + packed
    return struct.pack(order + "IIII", 0x1A412743, version, len(records), 0) + index + data


def blocks(pattern: str, bases: str, order: str) -> bytes:
    found = [match.span() for match in re.finditer(pattern, bases)]
    numbers = [len(found), *(start for start, _ in found), *(end - start for start, end in found)]
    return struct.pack(f"{order}{len(numbers)}I", *numbers)


def rows(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)]


def numbered(text: str) -> list[tuple[int, str]]:
    return [(start, text[start : start + 60]) for start in range(0, len(text), 60)]

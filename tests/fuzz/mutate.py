"""Small valid files of every format, and what damages them: bytes, lines, fields, numbers, words of the format, packing."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import struct
import zlib
from collections.abc import Callable

import sequence_files

Records = list[tuple[str, str]]
EDGES = [
    b"",
    b"0",
    b"-1",
    b"1",
    b"2147483648",
    b"9223372036854775807",
    b"9223372036854775808",
    b"9" * 30,
    b"1" * 5000,
    b"1e3",
    b"1_0",
    b".",
    b"x",
]
EDGES += ["\u0663".encode(), b"\xff", b"+5", b" 7 ", b"NaN"]
BYTES = [
    b"\0",
    b"\t",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\x0b",
    b"\x0c",
    b"\x85",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"%",
    b'"',
    b";",
    b"=",
]
WORDS = {
    "fasta": [b">", b">x\n", b"\n>x y\n", b"N" * 12, b"U", b"RYKM", b"-", b"*", b";comment\n"],
    "fastq": [b"@", b"+", b"+\n", b"@x\nAC\n+\nII\n", b"II", b"\n@\n", b">", b"@x\n\n+\n\n"],
    "genbank": [
        b"LOCUS       ",
        b"//\n",
        b"ORIGIN\n",
        b"VERSION     x\n",
        b" 5 aa ",
        b"        1 acgt\n",
        b"CONTIG      join(x)\n",
        b"DEFINITION  y\n",
    ],
    "embl": [b"ID   ", b"//\n", b"SQ   \n", b"DE   x\n", b" 12 BP.", b" 12 AA.", b"     acgt        4\n", b"; SV 2;"],
    "gff3": [
        b"##FASTA\n",
        b">",
        b"##gff-version 3\n",
        b"##gff-version 2\n",
        b"##sequence-region c 1 100\n",
        b"Parent=m1",
        b"ID=g1;",
        b"%09",
        b"%",
    ],
    "gtf": [b'gene_id "g1";', b'transcript_id "t1";', b"stop_codon", b"exon", b"CDS", b'tag "x" ;', b"track x\n", b"#\n", b"gene"],
    "bed": [b"c\t0\t5\n", b"track x\n", b"#x\n", b"browser y\n", b"track", b"\t", b"d 5 9\n"],
    "vcf": [
        b"0|1",
        b"1/1",
        b".|.",
        b"0|1|1",
        b"<DEL>",
        b"*",
        b"GT:DP",
        b"##contig=<ID=c,length=5>\n",
        b"c\t9\t.\tA\tC\t.\t.\t.\tGT\t0|0\t1|1\n",
    ],
    "tokenizer": [
        b"null",
        b"[]",
        b"{}",
        b"[1, 2]",
        b'"A C"',
        b"true",
        b"-1",
        b"[" * 60,
        b'"BPE"',
        b'["A", "C"]',
        b'{"type": "Split"}',
        b"1e400",
    ],
}
WORDS["gff3"] += [b"gene", b"mRNA", b"CDS", b"exon", b"region", b"Is_circular=true", b"part=1", b"transl_table=99999", b"start_range=.,5"]
WORDS["2bit"] = [bytes(4), b"\xff" * 4, b"\x01\x00\x00\x00", b"\x00\x00\x00\x80", b"\x01x"]


def records(rng: random.Random, letters: str) -> Records:
    """One to three contigs, a run of N in some."""
    found = []
    for number in range(rng.randint(1, 3)):
        bases = "".join(rng.choices(letters, k=rng.randint(1, 150)))
        if rng.random() < 0.3:
            at = rng.randrange(len(bases) + 1)
            bases = bases[:at] + "N" * rng.randint(1, 30) + bases[at:]
        found.append((f"c{number}.1", bases))
    return found


def _gff3_genes(rng: random.Random) -> bytes:
    rows = ["##gff-version 3", "##sequence-region c 1 900", "c\t.\tregion\t1\t900\t.\t+\t.\tID=c;Is_circular=true"]
    for gene in range(rng.randint(1, 3)):
        start, strand = rng.randint(1, 300), rng.choice("+-.?")
        rows.append(f"c\t.\tgene\t{start}\t{start + 90}\t.\t{strand}\t.\tID=g{gene};gene_biotype=protein_coding")
        rows.append(f"c\t.\tmRNA\t{start}\t{start + 90}\t.\t{strand}\t.\tID=m{gene};Parent=g{gene}")
        for part in range(rng.randint(1, 3)):
            at = start + 30 * part
            rows.append(f"c\t.\texon\t{at}\t{at + 20}\t.\t{strand}\t.\tID=e{gene}-{part};Parent=m{gene}")
            rows.append(
                f"c\t.\tCDS\t{at}\t{at + 20}\t.\t{strand}\t{rng.randint(0, 2)}\tID=p{gene};Parent=m{gene};transl_table=11;part={part}"
            )
    return ("\n".join([*rows, "c\t.\tintron\t5\t9\t.\t+\t.\tID=i"]) + "\n").encode()


def _gtf_genes(rng: random.Random) -> bytes:
    rows = []
    for gene in range(rng.randint(1, 3)):
        start, strand = rng.randint(1, 300), rng.choice("+-")
        names = f'gene_id "g{gene}"; transcript_id "t{gene}";'
        rows.append(f'c\t.\tgene\t{start}\t{start + 90}\t.\t{strand}\t.\tgene_id "g{gene}"; gene_biotype "protein_coding";')
        for kind in ("transcript", "exon", "CDS", "start_codon", "stop_codon"):
            rows.append(f"c\t.\t{kind}\t{start}\t{start + rng.randint(2, 90)}\t.\t{strand}\t0\t{names} exon_number 1;")
    return ("\n".join(rows) + "\n").encode()


def _bed(rng: random.Random) -> bytes:
    starts = [rng.randint(0, 99) for _ in range(rng.randint(1, 8))]
    return "".join(f"{rng.choice('cd')}\t{start}\t{start + rng.randint(1, 20)}\tname\n" for start in starts).encode()


def _vcf(rng: random.Random) -> bytes:
    samples = [f"s{number}" for number in range(rng.randint(1, 4))]
    rows = ["##fileformat=VCFv4.2", "##contig=<ID=c,length=900>"]
    rows += ["\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])]
    at = 0
    for _ in range(rng.randint(0, 6)):
        at += rng.randint(0, 20)
        plain = rng.random() < 0.6
        calls = [rng.choice(["0|0", "0|1", "1|0", "1|1"] if plain else ["0|1:3", "1", ".", "1/1", ".|1", "2|1", "0/0:."]) for _ in samples]
        alt = "C" if plain else "C,<DEL>"
        rows.append("\t".join(["c", str(at), ".", "Ac", alt, ".", "PASS", ".", "GT" if plain else "GT:DP", *calls]))
    return ("\n".join(rows) + "\n").encode()


def _tokenizer(rng: random.Random) -> bytes:
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    texts, merges = list("ACGT"), []
    for _ in range(rng.randint(0, 12)):
        left, right = rng.choice(texts), rng.choice(texts)
        if left + right not in texts:
            texts.append(left + right)
            merges.append(f"{left} {right}" if rng.random() < 0.7 else [left, right])
    model = {"type": "BPE", "dropout": None, "unk_token": "[UNK]", "fuse_unk": False}
    model |= {"vocab": {text: number for number, text in enumerate(specials + texts)}, "merges": merges}
    return json.dumps(
        {"version": "1.0", "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "model": model}
    ).encode()


SEQUENCE_FORMATS: dict[str, tuple[str, Callable[[Records], bytes]]] = {
    "fasta": ("ACGTNacgtnRYU", sequence_files.fasta),
    "fastq": ("ACGTN", sequence_files.fastq),
    "2bit": ("ACGTacgt", sequence_files.two_bit),
    "genbank": ("ACGTN", sequence_files.genbank),
    "embl": ("ACGTN", sequence_files.embl),
    "gff3": ("ACGTacgtN", sequence_files.gff3),
}
TABLE_FORMATS: dict[str, Callable[[random.Random], bytes]] = {
    "gff3": _gff3_genes,
    "gtf": _gtf_genes,
    "bed": _bed,
    "vcf": _vcf,
    "tokenizer": _tokenizer,
}


def damage(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    """One to six changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(_CHANGES)(rng, data, words)
    return data


def _byte(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randint(0, 1) :]


def _word(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(rng.choice((words, words, BYTES, EDGES))) + data[at + rng.choice((0, 0, 1, 8)) :]


def _cut(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:end], data[start:], data[:start] + data[end:], data[:end] + data[start:]))


def _lines(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[other])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = lines[at].rstrip(b"\r\n") + rng.choice([b"\r\n", b"\r", b"", b"\n\n", b" \n"])
        case _:
            lines[at] = rng.choice(words) + b"\n"
    return b"".join(lines)


def _field(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    separator = b"\t" if b"\t" in lines[at] else b" "
    fields = lines[at].split(separator)
    number = rng.randrange(len(fields))
    match rng.randrange(4):
        case 0:
            del fields[number]
        case 1:
            fields.insert(number, rng.choice(fields))
        case _:
            fields[number] = rng.choice(rng.choice((EDGES, words)))
    lines[at] = separator.join(fields)
    return b"\n".join(lines)


def _integer(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    """Another value for 4 aligned bytes, for binary formats."""
    if len(data) < 8:
        return data
    at = 4 * rng.randrange(len(data) // 4)
    value = rng.choice([0, 1, 2, 255, len(data), 2**31, 2**32 - 1, rng.randrange(64)])
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def _line_ends(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n"]))


_CHANGES = (_byte, _byte, _word, _word, _cut, _lines, _lines, _field, _field, _integer, _line_ends)


def bgzf(data: bytes, size: int = 60) -> bytes:
    """Blocks of `size` bytes, then the end marker."""
    out = []
    for at in range(0, len(data), size):
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = packer.compress(data[at : at + size]) + packer.flush()
        head = struct.pack("<BBBBIBBHBBHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(packed) + 25)
        out.append(head + packed + struct.pack("<II", zlib.crc32(data[at : at + size]), len(data[at : at + size])))
    return b"".join(out) + bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "two members": lambda data: gzip.compress(data[:40], 1, mtime=0) + gzip.compress(data[40:], 1, mtime=0),
    "bgzf": bgzf,
    "zstd": sequence_files.PACKINGS["zstd"],
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
}

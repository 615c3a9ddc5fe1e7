"""Lines of a text that comes in blocks, for the formats that are rewritten as FASTA line by line."""

from __future__ import annotations

from collections.abc import Iterator

Text = bytes | memoryview
MAX_LINE = 1 << 28
"""Bytes. A longer line is no sequence record but a damaged file, or one contig on one line of FASTQ."""


def text_lines(blocks: Iterator[Text]) -> Iterator[list[bytes]]:
    """The lines of each block, without LF; an empty last line is left out. Raises ValueError for an endless line."""
    number, rest, size = 1, [b""], 0
    for block in blocks:
        data = bytes(block)
        if b"\n" not in data:
            rest.append(data)
            size += len(data)
            if size > MAX_LINE:
                raise ValueError(f"line {number}: a line of more than {MAX_LINE >> 20} MiB: the file is damaged, or no text")
            continue
        *whole, last = b"".join([*rest, data]).split(b"\n")
        rest, size = [last], len(last)
        number += len(whole)
        yield whole
    last = b"".join(rest)
    if last:
        yield [last]


def place(line: int, name: bytes = b"") -> str:
    """`line 7, record 'x'`, as the scanner of FASTA words it."""
    shown = name.decode("ascii", "backslashreplace")
    return f"line {line}, record '{shown}'" if name else f"line {line}"

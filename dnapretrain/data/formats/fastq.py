"""FASTQ as FASTA text: line i of one is line i of the other, so that the scanner's errors name the right line.

Records may span several lines. Qualities are counted against the sequence and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from dnapretrain.data.formats.lines import Text, place, text_lines

PLUS = {b"+", b"+\r"}
NO_SEQUENCE = {b"", b"+", b">", b"@", b"\r"}
"""How the second line of a plain record does not begin."""


def fastq_as_fasta(blocks: Iterator[Text]) -> Iterator[bytes]:
    """FASTA text of a FASTQ text. Raises ValueError (line, record) where sequence and qualities do not fit, or the end is missing."""
    reader = _Reader()
    for lines in text_lines(blocks):
        out: list[bytes] = []
        at, most = 0, len(lines)
        while at < len(lines):
            if most and reader.wants == reader.header:
                # Where lines are not plain, half as many are tried; after single records none of this block.
                count = min(most, len(lines) - at) // 4 * 4
                while count and not _are_plain(lines[at : at + count]):
                    most = count = count // 8 * 4
                if count:
                    most = 2 * count
                    out += _plain(lines[at : at + count])
                    at += count
                    reader.line += count
                    continue
            out.append(reader.wants(lines[at]))
            at += 1
            reader.line += 1
        yield b"\n".join([*out, b""])
    reader.end()


def _are_plain(lines: list[bytes]) -> bool:
    """Whether the lines are records of four lines in the usual form. Others take the slow road and come out the same."""
    titles, sequences, pluses, qualities = (lines[line::4] for line in range(4))
    if {title[:1] for title in titles} != {b"@"} or not PLUS.issuperset(pluses):
        return False
    if not NO_SEQUENCE.isdisjoint({sequence[:1] for sequence in sequences}):
        return False
    if list(map(len, sequences)) != list(map(len, qualities)):
        return False
    # Without blanks both lengths are counts: of bases and of qualities.
    text = b"\n".join([*sequences, *qualities])
    if not text.isascii() or b" " in text or b"\t" in text:
        return False
    if b"\r" not in text:
        return True
    ends = all(a[-1:] == b[-1:] == b"\r" for a, b in zip(sequences, qualities, strict=True))
    return ends and text.count(b"\r") == len(sequences) + len(qualities)  # none within a line


def _plain(lines: list[bytes]) -> list[bytes]:
    out = [b""] * len(lines)
    out[::4] = [b">" + title[1:] for title in lines[::4]]
    out[1::4] = lines[1::4]
    return out


class _Reader:
    """Takes the lines one by one; `wants` is what the next one is read as."""

    def __init__(self) -> None:
        self.line = 1
        self.wants = self.header
        self._name, self._title, self._bases, self._qualities = b"", b"", 0, 0

    def header(self, line: bytes) -> bytes:
        if not line.strip():
            return b""
        if line[:1] != b"@":
            raise ValueError(
                f"{place(self.line)}: a FASTQ record begins with '@', this line with {line[:1]!r}. "
                "Lines are missing before it, or the qualities of the record before are longer than its sequence"
            )
        self._title = line[1:].strip()
        self._name = self._title.split(maxsplit=1)[0] if self._title else b""
        self._bases = self._qualities = 0
        self.wants = self.sequence
        return b">" + line[1:]

    def sequence(self, line: bytes) -> bytes:
        if line[:1] == b"+":
            title = line[1:].strip()
            if title and title != self._title:
                raise ValueError(f"{place(self.line, self._name)}: the '+' line names another record. Records are mixed up or cut")
            self.wants = self.qualities if self._bases else self.header
            return b""
        bases = line.translate(None, b" \t\r")
        if bases[:1] in (b"@", b">"):
            raise ValueError(
                f"{place(self.line, self._name)}: {bases[:1].decode()!r} where sequence or '+' should follow: the record is cut. Mend it"
            )
        self._bases += len(bases)
        return bases

    def qualities(self, line: bytes) -> bytes:
        self._qualities += len(line.strip(b" \t\r"))
        if self._qualities > self._bases:
            raise ValueError(
                f"{place(self.line, self._name)}: {self._bases} bases but at least {self._qualities} qualities. "
                "The record is cut or damaged: mend or remove it"
            )
        if self._qualities == self._bases:
            self.wants = self.header
        return b""

    def end(self) -> None:
        if self.wants != self.header:
            raise ValueError(
                f"{place(self.line, self._name)}: the file ends inside this record, after {self._bases} bases and "
                f"{self._qualities} qualities: it is truncated. Fetch it again"
            )

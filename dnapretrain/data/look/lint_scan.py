"""Sequence files record by record for `lint`: every base, none cut away, and on after an error with the next record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dnapretrain import _core
from dnapretrain.data.formats.compression import DigestedFile, PackedError
from dnapretrain.data.formats.fasta import CutPolicy, first_line_of, used_twice
from dnapretrain.data.formats.inputs import open_source

WHOLE = 1 << 62
"""No run of N is so long, and no record: nothing is cut."""
MAX_ERRORS = 1000
"""Errors of one file; after so many it is read no further."""
MAX_HELD = 2 << 20
"""Bytes of a header line that wait for their end; longer ones are errors anyway."""
PLACE = re.compile(r"(?:line (\d+)(?:, )?)?(?:record '([^']*)')?:? ?(.*)", re.DOTALL)
USED_TWICE = "this name was used"
MAX_FIRST_LINES = 20
"""Names used twice for which the line of the first is looked up: each takes a pass over the file."""
TOTAL = _core.RECORD_COUNTS.index("total")
PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}


@dataclass(frozen=True)
class Mistake:
    """What is wrong at one place of a file, and would stop preprocess."""

    message: str
    line: int | None = None
    record: str | None = None


class OnRecords(Protocol):
    """Who gets what is read."""

    names: list[str]
    """Of the records so far."""

    def cut_as_asked(self, documents: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Documents (n, 3) and counts of the records that ended, as preprocess cuts them; before `records` gets these records."""

    def records(self, bases: NDArray[np.uint8], headers: list[bytes], lengths: list[int]) -> None:
        """More bases; `headers` and `lengths` of the records that ended in them, those that begin there and go on excepted."""

    def abandon(self) -> None:
        """The open record is broken."""


@dataclass
class FileScan:
    """Reads one file; afterwards holds what is known of the file itself."""

    path: Path
    format: str | None = None
    compression: str | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    stopped_early: bool = False
    """There were more than MAX_ERRORS mistakes, or one that ends reading."""
    ends_crlf: bool = False
    ends_lf: bool = False
    file: DigestedFile | None = None

    @property
    def broken_records(self) -> int:
        """Records that cannot be read; others only have a name that is used already."""
        return sum(mistake.record is not None and not mistake.message.startswith(USED_TWICE) for mistake in self.mistakes)

    @property
    def line_ends(self) -> str | None:
        """LF, CRLF or mixed, of FASTA; None for others, whose lines are translated."""
        if self.format != "FASTA":
            return None
        return {(True, True): "mixed", (True, False): "CRLF", (False, True): "LF"}.get((self.ends_crlf, self.ends_lf))

    def read(self, policy: CutPolicy, consumer: OnRecords) -> None:
        """Read all of the file; mistakes are kept, none is raised."""
        feeder = _Feeder(self.path, policy, consumer, self.mistakes)
        try:
            self.compression = _packing(self.path)
            with open_source(self.path, opened=self._opened) as source:
                self.format = source.format
                held, after_return = b"", False
                for block in source.text:
                    text = held + bytes(block)
                    self._see_line_ends(text[len(held) :], after_return)
                    after_return = text.endswith(b"\r")
                    text, held = feeder.split(text)
                    feeder.feed(text)
                feeder.feed(held)
                feeder.finish()
        except PackedError as error:
            self._end(feeder, Mistake(str(error), feeder.line, feeder.record_name))
        except ValueError as error:
            self._end(feeder, _placed(str(error), 1))
        except OSError as error:
            self._end(feeder, Mistake(f"cannot be read: {error.strerror or error}"))
        except _TooManyError:
            self._end(feeder, None)

    def _end(self, feeder: _Feeder, mistake: Mistake | None) -> None:
        if mistake is not None:
            self.mistakes.append(mistake)
        feeder.consumer.abandon()
        self.stopped_early = True

    def _opened(self, file: DigestedFile) -> None:
        self.file = file

    def _see_line_ends(self, text: bytes, after_return: bool) -> None:
        if b"\r" not in text and not after_return:
            self.ends_lf |= b"\n" in text
            return
        crlf = text.count(b"\r\n") + (after_return and text.startswith(b"\n"))
        self.ends_crlf |= crlf > 0
        self.ends_lf |= text.count(b"\n") > crlf


class _TooManyError(Exception):
    """Enough mistakes for one file."""


class _Feeder:
    """Feeds text to two scanners: one that cuts as asked, as long as there is no mistake, and one that cuts nothing.

    Behind the first mistake records are read one by one, each by a scanner of its own, so that each has its mistake.
    """

    def __init__(self, path: Path, policy: CutPolicy, consumer: OnRecords, mistakes: list[Mistake]) -> None:
        self._path = path
        self.consumer = consumer
        self._mistakes = mistakes
        self._asked: _core.FastaScanner | None = _core.FastaScanner(policy.min_n_run, policy.min_length, policy.max_length)
        self._whole = _core.FastaScanner(WHOLE, 1, WHOLE)
        self._first_line = 1
        self._at_line_start = True
        self._is_skipping = False
        self._line = 1
        self._line_of: dict[str, int | None] = {}
        self._repeats = 0

    @property
    def line(self) -> int:
        """Of the file, where reading stands."""
        return self._whole.line if self._asked else self._line

    @property
    def record_name(self) -> str | None:
        """Of the open record."""
        return self._whole.record_name or None

    def split(self, text: bytes) -> tuple[bytes, bytes]:
        """What can be fed, and the header line without its end that follows: a header is never fed in two parts."""
        end = text.rfind(b"\n") + 1
        if (end or self._at_line_start) and text[end : end + 1] == b">" and len(text) - end < MAX_HELD:
            return text[:end], text[end:]
        return text, b""

    def feed(self, text: bytes) -> None:
        """The next text. Raises _TooManyError."""
        if self._asked is None:
            return self._feed_records(text)
        before = self._whole.line
        try:
            self._whole.feed(text)
            self._asked.feed(text)
        except ValueError as error:
            mistake = _placed(str(error), 1)
            self._asked = None
            self._take()
            self.consumer.abandon()
            self._note(mistake)
            return self._recover(text, mistake, before)
        self._take_asked(self._asked)
        self._take()
        self._check_names()
        self._at_line_start = text.endswith(b"\n") if text else self._at_line_start

    def finish(self) -> None:
        """The text has ended."""
        try:
            if self._asked is None:
                return self._close()
            self._whole.finish()
            self._asked.finish()
            self._take_asked(self._asked)
        except ValueError as error:
            self._note(_placed(str(error), 1))
        self._take()
        self._check_names()

    def _check_names(self) -> None:
        """Note names that stand for two records: each of the first few by a second pass that finds the other one."""
        for name, line in self._whole.repeats[self._repeats :]:
            self._repeats += 1
            if self._repeats > MAX_FIRST_LINES:
                self._note(Mistake(f"{USED_TWICE} before. Rename one of the two records", line, name))
            elif (first := first_line_of(self._path, name)) != line:
                self._note(Mistake(used_twice(first), line, name))

    def _recover(self, text: bytes, mistake: Mistake, line: int) -> None:
        """Go on behind the first mistake, with the next record."""
        self._line_of = dict.fromkeys(self.consumer.names)
        at, self._line = 0, mistake.line or line
        for _ in range(self._line - line):
            at = text.find(b"\n", at) + 1
        following = text.find(b"\n>", at) + 1 or len(text)
        self._line += text.count(b"\n", at, following)
        self._is_skipping = True
        self._at_line_start = text[:following].endswith(b"\n") if following else self._at_line_start
        self._feed_records(text[following:])

    def _feed_records(self, text: bytes) -> None:
        at = 0
        while at < len(text):
            end = text.find(b"\n>", at) + 1 or len(text)
            piece = text[at:end]
            if self._at_line_start and piece.startswith(b">"):
                self._close()
                self._open(piece)
            if not self._is_skipping:
                self._try(piece)
            self._line += piece.count(b"\n")
            self._at_line_start = piece.endswith(b"\n")
            at = end

    def _open(self, piece: bytes) -> None:
        self._whole = _core.FastaScanner(WHOLE, 1, WHOLE)
        self._first_line, self._is_skipping = self._line, False
        words = piece[1:].split(b"\n", 1)[0].split(maxsplit=1)
        name = words[0].decode("ascii", "backslashreplace") if words else ""
        if name in self._line_of:
            earlier = self._line_of[name]
            where = "before the first mistake" if earlier is None else f"at line {earlier}"
            self._note(Mistake(f"{USED_TWICE} {where} already. Rename one of the two records", self._line, name))
        self._line_of.setdefault(name, self._line)

    def _try(self, piece: bytes) -> None:
        try:
            self._whole.feed(piece)
        except ValueError as error:
            self._is_skipping = True
            self._take()
            self.consumer.abandon()
            self._note(_placed(str(error), self._first_line))
            return
        self._take()

    def _close(self) -> None:
        """End the open record: the beginning of another one does, and asks for no bases."""
        if not self._is_skipping:
            self._whole.feed(b"\n>" if not self._at_line_start else b">")
            self._take()
        self._is_skipping = True

    def _take_asked(self, scanner: _core.FastaScanner) -> None:
        _, documents, _, counts = scanner.take()
        self.consumer.cut_as_asked(documents, counts)

    def _take(self) -> None:
        bases, _, headers, counts = self._whole.take()
        self.consumer.records(bases, headers, counts[:, TOTAL].tolist())

    def _note(self, mistake: Mistake) -> None:
        self._mistakes.append(mistake)
        if len(self._mistakes) >= MAX_ERRORS:
            raise _TooManyError


def _placed(text: str, first_line: int) -> Mistake:
    """A scanner's message, with its line counted from `first_line` of the file."""
    found = PLACE.fullmatch(text)
    if found is None or not (found[1] or found[2]):
        return Mistake(text)
    return Mistake(found[3], int(found[1]) + first_line - 1 if found[1] else None, found[2])


def _packing(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(18)
    name = next((name for magic, name in PACKINGS.items() if head.startswith(magic)), "none")
    return "BGZF" if name == "gzip" and head[12:14] == b"BC" else name

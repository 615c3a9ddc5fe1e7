"""A text file that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[TextIO]:
    """A text file to write to that takes the place of `path` at the end of `with`; if anything fails, `path` is as it was.

    `durable`: its content is on disk before it has the name, so that a crash of the machine leaves no empty file. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_whole(path: Path, text: str, durable: bool = True) -> None:
    """Give `path` this content by `whole_file`."""
    with whole_file(path, durable) as file:
        file.write(text)

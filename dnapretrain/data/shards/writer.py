"""How a shard gets onto the disk: whole or not at all.

Files are written to a staging folder beside the output, synced, and renamed, the manifest last. What an
interrupted run leaves is its staging folder, which the next run with the same prefix goes on with (preprocess) or removes.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash

from dnapretrain import _core
from dnapretrain.data.shards.packed import EXCEPTIONS
from dnapretrain.data.shards.shard import DATA_KINDS, EDITS, LABELS, shard_file
from dnapretrain.errors import DataError

OPTIONAL_KINDS = (EDITS, LABELS, EXCEPTIONS)
LOCK = "lock"
COPY_BYTES = 1 << 20
WRITEBACK_BYTES = 1 << 25


class FileWriter:
    """A file that is digested while it is written, and on disk when it is closed.

    `keep`: what it holds already may be taken over. `durable=False`: it need not outlive a crash of the machine.
    """

    def __init__(self, path: Path, keep: bool = False, durable: bool = True) -> None:
        self.path = path
        self.size = 0
        self._file: IO[bytes]
        self._on_its_way = 0
        self._keep, self._durable = keep, durable
        self._digest = xxhash.xxh3_128()
        self._section = xxhash.xxh3_128()
        self._section_start = 0

    def __enter__(self) -> FileWriter:
        self._file = self.path.open("r+b" if self._keep and self.path.exists() else "wb")
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._file.write(data)
        self._digest.update(data)
        self._section.update(data)
        self.size += len(data)
        if self._durable and self.size - self._on_its_way >= WRITEBACK_BYTES:
            self._file.flush()
            _core.begin_writeback(self._file.fileno(), self._on_its_way, self.size - self._on_its_way)
            self._on_its_way = self.size

    def reader(self) -> IO[bytes]:
        """What was written, from the first byte."""
        self.flush()
        return self.path.open("rb", buffering=0)

    def flush(self) -> None:
        """What was written can be read from the file afterwards, also after a kill -9."""
        self._file.flush()

    def sync(self) -> None:
        """What was written is on disk."""
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def mark(self) -> tuple[int, Any]:
        """The present end of the file, to go back to."""
        return self.size, (self._digest.copy(), self._section.copy())

    def rewind(self, mark: tuple[int, Any]) -> None:
        """Go on writing from `mark`; `cut` removes what is left of the old bytes."""
        self.flush()
        self.size = mark[0]
        self._on_its_way = min(self._on_its_way, self.size)
        self._digest, self._section = (digest.copy() for digest in mark[1])
        self._file.seek(self.size)

    def cut(self) -> None:
        """Remove what follows the last byte written."""
        self._file.truncate()

    def begin_section(self) -> None:
        """What is written from here on is a section."""
        self._section_start, self._section = self.size, xxhash.xxh3_128()

    def section(self) -> tuple[int, int, str]:
        """Start, size and XXH3-128 of the section."""
        return self._section_start, self.size - self._section_start, self._section.hexdigest()

    def take_over(self, size: int, digest: str) -> bool:
        """Count the next `size` bytes of the file as written; False, and nothing done, where their XXH3-128 is another one."""
        mark = self.mark()
        self.begin_section()
        for data in read_stretch(self.path, self.size, size):
            self._digest.update(data)
            self._section.update(data)
            self.size += len(data)
        if self.section()[1:] == (size, digest):
            self._file.seek(self.size)
            return True
        self.rewind(mark)
        return False

    def entry(self) -> dict[str, Any]:
        """Size in bytes and XXH3-128 of what was written, as the manifest holds them."""
        return {"size": self.size, "xxh3_128": self._digest.hexdigest()}


class SpooledWriter(FileWriter):
    """The same in memory, until `spill` gives it a file. It need not outlive the process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, durable=False)
        self.in_memory = True

    def __enter__(self) -> SpooledWriter:
        self._file = self._memory = io.BytesIO()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.in_memory:
            self._file.close()

    def reader(self) -> IO[bytes]:
        """What was written, from the first byte."""
        return io.BytesIO(self._memory.getvalue()) if self.in_memory else super().reader()

    def pour_into(self, writer: FileWriter) -> None:
        """Append what is in memory to `writer`; it is in memory no more."""
        with self._memory.getbuffer() as content:
            writer.write(content)
        self._memory.close()

    def spill(self) -> None:
        """From here on in the file."""
        file = self.path.open("wb")
        with self._memory.getbuffer() as content:
            file.write(content)
        self._memory.close()
        self._file, self.in_memory = file, False


def read_stretch(path: Path, start: int, size: int) -> Iterator[memoryview]:
    """Up to `size` bytes of a file from byte `start`, in blocks; one is overwritten by the next."""
    buffer = memoryview(bytearray(min(COPY_BYTES, size)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size > 0 and (read := file.readinto(buffer[: min(size, COPY_BYTES)])):
            yield buffer[:read]
            size -= read


class Staging:
    """The folder beside the output that only this run uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keep = False
        """Leave what is in it for the next run, should this one fail."""

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        for stale in self.folder.iterdir():
            if stale.name != LOCK:
                stale.unlink()


@contextmanager
def staging_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside the output that only this run uses; removed at the end, whatever happens.

    Raises DataError where the output cannot be written, also for an OSError inside.
    """
    with lasting_staging(output, overwrite) as staging:
        staging.clear()
        yield staging.folder


@contextmanager
def lasting_staging(output: Path, overwrite: bool) -> Iterator[Staging]:
    """The same, with what a run that was stopped has left in it; it stays where this run fails too and set `keep`."""
    try:
        with _staging(output, overwrite) as staging:
            yield staging
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}. Free space or choose another --output") from None


@contextmanager
def _staging(output: Path, overwrite: bool) -> Iterator[Staging]:
    if not output.name or output.is_dir():
        raise DataError(f"{output}: a folder, not a prefix. Give for example --output {output / 'shard'}")
    created = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]  # innermost first
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Staging(output.with_name(f".{output.name}.dnapretrain-tmp"))
    staging.folder.mkdir(exist_ok=True)
    with (staging.folder / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process, kill -9 included
        except BlockingIOError:
            raise DataError(f"{output}: another run is writing this shard. Wait for it, or choose another --output") from None
        except OSError:
            pass  # some cluster file systems have no locks
        if not staging.folder.exists() or (staging.folder / LOCK).stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise DataError(f"{output}: another run has just ended. Start this one again")
        failed = True
        try:
            staging.keep = len(list(staging.folder.iterdir())) > 1  # of a run that may yet go on
            _check_output(output, overwrite, staging.folder)
            _roll_back(staging.folder, output)
            staging.keep = False
            yield staging
            failed = False
        finally:
            if not (failed and staging.keep):
                shutil.rmtree(staging.folder, ignore_errors=True)
                for folder in created:
                    with suppress(OSError):  # not empty: the shard is there
                        folder.rmdir()


def _check_output(output: Path, overwrite: bool, staging: Path) -> None:
    # A staged manifest means that a run was killed while it renamed: the files without manifest are ours.
    existing = [kind for kind in (*DATA_KINDS, *OPTIONAL_KINDS, "json") if shard_file(output, kind).exists()]
    ours = "json" not in existing and (staging / "json").exists()
    if existing and not overwrite and not ours:
        raise DataError(f"{shard_file(output, existing[0])} exists already. Choose another --output, or replace it with --overwrite")


def _roll_back(staging: Path, output: Path) -> None:
    """Take back what a killed run has renamed, so that its finished inputs are all in the staging folder."""
    if (staging / "json").exists() and not shard_file(output, "json").exists():
        for kind in DATA_KINDS:
            if not (staging / kind).exists() and shard_file(output, kind).exists():
                shard_file(output, kind).replace(staging / kind)


def commit(staging: Path, output: Path) -> None:
    """Rename the staged files to `output`.bin, .idx, .bed, any of OPTIONAL_KINDS, and last .json; replaces an older shard."""
    shard_file(output, "json").unlink(missing_ok=True)
    sync_folder(output.parent)
    try:
        for kind in DATA_KINDS:
            (staging / kind).replace(shard_file(output, kind))
        for kind in OPTIONAL_KINDS:
            if (staging / kind).exists():
                (staging / kind).replace(shard_file(output, kind))
            else:  # of an older shard
                shard_file(output, kind).unlink(missing_ok=True)
        sync_folder(output.parent)
        (staging / "json").replace(shard_file(output, "json"))
    except BaseException:
        for kind in (*DATA_KINDS, *OPTIONAL_KINDS):
            shard_file(output, kind).unlink(missing_ok=True)
        raise
    sync_folder(output.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: what was renamed into it survives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

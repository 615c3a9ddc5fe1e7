"""How a shard gets onto the disk: whole or not at all.

Files are written to a staging folder beside the output, synced, and renamed, the manifest last. What an
interrupted run leaves is its staging folder, which the next run with the same prefix removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from dnapretrain.data.shards.packed import EXCEPTIONS
from dnapretrain.data.shards.shard import DATA_KINDS, EDITS, LABELS, shard_file
from dnapretrain.errors import DataError

OPTIONAL_KINDS = (EDITS, LABELS, EXCEPTIONS)


class FileWriter:
    """A new file that is digested while it is written, and on disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = xxhash.xxh3_128()

    def __enter__(self) -> FileWriter:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """What was written can be read from the file afterwards."""
        self._file.flush()

    def mark(self) -> tuple[int, Any]:
        """The present end of the file, to go back to."""
        return self.size, self._digest.copy()

    def rewind(self, mark: tuple[int, Any]) -> None:
        """Go on writing from `mark`; `cut` removes what is left of the old bytes."""
        self.flush()
        self.size, self._digest = mark[0], mark[1].copy()
        self._file.seek(self.size)

    def cut(self) -> None:
        """Remove what follows the last byte written."""
        self._file.truncate()

    def entry(self) -> dict[str, Any]:
        """Size in bytes and XXH3-128 of what was written, as the manifest holds them."""
        return {"size": self.size, "xxh3_128": self._digest.hexdigest()}


@contextmanager
def staging_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside the output that only this run uses; removed at the end, whatever happens."""
    if not output.name or output.is_dir():
        raise DataError(f"{output}: a folder, not a prefix. Give for example --output {output / 'shard'}")
    created = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]  # innermost first
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.dnapretrain-tmp")
    staging.mkdir(exist_ok=True)
    with (staging / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process, kill -9 included
        except BlockingIOError:
            raise DataError(f"{output}: another run is writing this shard. Wait for it, or choose another --output") from None
        except OSError:
            pass  # some cluster file systems have no locks
        try:
            # A staged manifest means that a run was killed while it renamed: the files without manifest are ours.
            existing = [kind for kind in (*DATA_KINDS, *OPTIONAL_KINDS, "json") if shard_file(output, kind).exists()]
            ours = "json" not in existing and (staging / "json").exists()
            if existing and not overwrite and not ours:
                raise DataError(
                    f"{shard_file(output, existing[0])} exists already. Choose another --output, or replace it with --overwrite"
                )
            for stale in staging.iterdir():
                if stale.name != "lock":
                    stale.unlink()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            for folder in created:
                with suppress(OSError):  # not empty: the shard is there
                    folder.rmdir()


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

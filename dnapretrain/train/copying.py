"""Copies of checkpoints on a node's own disk: made whole or not at all, by one process that nobody waits for."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import xxhash

from dnapretrain.convert.native import SMALL_FILES, STATE_FILE, WEIGHTS_DIR, file_digest, read_state
from dnapretrain.data.shards.writer import sync_folder
from dnapretrain.errors import CheckpointError, ConfigError, DamagedCheckpointError
from dnapretrain.train.checkpoint_writer import check_room
from dnapretrain.train.retention import step_folders, step_of

BLOCK = 4 << 20
NICENESS = 19
"""Of the process that copies: training has the processor first."""


def copies_folder(setting: Path, run_dir: Path) -> Path:
    """Where this node keeps the copies of the run at `run_dir`: a folder below checkpoint.local_dir, its variables replaced.

    Raises ConfigError where a variable is not set here, or the path is relative.
    """
    text = os.path.expandvars(setting)
    if unset := re.search(r"\$\{?\w+\}?", text):
        raise ConfigError(
            f"checkpoint.local_dir = {setting} names {unset.group()}, which is not set on {socket.gethostname()}. "
            "Set it for the ranks, or give a path."
        )
    if not Path(text).is_absolute():
        raise ConfigError(f"checkpoint.local_dir = {setting} is relative. Give the full path of a folder on each node's own disk.")
    run = run_dir.resolve()
    return Path(text) / f"{run.name}-{xxhash.xxh3_64(str(run).encode()).hexdigest()}"


def manifest(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """(digest of state.json, its content), read and found to be as written: two checkpoints with one digest are the same, byte for byte.

    Raises CheckpointError.
    """
    state = read_state(checkpoint)
    try:
        return str(file_digest(checkpoint / STATE_FILE)["xxh3_128"]), state
    except OSError as error:
        raise DamagedCheckpointError(f"{checkpoint / STATE_FILE} cannot be read: {error}.") from None


def forget_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of copies."""
    for path in (*folder.glob(".step_*.partial"), *folder.glob(".step_*.deleting")):
        shutil.rmtree(path, ignore_errors=True)


def copy_checkpoint(checkpoint: Path, folder: Path, keep: int) -> dict[str, Any]:
    """Copy a finished checkpoint into `folder`, keep the newest `keep` copies; {"bytes", "seconds"}.

    What is read is compared with the checkpoint's digests. Raises OSError, CheckpointError; then `folder` has no new copy.
    """
    os.nice(NICENESS)
    started = time.monotonic()
    forget_unfinished(folder)
    digest, state = manifest(checkpoint)
    final = folder / checkpoint.name
    if final.exists() and _digest_of(final) != digest:  # of an earlier life of this run
        _delete(final)
    files = {f"{WEIGHTS_DIR}/{name}": entry for name, entry in state["files"].items()}
    files |= {name: state.get("small_files", {}).get(name) or file_digest(checkpoint / name) for name in SMALL_FILES}
    files[STATE_FILE] = file_digest(checkpoint / STATE_FILE)
    num_bytes = sum(entry["bytes"] for entry in files.values())
    if not final.exists():
        _make_room(folder, num_bytes)
        partial = folder / f".{checkpoint.name}.partial"
        try:
            _copy_files(checkpoint, partial, files)
            partial.rename(final)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise
    past = [copy for copy in step_folders(folder) if step_of(copy) <= step_of(final)]  # what is beyond is of a run that was set back
    for old in step_folders(folder):
        if old not in past[-keep:]:
            _delete(old)
    return {"bytes": num_bytes, "seconds": time.monotonic() - started}


def _copy_files(checkpoint: Path, partial: Path, files: dict[str, dict[str, Any]]) -> None:
    (partial / WEIGHTS_DIR).mkdir(parents=True)
    for name, entry in files.items():
        digest, source = xxhash.xxh3_128(), checkpoint / name
        with source.open("rb") as reader, (partial / name).open("wb") as writer:
            while block := reader.read(BLOCK):
                digest.update(block)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
        if digest.hexdigest() != entry["xxh3_128"]:
            raise CheckpointError(f"{source} is not as it was written (its digest differs): nothing was copied.")
    for made in (partial / WEIGHTS_DIR, partial):
        sync_folder(made)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Raise OSError where so much does not fit, not even in place of older copies: they go only where they must."""
    for old in step_folders(folder):
        try:
            check_room(folder, num_bytes)
            return
        except OSError:
            _delete(old)
    check_room(folder, num_bytes)


def _delete(copy: Path) -> None:
    hidden = copy.with_name(f".{copy.name}.deleting")
    copy.rename(hidden)  # at once and whole: no start finds half of it
    shutil.rmtree(hidden, ignore_errors=True)


def _digest_of(copy: Path) -> str:
    try:
        return manifest(copy)[0]
    except CheckpointError:
        return ""

"""Which checkpoints of a run there are, and which may go: the newest, every so many steps, and the best stay."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dnapretrain.config import CheckpointConfig
from dnapretrain.convert.native import CHECKPOINTS_DIR, LATEST_FILE, STATE_FILE, WEIGHTS_DIR, latest_name, read_state
from dnapretrain.errors import CheckpointError


def step_of(checkpoint: Path) -> int:
    """The step that a folder `step_SSSSSSSS` is of."""
    return int(checkpoint.name.removeprefix("step_"))


def step_folders(parent: Path) -> list[Path]:
    """The folders `step_SSSSSSSS` in `parent`, oldest step first."""
    return sorted((path for path in parent.iterdir() if re.fullmatch(r"step_\d{8,}", path.name)), key=step_of)


def finished_checkpoints(run_dir: Path) -> list[Path]:
    """The folders of all finished checkpoints of a run, oldest first."""
    parent = run_dir / CHECKPOINTS_DIR
    return [path for path in step_folders(parent) if (path / STATE_FILE).is_file()] if parent.is_dir() else []


def resumable(run_dir: Path) -> list[Path]:
    """The checkpoints a start may go on from, in the order to try: the one that `latest` names, then those before it.

    All finished ones where `latest` names none.
    """
    finished = finished_checkpoints(run_dir)
    name = latest_name(run_dir / CHECKPOINTS_DIR)
    if not name:
        return finished[::-1]
    newest = run_dir / CHECKPOINTS_DIR / name
    return [newest, *(path for path in finished[::-1] if step_of(path) < step_of(newest))]


def latest_problem(run_dir: Path) -> str:
    """A warning where `latest` is there and names no checkpoint; else ''."""
    if latest_name(run_dir / CHECKPOINTS_DIR) != "":
        return ""
    return f"WARNING: {run_dir / CHECKPOINTS_DIR / LATEST_FILE} is damaged: it names no checkpoint. The newest finished one is tried."


def to_delete(steps: Sequence[int], newest: int, keep: CheckpointConfig, losses: Mapping[int, float]) -> list[int]:
    """Of the `steps` that have checkpoints, those that `keep` lets go after the one of step `newest` was written.

    `losses` are held-out losses by step; that of the newest may come after its save, which keep_last keeps anyway.
    Steps beyond `newest` belong to a run that was set back: they are left alone.
    """
    if keep.keep_last is None:
        return []
    past = sorted(step for step in steps if step <= newest)
    kept = set(past[-keep.keep_last :])
    if keep.keep_every:
        kept |= {step for step in past if step % keep.keep_every == 0}
    if keep.keep_best:
        kept |= set(sorted((step for step in past if step in losses), key=lambda step: (losses[step], -step))[: keep.keep_best])
    return [step for step in past if step not in kept]


def delete_old(run_dir: Path, newest: Path, keep: CheckpointConfig, losses: Mapping[int, float]) -> list[Path]:
    """Delete what `to_delete` says and return it; nothing while `newest` is not there in full. Raises OSError, CheckpointError."""
    parent = run_dir / CHECKPOINTS_DIR
    for path in parent.glob(".step_*.deleting"):  # of a start that was killed meanwhile
        shutil.rmtree(path, ignore_errors=True)
    checkpoints = {step_of(path): path for path in finished_checkpoints(run_dir)}
    going = to_delete(list(checkpoints), step_of(newest), keep, losses)
    if going and (problem := missing_part(newest)):
        raise CheckpointError(f"{problem}: older checkpoints are kept")
    for step in going:
        hidden = parent / f".{checkpoints[step].name}.deleting"
        checkpoints[step].rename(hidden)  # at once and whole: no start finds half of it
        shutil.rmtree(hidden, ignore_errors=True)
    return [checkpoints[step] for step in going]


def missing_part(checkpoint: Path) -> str:
    """What of a checkpoint's files is absent or has another size ('' for nothing): a quick look, no digests."""
    for name, entry in read_state(checkpoint)["files"].items():
        path = checkpoint / WEIGHTS_DIR / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{path} is missing or cut short"
    return ""


def logged_losses(log: Path, set_name: str) -> dict[int, float]:
    """Held-out loss of `set_name` by step, from a run's `log.jsonl`; the last record of a step counts."""
    losses = {}
    if log.is_file():
        with log.open(errors="replace") as lines:
            for line in lines:
                if '"kind": "eval"' not in line:
                    continue
                try:
                    record = json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    continue
                if record.get("set") == set_name:
                    losses[int(record["step"])] = float(record["loss"])
    return losses

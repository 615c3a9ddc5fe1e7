"""Section checkpoint."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dnapretrain.config.section import Section


class CheckpointConfig(Section):
    """When checkpoints are written and what a run starts from."""

    save_interval: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    resume: bool = True
    """Continue from the newest checkpoint of the run folder when there is one."""
    load: Path | None = None
    """Checkpoint whose weights a new run starts from (weights only: continued pretraining). Its context may be shorter, its rotary
    embedding another, and its vocabulary the beginning of this one: new rows are the mean of the old ones."""
    async_save: bool = True
    """Train on while the files are written, from a copy in host memory; false: wait for each save."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """A save that takes longer has failed. The run goes on and tries again; where it cannot go on by itself it ends with an error."""
    keep_last: int | None = Field(None, ge=1)
    """Keep so many of the newest checkpoints and delete older ones; default: keep all. keep_every and keep_best keep more."""
    keep_every: int | None = Field(None, ge=1)
    """Keep checkpoints whose step is a multiple of this, whatever keep_last says."""
    keep_best: int | None = Field(None, ge=1)
    """Keep so many with the lowest held-out loss (the set 'valid', else the first), whatever keep_last says."""
    local_dir: Path | None = None
    """Folder on each node's own disk, variables such as $TMPDIR replaced there: every checkpoint is copied into it in the background, and
    a resume reads a node's copy instead of the run folder where it is whole and the same."""
    keep_local: int = Field(1, ge=1)
    """Copies that a node keeps in local_dir."""

"""Section log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dnapretrain.config.section import Section


class LogConfig(Section):
    """What is printed and written while the run goes."""

    log_interval: int = Field(10, gt=0)
    """Steps between console lines; the JSON-lines log has every step."""
    console: Literal["lines", "json", "quiet"] = "lines"
    """lines: for people. json: every record of the log, one JSON object per line. quiet: nothing but errors. `log.jsonl` is the same."""
    tensorboard: bool = False
    """Write for TensorBoard too, into RUN/tensorboard (pip install 'dnapretrain[tensorboard]')."""
    wandb_project: str | None = None
    """Send to this project of Weights & Biases too (pip install 'dnapretrain[wandb]'); the run has the name of its folder."""
    wandb_mode: Literal["online", "offline"] = "online"
    """offline: into RUN/wandb, to be sent with `wandb sync`, where compute nodes have no network."""
    peak_tflops: float | None = Field(None, gt=0)
    """Peak of one rank that MFU is measured against; default: the data sheet's, by the GPU's name; none on CPU."""
    straggler_factor: float = Field(1.5, ge=0)
    """Name the slowest rank with each console line where its own work takes longer than so many times the median; 0: never."""
    heartbeat_seconds: float = Field(10.0, ge=0)
    """Seconds between two states of heartbeat.json in the run folder; 0: none."""
    hang_seconds: float = Field(600.0, ge=0)
    """A rank that does not get on for so long writes its stack to hangs/ in the run folder, and says so; 0: never. Training goes on."""

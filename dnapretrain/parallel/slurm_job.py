"""What a batch script asks Slurm for. Needs nothing but Python, so that the command line can name its choices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dnapretrain.errors import ConfigError

CONTAINERS = ("none", "pyxis", "apptainer")
LAUNCHERS = ("srun", "torchrun")
GO_ON = ("requeue", "chain", "none")
PREPROCESS = "preprocess"
"""Stands for the preprocessing array where else the settings of a run stand."""


@dataclass(frozen=True)
class SlurmJob:
    """What to ask Slurm for. Times are Slurm's: minutes, [hours:]minutes:seconds, or days-hours[:minutes[:seconds]]."""

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: str = "h100"
    cpus_per_task: int = 8
    time: str = "24:00:00"
    margin: int = 600
    """Seconds before the end at which Slurm asks the run to stop with a checkpoint."""
    partition: str = ""
    account: str = ""
    exclude: str = ""
    """Nodes to leave out, as Slurm writes them: node[3,7-9]."""
    launcher: str = "srun"
    container: str = "none"
    image: str = "dnapretrain.sif"
    go_on: str = "requeue"

    def check(self) -> None:
        """Raise ConfigError for what Slurm would refuse, or accept and do badly."""
        for name in ("nodes", "gpus_per_node", "cpus_per_task", "margin"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} = {getattr(self, name)} is below 1. Give a whole number from 1 on.")
        for name, known in (("launcher", LAUNCHERS), ("container", CONTAINERS), ("go_on", GO_ON)):
            if getattr(self, name) not in known:
                raise ConfigError(f"--{name.replace('_', '-')} = {getattr(self, name)} is none of {', '.join(known)}.")
        for name in ("partition", "account", "exclude", "image"):
            if re.search(r"[\s\"'`$\\]", getattr(self, name)):
                raise ConfigError(f"--{name} = {getattr(self, name)!r} has a blank, a quote, a $ or a backslash. Give a plain name.")
        if self.margin >= (limit := job_seconds(self.time)):
            raise ConfigError(f"--margin = {self.margin} s is not below --time = {self.time} ({limit:.0f} s): the run would never start.")


def job_seconds(text: str) -> float:
    """Seconds of a time limit as Slurm writes it. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"--time = {text} is not a time limit of Slurm. Give minutes, hours:minutes:seconds or days-hours.")
    days, first, second, third = match.groups()
    if days is not None:
        hours, minutes, seconds = int(first), int(second or 0), int(third or 0)
    elif third is not None:
        hours, minutes, seconds = int(first), int(second), int(third)
    else:
        hours, minutes, seconds = 0, int(first), int(second or 0)
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)

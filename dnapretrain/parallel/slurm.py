"""What Slurm says of the job this process is in."""

from __future__ import annotations

import os
import re
import subprocess
import time


def seconds_left() -> float | None:
    """Seconds to the end of this Slurm job; None outside of one, without a limit, or where Slurm does not answer."""
    env = os.environ
    if end := env.get("SLURM_JOB_END_TIME"):
        return float(end) - time.time()
    if "SLURM_JOB_ID" not in env:
        return None
    try:  # older than 22.05: not in the environment
        answer = subprocess.run(
            ["squeue", "-h", "-j", env["SLURM_JOB_ID"], "-o", "%L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_time_left(answer.stdout)


def parse_time_left(text: str) -> float | None:
    """Seconds of squeue's %L, `[days-]hours:minutes:seconds` or `minutes:seconds`; None for UNLIMITED, NOT_SET, INVALID."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

"""A few rounds of stop_signals.py; `make chaos` is to run many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import HANG_SECONDS

SCRIPT = Path(__file__).with_name("stop_signals.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "rounds"),
    [(1, ["--rounds", "4", "--seconds", "1", "--kills", "1"]), (2, ["--rounds", "2", "--seconds", "0", "--kills", "1"])],
)
def test_stopped_runs_lose_nothing(ranks: int, rounds: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--ranks", str(ranks), *rounds], capture_output=True, text=True, env=environment, timeout=HANG_SECONDS
    )
    assert result.returncode == 0, result.stdout + result.stderr

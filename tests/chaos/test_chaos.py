"""A few rounds of chaos.py; `make chaos` runs many on four ranks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import HANG_SECONDS

SCRIPT = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
def test_nothing_is_to_be_seen_of_disturbances_in_the_end(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--rounds", "4", "--ranks", "2", "--folder", str(tmp_path)]
    first = subprocess.run([*command, "--seconds", "0"], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"^0 rounds of 4 on 2 ranks", first.stdout, re.M)
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[0] == first.stdout.splitlines()[0]  # the undisturbed run is not done again
    assert re.search(r"^4 rounds of 4 on 2 ranks", result.stdout, re.M)
    assert re.search(r"identical to the undisturbed one: [1-9]", result.stdout)
    other = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert other.returncode == 1 and "Give another --folder" in other.stderr

"""A model of any size converts in the memory of a few of its largest tensors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("peak_memory.py")
TENSORS = 3.0
"""Peak in units of the largest tensor: the tensor put together, what was read of the file, and the piece made of that."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
def test_conversions_take_the_memory_of_a_few_tensors(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SCRIPT.parent), *filter(None, sys.path)))}
    peaks: dict[str, list[int]] = {}
    for attempt in range(3):  # mapped pages of files count until the system takes them back: the least is needed
        command = [sys.executable, SCRIPT, tmp_path / str(attempt)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        allowed = TENSORS * found["largest"]
        assert found["total"] > 1.5 * allowed  # so that holding the model would show
        for way, peak in found["peaks"].items():
            assert peak > found["largest"] / 2, (way, found)
            peaks.setdefault(way, []).append(peak)
        if max(map(min, peaks.values())) < allowed:
            return
    raise AssertionError((peaks, allowed))

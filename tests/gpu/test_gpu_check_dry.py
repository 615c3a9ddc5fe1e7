"""Rehearses benchmarks/gpu_check.py on the CPU: no GPU needed, so this file is not marked gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = "| date | what | value | hardware | commit | command |"


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DNAPRETRAIN_GPU_CHECK_SITE": "none"}  # leave .whl/ alone
    command = [sys.executable, "benchmarks/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_rehearsal_on_the_cpu() -> None:
    done = gpu_check("--device", "cpu")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = done.stdout.partition("=== summary\n")[2]
    assert outcomes.count("  ok\n") == 2
    assert outcomes.count("SKIPPED") == 1
    rows = done.stdout.partition(HEADER)[2].partition("=== summary")[0].splitlines()[2:]
    rows = [row for row in rows if row]
    assert [sum(word in row for row in rows) for word in ("bf16 training", "training step", "step time of transformers")] == [1, 2, 1]
    assert all(row.count("|") == HEADER.count("|") for row in rows)


def test_without_a_gpu_it_says_so() -> None:
    done = gpu_check()
    assert done.returncode == 1
    assert "no CUDA device" in done.stdout


def test_a_failing_step_is_reported_and_the_next_still_runs() -> None:
    script = (
        "import sys; sys.path.insert(0, 'benchmarks'); import gpu_check as g; python = sys.executable; "
        "bad, good = g.Step('bad', (python, '-c', 'raise SystemExit(7)'), 60), g.Step('good', (python, '-c', 'pass'), 60); "
        "slow = g.Step('slow', (python, '-c', 'import time; time.sleep(60)'), 0.5); "
        "sys.exit(g.run_steps([bad, slow, good], 'cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    outcomes = done.stdout.partition("=== summary\n")[2]
    assert "FAILED: ended with 7" in outcomes
    assert "FAILED: took longer than 0.5 s" in outcomes
    assert outcomes.rstrip().endswith("ok")


def test_the_plain_runner_runs_and_skips() -> None:
    environment = {**os.environ, "DNAPRETRAIN_GPU_TEST_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    script = "import sys; sys.path.insert(0, 'benchmarks'); import gpu_check; sys.exit(gpu_check.run_plainly(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "tests/gpu/test_cuda.py", "tests/gpu/test_transformer_engine.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) > 8
    assert all(line.endswith("skipped: no CUDA device") for line in lines)

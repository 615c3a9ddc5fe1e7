"""Rehearses benchmarks/gpu_check.py on the CPU: no GPU needed, so this file is not marked gpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = "| date | what | value | hardware | commit | command |"


def gpu_check(*arguments: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DNAPRETRAIN_GPU_CHECK_SITE": "none"}  # leave .whl/ alone
    environment |= {"OUT": str(out)} if out else {}
    command = [sys.executable, "benchmarks/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_rehearsal_on_the_cpu(tmp_path: Path) -> None:
    """Every part, with tiny models: each step is a process, as on a GPU."""
    arguments = ("--device", "cpu", "--state", str(tmp_path / "state"))
    done = gpu_check(*arguments, out=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = done.stdout.partition("=== summary\n")[2]
    assert outcomes.count("  ok\n") == 6  # a test, three ways to train, two rooflines
    assert outcomes.count("SKIPPED") == 2  # tests and a way to train that need CUDA
    rows = [row for row in done.stdout.partition(HEADER)[2].partition("=== summary")[0].splitlines()[2:] if row]
    assert [sum(word in row for row in rows) for word in ("bf16 training", "training step", "roofline of a step", "share of")] == [
        1,
        3,
        2,
        3,
    ]
    assert all(row.count("|") == HEADER.count("|") for row in rows)
    records = [json.loads(line) for line in (tmp_path / "gpu_check_records.jsonl").read_text().splitlines()]
    ways = {record["contestant"]: record for record in records if "contestant" in record and record["workload"] == "tiny"}
    assert ways.keys() == {"torch", "minimal"}
    # The minimal model begins as another: its first loss is that of a uniform guess too.
    assert abs(ways["torch"]["losses"][0] - ways["minimal"]["losses"][0]) < 0.3
    assert all(record["tokens_per_second"] > 0 for record in ways.values())

    again = gpu_check(*arguments, "--resume", "--part", "roofline", "--minutes", "0", out=tmp_path)
    assert again.stdout.count("was ok at this commit") == 2 and again.returncode == 0
    assert again.stdout.partition(HEADER)[2].count("roofline of a step") == 2  # rows of the earlier call


def test_a_share_of_peak_is_the_trainers_and_names_it(tmp_path: Path) -> None:
    """FP8 of the FP8 peak, bf16 of that of bf16, none on a GPU without a data sheet; nothing is timed here."""
    script = (
        "import json, sys, pathlib; sys.path.insert(0, 'benchmarks'); import gpu_speed as g; folder = pathlib.Path(sys.argv[1]); "
        "record = dict(median_seconds=1, seconds=[1], tokens_per_second=1, tflops=1, precision='', num_weights=1, peak_bytes=None, "
        "losses=[1, 1]); "
        "of = lambda way, name: g.share_of_peak(g.run_config('generator-1.2b', way, folder, 'cuda'), name, 395.8); "
        "shares = [of(way, 'NVIDIA H200') for way in ('te', 'te-fp8')] + [of('te-fp8', 'NVIDIA XYZ')]; "
        "print(json.dumps([[s['mfu'], s['mfu_peak'], g.in_words({**record, **s})] for s in shares]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (bf16, of_bf16, _), (fp8, of_fp8, words), (none, _, plain) = json.loads(done.stdout.splitlines()[-1])
    assert (bf16, fp8, none) == (395.8 / 989, 395.8 / 1979, None)
    assert "989 TFLOP/s, dense bf16" in of_bf16 and "1979 TFLOP/s, dense FP8" in of_fp8
    assert "(MFU 20.0% of 1979 TFLOP/s, dense FP8, data sheet of h200)" in words and "MFU" not in plain


def test_without_a_gpu_it_says_so() -> None:
    done = gpu_check()
    assert done.returncode == 2
    assert "no CUDA device" in done.stdout


def test_a_failing_step_is_reported_and_the_next_still_runs(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; sys.path.insert(0, 'benchmarks'); import gpu_check as g; python = sys.executable; "
        "bad, good = g.Step('bad', (python, '-c', 'raise SystemExit(7)'), 60), g.Step('good', (python, '-c', 'pass'), 60); "
        "slow = g.Step('slow', (python, '-c', 'import time; time.sleep(60)'), 0.5); "
        "state = g.State(pathlib.Path(sys.argv[1]), False); code = g.run_steps([bad, slow, good], 'cpu', state); "
        "g.run_steps([good, bad], 'cpu', g.State(pathlib.Path(sys.argv[1]), True), time.monotonic()); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    first, second = (part.partition("=== rows")[0].splitlines() for part in done.stdout.split("=== summary\n")[1:])
    assert ["FAILED: ended with 7" in first[0], "FAILED: took longer than 0.5 s" in first[1], first[2].endswith("ok")] == [True] * 3
    assert second[0].endswith("ok") and "NOT RUN: no time left" in second[1]


def test_the_plain_runner_runs_and_skips() -> None:
    environment = {**os.environ, "DNAPRETRAIN_GPU_TEST_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    script = "import sys; sys.path.insert(0, 'benchmarks'); import gpu_check; sys.exit(gpu_check.run_plainly(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "tests/gpu/test_cuda.py", "tests/gpu/test_transformer_engine.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) > 8
    assert all(line.endswith("skipped: no CUDA device") for line in lines)


def test_a_transformer_engine_that_does_not_load_is_left_out(tmp_path: Path) -> None:
    script = "import os, sys, pathlib; sys.path.insert(0, 'benchmarks'); import gpu_setup; "
    script += "gpu_setup.drop_broken_te(pathlib.Path(sys.argv[1]), {**os.environ, 'PYTHONPATH': sys.argv[1]})"
    said = {}
    for name, loads in (("broken", False), ("whole", True)):
        site = tmp_path / name
        (site / "transformer_engine" / "pytorch").mkdir(parents=True)
        (site / "transformer_engine_torch.so").touch()
        (site / "other.py").touch()
        (site / "transformer_engine" / "__init__.py").write_text("" if loads else "raise RuntimeError('no such library')")
        (site / "transformer_engine" / "pytorch" / "__init__.py").touch()
        command = [sys.executable, "-c", script, str(site)]
        said[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "no such library" in said["broken"] and not said["whole"]
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["other.py"]
    assert len(list((tmp_path / "whole").iterdir())) == 3

"""Everything that needs a GPU, in one command: `make gpu-check`.

Runs from a clone on a CUDA machine, without network and without an installed dnapretrain: it builds the native
core in place where it is missing, and takes missing packages from wheels in the folder `.whl/`. Each step is a
process of its own with a time limit; a step that fails is recorded and the others still run. Ends with rows for BENCHMARKS.md.

    python benchmarks/gpu_check.py --part tests --part te           # every path against the plain one
    python benchmarks/gpu_check.py --part speed --part roofline     # two real workloads beside others, and beside the machine's limits
    python benchmarks/gpu_check.py --part sizes                     # 50 M to 3 G weights, bf16 and FP8
    python benchmarks/gpu_check.py --device cpu                     # a rehearsal of this script on the CPU, tiny models

Without --part all parts run. --minutes N ends the whole in time: what is left is recorded as not run. Outcomes are kept in --state
(default build/gpu_check, also under $OUT where that is set); --resume skips steps that were ok at this commit. Exit code: 0 all ok,
1 something failed or was not run, 2 no CUDA device: nothing was checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_setup import BEGAN, SITE_READY, WHEELS, build_core, is_importable, print_versions, run_with_wheels, use_clone

ROOT = Path(__file__).resolve().parent.parent
LEAST_SECONDS = 15.0
"""A step that has less time than this is not begun."""
LAST_SECONDS = 5.0
"""Of --minutes, for what is printed at the end."""
NEEDED = ("torch", "megatron.core", "numpy", "pydantic", "yaml", "isal", "xxhash", "psutil", "safetensors", "tokenizers", "transformers")
CUDA_TESTS = ("tests/gpu/test_cuda.py",)
TE_TESTS = ("tests/gpu/test_transformer_engine.py", "tests/gpu/test_te_encoders.py", "tests/gpu/test_te_kernels.py")
PARTS = ("tests", "te", "speed", "roofline", "sizes")
COMPARED = {
    "generator-1.2b": (
        *("te", "te-fused", "te-fp8", "transformers-compiled", "minimal", "torch", "te-graphs", "transformers"),
        *("te-fp8-delayed", "te-fp8-blockwise", "te-fp8-graphs", "te-graphs-te", "torch-fused"),
    ),
    "aido-dna-7b-layers": ("te", "te-fused", "te-fp8", "minimal", "torch", "transformers"),
}
"""Workload -> contestants, the most telling first: what the time does not reach is recorded as not run."""
SIZES = {
    "nt-v2-50m": ("te", "torch"),
    "nt-v2-500m": ("te", "te-fp8", "torch"),
    "generator-1.2b-4k": ("te-fused", "te-fp8", "torch", "transformers-compiled", "minimal"),
    "generator-3b": ("te-fused", "te-fp8", "torch", "minimal"),
}
REHEARSED = {"tiny": ("torch", "te", "minimal"), "tiny-aido": ("transformers",)}


@dataclass(frozen=True)
class Step:
    """One part of the check: a command and the time it may take."""

    name: str
    command: tuple[str, ...]
    limit_seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse this script with tiny models")
    parser.add_argument("--part", choices=PARTS, action="append", help="run only these parts (repeatable)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="be done after so long; what is left is recorded as not run (default 60)"
    )
    parser.add_argument("--resume", action="store_true", help="skip steps that were ok at this commit")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu_check", help="where outcomes and records are kept")
    arguments = parser.parse_args()
    # Of the first of the two processes that this is with wheels: what they unpack and build counts too.
    began = float(os.environ.setdefault(BEGAN, str(time.monotonic())))
    if arguments.device == "cuda" and not cuda_is_available():
        print("torch finds no CUDA device here: NOTHING WAS CHECKED. --device cpu rehearses this script.")
        return 2
    if SITE_READY not in os.environ and any(WHEELS.glob("*.whl")):
        return run_with_wheels()
    use_clone()
    if missing := [name for name in NEEDED if not is_importable(name)]:
        print(f"missing packages: {', '.join(missing)}. Install them, or put their wheels into {WHEELS}/.")
        return 1
    if not is_importable("dnapretrain._core"):
        build_core()
    print_versions()
    state = State(arguments.state, arguments.resume)
    chosen = steps(arguments.device, tuple(arguments.part or PARTS), state.records)
    return run_steps(chosen, arguments.device, state, began + 60 * arguments.minutes - LAST_SECONDS)


class State:
    """What is kept from call to call: outcomes of steps by name, and the records of the benchmarks."""

    def __init__(self, folder: Path, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.records, self.file = folder / "records.jsonl", folder / "outcomes.json"
        if not resume:
            self.records.unlink(missing_ok=True)
            self.file.unlink(missing_ok=True)
        self.outcomes: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def was_ok(self, step: Step) -> bool:
        """Whether an earlier call has done this step at this commit."""
        from bench_train import commit

        before = self.outcomes.get(step.name, {})
        return before.get("became") == "ok" and before.get("commit") == commit() and before.get("command") == list(step.command)

    def note(self, step: Step, became: str, seconds: float, rows: list[str]) -> None:
        """Keep an outcome; it is on disk when this returns, and under $OUT where that is set."""
        from bench_train import commit

        self.outcomes[step.name] = {
            "became": became,
            "seconds": seconds,
            "rows": rows,
            "commit": commit(),
            "command": list(step.command),
        }
        self.file.write_text(json.dumps(self.outcomes, indent=1))
        if out := os.environ.get("OUT"):
            Path(out, "gpu_check.json").write_text(self.file.read_text())
            if self.records.exists():
                Path(out, "gpu_check_records.jsonl").write_text(self.records.read_text())


def steps(device: str, parts: tuple[str, ...], records: Path) -> list[Step]:
    """The steps of the chosen parts, in order."""
    cuda = device == "cuda"
    chosen = []
    if "tests" in parts:
        selected = CUDA_TESTS if cuda else ("tests/gpu/test_cuda.py::test_bf16_learns",)
        chosen.append(Step("tests on CUDA", tests_command(*selected), 240))
    if "te" in parts:
        files = [(file,) for file in TE_TESTS] if cuda else [TE_TESTS]
        chosen += [Step(f"tests of {', '.join(Path(file).stem for file in some)}", tests_command(*some), 420) for some in files]
    if "speed" in parts:
        chosen += [
            speed_step(workload, name, device, records) for workload, names in (COMPARED if cuda else REHEARSED).items() for name in names
        ]
    if "roofline" in parts:
        for workload in COMPARED if cuda else REHEARSED:
            more = ("--device", "cpu", "--repeats", "2") if not cuda else ()
            command = (sys.executable, "benchmarks/gpu_roofline.py", "--workload", workload, "--json", str(records), *more)
            chosen.append(Step(f"roofline, {workload}", command, 90))
    if "sizes" in parts:
        chosen += [speed_step(workload, name, device, records) for workload, names in SIZES.items() for name in names if cuda]
    return chosen


def speed_step(workload: str, contestant: str, device: str, records: Path) -> Step:
    """One contestant on one workload."""
    command = (sys.executable, "-W", "ignore", "benchmarks/gpu_speed.py", "--workload", workload, "--contestant", contestant)
    more = ("--device", "cpu", "--steps", "2", "--warm-up", "1") if device == "cpu" else ()
    is_compiled = contestant in ("transformers-compiled", "minimal")  # all of its layers, before the first step
    return Step(f"speed, {workload}, {contestant}", (*command, "--json", str(records), *more), 240 if is_compiled else 150)


def tests_command(*selected: str) -> tuple[str, ...]:
    """pytest over `selected`, or where pytest is missing this file's own runner."""
    if is_importable("pytest"):
        # -vv: a line for each test as it ends, which is what is left of a step that runs out of time.
        return (sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-rs", "--durations=5", *selected)
    return (sys.executable, "-c", "import sys; from gpu_check import run_plainly; sys.exit(run_plainly(sys.argv[1:]))", *selected)


def run_plainly(selected: list[str]) -> int:
    """Run test functions without pytest: `FILE` or `FILE::NAME`. Returns 1 if any failed."""
    from unittest import SkipTest

    failures = 0
    for item in selected:
        file, _, only = item.partition("::")
        path = ROOT / file
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in [only] if only else [name for name in vars(module) if name.startswith("test_")]:
            try:
                getattr(module, name)()
                outcome = "passed"
            except SkipTest as reason:
                outcome = f"skipped: {reason}"
            except Exception:
                traceback.print_exc()
                outcome, failures = "FAILED", failures + 1
            print(f"{file}::{name} {outcome}", flush=True)
    return 1 if failures else 0


def run_steps(chosen: list[Step], device: str, state: State, deadline: float = float("inf")) -> int:
    """Run every step, then print what became of each and the rows. Returns 1 if any failed or was not run.

    `deadline`, on time.monotonic's clock: no step runs past it.
    """
    for step in chosen:
        print(f"\n=== {step.name}\n$ {' '.join(step.command)}", flush=True)
        if state.was_ok(step):
            print("was ok at this commit")
            continue
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            state.note(step, "NOT RUN: no time left; --resume goes on here", 0.0, [])
            continue
        run_and_note(dataclasses.replace(step, limit_seconds=min(step.limit_seconds, left)), device, state)
    outcomes = {step.name: state.outcomes[step.name] for step in chosen}
    rows = [line for outcome in outcomes.values() for line in outcome["rows"]]
    print("\n=== rows for BENCHMARKS.md\n| date | what | value | hardware | commit | command |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    print("\n=== summary")
    for name, outcome in outcomes.items():
        print(f"{name:44} {outcome['seconds']:6.1f} s  {outcome['became']}")
    return 1 if any(outcome["became"].startswith(("FAILED", "NOT RUN")) for outcome in outcomes.values()) else 0


def run_and_note(step: Step, device: str, state: State) -> None:
    """Run one step and keep what became of it, with its rows."""
    from bench_train import row

    handle, name = tempfile.mkstemp(prefix="gpu_check_")
    os.close(handle)
    results, started = Path(name), time.perf_counter()
    code, output = run_step(step, {"DNAPRETRAIN_GPU_RESULTS": str(results), "DNAPRETRAIN_GPU_TEST_DEVICE": device})
    became = "ok" if code == 0 else f"FAILED: ended with {code}" if code else f"FAILED: took longer than {step.limit_seconds:.3g} s"
    if code == 0 and "tests" in step.name and not any(" passed" in line for line in output):
        became = "SKIPPED: no test ran, the reason is above"
    if code == 0 and (skipped := [line for line in output if line.startswith("SKIPPED: ")]):
        became = skipped[0]
    command = f"python benchmarks/gpu_check.py{' --device cpu' if device == 'cpu' else ''}"
    rows = [row(*(part.strip() for part in line.split(" | ", 1)), command) for line in results.read_text().splitlines()]
    rows += [line for line in output if line.startswith("| ")]
    if became.startswith("FAILED"):
        last = next((line for line in reversed(output) if line.strip()), "no output")
        rows.append(row(step.name, f"{became}: {last[:200].replace('|', '/')}", command))
    results.unlink()
    state.note(step, became, time.perf_counter() - started, rows)


def run_step(step: Step, environment: dict[str, str]) -> tuple[int | None, list[str]]:
    """Exit code (None: took too long) and lines of output, which are also passed on as they come."""
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children end with it
    )
    out_of_time = threading.Event()

    def stop() -> None:
        out_of_time.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(step.limit_seconds, stop)
    timer.start()
    output = []
    try:
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            output.append(line.rstrip("\n"))
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return (None if out_of_time.is_set() else code), output


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())

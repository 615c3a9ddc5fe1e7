"""Everything that needs a GPU, in one command: `make gpu-check`.

Runs from a clone on a CUDA machine, without network and without an installed dnapretrain: it builds the native
core in place where it is missing, and takes missing packages from wheels in the folder `.whl/`. Each step is a
process of its own; a step that fails is reported and the others still run. Ends with rows for BENCHMARKS.md.

    python benchmarks/gpu_check.py                  # tests, Transformer Engine, benchmarks: about 6 minutes
    python benchmarks/gpu_check.py --device cpu     # a rehearsal of this script on the CPU, tiny model
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / ".whl"
SITE_READY = "DNAPRETRAIN_GPU_CHECK_SITE"
NEEDED = ("torch", "megatron.core", "numpy", "pydantic", "yaml", "isal", "xxhash", "psutil", "safetensors", "tokenizers", "transformers")
TE_TESTS = ("tests/gpu/test_transformer_engine.py", "tests/gpu/test_te_encoders.py")
PRINTED = ("torch", "megatron-core", "transformer-engine", "triton", "transformers", "numpy", "pytest")


@dataclass(frozen=True)
class Step:
    """One part of the check: a command and the time it may take."""

    name: str
    command: tuple[str, ...]
    limit_seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse this script with a tiny model")
    parser.add_argument("--only", choices=("tests", "te", "bench"), action="append", help="run only these parts (repeatable)")
    arguments = parser.parse_args()
    if SITE_READY not in os.environ and any(WHEELS.glob("*.whl")):
        return run_with_wheels()
    use_clone()
    if missing := [name for name in NEEDED if not is_importable(name)]:
        print(f"missing packages: {', '.join(missing)}. Install them, or put their wheels into {WHEELS}/.")
        return 1
    if not is_importable("dnapretrain._core"):
        build_core()
    print_versions()
    if arguments.device == "cuda" and not cuda_is_available():
        print("torch finds no CUDA device here: nothing was checked. --device cpu rehearses this script.")
        return 1
    return run_steps(steps(arguments.device, arguments.only or ("tests", "te", "bench")), arguments.device)


def steps(device: str, parts: tuple[str, ...]) -> list[Step]:
    """The steps of the chosen parts, in order."""
    python, bench = sys.executable, "benchmarks/bench_train.py"
    cuda_tests = ("tests/gpu/test_cuda.py",) if device == "cuda" else ("tests/gpu/test_cuda.py::test_bf16_learns",)
    chosen = []
    if "tests" in parts:
        chosen.append(Step("tests on CUDA", tests_command(*cuda_tests), 240))
    if "te" in parts:
        chosen.append(Step("tests of Transformer Engine", tests_command(*TE_TESTS), 300))
    if "bench" in parts and device == "cuda":
        chosen.append(Step("benchmark, 120 M weights", (python, bench, "--device", "cuda", "--size", "120m"), 120))
        chosen.append(Step("benchmark, 1.2 G weights", (python, bench, "--device", "cuda", "--size", "1.2b"), 180))
    elif "bench" in parts:
        chosen.append(
            Step(
                "benchmark",
                (python, bench, "--device", "cpu", "--size", "tiny", "--precision", "fp32", "--steps", "2", "--warm-up", "1"),
                120,
            )
        )
    return chosen


def tests_command(*selected: str) -> tuple[str, ...]:
    """pytest over `selected`, or where pytest is missing this file's own runner."""
    if is_importable("pytest"):
        return (sys.executable, "-m", "pytest", "-m", "gpu", "-rs", *selected)
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


def run_steps(chosen: list[Step], device: str) -> int:
    """Run every step, then print what became of each and the rows. Returns 1 if any failed."""
    from bench_train import row

    results = Path(tempfile.mkstemp(prefix="gpu_check_")[1])
    outcomes, rows = [], []
    for step in chosen:
        print(f"\n=== {step.name}\n$ {' '.join(step.command)}", flush=True)
        started = time.perf_counter()
        code, output = run_step(step, {"DNAPRETRAIN_GPU_RESULTS": str(results), "DNAPRETRAIN_GPU_TEST_DEVICE": device})
        became = "ok" if code == 0 else f"FAILED: ended with {code}" if code else f"FAILED: took longer than {step.limit_seconds:g} s"
        if code == 0 and "tests" in step.name and not any(" passed" in line for line in output):
            became = "SKIPPED: no test ran, the reason is above"
        outcomes.append((step.name, became, time.perf_counter() - started))
        rows += [line for line in output if line.startswith("| ")]
    command = f"python benchmarks/gpu_check.py{' --device cpu' if device == 'cpu' else ''}"
    measured = [row(*(part.strip() for part in line.split(" | ", 1)), command) for line in results.read_text().splitlines()]
    results.unlink()
    print("\n=== rows for BENCHMARKS.md\n| date | what | value | hardware | commit | command |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(measured + rows))
    print("\n=== summary")
    for name, became, seconds in outcomes:
        print(f"{name:30} {seconds:6.1f} s  {became}")
    return 1 if any(became.startswith("FAILED") for _, became, _ in outcomes) else 0


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


def run_with_wheels() -> int:
    """Install the wheels into a temporary folder and run this script again with them. Returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="gpu_check_site_") as site:
        # One command: Transformer Engine's wheels share a folder, which a second `--target --upgrade` would replace.
        options = ("-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", site)
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, sorted(WHEELS.glob("*.whl")))], check=True)
        environment = {**os.environ, SITE_READY: site, "PYTHONPATH": joined(site, os.environ.get("PYTHONPATH"))}
        # The CUDA libraries that torch brought come first: a system toolkit may hold some of them and lack others.
        libraries = [str(folder) for root in nvidia_folders() for folder in (root / "cu13/lib", root / "cudnn/lib") if folder.is_dir()]
        environment["LD_LIBRARY_PATH"] = joined(*libraries, os.environ.get("LD_LIBRARY_PATH"))
        toolkit = Path("/usr/local/cuda/include")
        if toolkit.is_dir():
            environment.setdefault("NVTE_CUDA_INCLUDE_DIR", str(toolkit))
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def joined(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)


def nvidia_folders() -> list[Path]:
    """Folders of the namespace package `nvidia`, where torch's CUDA libraries lie."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


def use_clone() -> None:
    """Make `dnapretrain` importable here and in the steps: an installed one, else the clone's."""
    if not is_importable("dnapretrain"):
        sys.path.insert(0, str(ROOT))
    path = [str(ROOT / "benchmarks"), *([str(ROOT)] if str(ROOT) in sys.path else [])]
    os.environ["PYTHONPATH"] = joined(*path, os.environ.get("PYTHONPATH"))


def is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def build_core() -> None:
    """Compile csrc/ in place, by the build script where pybind11 is installed, else (or if that fails) with torch's copy of its headers."""
    if is_importable("pybind11"):
        print("building the native core: setup.py build_ext --inplace", flush=True)
        build = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, check=False)
        if build.returncode == 0:
            importlib.invalidate_caches()
            return
    compile_core(ROOT / "dnapretrain")


def compile_core(folder: Path) -> Path:
    """Compile csrc/ into the extension module `folder`/_core, with the pybind11 headers that torch ships; return its path."""
    torch = importlib.util.find_spec("torch")
    headers = Path(torch.origin).parent / "include" if torch and torch.origin else Path()
    if not (headers / "pybind11").is_dir():
        raise SystemExit("cannot build the native core: torch's folder include/pybind11 is missing. Install pybind11.")
    target = folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    includes = [f"-I{path}" for path in (ROOT / "csrc", headers, sysconfig.get_path("include"))]
    sources = sorted(str(path) for path in (ROOT / "csrc").glob("*.cpp"))
    print(f"building the native core with torch's pybind11 headers: {target}", flush=True)
    subprocess.run([os.environ.get("CXX", "g++"), *flags, *includes, *sources, "-o", str(target)], check=True)
    importlib.invalidate_caches()
    return target


def print_versions() -> None:
    """What runs here, one line each."""
    import torch

    import dnapretrain

    print(f"{'python':20} {platform.python_version()}")
    print(f"{'dnapretrain':20} {dnapretrain.__version__} ({Path(dnapretrain.__file__).parent})")
    for name in PRINTED:
        try:
            print(f"{name:20} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:20} not installed")
    if torch.cuda.is_available():
        print(f"{'device':20} {torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
        print(f"{'CUDA, cuDNN, NCCL':20} {torch.version.cuda}, {torch.backends.cudnn.version()}, {torch.cuda.nccl.version()}")


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())

"""Makes a clone run on a machine as it is: wheels from `.whl/`, the native core built in place, versions printed. For `gpu_check.py`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / ".whl"
SITE_READY = "DNAPRETRAIN_GPU_CHECK_SITE"
BEGAN = "DNAPRETRAIN_GPU_CHECK_BEGAN"
IMPORT_SECONDS = 120
PRINTED = ("torch", "megatron-core", "transformer-engine", "triton", "transformers", "numpy", "pytest")


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
        drop_broken_te(Path(site), environment)
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def drop_broken_te(site: Path, environment: dict[str, str]) -> None:
    """Take Transformer Engine out of `site` where it does not load: Megatron-core's own imports would end with its error."""
    if not (site / "transformer_engine").is_dir():
        return
    command = [sys.executable, "-W", "ignore", "-c", "import torch, transformer_engine.pytorch"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=IMPORT_SECONDS)
        problem = f"{done.stderr[-3000:]}its import ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"its import takes longer than {IMPORT_SECONDS} s"
    if problem:
        print(f"Transformer Engine does not load here; all else runs without it:\n{problem}", flush=True)
        for path in site.glob("transformer_engine*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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

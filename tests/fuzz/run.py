"""Builds the harnesses of the native core with sanitizers and runs them, then the readers: `make fuzz`, or see README.md."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = "-std=c++17 -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS -Wall -Wextra -Werror"


@dataclass(frozen=True)
class Harness:
    """One libFuzzer program."""

    name: str
    sources: tuple[str, ...]
    """Files of csrc/ that it is linked with."""
    share: float
    """Of all executions: by how dear one is."""
    max_bytes: int = 512


HARNESSES = (
    Harness("fasta", ("fasta.cpp",), 0.15),
    Harness("bases", ("bases.cpp",), 0.20),
    Harness("kmers", ("kmers.cpp",), 0.38),
    Harness("bpe", ("bpe.cpp", "bpe_train.cpp"), 0.02, 1024),
    Harness("sketch", ("sketch.cpp",), 0.10),
    Harness("masking", ("masking.cpp",), 0.15),
)


def build(harness: Harness, folder: Path) -> Path:
    """The program of a harness, built in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"fuzz_{harness.name}"
    sources = [str(HERE / f"fuzz_{harness.name}.cpp"), *(str(ROOT / "csrc" / name) for name in harness.sources)]
    subprocess.run(["clang++", *FLAGS.split(), f"-I{ROOT / 'csrc'}", *sources, "-o", str(program)], check=True)
    return program


def run(harness: Harness, program: Path, runs: int, seed: int) -> tuple[int, int, int]:
    """Exit status, executions, and executions per second. What libFuzzer said goes to PROGRAM.log, a crashing input beside it."""
    corpus = program.with_suffix(".corpus")
    corpus.mkdir(exist_ok=True)
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={harness.max_bytes}", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096"]
    options.append("-print_final_stats=1")
    # Freed memory is kept aside to catch its use; an encoder's table of 20 MB each time would fill what there is.
    environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=64"}
    log = program.with_suffix(".log")
    with log.open("w") as file:
        status = subprocess.run(
            [program, *options, f"-artifact_prefix={program}.crash-", corpus], stderr=file, env=environment, check=False
        ).returncode
    text = log.read_text(errors="replace")
    executions, speed = (re.search(rf"stat::{name}:\s+(\d+)", text) for name in ("number_of_executed_units", "average_exec_per_sec"))
    return status, int(executions[1]) if executions else 0, int(speed[1]) if speed else 0


def main() -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(description="Fuzz the native core and the readers")
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of the C++ harnesses together; the readers get a tenth")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer and of the readers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="programs, corpora, logs, crashing inputs")
    parser.add_argument("--only", choices=[harness.name for harness in HARNESSES] + ["readers"])
    given = parser.parse_args()
    if not shutil.which("clang++"):
        print("error: no clang++. Install clang and its sanitizer runtime (Debian: clang, libclang-rt-dev)", file=sys.stderr)
        return 1
    failed = []
    for harness in HARNESSES:
        if given.only not in (None, harness.name):
            continue
        program = build(harness, given.folder)
        status, executions, speed = run(harness, program, round(given.runs * harness.share), given.seed)
        print(f"{harness.name:<10} {executions:>9,} executions {speed:>8,} per second  {'ok' if status == 0 else f'FAILED: {program}.log'}")
        sys.stdout.flush()
        failed += [harness.name] if status else []
    if given.only in (None, "readers"):
        command = [sys.executable, str(HERE / "fuzz_readers.py"), "--runs", str(given.runs // 10), "--seed", str(given.seed)]
        failed += ["readers"] if subprocess.run([*command, "--folder", str(given.folder)], check=False).returncode else []
    if failed:
        print(f"found something in: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds the native core, `dnapretrain._core`; everything else is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile("NPY_NUM_BUILD_JOBS").install()

# No -march=native: the core is often built on a login node with another processor than the compute
# nodes'. Fast paths are chosen at run time. `make check` sets DNAPRETRAIN_CXXFLAGS="-Wall -Wextra -Werror".
core = Pybind11Extension(
    "dnapretrain._core",
    sources=sorted(str(path) for path in Path("csrc").glob("*.cpp")),
    depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-fvisibility=hidden", *os.environ.get("DNAPRETRAIN_CXXFLAGS", "").split()],
)

setup(ext_modules=[core], cmdclass={"build_ext": build_ext})

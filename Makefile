# make demo    set-up and the quickstart: one genome from FASTA to a Hugging Face folder, on CPU
# make test    set-up and the whole test suite, on CPU
# make check   format, lint, types, and the C++ core with warnings as errors
# make bench   speed of the parts, beside rivals measured in the same run
# make test-slurm   runs on a real Slurm, started on this machine; as root on Debian or Ubuntu it installs Slurm first
# make fuzz    the parsers of the C++ core under sanitizers (needs clang++), and the readers, with FUZZ_RUNS damaged inputs
# make chaos   a run on four ranks, killed, stopped, its checkpoints damaged, its disk filled, CHAOS_ROUNDS times at random
# make gpu-check   on a CUDA machine: every path against the plain one, speed beside others and beside a roofline (ARGS='--part tests')

PYTHON ?= python3
TEST_JOBS ?= 2
FUZZ_RUNS ?= 1000000
CHAOS_ROUNDS ?= 50
CHAOS_SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION := 2.13.0
ifneq ($(wildcard ../shared/data),)
export DNAPRETRAIN_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test test-slurm check bench fuzz chaos gpu-check setup clean

setup: $(VENV)/.installed

# torch first: with it in place nothing that depends on it fetches another build.
$(VENV)/.installed: pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h)
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON). Install Python 3.11 or newer, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11. Set PYTHON=python3.11 or newer"; exit 1; }
	@command -v g++ >/dev/null || { echo "error: no g++. Install gcc and g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check torch==$(TORCH_VERSION)
	$(BIN)/pip install --quiet --disable-pip-version-check setuptools wheel pybind11
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	touch $@

demo: setup
	rm -rf runs/quickstart
	$(BIN)/python examples/quickstart/run.py

test: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) --durations=25 -m "not gpu and not slurm"

SLURM_PACKAGES := slurm-wlm slurm-wlm-basic-plugins slurm-client munge

test-slurm: setup
	@set -e; if ! command -v slurmctld >/dev/null && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES) >/dev/null; } || true; fi; \
	if command -v slurmctld >/dev/null; then $(BIN)/python -m pytest -m slurm tests/slurm; else \
	  echo "SKIPPED: the Slurm tests were NOT run: no slurmctld here, and apt-get (as root) did not bring $(SLURM_PACKAGES)"; fi

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	DNAPRETRAIN_CXXFLAGS="-Wall -Wextra -Werror" $(BIN)/python setup.py --quiet build_ext --force --build-lib build/check --build-temp build/check-temp

bench: setup
	$(BIN)/python -W ignore benchmarks/bench_preprocess.py --mbases 400 --rounds 3
	$(BIN)/python benchmarks/bench_samples.py
	$(BIN)/python -W ignore benchmarks/bench_rivals.py
	$(BIN)/python benchmarks/bench_bpe.py examples/quickstart/data/NC_017625.1.fa.gz
	$(BIN)/python benchmarks/bench_train.py --device cpu

fuzz: setup
	$(BIN)/python tests/fuzz/run.py --runs $(FUZZ_RUNS)

chaos: setup
	$(BIN)/python tests/chaos/chaos.py --rounds $(CHAOS_ROUNDS) --seed $(CHAOS_SEED) --ranks 4

# Needs no set-up: runs in the machine's own Python, which has torch for its GPU.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dnapretrain.egg-info dnapretrain/_core*.so

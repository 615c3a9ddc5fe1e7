"""train.deterministic: what it sets, what it refuses, and that CPU runs do not change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import training

from dnapretrain.parallel.determinism import VARIABLES, determinism

ASK = """
import os, torch
from dnapretrain.errors import ConfigError
from dnapretrain.parallel.determinism import VARIABLES, make_deterministic
try:
    make_deterministic(is_cuda={is_cuda})
except ConfigError as error:
    print(error)
print(torch.are_deterministic_algorithms_enabled(), *(os.environ.get(name) for name in VARIABLES))
"""


def ask(is_cuda, **environment):
    """What a fresh process says: the settings belong to the whole process."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    code = ASK.format(is_cuda=is_cuda)
    return subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True).stdout


def test_cuda_gets_the_three_libraries_set():
    assert ask(True) == "True :4096:8 0 ^NVLS\n"
    assert ask(True, NCCL_ALGO="Ring", CUBLAS_WORKSPACE_CONFIG=":16:8") == "True :16:8 0 Ring\n"


def test_an_environment_that_wants_the_contrary_is_refused():
    said = ask(True, NVTE_ALLOW_NONDETERMINISTIC_ALGO="1")
    assert "NVTE_ALLOW_NONDETERMINISTIC_ALGO to be one of 0; it is 1" in said and "\nFalse " in said


def test_nothing_is_set_on_cpu():
    assert ask(False) == "False None None None\n"


@pytest.mark.parametrize(("wanted", "is_cuda", "says"), [(True, False, "bit for bit"), (True, True, "only"), (False, True, "may differ")])
def test_the_run_says_what_it_relies_on(wanted, is_cuda, says):
    assert says in determinism(wanted, is_cuda)


def test_cpu_runs_are_what_they_were(ranks, tiny_config):
    plain, again = (
        ranks.run(1, training.train, tree=tiny_config(name, **{"train.deterministic": wanted}), until=3)[0]
        for name, wanted in (("plain", False), ("again", True))
    )
    assert plain.losses == again.losses and "determinism: CPU ranks repeat themselves" in again.log

"""Ranks with Transformer Engine's Python, for the tests of its layers and of CUDA graphs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import te_on_cpu
from ranks import RankPool


@pytest.fixture(scope="module")
def te_ranks(tmp_path_factory):
    """CPU ranks that have Transformer Engine's Python."""
    given = os.environ.get(te_on_cpu.FOLDER)
    if not given:
        pytest.skip(f"{te_on_cpu.FOLDER} is not set (the wheel transformer_engine-{te_on_cpu.VERSION}-py3-none-any.whl, unpacked or not)")
    folder = Path(given)
    if folder.is_file():
        folder = tmp_path_factory.mktemp("te")
        zipfile.ZipFile(given).extractall(folder)
    os.environ[te_on_cpu.FOLDER] = str(folder)
    pool = RankPool(imports="te_on_cpu")  # before Megatron-core
    yield pool
    pool.close()
    os.environ[te_on_cpu.FOLDER] = given

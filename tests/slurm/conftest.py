"""A real Slurm on this machine: slurmctld and three slurmd, for as long as the session lasts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from slurm_support import COMMAND, ENVIRONMENT, NODES, ROOT, STEPS, Cluster, settings_of, write_script


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """slurmctld and three slurmd, which stop with the session."""
    if not shutil.which("slurmctld"):
        pytest.skip("no Slurm on this machine: make test-slurm installs it")
    script = str(Path(__file__).with_name("slurm-local.sh"))
    folder = tmp_path_factory.mktemp("slurm")
    settings = {"SLURM_LOCAL_DIR": str(folder), "SLURM_LOCAL_NODES": str(NODES), "SLURM_LOCAL_GPUS": "2", "SLURM_LOCAL_PORT": "16917"}
    os.environ.update(settings, SLURM_CONF=str(folder / "slurm.conf"))
    try:
        subprocess.run([script, "start"], check=True, timeout=600, stdout=subprocess.DEVNULL)
        yield
    finally:
        subprocess.run([script, "stop"], check=False, timeout=600)
        for name in (*settings, "SLURM_CONF"):
            os.environ.pop(name, None)


@pytest.fixture(scope="module")
def cluster(slurm: None, small_shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A folder with a tiny model's settings, its script for 2 nodes x 2 ranks, and an environment."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings_of(small_shard)))
    (folder / ".venv" / "bin").mkdir(parents=True)
    binaries = folder / ".venv" / "bin"
    (binaries / "activate").write_text(ENVIRONMENT.format(bin=binaries, python=Path(sys.executable).parent, root=ROOT))
    (binaries / "dnapretrain").write_text(COMMAND.format(python=sys.executable))
    (binaries / "dnapretrain").chmod(0o755)
    cluster = Cluster(folder)
    cluster.pause(0)
    write_script(folder, "tiny")
    return cluster


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> dict[int, set[float]]:
    """The losses of a run without a stop, on the same four ranks, started by our own launcher."""
    command = [sys.executable, "-m", "dnapretrain", "pretrain", "tiny.yaml", "parallel.tp=2", "train.run_dir=whole", "--ranks", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=cluster.folder, env=environment, check=True, timeout=1800, stdout=subprocess.DEVNULL)
    losses = cluster.losses("whole")
    assert sorted(losses) == list(range(1, STEPS + 1)) and all(len(of_step) == 1 for of_step in losses.values())
    return losses

"""Batch scripts: equal to what stands in examples/, sound bash, the plan's layout; on a real Slurm see tests/slurm."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dnapretrain.cli import main
from dnapretrain.config_file import load_config, recipe_names
from dnapretrain.config_rules import check_world
from dnapretrain.errors import ConfigError
from dnapretrain.parallel.gpus import gpu_by_kind
from dnapretrain.parallel.slurm_job import CONTAINERS, LAUNCHERS, SlurmJob, job_seconds
from dnapretrain.plan.make import make_plan
from dnapretrain.slurm import layout_overrides, preprocess_script, pretrain_script

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "slurm"
MODELS = [name for name in recipe_names() if not name.startswith("tiny-")]


def test_every_published_model_has_a_script():
    assert sorted(path.stem for path in EXAMPLES.glob("*.sbatch")) == sorted([*MODELS, "preprocess"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sbatch")), ids=lambda path: path.stem)
def test_examples_are_what_the_command_writes(path, tmp_path):
    written = re.search(r"^# Written by: dnapretrain (.*)$", path.read_text(), re.MULTILINE)
    assert main([*shlex.split(written[1]), "--output", str(tmp_path / path.name)]) == 0
    assert (tmp_path / path.name).read_text() == path.read_text()
    assert not re.search(r"(^|[\s=\"'])/(home|work|tmp|root|Users)/", path.read_text())


def test_scripts_are_sound_bash(tmp_path):
    for container in CONTAINERS:
        for launcher in LAUNCHERS:
            job = SlurmJob(partition="main", account="x", container=container, launcher=launcher, exclude="node[3,7]")
            (tmp_path / "run.sbatch").write_text(pretrain_script("tiny-nt-v2", ["train.run_dir=a b"], job))
            subprocess.run(["bash", "-n", tmp_path / "run.sbatch"], check=True)
    (tmp_path / "many.sbatch").write_text(preprocess_script(3, SlurmJob(partition="main")))
    subprocess.run(["bash", "-n", tmp_path / "many.sbatch"], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, tmp_path / "run.sbatch", tmp_path / "many.sbatch"], check=True)


def test_header_asks_for_what_was_wanted():
    job = SlurmJob(nodes=2, gpus_per_node=4, time="2-0", margin=300, partition="long", exclude="node[3,7]", cpus_per_task=3)
    script = pretrain_script("nt-v2-500m", [], job)
    options = re.findall(r"^#SBATCH --(\S+)$", script, re.MULTILINE)
    wanted = "nodes=2 ntasks-per-node=4 gpus-per-node=4 cpus-per-task=3 partition=long exclude=node[3,7] time=2-0 signal=B:USR2@300 requeue"
    assert set(wanted.split()) <= set(options)
    assert "@@" not in script.replace("USR2@300", "")


def test_the_layout_is_legal_and_the_settings_win():
    script = pretrain_script("generator-3b", [], SlurmJob(nodes=4))
    (command,) = re.findall(r"^command=\(dnapretrain pretrain (.*) \"\$@\"\)$", script, re.MULTILINE)
    source, *overrides = shlex.split(command)
    check_world(load_config(source, overrides), 32)
    own = pretrain_script("generator-3b", ["parallel.tp=4", "train.micro_batch_size=1"], SlurmJob(nodes=4))
    assert "generator-3b parallel.tp=4 train.micro_batch_size=1 " in own and "tensor 4 x" in own
    context = pretrain_script("generator-3b", ["parallel.cp=8"], SlurmJob(nodes=4))
    assert "generator-3b parallel.cp=8 " in context and " x context 8 x " in context.replace("\n#", "")


def test_the_simplest_of_equally_fast_layouts_is_taken():
    plan = make_plan(load_config("generator-3b"), 32, gpu_by_kind("h100"))
    first = plan["best_layouts"][0]
    assert first["cp"] > 1  # a little faster by formula than any without context parallelism
    script = pretrain_script("generator-3b", [], SlurmJob(nodes=4))
    assert "tensor 2 x pipeline 1 x data 16" in script
    (simple,) = [layout for layout in plan["best_layouts"] if (layout["tp"], layout["cp"], layout["pp"]) == (2, 1, 1)]
    assert simple["seconds_per_step"] < 1.05 * first["seconds_per_step"]


@pytest.mark.parametrize(
    ("settings", "job", "message"),
    [
        ([], {"nodes": 0}, "--nodes = 0 is below 1"),
        ([], {"time": "soon"}, "not a time limit"),
        ([], {"time": "5", "margin": 300}, "is not below --time"),
        ([], {"margin": 100}, "train.slurm_margin = 180 s is not below --margin = 100"),
        ([], {"partition": "a b"}, "has a blank"),
        ([], {"launcher": "mpirun"}, "none of srun, torchrun"),
        ([], {"gpu": "abacus"}, "abacus"),
        (["parallel.tp=3"], {}, "divisible"),
        ([], {"nodes": 7}, "no layout is legal on 56 x h100"),
    ],
)
def test_mistakes_are_told(settings, job, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        pretrain_script("nt-v2-500m", settings, SlurmJob(**job))


def test_a_model_that_does_not_fit():
    with pytest.raises(ConfigError, match="fits 1 x a10"):
        pretrain_script("aido-dna-7b", [], SlurmJob(gpus_per_node=1, gpu="a10"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("1-0", 86400), ("1-2:30", 95400), ("0-0:0:5", 5)]
)
def test_time_limits_of_slurm(text, seconds):
    assert job_seconds(text) == seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["preprocess"], "wants --array"), (["nt-v2-50m"], "wants --nodes"), (["preprocess", "a=1", "--array", "2"], "not for preprocess")],
)
def test_command_line_mistakes(arguments, message, capsys):
    assert main(["slurm", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_uneven_pipelines_get_their_ends():
    config = load_config("nt-v2-500m")
    layout = {
        "tp": 1,
        "cp": 1,
        "cp_comm_type": "p2p",
        "pp": 2,
        "vpp": None,
        "layers": [15, 14],
        "sequence_parallel": False,
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "micro_batch_size": 4,
        "recompute": "full",
    }
    tried = load_config("nt-v2-500m", layout_overrides(layout, config))
    parallel = tried.parallel
    assert (parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage) == (15, 14)
    check_world(tried, 16)

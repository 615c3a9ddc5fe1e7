"""`dnapretrain slurm`: a batch script for a run, with the layout of the plan, and one for an array of preprocessing jobs.

The text of both is in scripts/, where `@@NAME@@` stands for what is filled in here. They contain no path of a machine: everything
is found from the folder that `sbatch` is called in.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnapretrain.config_file import load_config
from dnapretrain.errors import ConfigError
from dnapretrain.parallel.gpus import gpu_by_kind
from dnapretrain.parallel.slurm_job import PREPROCESS, SlurmJob
from dnapretrain.plan.layouts import layout_overrides
from dnapretrain.plan.make import make_plan

SCRIPTS = Path(__file__).resolve().parent / "scripts"
LAYOUT_SETTINGS = ("parallel.", "train.micro_batch_size", "train.recompute")
"""An override of one of these asks for the layout of the file instead of the plan's."""
MEMORY_PER_CPU = "4G"
"""Of a preprocessing task."""
FORMULA_ERROR = 0.05
"""Share of a step's time within which layouts count as equally fast: `plan --calibration` has 4 % on average."""
MEMORY_TO_SPARE = 0.1
"""Share of the GPU's memory."""
WRITTEN_BY = "Written by: "
"""Begins the line of a script with the command that writes it again."""


def pretrain_script(source: str, overrides: Sequence[str], job: SlurmJob, file: str = "") -> str:
    """A script that `sbatch` takes as it is: `dnapretrain pretrain SOURCE OVERRIDES` on the GPUs of `job`.

    The layout is the plan's first that fits, or the file's own where `overrides` name one. `file` is what the script will be called,
    for its own comments. Raises ConfigError when no layout fits, or for settings that are out of range.
    """
    job.check()
    config = load_config(source, overrides)
    plan = make_plan(config, job.nodes * job.gpus_per_node, gpu_by_kind(job.gpu))
    own = any(override.startswith(LAYOUT_SETTINGS) for override in overrides)
    layout = _own_layout(plan) if own else _best_layout(plan)
    if config.train.slurm_margin >= job.margin:
        raise ConfigError(
            f"train.slurm_margin = {config.train.slurm_margin:.0f} s is not below --margin = {job.margin} s: the run would stop by itself "
            "before Slurm asks it to. Raise --margin, or lower train.slurm_margin."
        )
    name = re.sub(r"[^\w.-]", "-", Path(source).name.removesuffix(".yaml").removesuffix(".yml"))
    command = [source, *overrides, *([] if own else layout_overrides(layout, config))]
    texts = {
        "HEAD": _head(name, plan, layout, job, _command(source, overrides, job)),
        "NODES": str(job.nodes),
        "GPUS": str(job.gpus_per_node),
        "RESOURCES": _directives(
            f"gpus-per-node={job.gpus_per_node}", f"cpus-per-task={job.cpus_per_task}", *_place(job), *_named("exclude", job.exclude)
        ),
        "MARGIN": str(job.margin),
        "COMMAND": " ".join(shlex.quote(part) for part in command),
    }
    return _filled("pretrain.sbatch", name, job, file, texts)


def preprocess_script(tasks: int, job: SlurmJob, file: str = "") -> str:
    """A script for an array of `tasks` preprocessing jobs and the merge of their shards. Raises ConfigError for values out of range."""
    job.check()
    if tasks < 1:
        raise ConfigError(f"--array = {tasks} is below 1. Give the number of tasks.")
    head = f"# A list of sequence files to one shard, in {tasks} tasks and a merge.\n# {WRITTEN_BY}{_command(PREPROCESS, (), job, tasks)}"
    texts = {
        "HEAD": head,
        "LAST": str(tasks - 1),
        "CPUS": str(job.cpus_per_task),
        "RESOURCES": _directives(f"mem-per-cpu={MEMORY_PER_CPU}", *_place(job), *_named("exclude", job.exclude)),
        "PLACE": " ".join([f"--mem-per-cpu={MEMORY_PER_CPU}", *(f"--{option}" for option in _place(job))]),
    }
    return _filled("preprocess.sbatch", PREPROCESS, job, file, texts)


def _best_layout(plan: dict[str, Any]) -> dict[str, Any]:
    """The simplest of those that are as fast as the first, as far as the formula can tell; with some memory left, where there is one."""
    if plan["best_layouts"]:
        best = plan["best_layouts"]
        slowest = (best[0]["seconds_per_step"] or 0.0) * (1 + FORMULA_ERROR)
        tight = plan["gpu"]["memory_bytes"] * MEMORY_TO_SPARE

        def simplicity(layout: dict[str, Any]) -> tuple[Any, ...]:
            return layout["cp"], layout["pp"], layout["vpp"] or 1, layout["free_bytes"] < tight, layout["tp"]

        # In fp32 no time is said: the first, which leaves most memory, it is then.
        as_fast = [layout for layout in best if slowest and layout["seconds_per_step"] <= slowest]
        simplest: dict[str, Any] = min(as_fast or best[:1], key=simplicity)
        return simplest
    gpus = f"{plan['gpu']['count']} x {plan['gpu']['kind']}"
    if not plan["legal_layouts"]:
        rule = next(iter(plan["refused"]), "no layout is legal")
        raise ConfigError(f"no layout is legal on {gpus}: {rule}. Give another --nodes or --gpus-per-node.")
    raise ConfigError(f"no legal layout fits {gpus}. Give more --nodes, or GPUs with more memory.")


def _own_layout(plan: dict[str, Any]) -> dict[str, Any]:
    gpus = f"{plan['gpu']['count']} x {plan['gpu']['kind']}"
    if plan["own_layout"] is None:
        raise ConfigError(f"the layout of the settings is not legal on {gpus}: {plan['own_layout_problem']}")
    if not plan["own_layout"]["fits"]:
        missing = -plan["own_layout"]["free_bytes"] / 2**30
        raise ConfigError(f"the layout of the settings does not fit {gpus}: {missing:.1f} GiB too much. See dnapretrain plan.")
    return dict(plan["own_layout"])


def _head(name: str, plan: dict[str, Any], layout: dict[str, Any], job: SlurmJob, command: str) -> str:
    days = layout["days"]
    time = "" if days is None else f" {days:,.3g} days by formula (MFU {layout['mfu']:.0%}), if nothing stands still."
    tensor = f"tensor {layout['tp']}" + (f" x context {layout['cp']}" if layout["cp"] > 1 else "")
    text = (
        f"{name} on {job.nodes} node(s) of {job.gpus_per_node} x {job.gpu}: {tensor} x pipeline {layout['pp']} x data "
        f"{layout['dp']}, micro-batches of {layout['micro_batch_size']}, {layout['num_microbatches']} per step, recompute "
        f"{layout['recompute']}; {layout['total_bytes'] / 2**30:.0f} GiB of {plan['gpu']['memory_bytes'] / 2**30:.0f} by formula, not "
        f"measured.{time}"
    )
    lines = textwrap.wrap(text, 128, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in (*lines, f"{WRITTEN_BY}{command}"))


def _command(source: str, overrides: Sequence[str], job: SlurmJob, tasks: int | None = None) -> str:
    """The command line that writes the script again."""
    options = [f"--array {tasks}"] if tasks else [f"--nodes {job.nodes}"]
    for name, default in SlurmJob.__dataclass_fields__.items():
        value = getattr(job, name)
        if name != "nodes" and value != default.default:
            options.append(f"--{name.replace('_', '-')} {shlex.quote(str(value))}")
    return " ".join(["dnapretrain slurm", shlex.quote(source), *(shlex.quote(part) for part in overrides), *options])


def _place(job: SlurmJob) -> list[str]:
    return [*_named("partition", job.partition), *_named("account", job.account)]


def _named(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value else []


def _directives(*options: str) -> str:
    return "\n".join(f"#SBATCH --{option}" for option in options)


def _filled(script: str, name: str, job: SlurmJob, file: str, texts: dict[str, str]) -> str:
    common = {"NAME": name, "FILE": file or f"{name}.sbatch", "TIME": job.time, "CONTAINER": job.container, "IMAGE": job.image}
    filled = {**common, "LAUNCHER": job.launcher, "GO_ON": job.go_on, **texts}
    return re.sub(r"@@([A-Z_]+)@@", lambda match: filled[match[1]], (SCRIPTS / script).read_text())

"""The verb that writes batch scripts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dnapretrain.errors import ConfigError
from dnapretrain.parallel.slurm_job import CONTAINERS, GO_ON, LAUNCHERS, PREPROCESS, SlurmJob


def add_slurm(verbs: Any) -> None:
    verb = verbs.add_parser(
        "slurm",
        help="a batch script for a run, with the plan's layout; or for an array of preprocessing jobs",
        description="Writes a script that sbatch takes as it is. The layout is the first of `dnapretrain plan` that fits, or that of the "
        "settings where an override names one (parallel.*, train.micro_batch_size, train.recompute).",
    )
    verb.add_argument("config", metavar="RECIPE_OR_FILE", help=f"as for pretrain; or the word {PREPROCESS}, with --array")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, or a YAML file that does")
    verb.add_argument("--nodes", type=int, metavar="N", help="nodes of a run")
    verb.add_argument("--array", type=int, metavar="N", help=f"tasks of {PREPROCESS}")
    default = SlurmJob()
    verb.add_argument("--gpus-per-node", type=int, default=default.gpus_per_node, metavar="N", help="default %(default)s")
    verb.add_argument("--gpu", default=default.gpu, metavar="KIND", help="kind of GPU, as for plan (default %(default)s)")
    verb.add_argument(
        "--cpus-per-task",
        type=int,
        default=default.cpus_per_task,
        metavar="N",
        help="cores per GPU, or per array task (default %(default)s)",
    )
    verb.add_argument("--time", default=default.time, metavar="TIME", help="limit of one job, as Slurm writes it (default %(default)s)")
    verb.add_argument(
        "--margin",
        type=int,
        default=default.margin,
        metavar="SECONDS",
        help="ask for a checkpoint so long before the limit (default %(default)s)",
    )
    verb.add_argument("--partition", default="", metavar="NAME")
    verb.add_argument("--account", default="", metavar="NAME")
    verb.add_argument("--exclude", default="", metavar="NODES", help="nodes to leave out, e.g. node[3,7-9]")
    verb.add_argument(
        "--launcher", choices=LAUNCHERS, default=default.launcher, help="one task per GPU, or torchrun once per node (default %(default)s)"
    )
    verb.add_argument("--container", choices=CONTAINERS, default=default.container, help="default %(default)s: a virtual environment")
    verb.add_argument("--image", default=default.image, metavar="IMAGE", help="of the container (default %(default)s)")
    verb.add_argument(
        "--go-on",
        choices=GO_ON,
        default=default.go_on,
        help="after a stop: requeue this job, submit one that depends on it, or neither (default %(default)s)",
    )
    verb.add_argument("--output", type=Path, metavar="FILE", help="default: print it")
    verb.set_defaults(verb=_slurm)


def _slurm(arguments: argparse.Namespace) -> int:
    from dnapretrain.slurm import preprocess_script, pretrain_script

    array = arguments.config == PREPROCESS
    if (arguments.array is None) == array or (arguments.nodes is None) != array:
        wanted, other = ("array", "nodes") if array else ("nodes", "array")
        raise ConfigError(f"`dnapretrain slurm {arguments.config}` wants --{wanted} N, and no --{other}.")
    job = SlurmJob(
        nodes=1 if array else arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu=arguments.gpu,
        cpus_per_task=arguments.cpus_per_task,
        time=arguments.time,
        margin=arguments.margin,
        partition=arguments.partition,
        account=arguments.account,
        exclude=arguments.exclude,
        launcher=arguments.launcher,
        container=arguments.container,
        image=arguments.image,
        go_on=arguments.go_on,
    )
    file = arguments.output.name if arguments.output else ""
    if array:
        if arguments.overrides:
            raise ConfigError(
                f"override '{arguments.overrides[0]}' is not for {PREPROCESS}: give its options to sbatch, after LIST and PREFIX."
            )
        script = preprocess_script(arguments.array, job, file)
    else:
        script = pretrain_script(arguments.config, arguments.overrides, job, file)
    if arguments.output is None:
        print(script, end="")
    else:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(script)
        print(arguments.output)
    return 0

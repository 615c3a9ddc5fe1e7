"""Verbs that train and judge: recipes, pretrain, plan, report, verify, doctor."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnapretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dnapretrain.config import RunConfig


def add_run_arguments(verb: Any) -> None:
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, e.g. optim.lr=3e-4 parallel.tp=2"
    )
    verb.add_argument("--ranks", type=int, help="ranks to start on this machine; default: one per GPU, or one model copy on CPU")


def add_recipes(verbs: Any) -> None:
    verb = verbs.add_parser("recipes", help="the published models that pretrain knows by name; with a name, its settings")
    verb.add_argument("name", nargs="?", metavar="RECIPE")
    verb.set_defaults(verb=_recipes)


def _recipes(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import read_recipe, recipe_names

    if arguments.name is not None:
        print(read_recipe(arguments.name), end="")
        return 0
    for name in recipe_names():
        print(f"{name:24} {read_recipe(name).partition(chr(10))[0].lstrip('# ')}")
    return 0


def add_pretrain(verbs: Any) -> None:
    verb = verbs.add_parser("pretrain", help="train; resumes when the run folder has a checkpoint")
    verb.add_argument(
        "config",
        type=Path,
        metavar="RECIPE_OR_FILE",
        help="a recipe (`dnapretrain recipes` lists them), or a YAML file with the sections data, tokenizer, model, parallel, ...",
    )
    add_run_arguments(verb)
    verb.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    verb.add_argument(
        "--exit-duration", metavar="TIME", help="stop with a checkpoint after so long, e.g. 3h50m or 03:50:00 (train.exit_duration)"
    )
    verb.set_defaults(verb=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import dump_config, load_config
    from dnapretrain.parallel.launch import launch_local
    from dnapretrain.parallel.signals import EXIT_STOPPED, StopSignals
    from dnapretrain.train.trackers import check_trackers

    limit = [] if arguments.exit_duration is None else [f"train.exit_duration={arguments.exit_duration}"]
    overrides = [*arguments.overrides, *limit]
    config = load_config(arguments.config, overrides)
    if arguments.dry_run:
        print(dump_config(config), end="")
        _look_at_data(config)
        return 0
    check_trackers(config.log)
    ranks = check_before_launch(config, arguments.ranks, probes=True)
    if ranks > 1:
        return launch_local(["pretrain", str(arguments.config), *overrides], ranks)
    with StopSignals() as signals:
        from dnapretrain.train.run import pretrain

        return EXIT_STOPPED if pretrain(config, signals).stop.reason else 0


def _look_at_data(config: RunConfig) -> None:
    """Say what a run would stop at; the data may yet be made, so it is no error here."""
    from dnapretrain.data.sampling.run_data import open_data

    try:
        open_data(config, probes=True)
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"note: a run would stop here: {error}\n")


def check_before_launch(config: RunConfig, wanted_ranks: int | None, probes: bool = False) -> int:
    """Number of ranks to start (1: this process), after every check that needs no ranks: a mistake is then reported once."""
    from dnapretrain.config_rules import check_world
    from dnapretrain.data.sampling.run_data import open_data
    from dnapretrain.parallel.launch import default_ranks, is_launched

    if wanted_ranks is not None and wanted_ranks < 1:
        raise ConfigError(f"--ranks = {wanted_ranks} is below 1. Give the number of ranks to start.")
    if is_launched():
        if wanted_ranks is not None:
            raise ConfigError(f"--ranks = {wanted_ranks}, but torchrun or srun has started the ranks already. Remove --ranks.")
        return 1
    ranks = wanted_ranks or default_ranks(config.train.device, config.parallel.model_parallel_size)
    check_world(config, ranks)
    open_data(config, probes)
    return ranks


def add_plan(verbs: Any) -> None:
    verb = verbs.add_parser("plan", help="before a run: parameters, memory and speed of every layout, FLOPs, days")
    verb.add_argument("config", type=Path, nargs="?", metavar="RECIPE_OR_FILE", help="as for pretrain; its data are not opened")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, or a YAML file that does")
    verb.add_argument("--gpus", type=int, metavar="N", help="number of GPUs")
    verb.add_argument("--gpu", metavar="KIND", help="kind of GPU, e.g. a100-40g, a100-80g, h100, h200, b200")
    verb.add_argument("--network-gbps", type=float, metavar="G", help="Gbit/s of each GPU to other nodes, in place of the usual servers'")
    verb.add_argument("--mfu", type=float, help="say the time at this share of the peak too, e.g. 0.1")
    verb.add_argument("--write", type=Path, metavar="FILE", help="write the first layout as a settings file: pretrain RECIPE FILE")
    verb.add_argument(
        "--check",
        nargs="?",
        const="stages",
        choices=("stages", "every"),
        help="count the weights of every stage, or of every rank, on the real model too (needs torch)",
    )
    verb.add_argument("--calibration", action="store_true", help="published runs beside what the formulas say of them, and nothing else")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(verb=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import load_config
    from dnapretrain.data.tokens.tokenizers import countable_tokenizer
    from dnapretrain.parallel.gpus import gpu_by_kind, with_network
    from dnapretrain.plan.check import check_counts, format_check
    from dnapretrain.plan.make import make_plan
    from dnapretrain.plan.page import format_plan, write_layout
    from dnapretrain.plan.published import format_calibration

    if arguments.calibration:
        print(format_calibration())
        return 0
    for name, value in (("RECIPE_OR_FILE", arguments.config), ("--gpus N", arguments.gpus), ("--gpu KIND", arguments.gpu)):
        if value is None:
            raise ConfigError(f"plan needs {name}: dnapretrain plan RECIPE_OR_FILE --gpus N --gpu KIND.")
    config = load_config(arguments.config, arguments.overrides)
    gpu = with_network(gpu_by_kind(arguments.gpu), arguments.network_gbps)
    plan = make_plan(config, arguments.gpus, gpu, arguments.mfu)
    check = (
        check_counts(config, countable_tokenizer(config.tokenizer), arguments.gpus, arguments.check == "every") if arguments.check else []
    )
    if arguments.json:
        print(json.dumps({**plan, "check": check} if arguments.check else plan, indent=1))
    else:
        print(format_plan(plan))
        if check:
            print(f"\n{format_check(check)}")
    if arguments.write:
        write_layout(plan, arguments.write, str(arguments.config))
    return 0 if all(row["formula"] == row["model"] for row in check) else 1


def add_report(verbs: Any) -> None:
    verb = verbs.add_parser("report", help="a page that shows a run; of several runs, one that compares them")
    verb.add_argument("run", type=Path, nargs="+", metavar="RUN")
    verb.add_argument(
        "--output",
        type=Path,
        metavar="HTML",
        help="default: RUN/report.html, with loss.png and panels.png beside it; comparison.html of several; a .png: the loss curve alone",
    )
    verb.add_argument(
        "--evaluation",
        type=Path,
        metavar="JSON",
        help="what `evaluate RUN --baselines --output JSON` wrote, for the count models (default: RUN/evaluation.json)",
    )
    verb.set_defaults(verb=_report)


def _report(arguments: argparse.Namespace) -> int:
    from dnapretrain.report.compare import write_comparison
    from dnapretrain.report.curve import loss_curve
    from dnapretrain.report.page import write_report

    runs, output = arguments.run, arguments.output
    if output is not None and output.suffix not in (".html", ".png"):
        raise ConfigError(f"--output {output} is neither .html nor .png. Rename it.")
    if len(runs) > 1:
        output = output or Path("comparison.html")
        if output.suffix == ".png" or arguments.evaluation:
            raise ConfigError("several runs are compared on one .html page, without --evaluation. Give one run, or change the options.")
        write_comparison(runs, output)
        print(output)
    elif output is not None and output.suffix == ".png":
        loss_curve(runs[0], output)
        print(output)
    else:
        for path in write_report(runs[0], output or runs[0] / "report.html", arguments.evaluation):
            print(path)
    return 0


def add_verify(verbs: Any) -> None:
    verify = verbs.add_parser("verify", help="proofs for your own configuration")
    proofs = verify.add_subparsers(required=True, metavar="PROOF")
    resume = proofs.add_parser("resume", help="train N steps; train k, stop, resume to N; compare every loss, weight and moment")
    resume.add_argument("config", type=Path, metavar="CONFIG")
    add_run_arguments(resume)
    resume.add_argument("--steps", type=int, default=20, help="N (default 20)")
    resume.add_argument(
        "--at", "--stop-at", type=_rising_steps, metavar="k,...", help="steps to stop after and resume from, in one run; default: N / 2"
    )
    resume.add_argument(
        "--layouts",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="resume from the first stop under these layouts too, as `verify layouts` names them, e.g. TP2 PP2",
    )
    resume.add_argument(
        "--resume-with",
        action="append",
        default=[],
        metavar="key=value",
        help="settings of the resumed half only, e.g. parallel.tp=1: then losses must agree within a tolerance, not bit for bit",
    )
    resume.add_argument("--resume-ranks", type=int, help="ranks of the resumed half; default: as before")
    resume.add_argument(
        "--output", type=Path, default=Path("verify-resume"), metavar="DIR", help="runs and proof.json (default verify-resume)"
    )
    resume.set_defaults(verb=_verify_resume)
    layouts = proofs.add_parser(
        "layouts", help="train a few steps under every parallel layout; compare each loss and gradient norm with one rank"
    )
    layouts.add_argument("config", type=Path, metavar="CONFIG")
    layouts.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file, or a YAML file that does"
    )
    layouts.add_argument("--ranks", type=int, metavar="MAX", help="leave out larger layouts; default: 8 on CPU, the number of GPUs on CUDA")
    layouts.add_argument("--steps", type=int, default=10, help="steps to compare (default 10)")
    layouts.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="these layouts only, as the table names them, e.g. TP2 PP2"
    )
    layouts.add_argument(
        "--output",
        type=Path,
        default=Path("verify-layouts"),
        metavar="DIR",
        help="settings, logs and layouts.json (default verify-layouts)",
    )
    layouts.set_defaults(verb=_verify_layouts)


def _rising_steps(text: str) -> list[int]:
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of steps, as 6,12,18 is") from None


def _verify_resume(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import load_config
    from dnapretrain.verify import format_proof, verify_resume
    from dnapretrain.verify_layouts import verify_resume_under

    config = load_config(arguments.config, arguments.overrides)
    ranks = check_before_launch(config, arguments.ranks)
    stops = arguments.at or [arguments.steps // 2]
    if not arguments.layouts:
        proof = verify_resume(config, ranks, arguments.steps, stops, arguments.output, arguments.resume_with, arguments.resume_ranks)
    elif arguments.resume_with or arguments.resume_ranks:
        raise ConfigError("--layouts and --resume-with or --resume-ranks both say how to resume. Give one of them.")
    else:
        proof = verify_resume_under(config, ranks, arguments.steps, stops, arguments.output, arguments.layouts)
    print(format_proof(proof))
    return 0 if proof["passed"] else 1


def _verify_layouts(arguments: argparse.Namespace) -> int:
    from dnapretrain.config_file import load_config
    from dnapretrain.verify_layouts import verify_layouts

    config = load_config(arguments.config, arguments.overrides)
    proof = verify_layouts(
        config, arguments.output, arguments.steps, arguments.ranks, arguments.only, say=lambda line: print(line, flush=True)
    )
    return 0 if proof["passed"] else 1


def add_doctor(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="what is installed here, and which path each part would take; exit code 1 with a problem")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.add_argument(
        "--node", action="store_true", help="also about ten seconds of matrix products and sums over all GPUs of this node: before a job"
    )
    verb.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)  # one rank of that check
    verb.set_defaults(verb=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from dnapretrain.doctor import diagnose, format_diagnosis
    from dnapretrain.parallel.node_check import check_rank

    if arguments.as_rank is not None:
        check_rank(arguments.as_rank)
        return 0
    diagnosis = diagnose(check=arguments.node)
    print(json.dumps(diagnosis, indent=1) if arguments.json else format_diagnosis(diagnosis))
    return 0 if diagnosis["ok"] else 1

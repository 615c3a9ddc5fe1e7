"""The proof that every parallel layout is the user's model on one rank: `dnapretrain verify layouts CONFIG`.

A few steps of the user's own configuration on one rank, then under each standard layout, each in fresh
processes with the ordinary command. Every loss and gradient norm is compared with one rank's; only the
gradient norm shows a wrong gradient before it has done harm.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dnapretrain.config import RunConfig
from dnapretrain.config_file import config_from_dict
from dnapretrain.config_rules import check_world
from dnapretrain.errors import ConfigError, DnaPretrainError
from dnapretrain.model.counts import pipeline_ends
from dnapretrain.parallel.launch import default_ranks, is_launched
from dnapretrain.verify import GRAD_NORM_TOLERANCE, LOSS_TOLERANCE, compare_steps, proof_tree, verify_resume, within_tolerance

MAX_CPU_RANKS = 8
"""Ranks of the largest standard layout."""


@dataclass(frozen=True)
class Layout:
    """A way to spread the same run over ranks."""

    ranks: int
    parallel: dict[str, Any] = field(default_factory=dict)
    recompute: str | None = None
    """None: as the configuration says."""


_TP2_SP = {"tp": 2, "sequence_parallel": True}
LAYOUTS = {
    "TP2": Layout(2, {"tp": 2}),
    "TP4": Layout(4, {"tp": 4}),
    "TP2+SP": Layout(2, _TP2_SP),
    "PP2": Layout(2, {"pp": 2}),
    "PP4": Layout(4, {"pp": 4}),
    "PP2-interleaved": Layout(2, {"pp": 2, "vpp": 2}),
    "CP2": Layout(2, {"cp": 2}),
    "CP4": Layout(4, {"cp": 4}),
    "CP2xTP2+SP": Layout(4, {**_TP2_SP, "cp": 2}),
    "CP2xPP2": Layout(4, {"cp": 2, "pp": 2}),
    "DP2": Layout(2),
    "DP2+distopt": Layout(2, {"use_distributed_optimizer": True}),
    "TP2xPP2": Layout(4, {"tp": 2, "pp": 2}),
    "TP2xPP2xDP2+SP+distopt": Layout(8, {**_TP2_SP, "pp": 2, "use_distributed_optimizer": True}),
    "recompute-selective": Layout(1, recompute="selective"),
    "recompute-full": Layout(1, recompute="full"),
    "TP2+SP+recompute-full": Layout(2, _TP2_SP, recompute="full"),
}
"""CP: context parallel; SP: sequence parallel; distopt: distributed optimizer; interleaved: two model chunks per pipeline rank.
A pipeline that does not divide the layers has fewer at its ends."""
ONE_RANK = Layout(1)

WIDTHS = (24, 5, 15, 20)
HEADER = ("layout", "ranks", "loss difference", "grad-norm difference")


@dataclass
class LayoutResult:
    """What became of one layout."""

    layout: str
    ranks: int
    status: str
    """passed, FAILED, refused (a rule of the configuration) or left out (too many ranks)."""
    reason: str = ""
    max_loss_difference: float | None = None
    """Absolute, nats per token."""
    max_grad_norm_relative_difference: float | None = None

    def line(self) -> str:
        """A row of the table."""
        differences = (self.max_loss_difference, self.max_grad_norm_relative_difference)
        cells = (self.layout, self.ranks, *("-" if value is None else f"{value:.1e}" for value in differences))
        return _row(cells) + f"  {self.status}{': ' if self.reason else ''}{self.reason}"


def verify_layouts(
    config: RunConfig,
    output: Path,
    steps: int = 10,
    max_ranks: int | None = None,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare `steps` steps under the standard layouts (or those in `only`) with one rank; write `layouts.json` below `output`.

    `max_ranks` defaults to MAX_CPU_RANKS on CPU and to the number of GPUs on CUDA. Dropout is set to 0, since ranks
    draw different numbers; batch sizes stay, and the layout is what LAYOUTS says and nothing else. Each run leaves its
    settings, output and log below `output`, and no checkpoint. Raises ConfigError for bad arguments, DnaPretrainError
    when one rank cannot train.
    """
    _check_arguments(steps, max_ranks, only)
    max_ranks = max_ranks or default_ranks(config.train.device, MAX_CPU_RANKS)
    precision = config.train.precision
    output.mkdir(parents=True, exist_ok=True)
    without_dropout = {name: 0.0 for name in ("hidden_dropout", "attention_dropout") if getattr(config.model, name)}
    say(f"{steps} steps in {precision}, each layout against one rank, up to {max_ranks} ranks; settings and logs below {output}")
    if without_dropout:
        say(f"{' and '.join(f'model.{name}' for name in without_dropout)} set to 0: ranks draw different numbers")
    say(f"passed: loss within {LOSS_TOLERANCE[precision]:g} nats, gradient norm within {GRAD_NORM_TOLERANCE[precision]:g} (relative)")
    if precision != "fp32":
        say(f"{precision} rounds differently in each layout; train.precision=fp32 is the strict proof")
    say(_row(HEADER) + "  result")
    if problem := _train(config, ONE_RANK, output / "one-rank", steps):
        raise DnaPretrainError(f"one rank cannot train this configuration: {problem}")
    say(_row(("one rank", 1, "-", "-")) + "  the reference")
    results = []
    for name in only or LAYOUTS:
        results.append(_prove(config, name, output, steps, max_ranks))
        say(results[-1].line())
    statuses = [result.status for result in results]
    proof = {
        "steps": steps,
        "precision": precision,
        "max_ranks": max_ranks,
        "loss_tolerance": LOSS_TOLERANCE[precision],
        "grad_norm_tolerance": GRAD_NORM_TOLERANCE[precision],
        "dropout_set_to_0": sorted(without_dropout),
        "layouts": [asdict(result) for result in results],
        "passed": "passed" in statuses and "FAILED" not in statuses,
    }
    (output / "layouts.json").write_text(json.dumps(proof, indent=1) + "\n")
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    say(f"{'PASSED' if proof['passed'] else 'FAILED'}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    return proof


def verify_resume_under(
    config: RunConfig,
    ranks: int,
    steps: int,
    stops: Sequence[int],
    output: Path,
    names: Sequence[str],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """`verify_resume`, then the run stopped after the first of `stops` is resumed to `steps` under each of the layouts `names` too.

    There losses and gradient norms must agree within the tolerances, and the samples must be the same. What became of them is added to
    `proof.json`. Raises ConfigError for a model with dropout: at another layout ranks draw other numbers.
    """
    _check_names(names)
    if config.model.has_dropout:
        raise ConfigError(
            "--layouts needs a model without dropout, which draws other numbers at another layout. "
            "Add model.hidden_dropout=0 model.attention_dropout=0."
        )
    proof = verify_resume(config, ranks, steps, stops, output)
    say(_row(HEADER) + "  result")
    results = []
    for name in names:
        results.append(_resume(config, name, output, steps, stops[0]))
        say(results[-1].line())
    proof["layouts"] = [asdict(result) for result in results]
    proof["passed"] = proof["passed"] and all(result.status in ("passed", "refused") for result in results)
    (output / "proof.json").write_text(json.dumps(proof, indent=1) + "\n")
    return proof


def _resume(config: RunConfig, name: str, output: Path, steps: int, stop: int) -> LayoutResult:
    """Resume a copy of the run in `output`/parted, as it stood after `stop` steps, under a layout; compare with `output`/whole."""
    layout, folder = LAYOUTS[name], output / name
    result = LayoutResult(name, layout.ranks, "refused")
    distributed = config.parallel.use_distributed_optimizer
    if layout.parallel.get("use_distributed_optimizer", distributed) != distributed:
        result.reason = f"the checkpoint has parallel.use_distributed_optimizer={distributed}"
        return result
    tree = proof_tree(config, folder / "run", steps)
    ends = _ends(config.model.num_layers, layout.parallel)
    tree["parallel"] = {**layout.parallel, **ends, "use_distributed_optimizer": distributed}
    tree["train"]["recompute"] = layout.recompute or config.train.recompute
    try:
        check_world(config_from_dict(tree), layout.ranks)
    except ConfigError as error:
        result.reason = str(error)
        return result
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = f"checkpoints/step_{stop:08d}"
    shutil.copytree(output / "parted" / checkpoint, folder / "run" / checkpoint)
    if problem := _run_tree(tree, layout.ranks, folder):
        result.status, result.reason = "FAILED", problem
        return result
    compared = compare_steps(output / "whole", folder / "run", steps, after=stop)
    result.max_loss_difference = compared["max_loss_difference"]
    result.max_grad_norm_relative_difference = compared["max_grad_norm_relative_difference"]
    result.status = "passed" if within_tolerance(compared, config.train.precision) else "FAILED"
    return result


def _check_arguments(steps: int, max_ranks: int | None, only: Sequence[str]) -> None:
    if is_launched():
        raise ConfigError("verify layouts starts its own ranks on this machine, and torchrun or srun has started some. Run it without.")
    if steps < 1:
        raise ConfigError(f"--steps = {steps} is below 1. Give the number of steps to compare.")
    if max_ranks is not None and max_ranks < 1:
        raise ConfigError(f"--ranks = {max_ranks} is below 1. Give the largest number of ranks to start.")
    _check_names(only)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in LAYOUTS:
            raise ConfigError(f"no layout '{name}'. Known: {', '.join(LAYOUTS)}.")


def _prove(config: RunConfig, name: str, output: Path, steps: int, max_ranks: int) -> LayoutResult:
    layout = LAYOUTS[name]
    result = LayoutResult(name, layout.ranks, "left out")
    if layout.ranks > max_ranks:
        result.reason = f"more than --ranks = {max_ranks}"
        return result
    try:
        check_world(config_from_dict(_tree(config, layout, output / name, steps)), layout.ranks)
    except ConfigError as error:
        result.status, result.reason = "refused", str(error)
        return result
    if problem := _train(config, layout, output / name, steps):
        result.status, result.reason = "FAILED", problem
        return result
    compared = compare_steps(output / "one-rank" / "run", output / name / "run", steps)
    result.max_loss_difference = compared["max_loss_difference"]
    result.max_grad_norm_relative_difference = compared["max_grad_norm_relative_difference"]
    result.status = "passed" if within_tolerance(compared, config.train.precision) else "FAILED"
    return result


def _tree(config: RunConfig, layout: Layout, folder: Path, steps: int) -> dict[str, Any]:
    """The settings of a proof under `layout`, without dropout; nothing of the user's own layout."""
    tree = proof_tree(config, folder / "run", steps)
    tree["parallel"] = {**layout.parallel, **_ends(config.model.num_layers, layout.parallel)}
    tree["train"]["recompute"] = layout.recompute or config.train.recompute
    tree["model"].update(hidden_dropout=0.0, attention_dropout=0.0, ffn_dropout="output")  # where no dropout falls is no matter
    return tree


def _ends(num_layers: int, parallel: dict[str, Any]) -> dict[str, int]:
    """What a pipeline that does not divide the layers has at its ends; nothing where it does, and for interleaved ones."""
    ends = None if "vpp" in parallel else pipeline_ends(num_layers, parallel.get("pp", 1))
    return dict(zip(("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"), ends, strict=True)) if ends else {}


def _train(config: RunConfig, layout: Layout, folder: Path, steps: int) -> str:
    """Train under `layout` in `folder`; why it failed, or ''. What it says goes to `output.txt`, its checkpoint is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return _run_tree(_tree(config, layout, folder, steps), layout.ranks, folder)


def _run_tree(tree: dict[str, Any], ranks: int, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file, said = folder / "run.yaml", folder / "output.txt"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    code = _run(["pretrain", str(file), "--ranks", str(ranks)], said)
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    if not code:
        return ""
    errors = [line.removeprefix("error: ") for line in said.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return f"{errors[0] if errors else f'exit code {code}'} ({said})"


def _run(arguments: Sequence[str], said: Path) -> int:
    """Exit code of the ordinary command, whose output goes to `said`; it is ended with this process."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        with (
            said.open("wb") as stream,
            subprocess.Popen([sys.executable, "-m", "dnapretrain", *arguments], stdout=stream, stderr=subprocess.STDOUT) as process,
        ):
            try:
                return process.wait()
            finally:
                process.terminate()  # nothing to end unless a signal came
    finally:
        signal.signal(signal.SIGTERM, previous)


def _row(cells: Sequence[object]) -> str:
    name, *numbers = (str(cell) for cell in cells)
    return "  ".join([name.ljust(WIDTHS[0]), *(number.rjust(width) for number, width in zip(numbers, WIDTHS[1:], strict=True))])

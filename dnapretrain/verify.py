"""Proofs that a user can run on their own configuration: `dnapretrain verify resume CONFIG`.

The proof is made from outside, with the ordinary command and fresh processes: one run of N steps, one
of k steps that stops, one that resumes it to N. Then every loss, gradient norm, weight and moment of
the two is compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnapretrain.config import RunConfig, load_config
from dnapretrain.errors import ConfigError, DnaPretrainError
from dnapretrain.parallel.launch import launch_local

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest loss difference, absolute in nats per token, when the resumed half runs under another layout."""
GRAD_NORM_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest relative gradient-norm difference then."""

LAYOUT_KEYS = ("parallel.", "train.micro_batch_size=", "train.recompute=", "train.device=", "model.transformer_impl=")
"""What the resumed half may change: settings that do not change the mathematics."""


def verify_resume(
    config: RunConfig,
    ranks: int,
    steps: int,
    stop_at: int,
    output: Path,
    resume_overrides: Sequence[str] = (),
    resume_ranks: int | None = None,
) -> dict[str, Any]:
    """Compare N steps with k, stop, N-k; write `proof.json` below `output` and return it.

    Under the same layout everything must be equal bit for bit; with `resume_overrides` or `resume_ranks`
    losses and gradient norms must agree within LOSS_TOLERANCE and GRAD_NORM_TOLERANCE.
    """
    if not 0 < stop_at < steps:
        raise ConfigError(f"--stop-at = {stop_at} must lie between 0 and --steps = {steps}.")
    for override in resume_overrides:
        if not override.startswith(LAYOUT_KEYS):
            raise ConfigError(
                f"--resume-with {override} is no layout: the comparison would mean nothing. Known: {', '.join(LAYOUT_KEYS)}..."
            )
    same_layout = not resume_overrides and resume_ranks in (None, ranks)
    output.mkdir(parents=True, exist_ok=True)
    # One step short of the end: the last step would evaluate all that is held out, which proves nothing here.
    base = {"train": {"train_steps": steps + 1, "eval_interval": 0}, "checkpoint": {"save_interval": 0, "resume": True}}
    if config.optim.lr_warmup_steps >= steps:
        base["optim"] = {"lr_warmup_steps": steps // 2}
    whole, parted = output / "whole", output / "parted"
    for folder in (whole, parted):
        shutil.rmtree(folder, ignore_errors=True)
    _train(config, base, whole, output / "whole.yaml", [f"train.stop_at_step={steps}"], ranks)
    _train(config, base, parted, output / "parted.yaml", [f"train.stop_at_step={stop_at}"], ranks)
    _train(config, base, parted, output / "parted.yaml", [f"train.stop_at_step={steps}", *resume_overrides], resume_ranks or ranks)
    proof = {
        "steps": steps,
        "stopped_at": stop_at,
        "ranks": ranks,
        "resumed_with": list(resume_overrides),
        "resumed_on_ranks": resume_ranks or ranks,
        "same_layout": same_layout,
        **_compare_steps(whole, parted, steps),
        **(_compare_tensors(whole, parted) if same_layout else {}),
    }
    precision = config.train.precision
    proof["passed"] = (
        proof["losses_identical"] and proof["grad_norms_identical"] and not proof["tensors_different"]
        if same_layout
        else proof["max_loss_difference"] <= LOSS_TOLERANCE[precision]
        and proof["max_grad_norm_relative_difference"] <= GRAD_NORM_TOLERANCE[precision]
    )
    (output / "proof.json").write_text(json.dumps(proof, indent=1) + "\n")
    return proof


def format_proof(proof: dict[str, Any]) -> str:
    """The proof as a few lines of text."""
    lines = [
        f"{proof['steps']} steps on {proof['ranks']} rank(s) against {proof['stopped_at']} + stop + {proof['steps'] - proof['stopped_at']} "
        f"on {proof['resumed_on_ranks']} rank(s) {' '.join(proof['resumed_with'])}".rstrip(),
        f"largest loss difference          {proof['max_loss_difference']:.3g}",
        f"largest gradient-norm difference {proof['max_grad_norm_relative_difference']:.3g} (relative)",
    ]
    if proof["same_layout"]:
        different = proof["tensors_different"]
        lines.append(f"weights and moments              {proof['tensors_compared']} tensors, {len(different)} different")
    lines.append("PASSED" + (": identical bit for bit" if proof["same_layout"] else ": within tolerance") if proof["passed"] else "FAILED")
    return "\n".join(lines)


def _train(config: RunConfig, base: dict[str, Any], run_dir: Path, file: Path, overrides: Sequence[str], ranks: int) -> None:
    tree = config.model_dump(mode="json")
    for section, values in base.items():
        tree[section].update(values)
    tree["train"]["run_dir"] = str(run_dir)
    import yaml

    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    load_config(file, overrides)
    if code := launch_local(["pretrain", str(file), *overrides], ranks):
        raise DnaPretrainError(f"training for the proof ended with exit code {code}; its settings are in {file}.")


def _compare_steps(whole: Path, parted: Path, steps: int) -> dict[str, Any]:
    ours, theirs = ({record["step"]: record for record in _train_records(folder)} for folder in (whole, parted))
    missing = [step for step in range(1, steps + 1) if step not in ours or step not in theirs]
    if missing:
        raise DnaPretrainError(f"steps {missing[:5]} are missing from the logs below {whole.parent}.")
    pairs = [(ours[step], theirs[step]) for step in range(1, steps + 1)]
    return {
        "losses_identical": all(a["loss"] == b["loss"] for a, b in pairs),
        "grad_norms_identical": all(a["grad_norm"] == b["grad_norm"] for a, b in pairs),
        "max_loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "max_grad_norm_relative_difference": max(abs(a["grad_norm"] - b["grad_norm"]) / max(a["grad_norm"], 1e-30) for a, b in pairs),
        "final_loss": pairs[-1][0]["loss"],
    }


def _train_records(run_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def _compare_tensors(whole: Path, parted: Path) -> dict[str, Any]:
    import torch

    from dnapretrain.convert.native import find_checkpoint, open_weights

    ours, theirs = (open_weights(find_checkpoint(folder)) for folder in (whole, parted))
    names = sorted({*ours.names(), *theirs.names()})
    different = [
        name
        for name in names
        if name not in ours.names() or name not in theirs.names() or not torch.equal(ours.read(name), theirs.read(name))
    ]
    return {"tensors_compared": len(names), "tensors_different": different}

"""The part of a model card that says how the model was trained: settings, curve, held-out results, from the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.config import RunConfig
from dnapretrain.convert.native import CHECKPOINTS_DIR
from dnapretrain.errors import DataError
from dnapretrain.report.history import LOG_FILE, RunHistory, read_log
from dnapretrain.report.tables import markdown_table

CURVE_ROWS = 12


@dataclass(frozen=True)
class RunRecord:
    """What the log beside a checkpoint says up to its step; `history` is None, and `missing` says why, where there is none."""

    run_dir: Path | None
    history: RunHistory | None
    missing: str

    @property
    def start(self) -> dict[str, Any]:
        """The start record; empty where there is no log."""
        return self.history.start if self.history else {}

    @property
    def consumed_bases(self) -> int | None:
        """Bases of the targets so far."""
        return self.history.train[-1].get("consumed_bases") if self.history else None


def run_record(checkpoint: Path, state: dict[str, Any]) -> RunRecord:
    """The log of the run folder that holds `checkpoint` in its checkpoints/."""
    folder = checkpoint.absolute().parent
    if folder.name != CHECKPOINTS_DIR or not (folder.parent / LOG_FILE).is_file():
        return RunRecord(None, None, f"no {LOG_FILE} beside the checkpoint")
    try:
        return RunRecord(folder.parent, read_log(folder.parent, state.get("step")), "")
    except DataError as error:
        return RunRecord(None, None, str(error))


def last_evaluations(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The last evaluation of each held-out set by its name."""
    return {name: records[-1] for name, records in record.history.held_out.items()} if record.history else {}


def recipe_section(config: RunConfig, record: RunRecord, state: dict[str, Any]) -> str:
    """Markdown table of the settings that matter."""
    optim, train, parallel, data = config.optim, config.train, config.parallel, config.data
    masking = data.masking
    objective = (
        "next token"
        if not config.is_masked
        else (
            f"masked tokens: {100 * masking.mlm_probability:g} % chosen, of which {100 * masking.mask_replace_prob:g} % read the mask, "
            f"{100 * masking.random_replace_prob:g} % a random token; spans of {masking.span_length}"
        )
    )
    paths = record.start.get("paths", {})
    software = [f"{name} {paths[name]}" for name in ("megatron-core", "torch") if name in paths]
    lengths = " then ".join(map(str, data.training_lengths))
    ramp = " (with a ramp)" if train.rampup_batch_size else ""
    rows = {
        "objective": f"{objective}; loss: {train.loss}",
        "samples": f"{data.sampling}, {lengths} tokens",
        "reading": f"reverse complement with probability {data.reverse_complement:g}; random phase: {'yes' if data.random_phase else 'no'}"
        f"; lower case weighs {data.lowercase_weight:g} in the loss",
        "batch": f"{train.global_batch_size} samples{ramp}",
        "optimizer": f"AdamW, betas {optim.adam_beta1:g} and {optim.adam_beta2:g}, weight decay {optim.weight_decay:g}, gradients clipped "
        f"at {optim.clip_grad:g}",
        "learning rate": f"{optim.lr:g} to {optim.min_lr:g}, {optim.lr_decay_style}, {optim.lr_warmup_steps:,} warm-up steps "
        f"from {optim.lr_warmup_init:g}",
        "steps": f"{state['step']:,} of {train.train_steps:,} planned",
        "precision": train.precision,
        "layout": f"{state.get('world_size', 'not recorded')} rank(s): tensor {parallel.tensor_model_parallel_size} x pipeline "
        f"{parallel.pipeline_model_parallel_size}{f' x context {cp}' if (cp := parallel.context_parallel_size) > 1 else ''} x data "
        f"{_data_parallel(config, state)}",
        "hardware, software": "; ".join([*([paths["device"]] if "device" in paths else []), *software]) or "not recorded",
        "seeds": f"data {data.seed}, model {train.seed}",
    }
    if config.checkpoint.load:
        rows["began from"] = f"weights of `{config.checkpoint.load.name}`"
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _data_parallel(config: RunConfig, state: dict[str, Any]) -> str:
    ranks = state.get("world_size")
    return str(ranks // config.parallel.model_parallel_size) if ranks else "not recorded"


def held_out_section(config: RunConfig, record: RunRecord) -> str:
    """Markdown table with the last evaluation of each held-out set."""
    unit = "bits per masked base" if config.is_masked else "bits per base"
    rows = [
        {
            "set": name,
            unit: _number(found["bits_per_base"]),
            **({"marginal": _number(found["marginal_bits_per_base"])} if found.get("marginal_bits_per_base") is not None else {}),
            "accuracy": _number(found.get("accuracy")),
            "tokens predicted": found.get("num_targets", "-"),
            "at step": found["step"],
        }
        for name, found in last_evaluations(record).items()
    ]
    if not rows:
        return f"Not evaluated on the way{f' ({record.missing})' if record.missing else ''}.\n"
    columns = dict.fromkeys(key for row in rows for key in row)
    text = markdown_table([{key: row.get(key, "-") for key in columns} for row in rows])
    said = "\nA model that knows nothing reads 2 bits; lower is better."
    said += " `marginal` sums the probabilities of all tokens with the same base." if "marginal" in columns else ""
    return f"{text}{said}{_nominal(config)}\n"


def _nominal(config: RunConfig) -> str:
    if config.tokenizer.kind != "bpe":
        return ""
    return f" A byte-pair token is reckoned as {config.tokenizer.k} bases, so bits per base are nominal."


def curve_section(config: RunConfig, record: RunRecord, picture: str | None) -> str:
    """Markdown table of the training curve, and the picture."""
    if record.history is None:
        return f"Not recorded: {record.missing}.\n"
    unit = "bits per masked base" if config.is_masked else "bits per base"
    train = record.history.train
    steps = np.array([entry["step"] for entry in train])
    bits = np.array([entry["bits_per_base"] for entry in train], dtype=float)
    rows, before = [], 0
    for step in _chosen_steps(record.history):
        inside = (steps > before) & (steps <= step)
        if not inside.any():
            continue
        last = train[int(np.flatnonzero(inside)[-1])]
        held_out = {name: _at(records, step) for name, records in record.history.held_out.items()}
        rows.append(
            {
                "step": step,
                "tokens": last["consumed_tokens"],
                "bases": last.get("consumed_bases", "-"),
                f"training, {unit}": _number(bits[inside].mean()),
                "lr": f"{last['lr']:.2e}" if "lr" in last else "-",
                **held_out,
            }
        )
        before = step
    shown = f"![{unit} while training]({picture})\n\n" if picture else ""
    return f"{shown}{markdown_table(rows)}\nTraining values are means over the steps since the row above.\n"


def _chosen_steps(history: RunHistory) -> list[int]:
    """Steps of evaluations, or where there are none all, thinned; the last step always."""
    last = history.train[-1]["step"]
    evaluated = sorted({entry["step"] for records in history.held_out.values() for entry in records if 0 < entry["step"] <= last})
    steps = evaluated if len(evaluated) > 1 else [entry["step"] for entry in history.train]
    chosen = np.linspace(0, len(steps) - 1, num=min(CURVE_ROWS, len(steps))).round().astype(int)
    return sorted({steps[index] for index in chosen.tolist()} | {last})


def _at(records: list[dict[str, Any]], step: int) -> str:
    return next((_number(entry["bits_per_base"]) for entry in records if entry["step"] == step), "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

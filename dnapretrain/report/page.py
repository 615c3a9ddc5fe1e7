"""The page of a run: one HTML file that holds all it shows, and pictures of the same curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnapretrain import __version__
from dnapretrain.errors import ConfigError
from dnapretrain.report import record_sections, sections
from dnapretrain.report.curve import loss_curve
from dnapretrain.report.history import RunHistory, read_log
from dnapretrain.report.pictures import panels_png
from dnapretrain.report.probe_section import has_shares, probes, probes_png
from dnapretrain.report.sections import Evaluation, missing, text
from dnapretrain.report.spikes import add_loci, find_spikes

STYLE, SCRIPT = ((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
EVALUATION_FILE = "evaluation.json"
"""Where in the run folder what `dnapretrain evaluate --baselines --output` wrote is looked for."""


def write_report(run_dir: Path, output: Path, evaluation: Path | None = None) -> list[Path]:
    """Write the page of a run to `output`, and loss.png and panels.png (probes.png where it has probes) beside it; the files written.

    `evaluation` is what `dnapretrain evaluate RUN --baselines --output JSON` wrote; default: RUN/evaluation.json where there is one. Raises
    DataError where the run has no log, ConfigError where the evaluation cannot be read.
    """
    history = read_log(run_dir)
    found = read_evaluation(run_dir, evaluation)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(run_page(run_dir, history, found), encoding="utf-8")
    pictures = [output.parent / "loss.png", output.parent / "panels.png"]
    levels = {f"best count model on {name} ({best['best']})": best["best_bits_per_base"] for name, best in _baselines(found).items()}
    loss_curve(run_dir, pictures[0], levels)
    panels_png(history, pictures[1])
    if has_shares(history):
        pictures.append(output.parent / "probes.png")
        probes_png(history, pictures[-1])
    return [output, *pictures]


def read_evaluation(run_dir: Path, path: Path | None = None) -> Evaluation:
    """The evaluation of a run by held-out set; nothing where none is given and the run folder has none."""
    if path is None and not (run_dir / EVALUATION_FILE).is_file():
        return {}
    path = path or run_dir / EVALUATION_FILE
    way_out = "Give what `dnapretrain evaluate RUN --baselines --output FILE` wrote"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. {way_out}") from None
    if not isinstance(found, dict) or not all(isinstance(result, dict) and "bits_per_base" in result for result in found.values()):
        raise ConfigError(f"{path} is no evaluation. {way_out}")
    return found


def _baselines(evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    return {name: result["baselines"] for name, result in evaluation.items() if result.get("baselines")}


def run_page(run_dir: Path, history: RunHistory, evaluation: Evaluation) -> str:
    """The page as text."""
    config = history.start.get("config", {})
    spikes, count = find_spikes(history.train)
    reason = add_loci(run_dir, spikes) if spikes else ""
    bad_steps = [record for record in history.events if record["kind"] == "bad_step"]
    parts = [
        sections.tiles(history, config),
        section(sections.unit_of(history).capitalize(), sections.curve(history, evaluation)),
        sections.ladder(history, evaluation),
        section("Held-out sets", sections.held_out(history)),
        section("By class of bases", sections.regions(history)),
        section("Probes", probes(history)),
        section("Steps", sections.panels(history)),
        section("Spikes", record_sections.spikes(spikes, count, bad_steps, reason)),
        section("Checkpoints and restarts", record_sections.events(history)),
        section("Data", record_sections.data_card(history.start)),
        section("Configuration", record_sections.configuration(config)),
        section("Environment", record_sections.environment(history.start)),
    ]
    if history.damaged_lines:
        parts.insert(1, missing(f"{history.damaged_lines} line(s) of the log are damaged and left out.", warn=True))
    if not history.start:
        parts.insert(1, missing("The log has no start record: settings, data and environment are not known.", warn=True))
    return document(run_dir.resolve().name, "Pretraining run", _subtitle(config, history), parts)


def section(title: str, body: str) -> str:
    """A headed section."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def document(title: str, over: str, subtitle: str, parts: list[str]) -> str:
    """A whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="over">{text(over)}</p><h1>{text(title)}</h1><p class="sub">{text(subtitle)}</p></header>'
        f"{''.join(parts)}<footer>Written by dnapretrain {__version__} from the run's log. "
        f"This file needs no other, and no network.</footer></main><script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(config: Mapping[str, Any], history: RunHistory) -> str:
    if not config:
        return f"{history.train[-1]['step']:,} steps"
    model, tokenizer, data, train = (config.get(name, {}) for name in ("model", "tokenizer", "data", "train"))
    words = "k-mers of " + str(tokenizer.get("k")) if tokenizer.get("kind") == "kmer" else tokenizer.get("kind")
    return (
        f"{model.get('kind', '').capitalize()}, {model.get('num_layers')} layers, hidden size {model.get('hidden_size'):,}; "
        f"tokens: {words}; "
        f"{data.get('sequence_length'):,} tokens per sample, {train.get('global_batch_size'):,} samples per step; {train.get('precision')}"
    )

"""Several runs on one page: their curves over the bases they read, their results, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnapretrain.errors import ConfigError
from dnapretrain.report.charts import Chart, Level, Line, color_of, dash_of, draw, legend
from dnapretrain.report.curve import smoothed
from dnapretrain.report.history import RunHistory, is_masked, read_log
from dnapretrain.report.page import document, section
from dnapretrain.report.sections import GROUPINGS, column, missing, table, text, unit_of
from dnapretrain.report.tables import UNIFORM_BITS, short_count, short_duration

Runs = dict[str, RunHistory]
"""By name, in the order given."""


def write_comparison(run_dirs: Sequence[Path], output: Path) -> None:
    """Write one page for several runs. Raises DataError where a run has no log, ConfigError where one is given twice."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(comparison_page({name: read_log(path) for name, path in run_names(run_dirs).items()}), encoding="utf-8")


def run_names(run_dirs: Sequence[Path]) -> dict[str, Path]:
    """Names of runs: the end of their paths, as much of it as tells them apart."""
    paths = [path.resolve() for path in run_dirs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice} is given twice. Give each run once")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return {"/".join(path.parts[-length:]): path for path in paths}


def comparison_page(runs: Runs) -> str:
    """The page as text."""
    parts = [section("Results", _results(runs)), section("Curves", _curves(runs)), section("By class of bases", _regions(runs))]
    parts += [section("Settings that differ", _settings(runs)), section("Steps", _panels(runs))]
    without = [name for name, history in runs.items() if not history.start]
    if without:
        parts.insert(0, missing(f"No start record in the log, so no settings, of: {text(', '.join(without))}.", warn=True))
    digests = {history.start.get("data_digest") for history in runs.values()}
    data = (
        "all on the same data"
        if len(digests) == 1 and None not in digests
        else "on different data, or cut differently (data digests differ)"
    )
    return document(" / ".join(runs), "Comparison of pretraining runs", f"{len(runs)} runs, {data}", parts)


def _x(history: RunHistory) -> np.ndarray:
    """Bases read so far, by training step; tokens where a log is older than that."""
    bases = column(history.train, "consumed_bases")
    return bases if np.isfinite(bases).all() else column(history.train, "consumed_tokens")


def _at_evaluations(history: RunHistory, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Bases read at each of these evaluations."""
    return np.interp(column(records, "step"), column(history.train, "step"), _x(history))


def _sets(runs: Runs) -> list[str]:
    return list(dict.fromkeys(name for history in runs.values() for name in history.held_out))


def _results(runs: Runs) -> str:
    sets, kinds = _sets(runs), {is_masked(history) for history in runs.values()}
    lowest = {
        name: min(history.held_out[name][-1]["bits_per_base"] for history in runs.values() if name in history.held_out) for name in sets
    }
    rows = []
    for number, (name, history) in enumerate(runs.items()):
        rate, mfu, seconds = (column(history.train, key) for key in ("tokens_per_second", "mfu", "seconds"))
        cells = []
        for held_out in sets:
            value = history.held_out[held_out][-1]["bits_per_base"] if held_out in history.held_out else None
            best = len(kinds) == 1 and len(runs) > 1 and value == lowest[held_out]
            cells.append("-" if value is None else f"<b>{value:.4f}</b>" if best else f"{value:.4f}")
        dot = f'<svg width="11" height="11" style="display:inline"><circle cx="5" cy="6" r="4.5" fill="{color_of(number)}"/></svg> '
        rows.append(
            [
                dot + text(name),
                f"{history.train[-1]['step']:,}",
                short_count(float(_x(history)[-1])),
                f"{smoothed(column(history.train, 'bits_per_base'))[-1]:.4f}",
                *cells,
                short_count(float(np.nanmedian(rate))) if np.isfinite(rate).any() else "-",
                f"{np.nanmedian(mfu):.1%}" if np.isfinite(mfu).any() else "-",
                short_duration(float(np.nansum(seconds))),
            ]
        )
    head = [
        "run",
        "steps",
        "bases read",
        "training bits",
        *(f"held out: {text(name)}" for name in sets),
        "tokens/s",
        "MFU",
        "time in steps",
    ]
    note = '<p class="note">Bits per base, the last of each run; the lowest is bold. Medians of tokens per second and MFU.</p>'
    warning = missing("Some runs predict masked bases from both sides, others the next base: their bits are not comparable.", warn=True)
    return table(head, rows, range(1, len(head))) + note + (warning if len(kinds) > 1 else "")


def _curves(runs: Runs) -> str:
    lines = [
        Line(name, _x(history), smoothed(column(history.train, "bits_per_base")), color_of(number), dash_of(number))
        for number, (name, history) in enumerate(runs.items())
    ]
    late = np.concatenate([line.y[len(line.y) // 10 :] for line in lines])
    margin = max(0.01, 0.07 * float(np.nanmax(late) - np.nanmin(late)))
    limits = float(np.nanmin(late)) - margin, max(float(np.nanmax(late)), UNIFORM_BITS) + margin
    level = [Level("uniform: 2 bits", UNIFORM_BITS, "2 4", "#6b7785")]
    label = "bases read"
    parts = [f"<h3>Training, {unit_of(next(iter(runs.values())))} (moving mean)</h3>", legend(lines)]
    parts.append(draw(Chart("training bits per base", lines, label, levels=level, y_range=limits)))
    for held_out in _sets(runs):
        of_set = [
            Line(
                name,
                _at_evaluations(history, history.held_out[held_out]),
                column(history.held_out[held_out], "bits_per_base"),
                color_of(number),
                dash_of(number),
                marks=True,
            )
            for number, (name, history) in enumerate(runs.items())
            if held_out in history.held_out
        ]
        parts.append(f"<h3>Held out: {text(held_out)}</h3>{legend(of_set)}{draw(Chart(held_out, of_set, label, height=300))}")
    return "".join(parts)


def _regions(runs: Runs) -> str:
    """One table for each set and grouping that more than one run has."""
    parts = []
    for held_out in _sets(runs):
        last = {name: history.held_out[held_out][-1].get("regions") or {} for name, history in runs.items() if held_out in history.held_out}
        for grouping in dict.fromkeys(grouping for regions in last.values() for grouping in regions):
            classes = list(dict.fromkeys(kind for regions in last.values() for kind in regions.get(grouping, {})))
            rows = []
            for kind in classes:
                found = [regions.get(grouping, {}).get(kind) for regions in last.values()]
                lowest = min(values["bits_per_base"] for values in found if values)
                texts = [f"{values['bits_per_base']:.4f}" if values else "-" for values in found]
                bold = [values is not None and len(last) > 1 and values["bits_per_base"] == lowest for values in found]
                cells = [f"<b>{cell}</b>" if best else cell for cell, best in zip(texts, bold, strict=True)]
                rows.append([text(kind), *cells])
            parts.append(
                f"<h3>{text(held_out)}, by {GROUPINGS.get(grouping, text(grouping))}</h3>"
                + table(["class", *map(text, last)], rows, range(1, len(last) + 1))
            )
    return "".join(parts) or missing("No run has classes of bases (<code>data.regions</code>).")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def differing(runs: Runs) -> dict[str, list[Any]]:
    """Settings that not all runs have alike, by dotted key; None where a run has not the key."""
    flats = [flat(history.start.get("config", {})) for history in runs.values()]
    keys = dict.fromkeys(key for settings in flats for key in settings)
    found = {key: [settings.get(key) for settings in flats] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _settings(runs: Runs) -> str:
    found = differing(runs)
    if not found:
        return '<p class="note">All settings are the same.</p>'
    rows = [[f"<code>{text(key)}</code>", *(text("-" if value is None else value) for value in values)] for key, values in found.items()]
    same = '<p class="note">All others are the same.</p>'
    return table(["setting", *map(text, runs)], rows) + same


def _panels(runs: Runs) -> str:
    parts = []
    for key, title, log_scale in (
        ("lr", "Learning rate", False),
        ("grad_norm", "Gradient norm", True),
        ("tokens_per_second", "Tokens per second", False),
        ("accuracy", "Accuracy on training batches", False),
    ):
        lines = [
            Line(name, _x(history), column(history.train, key), color_of(number), dash_of(number), width=1.6)
            for number, (name, history) in enumerate(runs.items())
        ]
        known = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        if len(known):
            picture = draw(Chart(title, lines, "bases read", 470, 230, log_scale=log_scale and bool(known.min() > 0)))
            parts.append(f"<div><h3>{title}</h3>{picture}</div>")
    return f'<div class="pair">{"".join(parts)}</div>'

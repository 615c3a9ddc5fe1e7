"""The sections of a run's page that show how it went, each a piece of HTML; what the log does not hold is said where it is missing."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dnapretrain.report.charts import Chart, Level, Line, color_of, dash_of, draw, legend
from dnapretrain.report.curve import smoothed, window_of
from dnapretrain.report.history import RunHistory, is_masked
from dnapretrain.report.tables import UNIFORM_BITS, short_count, short_duration

Evaluation = Mapping[str, Mapping[str, Any]]
"""What `dnapretrain evaluate --baselines --json` says, by held-out set."""


def text(value: Any) -> str:
    """A value as HTML text."""
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Cells are HTML; columns in `numeric` stand at the right."""
    kind = ['class="n"' if number in numeric else "" for number in range(len(head))]
    cells = "".join(f"<th {k}>{name}</th>" for name, k in zip(head, kind, strict=True))
    body = "".join("<tr>" + "".join(f"<td {k}>{cell}</td>" for cell, k in zip(row, kind, strict=True)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def missing(what: str, warn: bool = False) -> str:
    """What is not here, and how to get it (HTML)."""
    return f'<p class="missing{" warn" if warn else ""}">{what}</p>'


def column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Values of a key, float64; not a number where a record has none."""
    return np.array([value if isinstance(value := record.get(key), (int, float)) else np.nan for record in records], float)


def unit_of(history: RunHistory) -> str:
    """What bits are counted over."""
    return "bits per masked base" if is_masked(history) else "bits per base"


def tiles(history: RunHistory, config: Mapping[str, Any]) -> str:
    """The figures that one looks for first."""
    last, found = history.train[-1], []
    planned = config.get("train", {}).get("train_steps")
    for name, records in itertools.islice(history.held_out.items(), 1):
        found.append((f"{records[-1]['bits_per_base']:.4f}", "", f"{unit_of(history)}, held out: {name}"))
    bits = smoothed(column(history.train, "bits_per_base"))
    found.append((f"{bits[-1]:.4f}", "", f"{unit_of(history)}, training"))
    found.append((f"{last['step']:,}", f" of {planned:,}" if planned else "", "optimizer steps"))
    found.append((short_count(last.get("consumed_bases", last["consumed_tokens"])), "", "bases read"))
    rate = column(history.train, "tokens_per_second")
    if np.isfinite(rate).any():
        mfu = column(history.train, "mfu")
        of = f"MFU {np.nanmedian(mfu):.1%}" if np.isfinite(mfu).any() else "MFU not known: no peak"
        found.append((short_count(float(np.nanmedian(rate))), "", f"tokens per second, median; {of}"))
    seconds = column(history.train, "seconds")
    if np.isfinite(seconds).any():
        found.append((short_duration(float(np.nansum(seconds))), "", "in training steps"))
    cells = (
        f'<div class="tile"><b>{value}<span class="of" style="display:inline">{of}</span></b><span>{text(name)}</span></div>'
        for value, of, name in found
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def restarts(history: RunHistory) -> list[tuple[float, str]]:
    """Vertical lines where the run was taken up again."""
    return [(start.get("step", 0), f"restart at step {start.get('step', 0):,}") for start in history.starts[1:]]


def curve(history: RunHistory, evaluation: Evaluation) -> str:
    """Bits per base over the steps: training, held-out sets, count models."""
    steps, bits = column(history.train, "step"), column(history.train, "bits_per_base")
    smooth = smoothed(np.where(np.isfinite(bits), bits, np.nanmedian(bits)))
    window = window_of(len(bits))
    lines = [Line("training, every step" if window == 1 else f"training, mean of {window} steps", steps, smooth, color_of(0), width=2.2)]
    raw = Line("training", steps, bits, color_of(0), width=0.0, band=True)
    for number, (name, records) in enumerate(history.held_out.items(), 1):
        x, y = column(records, "step"), column(records, "bits_per_base")
        lines.append(Line(f"held out: {name}", x, y, color_of(number), dash_of(number), note=f", last {y[-1]:.4f}", marks=True))
    levels = [Level("uniform: 2 bits", UNIFORM_BITS, "2 4", "#6b7785")]
    for name, result in evaluation.items():
        found = result.get("baselines")
        if found:
            levels.append(
                Level(f"best count model on {name}, {found['best']}: {found['best_bits_per_base']:.4f}", found["best_bits_per_base"])
            )
    late = np.concatenate([smooth[len(smooth) // 10 :], *(line.y for line in lines[1:]), [level.y for level in levels]])
    late = late[np.isfinite(late)]
    margin = max(0.01, 0.07 * float(late.max() - late.min()))
    limits = float(late.min()) - margin, float(late.max()) + margin
    picture = draw(Chart(unit_of(history), [raw, *lines], "steps", levels=levels, marks=restarts(history), y_range=limits))
    return legend(lines) + picture


def ladder(history: RunHistory, evaluation: Evaluation) -> str:
    """The count models of every order beside the model."""
    known = {name: result for name, result in evaluation.items() if result.get("baselines")}
    if not known:
        return missing(
            "Count models (what a model has to beat) have not been scored. "
            "<code>dnapretrain evaluate RUN --baselines --output RUN/evaluation.json</code> scores them on the same "
            "targets; the page then shows them."
        )
    parts = []
    for name, result in known.items():
        found = result["baselines"]
        lines = []
        for number, (kind, by_order) in enumerate(found["bits_per_base"].items(), 1):
            orders = [order for order in by_order if order.isdecimal()]
            if orders:
                x = np.array([int(order) for order in orders], float)
                lines.append(Line(f"{kind}, by order", x, np.array([by_order[order] for order in orders]), color_of(number), marks=True))
        levels = [Level(f"this model: {result['bits_per_base']:.4f}", result["bits_per_base"], "", "#0072b2")]
        if (everything := found["bits_per_base"].get("tokens", {}).get("all")) is not None:
            levels.append(Level(f"frequencies of tokens: {everything:.4f}", everything))
        difference = found["best_bits_per_base"] - result["bits_per_base"]
        verdict = (
            f"{abs(difference):.4f} bits per base {'below' if difference > 0 else 'above'} the best count model ({text(found['best'])})"
        )
        picture = draw(Chart(f"count models on {name}", lines, "bases of context", height=300, levels=levels))
        fitted = f"{found['fitted_bases']:,} of {found['training_bases']:,} training bases"
        note = f'<p class="note">In this evaluation the model is {verdict}. Count models were fitted to {fitted}, both strands.</p>'
        parts.append(f"<h3>Count models on {text(name)}</h3>{note}{legend(lines)}{picture}")
    return "".join(parts)


def held_out(history: RunHistory) -> str:
    """One row for each held-out set."""
    if not history.held_out:
        return missing("Nothing is held out, or no evaluation has been reached. Set <code>data.split</code> or <code>data.valid</code>.")
    rows = []
    for name, records in history.held_out.items():
        last = records[-1]
        best = min(records, key=lambda record: record["bits_per_base"])
        marginal, bases = last.get("marginal_bits_per_base"), last.get("num_bases", last.get("num_targets"))
        row = [text(name), f"{last['step']:,}", f"{last['bits_per_base']:.4f}", "-" if marginal is None else f"{marginal:.4f}"]
        row += [f"{last['accuracy']:.4f}" if "accuracy" in last else "-", f"{bases:,}" if bases is not None else "-"]
        rows.append([*row, f"{best['bits_per_base']:.4f} at {best['step']:,}"])
    head = ["held-out set", "step", unit_of(history), "by base marginals", "accuracy", "bases", "lowest"]
    return table(head, rows, range(1, 7))


GROUPINGS = {"class": "annotation", "case": "case (soft-masking)", "gc": "GC of the surroundings", "assembly": "assembly"}
"""What the page calls them."""


def regions(history: RunHistory) -> str:
    """Bits per base by class, for each held-out set that has them: now, and over the run."""
    parts = []
    for name, records in history.held_out.items():
        with_regions = [record for record in records if record.get("regions")]
        if not with_regions:
            continue
        last = with_regions[-1]
        for grouping, classes in last["regions"].items():
            parts.append(
                f"<h3>{text(name)}, by {GROUPINGS.get(grouping, text(grouping))}</h3>"
                + _class_table(classes, last["bits_per_base"], unit_of(history))
            )
            if len(with_regions) > 1:
                lines = [_class_line(with_regions, grouping, kind, number) for number, kind in enumerate(classes)]
                parts.append(legend(lines) + draw(Chart(f"{name} by {grouping}", lines, "steps", height=270)))
    if not parts:
        return missing(
            "No classes of bases: set <code>data.regions</code> (GFF3, GTF or BED files, case, GC, assembly), or run "
            "<code>dnapretrain evaluate RUN --regions FILE</code>."
        )
    note = "The bits of a token are split evenly over its bases; the classes of a grouping, weighted by their bases, add up to the set."
    return f'<p class="note">{note}</p>{"".join(parts)}'


def _class_line(records: Sequence[Mapping[str, Any]], grouping: str, kind: str, number: int) -> Line:
    having = [record for record in records if kind in record["regions"].get(grouping, {})]
    y = np.array([record["regions"][grouping][kind]["bits_per_base"] for record in having])
    return Line(kind, column(having, "step"), y, color_of(number), dash_of(number), marks=True)


def _class_table(classes: Mapping[str, Mapping[str, float]], whole: float, unit: str) -> str:
    total = sum(values["weight"] for values in classes.values())
    reach = max([abs(values["bits_per_base"] - whole) for values in classes.values()] + [1e-9])
    rows = [
        [
            text(name),
            f"{values['bits_per_base']:.4f}",
            f"{values['bits_per_base'] - whole:+.4f}",
            _deviation(values["bits_per_base"] - whole, reach),
            f"{values['num_bases']:,}",
            f"{values['weight'] / total:.1%}",
        ]
        for name, values in classes.items()
    ]
    return table(["class", unit, "against all", f"easier &nbsp; all: {whole:.4f} &nbsp; harder", "bases", "share"], rows, (1, 2, 4, 5))


def _deviation(difference: float, reach: float) -> str:
    """A bar to the left or right of the middle."""
    size = difference / reach * 96
    color = "#0072b2" if size < 0 else "#d55e00"
    return (
        f'<svg width="200" height="18" aria-hidden="true"><line x1="100" x2="100" y1="0" y2="18" stroke="#8794a1"/>'
        f'<rect x="{100 + min(size, 0):.1f}" y="4" width="{max(abs(size), 0.8):.1f}" height="10" rx="1.5" fill="{color}"/></svg>'
    )


PANELS = (
    ("lr", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
    ("tokens_per_second", "Tokens per second", False),
    ("accuracy", "Accuracy on training batches", False),
    ("mfu", "Model FLOP/s utilisation (MFU)", False),
    ("batch_size", "Samples per step", False),
    ("sequence_length", "Tokens per sample", False),
)
"""Key of the train records, title, whether the scale is logarithmic. The last two only where they change."""


def panels(history: RunHistory) -> str:
    """Everything else that a step logs, two pictures a row."""
    steps, parts, absent = column(history.train, "step"), [], []
    for number, (key, title, log_scale) in enumerate(PANELS):
        values = column(history.train, key)
        if not np.isfinite(values).any():
            absent.append(title.lower() if key != "mfu" else "MFU (the peak of this device is not known: set log.peak_tflops)")
            continue
        if key in ("batch_size", "sequence_length") and np.nanmin(values) == np.nanmax(values):
            continue
        line = Line(key.replace("_", " "), steps, values, color_of(number % 3), width=1.6, band=key not in ("lr", "batch_size"))
        picture = draw(
            Chart(title, [line], "steps", 470, 230, marks=restarts(history), log_scale=log_scale and bool(np.nanmin(values) > 0))
        )
        parts.append(f"<div><h3>{title}</h3>{picture}</div>")
    note = missing(f"Not in the log: {text('; '.join(absent))}.") if absent else ""
    return f'<div class="pair">{"".join(parts)}</div>{note}'

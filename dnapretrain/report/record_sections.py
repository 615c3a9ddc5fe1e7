"""The sections of a run's page that show what happened and what the run is: events, spikes, data, settings, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnapretrain.config import RunConfig, Section
from dnapretrain.report.history import RunHistory
from dnapretrain.report.sections import column, missing, table, text
from dnapretrain.report.spikes import Spike
from dnapretrain.report.tables import short_duration


def events(history: RunHistory) -> str:
    """Checkpoints, starts, stops and whatever else was logged."""
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for record in history.events:
        of_kind.setdefault(record["kind"], []).append(record)
    saved, deleted, parts = of_kind.pop("checkpoint", []), of_kind.pop("deleted", []), []
    if saved:
        stall, size = column(saved, "stall_seconds"), column(saved, "bytes")
        more = f", {_size(size[-1])} each" if np.isfinite(size).any() else ""
        more += f"; training waited {short_duration(float(np.nansum(stall)))} for them in all" if np.isfinite(stall).any() else ""
        more += f"; {len(deleted):,} old ones were deleted" if deleted else ""
        parts.append(
            f"<p>{len(saved):,} checkpoints{more}; the last is of step {saved[-1]['step']:,}: "
            f"<code>{text(saved[-1].get('path', ''))}</code></p>"
        )
    else:
        parts.append(missing("No checkpoint has been written."))
    rows = [(start.get("step", 0), "restart" if number else "start", _start_text(start)) for number, start in enumerate(history.starts)]
    rows += [
        (record.get("step", 0), kind.replace("_", " "), _fields(record))
        for kind, some in of_kind.items()
        for record in some[:50]
        if kind != "bad_step"
    ]
    parts.append(
        table(["step", "event", ""], [[f"{step:,}", text(kind), what] for step, kind, what in sorted(rows, key=lambda row: row[0])], (0,))
    )
    return "".join(parts)


def _start_text(start: Mapping[str, Any]) -> str:
    said = f"from <code>{text(start['resumed_from'])}</code>" if start.get("resumed_from") else "new run"
    if start.get("lost_steps"):
        said += f"; {start['lost_steps']:,} logged steps beyond it were lost and done again"
    return said + "".join(f"<br>{text(remark)}" for remark in start.get("remarks", []))


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _fields(record: Mapping[str, Any]) -> str:
    # Of one rank, and where ranks were alike, the slowest says nothing more.
    unsaid = {"kind", "step"} | ({"slowest"} if record.get("slowest") == record.get("seconds") else set())
    return text(", ".join(f"{key} {_value(value)}" for key, value in record.items() if key not in unsaid))[:600]


def _value(value: Any) -> str:
    """Times of parts, as of a start, are read more easily than a dictionary."""
    if isinstance(value, Mapping) and all(isinstance(part, float) for part in value.values()):
        return f"({', '.join(f'{name} {part:.2f}' for name, part in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spikes(found: Sequence[Spike], count: int, bad_steps: Sequence[Mapping[str, Any]], reason: str) -> str:
    """Steps that stand out, and bad steps of the log, with the loci they read."""
    parts = []
    if bad_steps:
        rows = []
        for record in bad_steps[:50]:
            samples = "<br>".join(
                f"sample {sample.get('sample')}: <code>{text(', '.join(map(str, sample.get('loci', [])[:4])))}</code>"
                for sample in record.get("samples", [])[:4]
            )
            rows.append([f"{record.get('step', 0):,}", text(record.get("reason", "")), text(record.get("action", "")), samples])
        parts.append("<h3>Bad steps</h3>" + table(["step", "reason", "what was done", "samples and loci"], rows, (0,)))
    if not found:
        return "".join(parts) + '<p class="note">No step stands out from the 100 before it in loss or gradient norm.</p>'
    rows = []
    for spike in found:
        loci = "<br>".join(f"<code>{text(locus)}</code>" for locus in spike.loci)
        more = f"<br>first {len(spike.loci)} of {spike.num_samples} samples" if spike.num_samples > len(spike.loci) else ""
        what = text(spike.what) + ("" if spike.updated else "; update left out")
        rows.append([f"{spike.step:,}", what, f"{spike.value:.4g}", f"{spike.usual:.4g}", loci + more])
    parts.append(table(["step", "spike of", "value", "mean before", "loci that it read"], rows, (0, 2, 3)))
    if count > len(found):
        parts.append(f'<p class="note">The highest {len(found)} of {count}.</p>')
    parts.append('<p class="note">All samples of a step: <code>dnapretrain locate RUN --step N</code>.</p>')
    return "".join(parts) + (missing(text(reason)) if reason else "")


def data_card(start: Mapping[str, Any]) -> str:
    """Where the bases come from and where they went."""
    data = start.get("data")
    if not data:
        return missing("The log has no start record with data.")
    reports = data.get("lengths", [data])
    rows = []
    for report in reports:
        for source in report.get("sources", []):
            left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in source["bases_left_out"].items() if count)
            share = "-" if source.get("share") is None else f"{source['share']:.1%}"
            numbers = [f"{source[key]:,}" for key in ("bases", "bases_used", "bases_other_sides")]
            rows.append([f"<code>{text(source['prefix'])}</code>", share, f"{source['samples']:,}", *numbers, left_out or "nothing"])
    head = ["training shard", "share", "samples per epoch", "bases", "used", "held out", "left out"]
    files = start.get("regions") or []
    parts = [
        table(head, rows, (1, 2, 3, 4, 5)),
        f'<p class="note">Data digest <code>{text(start.get("data_digest", "not recorded"))}</code></p>',
    ]
    if files:
        rows = [
            [text(file["name"]), f"<code>{text(file['path'])}</code>", f"{file['names']:,}", f"{len(file['names_left_out']):,}"]
            for file in files
        ]
        parts.append("<h3>Regions</h3>" + table(["name", "file", "contigs", "names left out"], rows, (2, 3)))
    return "".join(parts)


def configuration(config: Mapping[str, Any]) -> str:
    """Every setting; those at their defaults are pale."""
    if not config:
        return missing("The log has no start record with settings.")
    parts = []
    for name, section in config.items():
        if not isinstance(section, dict):
            continue
        kind = RunConfig.model_fields[name].annotation if name in RunConfig.model_fields else None
        rows = "".join(_setting(key, value, kind) for key, value in section.items())
        parts.append(f"<div><h3>{text(name)}</h3><dl>{rows}</dl></div>")
    return f'<details open><summary>All settings (pale: defaults)</summary><div class="columns">{"".join(parts)}</div></details>'


def _setting(key: str, value: Any, kind: Any) -> str:
    default = kind.model_fields[key].default if isinstance(kind, type) and issubclass(kind, Section) and key in kind.model_fields else ...
    plain = default.model_dump(mode="json") if isinstance(default, Section) else list(default) if isinstance(default, tuple) else default
    if isinstance(value, dict) and value and not isinstance(next(iter(value.values())), dict):
        shown = ", ".join(f"{name}: {item}" for name, item in value.items() if not isinstance(plain, dict) or plain.get(name) != item)
    else:
        shown = _as_yaml(value)
    same = value == plain
    shown = "default" if same and isinstance(value, dict) else shown or "-"
    return f"<dt>{text(key)}</dt><dd{' class=same' if same else ''}>{text(shown)}</dd>"


def _as_yaml(value: Any) -> str:
    """As settings are written: null and true; a dictionary without what is null in it."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_inner(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return f"[{', '.join(map(_inner, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _inner(value: Any) -> str:
    return f"{{{_as_yaml(value)}}}" if isinstance(value, dict) else _as_yaml(value)


def environment(start: Mapping[str, Any]) -> str:
    """What the run ran on."""
    rows = dict(start.get("paths", {}))
    rows |= {name: start[key] for name, key in (("peak for MFU", "peak"), ("FLOPs", "flops_formula")) if start.get(key)}
    if not rows:
        return missing("The log has no start record with versions and paths.")
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in rows.items())}</dl>"

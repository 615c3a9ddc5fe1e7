"""The results of experiment.sh as a table, and as tokenizers.png: how far each model continues held-out sequence without a mistake.

python examples/tokenizers/table.py OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dnapretrain.adapt.pictures import GRID, pyplot
from dnapretrain.report.charts import COLORS

SHOWN = (1, 2, 4, 6, 8, 12, 16)
SUFFIX = ".result.json"


def read(output: Path) -> dict[str, dict[str, Any]]:
    """Contestant -> its held-out figures: k-mers by k, then byte pairs by size; `seconds`: of its steps of training."""
    found = {}
    for path in output.glob(f"*{SUFFIX}"):
        name = path.name.removesuffix(SUFFIX)
        found[name] = json.loads(path.read_text())["valid"]
        steps: dict[int, float] = {}
        for line in (output / name / "log.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "train":  # a step that was trained again counts once
                steps[record["step"]] = record["seconds"]
        found[name]["seconds"] = sum(steps.values())
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("bpe"), int("".join(filter(str.isdigit, item[0]))))))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    heads = ["tokens", "bits per base", *(f"next {size}" for size in SHOWN), "training, min"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, one in found.items():
        shares = [f"{one['recovery']['by_length'][size - 1]:.3f}" for size in SHOWN]
        lines.append("| " + " | ".join([name, f"{one['bits_per_base']:.4f}", *shares, f"{one['seconds'] / 60:.1f}"]) + " |")
    return "\n".join(lines)


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """A line per contestant: the share of prompts against the bases that are all right."""
    plt, style = pyplot()
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.6, 4.4), dpi=150, layout="constrained")
        for number, (name, one) in enumerate(found.items()):
            shares = one["recovery"]["by_length"]
            dash = "--" if name.startswith("bpe") else "-"
            color = COLORS[number % len(COLORS)]
            axes.plot(range(1, len(shares) + 1), shares, dash, color=color, marker=".", label=name)
        prompts = next(iter(found.values()))["recovery"]["num_prompts"]
        axes.set(xlabel="K: next bases, all of them right", ylabel=f"share of {prompts:,} held-out prompts", xticks=SHOWN)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid(color=GRID)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    results = read(output)
    print(table(results))
    draw(output / "tokenizers.png", results)

"""The part of a model card that says what the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnapretrain.report.tables import markdown_table

MOST_ROWS = 30
"""Input files that the card lists; all are in the JSON file beside it."""
UNKNOWN = "-"
SPLIT_SETTINGS = {
    "contig": ("valid_contigs", "test_contigs"),
    "bed": ("valid_bed", "test_bed"),
    "block": ("block_size", "valid_fraction", "test_fraction", "seed"),
    "cluster": ("clusters", "valid_fraction", "test_fraction", "seed"),
}
"""Those that each way to split reads."""


def data_section(data: dict[str, Any], file: str) -> str:
    """Markdown of what `training_data` found; `file` is where all of it is."""
    lines = [_digest_line(data), ""]
    shards = [*data["sources"], *data["held_out_shards"].values()]
    rows = [row for shard in shards for row in _input_rows(shard)]
    if rows:
        lines.append(markdown_table(rows[:MOST_ROWS]))
        if len(rows) > MOST_ROWS:
            lines.append(f"{len(rows) - MOST_ROWS:,} further files are in `{file}`.\n")
    lines += [
        f"- `{Path(shard['prefix']).name}`: **no manifest** ({shard['missing']}): what it holds is not known.\n"
        for shard in shards
        if "missing" in shard
    ]
    dropped = [f"- `{Path(shard['prefix']).name}`: {_cleaning(shard['manifest'])}" for shard in shards if shard["manifest"]]
    lines += ["Kept and left out while the files were read:\n", *dropped, ""] if dropped else []
    locks = {shard["corpus"]["lock"]: shard["corpus"] for shard in shards if "corpus" in shard}
    lines += [f"- corpus `{lock['name']}`: `{Path(path).name}`, XXH3-128 `{lock['xxh3_128']}`\n" for path, lock in locks.items()]
    lines += [_split_line(data["split"]), ""]
    used = [_used_row(source) for source in data["sources"] if source["in_run"]]
    lines.append(
        markdown_table(used) if used else "How many bases were used and held out is not recorded (no log beside the checkpoint).\n"
    )
    lines += [f"- held-out shard `{name}`: `{Path(shard['prefix']).name}`\n" for name, shard in data["held_out_shards"].items()]
    lines.append(f"Digests of every file, cleaning rules and counts: [`{file}`]({file}).\n")
    return "\n".join(lines)


def _digest_line(data: dict[str, Any]) -> str:
    check = data["digest_check"]
    if check == "equal":
        told = "Found equal to that of the shards described below when this folder was written."
    elif check == "differs":
        told = "**The shards found when this folder was written have another digest: what follows describes them, not the training data.**"
    else:
        told = f"It was {check}; what follows is what the manifests said when this folder was written."
    digest = f"`{data['data_digest']}`" if data["data_digest"] else "not recorded"
    return f"Data digest (XXH3-128 of bases, weights, split, cutting rules, tokenizer and seed): {digest}. {told}"


def _input_rows(shard: dict[str, Any]) -> list[dict[str, Any]]:
    if not shard["manifest"]:
        return []
    return [
        {
            "shard": f"`{Path(shard['prefix']).name}`",
            "file": f"`{Path(str(source.get('path', UNKNOWN))).name}`",
            "assembly": source.get("assembly", UNKNOWN),
            "accession": source.get("accession", UNKNOWN),
            "species": source.get("species", UNKNOWN),
            "bases kept": source["counts"]["kept_bases"],
            "of": source["counts"]["total_bases"],
            "XXH3-128": f"`{source.get('xxh3_128', UNKNOWN)}`",
        }
        for source in shard["manifest"]["inputs"]
        if "counts" in source
    ]


def _cleaning(manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    dropped = [f"{reason} {number:,}" for reason, number in counts.get("dropped_bases", {}).items()]
    documents = [f"{reason} {number:,}" for reason, number in counts.get("dropped_documents", {}).items()]
    parts = [f"{counts.get('kept_bases', 0):,} bases in {counts.get('documents', 0):,} documents"]
    parts += [f"bases left out: {', '.join(dropped)}"] if dropped else []
    parts += [f"documents left out: {', '.join(documents)}"] if documents else []
    kept = ("lower case", "lower_case"), ("N", "n"), ("other letters", "ambiguous")
    parts += [", ".join(f"{name} {counts[key]:,}" for name, key in kept if key in counts)]
    parts += [f"made by {key} (details in the JSON file)" for key in ("extraction", "haplotypes") if key in manifest]
    parts += [f"{len(manifest['skipped']):,} files skipped for errors"] if manifest.get("skipped") else []
    return "; ".join(part for part in parts if part) + f"; digest `{manifest['xxh3_128']}`"


def _split_line(split: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {_plain(split[key])}" for key in SPLIT_SETTINGS.get(split["by"], ()) if key in split)
    return (
        f"Split: by {split['by']}{f' ({settings})' if settings else ''}."
        if split["by"] != "none"
        else "Split: nothing was held out of these shards."
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"`{Path(value).name}`" if isinstance(value, str) else str(value)


def _used_row(source: dict[str, Any]) -> dict[str, Any]:
    run = source["in_run"]
    left_out = ", ".join(f"{reason} {number:,}" for reason, number in run["bases_left_out"].items() if number)
    return {
        "shard": f"`{Path(source['prefix']).name}`",
        "share of samples": float(run["share"]),
        "training bases": run["bases_used"],
        "held out (other sides)": run["bases_other_sides"],
        "left out": left_out or "0",
    }

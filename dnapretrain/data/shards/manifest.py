"""The manifest of a base shard, as preprocess and merge write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnapretrain import __version__
from dnapretrain.data.shards.shard import FORMAT, FORMAT_VERSION
from dnapretrain.data.shards.writer import FileWriter


def base_manifest(
    cleaning: dict[str, Any],
    sources: Sequence[dict[str, Any]],
    skipped: Sequence[dict[str, Any]],
    longest_shortest: tuple[int, int],
    files: dict[str, Any],
) -> dict[str, Any]:
    """All keys in their order; the counts are those of the sources together."""
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "content": "bases",
        "cleaning": cleaning,
        "counts": sum_counts(source["counts"] for source in sources),
        "longest_document": longest_shortest[0],
        "shortest_document": longest_shortest[1],
        "files": files,
        "sources": list(sources),
    }
    if skipped:
        manifest["skipped"] = list(skipped)
    return manifest


def write_manifest(staging: Path, manifest: dict[str, Any]) -> None:
    """Stage the last file of a shard."""
    with FileWriter(staging / "json") as writer:
        writer.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def letter_counts(letters: NDArray[np.int64]) -> dict[str, int]:
    """What `counts` says of the letters kept, from the occurrences of the 256 byte values."""
    return {
        "lower_case": int(letters[ord("a") : ord("z") + 1].sum()),
        "n": int(letters[ord("N")] + letters[ord("n")]),
        "ambiguous": int(letters.sum() - letters[list(b"ACGTNacgtn")].sum()),
    }


def sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Key by key, sections too."""
    columns = list(counts)
    return {
        key: sum_counts(column[key] for column in columns) if isinstance(first, dict) else sum(column[key] for column in columns)
        for key, first in columns[0].items()
    }
